"""Memory in front of Redis: hits without a round trip, in a copy that Redis itself keeps true.

Redis tells every process which keys have changed (see `tracking`). While it cannot be heard, nothing is answered from
memory; when it is heard again, memory begins empty.
"""

import time
from collections.abc import Callable, Sequence
from typing import Final

from redis.asyncio import Redis

from asgi_enhance.cache.core import Fetch, Shelf
from asgi_enhance.cache.entry import Entry
from asgi_enhance.cache.memory import MemoryCache
from asgi_enhance.cache.redis import RedisCache, RedisRunning
from asgi_enhance.cache.request import Key, Place, Request, digest
from asgi_enhance.cache.tracking import Tracking
from asgi_enhance.cache.values import Value
from asgi_enhance.errors import ConfigError
from asgi_enhance.options import checked
from asgi_enhance.redis import RedisManager


@checked
class TieredCache(RedisCache):
    """A RedisCache with a bounded copy of its own in front.

    redis:        a RedisManager, or a URL, of one server or a Sentinel. Default: the environment's REDIS_URL.
    max_bytes:    how much the copy may hold, in bytes. Default 64 MiB.
    max_entries:  how many URLs and values the copy may hold. Default 100 000.
    Everything else is RedisCache's.
    """

    def __init__(
        self,
        redis: RedisManager | str | None = None,
        *,
        max_bytes: int = 64 << 20,
        max_entries: int = 100_000,
        max_variants: int = 64,
        ttl: float = 300.0,
        collapse_timeout: float = 10.0,
        hit_for_miss: float = 10.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(
            redis,
            max_variants=max_variants,
            ttl=ttl,
            collapse_timeout=collapse_timeout,
            hit_for_miss=hit_for_miss,
            clock=clock,
        )
        if self.manager.clustered:
            raise ConfigError("redis: a TieredCache needs one server or a Sentinel; a cluster is not tracked")
        self.near = MemoryCache(max_bytes=max_bytes, max_entries=max_entries, max_variants=max_variants, clock=clock)
        self.near.stats = self.stats
        self.near.purges = self.purges
        self._tracking: Tracking | None = None
        self._copied: dict[str, Place | str] = {}  # Redis' name of a copy → the copy's own
        self._reading: dict[str, int] = {}  # Redis' name → how many are reading it now
        self._changed: set[str] = set()  # what has changed while it was being read

    async def _start(self) -> RedisRunning:
        running = await super()._start()
        prefix = self.manager.key("cache", "")
        client = self.manager.client
        assert isinstance(client, Redis)
        self._tracking = Tracking(client, prefix, self._on_change, self._forget_all)
        running.tasks.spawn(self._tracking.run(), name="asgi_enhance.cache.tracking")
        return running

    async def _stop(self, value: RedisRunning) -> None:
        self._tracking = None
        self._forget_all()
        await super()._stop(value)

    @property
    def is_tracking(self) -> bool:
        """Whether Redis tells what changes."""
        return self._tracking is not None and self._tracking.current

    @property
    def is_current(self) -> bool:
        """Whether the copy may be believed."""
        return self.is_tracking and not self._news.behind

    def glance(self, key: Key) -> Shelf | None:
        return self.near.glance(key) if self.is_current else None

    def peek(self, request: Request) -> Entry | None:
        return self.near.peek(request) if self.is_current else None

    async def _find(self, request: Request) -> Entry | None:
        # A user's own goes with a write to the URL, and with one to itself
        read = {self._key(digest(request.key)): request.key, self._place(request): request.place}
        for name in read:
            self._begin(name)
        try:
            entry = await super()._find(request)
        finally:
            untouched = all([self._end(name) for name in read])
        if entry is not None and untouched and self.near.put(request, entry):
            for name, place in read.items():
                self._note(name, place)
        return entry

    async def _put(self, request: Request, entry: Entry, fetch: Fetch) -> bool:
        # The copy is made by the first hit: the word that the key has changed comes back to the writer as well
        try:
            return await super()._put(request, entry, fetch)
        finally:
            self._outdate(self._place(request), request.place)

    async def _drop_keys(self, keys: Sequence[Key]) -> None:
        try:
            await super()._drop_keys(keys)
        finally:
            for key in keys:
                self._outdate(self._key(digest(key)), key)

    async def _value(self, key: str) -> Value | None:
        if self.is_current and (copy := self.near.peek_value(key)) is not None:
            return copy
        name = self._value_key(key)
        self._begin(name)
        try:
            value = await super()._value(key)
        finally:
            untouched = self._end(name)
        if value is not None and untouched:
            self.near.put_value(key, value)
            self._note(name, key)
        return value

    async def _write(self, key: str, value: Value, *, under_lease: bool = False) -> None:
        try:
            await super()._write(key, value, under_lease=under_lease)
        finally:
            self._outdate(self._value_key(key), key)

    async def _erase(self, keys: Sequence[str]) -> None:
        try:
            await super()._erase(keys)
        finally:
            for key in keys:
                self._outdate(self._value_key(key), key)

    # -- what Redis says ------------------------------------------------------------------------------------------

    def _begin(self, name: str) -> None:
        self._reading[name] = self._reading.get(name, 0) + 1

    def _end(self, name: str) -> bool:
        """Whether what has just been read is still what Redis has, as far as it could be told."""
        left = self._reading.get(name, 0) - 1
        untouched = self.is_current and name not in self._changed
        if left > 0:
            self._reading[name] = left
        else:
            self._reading.pop(name, None)
            self._changed.discard(name)
        return untouched

    def _note(self, name: str, key: Place | str) -> None:
        self._copied[name] = key
        if len(self._copied) > SLACK * max(self.near.stats.entries, 1000):
            self._copied = {name: key for name, key in self._copied.items() if self.near.holds(key)}

    def _outdate(self, name: str, key: Place | str) -> None:
        """Whoever wrote does not wait for Redis' word: not even what was read while it was written is believed."""
        if name in self._reading:
            self._changed.add(name)
        self.near.forget(key)

    def _on_change(self, name: bytes | None) -> None:
        if name is None:
            self._forget_all()
            return
        text = name.decode("utf-8", "replace")
        if text in self._reading:
            self._changed.add(text)
        key = self._copied.pop(text, None)
        if key is not None:
            self.near.forget(key)
        elif text == self._news.key:
            self._news.happen()

    def _forget_all(self) -> None:
        self.near.clear()
        self._copied.clear()
        self._changed.update(self._reading)
        self._news.happen()


SLACK: Final = 2
"""How many more names than copies are remembered before those of evicted copies are swept out."""
