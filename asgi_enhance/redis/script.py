"""Lua scripts: sent by their SHA-1, and once more in full where a server does not have them."""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asgi_enhance.redis.manager import Argument, RedisManager


class Script:
    """A script and the manager that runs it: `await script(keys=[…], args=[…])`."""

    __slots__ = ("_manager", "sha", "text")

    def __init__(self, manager: "RedisManager", text: str) -> None:
        self._manager = manager
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    async def __call__(
        self, keys: Sequence["Argument"] = (), args: Sequence["Argument"] = (), *, idempotent: bool = False
    ) -> Any:
        try:
            return await self._manager.execute("EVALSHA", self.sha, len(keys), *keys, *args, idempotent=idempotent)
        except Exception as error:
            # The server's own words: a script that fails with NOSCRIPT itself has run.
            if getattr(error, "status_code", None) != "NOSCRIPT" or not str(error).startswith("No matching script"):
                raise
        self._manager.stats.scripts_loaded += 1
        # It has not run. EVAL runs it and leaves it in the cache of the very server that lacked it.
        return await self._manager.execute("EVAL", self.text, len(keys), *keys, *args, idempotent=idempotent)
