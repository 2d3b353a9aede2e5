"""What Redis has to hear before it is believed again, and what is to be heard from it first: writes and purges.

Purges are numbered facts in a sorted set. A word on a channel says that there are new ones; whoever has heard it, or
cannot be sure that he would have, reads the set before he answers from the store.
"""

import asyncio
import contextlib
from importlib.resources import files
from typing import Any, Final

import msgspec
from redis.exceptions import RedisError

from asgi_enhance.cache.policy.purges import Fact, Purges
from asgi_enhance.errors import RedisUnavailable
from asgi_enhance.redis import RedisManager, Subscription

FAILURES: Final = (RedisUnavailable, RedisError)
MAX_PURGES: Final = 10_000
MAX_OWED: Final = 10_000
RETRY: Final = 1.0
"""Seconds between attempts to tell what could not be told."""
FENCE: Final = 600_000
"""Milliseconds for which a write keeps out responses that were asked for before it."""


class News:
    """The news of one cache. Whatever fails in Redis is raised, except by `tell`, which remembers it."""

    def __init__(self, manager: RedisManager) -> None:
        self.purges = Purges(MAX_PURGES)
        """As far as they are known here."""
        self.key = manager.key("cache", "purges")
        """Of the sorted set; the channel has the same name."""
        self._manager = manager
        self._happened = 1  # how often there was news of purges
        self._heard = 0  # up to which of them the purges are known
        self._owed: dict[str | Fact, None] = {}
        self._invalidate, self._record = (
            manager.script(files("asgi_enhance.cache").joinpath(f"{name}.lua").read_text())
            for name in ("invalidate", "purge")
        )

    def happen(self, _payload: bytes = b"") -> None:
        """There are purges that are not known here, or there may be."""
        self._happened += 1

    @property
    def behind(self) -> bool:
        return self._heard != self._happened

    def subscribe(self) -> Subscription:
        return self._manager.subscribe(self.key, self.happen, self.happen)

    async def tell(self, news: str | Fact) -> bool:
        """Tell Redis of a purge, or of a write to the URL that has this key. False: it will be told later."""
        try:
            await self._say(news)
        except FAILURES:
            if len(self._owed) >= MAX_OWED:
                self._owed = {_EVERYTHING: None}
            self._owed[news] = None
            return False
        return True

    async def catch_up(self, ear: Subscription, reading: asyncio.Lock) -> None:
        """Tell what could not be told, hear what was not heard."""
        await self._pay()
        if self.behind or not ear.is_ready:
            async with reading:  # nobody goes on before it is known, whoever reads it
                if self.behind or not ear.is_ready:
                    happened = self._happened
                    await self._read()
                    self._heard = happened

    async def settle(self) -> None:
        """Tell what could not be told, also for a process that asks nothing more."""
        while self._owed:
            await asyncio.sleep(RETRY)
            with contextlib.suppress(*FAILURES):
                await self._pay()

    async def _pay(self) -> None:
        while self._owed:
            news = next(iter(self._owed))
            await self._say(news)
            self._owed.pop(news, None)

    async def _say(self, news: str | Fact) -> None:
        if isinstance(news, Fact):
            everything, fact = _fact.encode(_EVERYTHING), _fact.encode(news)
            await self._record(keys=[self.key], args=(self.key, MAX_PURGES, everything, fact))
        else:
            await self._invalidate(keys=[news], args=[FENCE])

    async def _read(self) -> None:
        last = self.purges.number
        reply = await self._manager.execute("ZRANGEBYSCORE", self.key, last, "+inf", "WITHSCORES", idempotent=True)
        recorded = [(_fact_of(member), int(float(score))) for member, score in _pairs(reply)]
        for fact, number in recorded:
            if number > last:
                self.purges.add(fact, number)


def _fact_of(member: bytes) -> Fact:
    """What was purged; everything, if another release has written what cannot be read here."""
    try:
        return _fact_decoder.decode(member)
    except msgspec.DecodeError:
        return _EVERYTHING


def _pairs(reply: list[Any]) -> list[tuple[bytes, Any]]:
    """Members and scores, which RESP2 gives in one list and RESP3 in pairs."""
    if reply and isinstance(reply[0], list | tuple):
        return [(member, score) for member, score in reply]
    return list(zip(reply[::2], reply[1::2], strict=True))


_EVERYTHING: Final = Fact("all", "", False)
_fact = msgspec.msgpack.Encoder()
_fact_decoder = msgspec.msgpack.Decoder(Fact)
