"""Subscriptions: what a caller holds, and which channels a connection is to be subscribed to."""

import asyncio
import logging
from collections.abc import Callable

from asgi_enhance.errors import RedisUnavailable

logger = logging.getLogger("asgi_enhance.redis")


class Subscription:
    """One listener on one channel. It lasts until `close()`, whatever happens to the connection.

    There may be one for every client of a process: it is kept small.
    """

    __slots__ = (
        "_closed",
        "_confirmed",
        "_on_gap",
        "_on_message",
        "_patience",
        "_release",
        "_waited_for",
        "_was_confirmed",
        "channel",
        "sharded",
    )

    def __init__(
        self,
        channel: bytes,
        on_message: Callable[[bytes], None],
        on_gap: Callable[[], None] | None,
        *,
        sharded: bool,
        patience: float,
        release: Callable[["Subscription"], None],
    ) -> None:
        self.channel = channel
        self.sharded = sharded
        self._on_message = on_message
        self._on_gap = on_gap
        self._patience = patience
        self._release = release
        self._confirmed = False
        self._waited_for: asyncio.Event | None = None  # its confirmation, while somebody waits
        self._was_confirmed = False
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "ready" if self._confirmed else "waiting"
        return f"<Subscription {self.channel!r} {state}>"

    @property
    def is_ready(self) -> bool:
        """Whether the server has confirmed it on the present connection."""
        return self._confirmed

    async def ready(self) -> None:
        """Wait until the server has confirmed it; `RedisUnavailable` if that takes too long (it goes on trying)."""
        if self._confirmed:
            return
        self._waited_for = self._waited_for or asyncio.Event()
        try:
            async with asyncio.timeout(self._patience):
                await self._waited_for.wait()
        except TimeoutError:
            raise RedisUnavailable(f"redis has not confirmed {self!r} within {self._patience:g} s") from None

    async def close(self) -> None:
        """End it: no message is delivered after this. Idempotent."""
        if not self._closed:
            self._closed = True
            self._release(self)

    # for the connection

    def deliver(self, payload: bytes) -> None:
        try:
            self._on_message(payload)
        except Exception:
            logger.exception("a listener on %r failed", self.channel)

    def confirm(self) -> None:
        """The server has confirmed; if it did so before, what came in between is missing."""
        if self._confirmed:
            return
        self._confirmed = True
        if self._waited_for is not None:
            self._waited_for.set()
            self._waited_for = None
        gap, self._was_confirmed = self._was_confirmed, True
        if gap and self._on_gap is not None:
            try:
                self._on_gap()
            except Exception:
                logger.exception("a listener on %r failed", self.channel)

    def unconfirm(self) -> None:
        self._confirmed = False
