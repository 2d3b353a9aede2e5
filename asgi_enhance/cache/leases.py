"""Who fetches, among all processes: a lease in Redis, and the word that wakes those who wait for it.

A lease is a key with a token that only its holders know. After a while others are granted it as well, so a holder that
dies blocks nobody for long; it stays in Redis for longer, so that a write can end it. In its place there may be a mark
that says: do not wait for this, it is not for sharing.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Hashable
from importlib.resources import files
from typing import Final

from redis.exceptions import RedisError

from asgi_enhance.cache.recent import Recent
from asgi_enhance.cache.valuecache import Claim
from asgi_enhance.errors import RedisUnavailable
from asgi_enhance.redis import RedisManager

POLL: Final = 0.1
"""Seconds after which a waiter looks for himself, should the word that wakes him be lost."""
REMEMBERED: Final = 3600.0
"""Seconds in which a write elsewhere keeps out what is being computed; what takes longer is not kept."""
NOT_FOR_SHARING: Final = b"-"
MAX_OWED: Final = 1000
"""How many leases are remembered that Redis is still to be given back."""


class Leases:
    """The leases of one cache. Whatever fails in Redis is raised."""

    def __init__(self, manager: RedisManager, *, duration: float) -> None:
        self.channel = manager.key("cache", "released")
        self._manager = manager
        self._alone = int(duration * 1000)  # ms
        self._remembered = int(max(duration, REMEMBERED) * 1000)
        self._held: dict[Hashable, str] = {}  # tokens
        self._owed: Recent[str, str] = Recent(MAX_OWED)  # lease → token: given back, or perhaps granted, unheard
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._claim, self._release = (
            manager.script(files("asgi_enhance.cache").joinpath(f"{name}.lua").read_text())
            for name in ("claim", "release")
        )

    async def claim(self, name: Hashable, give_up: float) -> Claim:
        lease, token = lease_of(name), secrets.token_hex(8)
        await self._give_back()
        heard = asyncio.Event()
        waiting = self._waiting.setdefault(lease, set())
        waiting.add(heard)  # before the lease is tried, so that no word is missed
        try:
            try:
                granted, held = await self._claim(keys=[lease], args=[token, self._alone, self._remembered])
            except asyncio.CancelledError:
                with contextlib.suppress(RedisUnavailable, RedisError):  # it may have been granted on the way
                    await self._release(keys=[lease], args=[token, 0, self.channel])
                raise
            except RedisUnavailable as error:
                if error.maybe_executed:
                    self._owed.put(lease, token)
                raise
            if granted:
                self._held[name] = held.decode()
                return Claim.GRANTED
            patience = give_up - time.monotonic()
            if held == NOT_FOR_SHARING or patience <= 0:
                return Claim.PASS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(patience, POLL)):
                    await heard.wait()
            return Claim.AGAIN
        finally:
            waiting.discard(heard)
            if not waiting:
                self._waiting.pop(lease, None)

    def token(self, name: Hashable) -> str | None:
        """The token of a lease that is held; None if a write from here has ended it."""
        return self._held.get(name)

    def forget(self, name: Hashable) -> None:
        """It was ended by a write to what it is on, and is not to be given back."""
        self._held.pop(name, None)

    async def release(self, name: Hashable, *, mark: float) -> None:
        """Give it back; for `mark` seconds nobody shall wait for it."""
        token = self._held.pop(name, None)
        if token is not None:
            try:
                await self._release(keys=[lease_of(name)], args=[token, int(mark * 1000), self.channel])
            except RedisUnavailable:
                self._owed.put(lease_of(name), token)
                raise

    async def _give_back(self) -> None:
        """What Redis has not heard of, before anybody waits for it: nobody is at it, and it may last a while yet."""
        while self._owed:
            lease, token = next(iter(self._owed.items()))
            await self._release(keys=[lease], args=[token, 0, self.channel])
            self._owed.pop(lease, None)

    def on_released(self, payload: bytes) -> None:
        for heard in self._waiting.get(payload.decode(), ()):
            heard.set()


def lease_of(name: Hashable) -> str:
    """The key of the lease on what has this name."""
    return f"{name}:lease"
