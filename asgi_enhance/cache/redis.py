"""A cache in Redis: shared by processes and hosts, one round trip a hit.

All variants of a URL are one hash, so one HMGET brings the variant that is wanted together with the list of Varys
that says whether it was the right one to want and, should it be a miss, with the last write to the URL. Where users
have their own, each has such a hash beside the URL's, which counts while both are of one generation. Frames are bytes
that this version wrote or they are nothing. Redis away or slow is a miss, at once: what could not be told to it
meanwhile is told before it is believed again.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from importlib.resources import files
from typing import Final

import msgspec
from cachetools import LRUCache

from asgi_enhance.cache import entry as entries
from asgi_enhance.cache import values
from asgi_enhance.cache.core import Cache, Fetch
from asgi_enhance.cache.entry import Entry
from asgi_enhance.cache.leases import Leases, lease_of
from asgi_enhance.cache.news import FAILURES, News
from asgi_enhance.cache.policy.purges import Fact, Verdict
from asgi_enhance.cache.policy.vary import VaryNames, VaryValues
from asgi_enhance.cache.request import Key, Request, digest
from asgi_enhance.cache.valuecache import Claim, Running
from asgi_enhance.cache.values import Value
from asgi_enhance.errors import ConfigError
from asgi_enhance.options import checked
from asgi_enhance.redis import RedisManager, Subscription

NO_FENCE: Final = b"0"
PLAIN: Final = "-"
"""The field of the one variant of a URL whose responses do not vary."""
NO_VARY: Final[tuple[VaryNames, ...]] = ((),)
_PLAIN: Final[dict[str, VaryValues]] = {PLAIN: ()}


class RedisRunning(Running):
    """What a started RedisCache has on its loop: besides tasks, an ear for purges and for what others have fetched."""

    def __init__(self, purges: Subscription, released: Subscription) -> None:
        super().__init__()
        self.purges = purges
        self.released = released
        self.catching_up = asyncio.Lock()
        self.settling: asyncio.Task[None] | None = None


@checked
class RedisCache(Cache[RedisRunning]):
    """A cache in Redis or Valkey.

    redis:        a RedisManager, or a URL. Default: the environment's REDIS_URL.
    redis_url:    the URL by another name.
    max_variants: how many variants of one URL, for each user; the oldest goes when there are more. Default 64.
    ttl:          how long a value is kept unless `set` says otherwise, in seconds. Default 300.
    collapse_timeout: how long anybody waits for what somebody else fetches, in seconds; one second later another may
                  fetch it as well. Default 10.
    hit_for_miss: how long nobody waits any more after an answer that was for one client only, in seconds. Default 10.
    clock:        the time of day in seconds, for tests. All processes should agree on it.
    """

    remote = True

    def __init__(
        self,
        redis: RedisManager | str | None = None,
        *,
        redis_url: str | None = None,
        max_variants: int = 64,
        ttl: float = 300.0,
        collapse_timeout: float = 10.0,
        hit_for_miss: float = 10.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(ttl=ttl, collapse_timeout=collapse_timeout, hit_for_miss=hit_for_miss, clock=clock)
        if max_variants < 1:
            raise ConfigError(f"max_variants must be at least 1, not {max_variants!r}")
        if redis is not None and redis_url is not None:
            raise ConfigError("redis and redis_url are the same thing: give one of them")
        self.manager = manager = RedisManager.of(redis or redis_url) or RedisManager()
        self.needs = (manager,)
        self.max_variants = max_variants
        self.max_connections = 10
        self._news = News(manager)
        self.purges = self._news.purges
        self._prefix = manager.key("cache", "r", "")
        self._values = manager.key("cache", "v", "")
        self._varies: LRUCache[str, tuple[bytes | None, tuple[VaryNames, ...]]] = LRUCache(10_000)
        self._leases = Leases(manager, duration=collapse_timeout + 1)
        self._look, self._store, self._keep = (
            manager.script(files("asgi_enhance.cache").joinpath(f"{name}.lua").read_text())
            for name in ("find", "store", "keep")
        )

    @property
    def max_connections(self) -> int:
        """For code that sizes a pool. Here there is none to size: on each event loop all commands share one connection.

        Besides it there are one for subscriptions and, in a TieredCache, one for tracking, whatever is set here.
        """
        return self._max_connections

    @max_connections.setter
    def max_connections(self, limit: int) -> None:
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ConfigError(f"max_connections must be a number of at least 1, not {limit!r}")
        self._max_connections = limit

    async def _start(self) -> RedisRunning:
        self._news.happen()
        return RedisRunning(
            self._news.subscribe(),
            self.manager.subscribe(self._leases.channel, self._leases.on_released),
        )

    async def _stop(self, value: RedisRunning) -> None:
        await value.tasks.cancel()
        await value.purges.close()
        await value.released.close()

    # -- responses ------------------------------------------------------------------------------------------------

    def peek(self, request: Request) -> Entry | None:
        return None

    async def lookup(self, request: Request) -> Entry | None:
        try:
            await self._catch_up()
            entry = await self._find(request)
            if entry is None and request.url[4] and await self._recall(request.url):
                self.simplify(request)
                entry = await self._find(request)
            return entry
        except FAILURES:
            self.stats.store_errors += 1
            return None

    async def _find(self, request: Request) -> Entry | None:
        place = self._place(request)
        known, varies = self._varies.get(place, (None, NO_VARY))
        wanted = _fields(request, varies)
        frames: list[bytes | None]
        if request.partition:
            keys = (self._key(digest(request.key)), place)
            spoken, fence, *frames = await self._look(keys=keys, args=[*wanted], idempotent=True)
        else:
            spoken, fence, *frames = await self.manager.execute("HMGET", place, "s", "f", *wanted, idempotent=True)
        request.fence = fence or NO_FENCE
        if spoken != known:
            varies = self._learn(place, spoken)
            if varies != NO_VARY or any(frames):
                wanted = _fields(request, varies)
                frames = await self.manager.execute("HMGET", place, *wanted, idempotent=True)
        best: Entry | None = None
        for (field, told_apart_by), frame in zip(wanted.items(), frames, strict=False):
            if frame is None:
                continue
            entry = entries.decode(frame, told_apart_by)
            if entry is None:
                self.stats.corrupt += 1
                await self.manager.execute("HDEL", place, field)
            elif self._survives(request, entry) and (best is None or entry.date > best.date):
                best = entry
        return best

    async def _recall(self, url: Key) -> bool:
        """Learn from the others what they have learned of a path's queries; True if it is news."""
        if url[:4] in self._searches:
            return False
        said = await self.manager.execute("GET", self._search_key(url), idempotent=True)
        if said is None:
            return False
        self._searches.put(url[:4], said)
        return True

    def _search_key(self, url: Key) -> str:
        return self.manager.key("cache", "search", digest(url[:4]))

    def _survives(self, request: Request, entry: Entry) -> bool:
        if entry.kept_until <= self.clock():
            return False
        verdict = self.purges.of(entry, request.url)
        entry.purged = verdict is Verdict.SOFT
        return verdict is not Verdict.GONE

    def _learn(self, place: str, spoken: bytes | None) -> tuple[VaryNames, ...]:
        """The Varys in use there, as Redis knows them."""
        varies = NO_VARY
        if spoken is not None:
            try:
                listed = _varies.decode(spoken)
            except msgspec.DecodeError:
                listed = []
            varies = tuple(tuple(line.encode().split(b",")) if line else () for line in listed) or NO_VARY
        self._varies[place] = (spoken, varies)
        return varies

    def _key(self, name: str) -> str:
        return f"{self._prefix}{{{name}}}"

    def _place(self, request: Request) -> str:
        """The key of the variants: the URL's own, or beside it that of one user, in the same slot of a cluster."""
        key = self._key(digest(request.key))
        return f"{key}:{digest(request.partition)}" if request.partition else key

    def knows(self, request: Request) -> bool:
        return any(self._varies.get(self._place(request), (None, NO_VARY))[1])

    def flight_name(self, request: Request) -> Hashable:
        place = self._place(request)
        _, varies = self._varies.get(place, (None, NO_VARY))
        return f"{place}:{_field(varies[0], request.variant(varies[0]))}"

    def value_name(self, key: str) -> str:
        return self._value_key(key)

    async def latest_epoch(self) -> int:
        try:
            await self._catch_up()
        except FAILURES:
            self.stats.store_errors += 1
        return self.purges.number

    def obstacle(self, fetch: Fetch) -> str | None:
        away = fetch.fence is None or not self.manager.available
        return super().obstacle(fetch) or ("store-away" if away else None)

    async def fence(self, fetch: Fetch) -> None:
        if fetch.fence is not None:
            return
        try:
            fetch.fence = await self._fence(fetch.key)
        except FAILURES:
            self.stats.store_errors += 1

    async def _put(self, request: Request, entry: Entry, fetch: Fetch) -> bool:
        milliseconds = int((entry.kept_until - self.clock()) * 1000)
        if milliseconds <= 0 or fetch.fence is None:  # nobody could tell whether it is written to meanwhile
            return False
        try:
            fence = fetch.fence
            if fetch.key != request.key:  # only now it is known whether its query makes a difference
                if await self._fence(fetch.key) != fence:
                    fetch.void = True
                    return False
                fence = await self._fence(request.key)
            if entry.no_vary_search:
                said = (self._search_key(request.url), entry.no_vary_search, "PX", milliseconds)
                await self.manager.execute("SET", *said, idempotent=True)
            kept = await self._store(
                keys=[self._key(digest(request.key)), self._place(request)],
                args=[
                    fence,
                    _field(entry.vary, entry.vary_values),
                    entries.encode(entry),
                    milliseconds,
                    b",".join(entry.vary),
                    self.max_variants,
                ],
            )
        except FAILURES:
            self.stats.store_errors += 1
            return False
        fetch.void = not kept  # whoever has come since the write is not to get it either
        return bool(kept)

    async def _fence(self, key: Key) -> bytes:
        return await self.manager.execute("HGET", self._key(digest(key)), "f", idempotent=True) or NO_FENCE

    async def invalidate(self, keys: Iterable[Key]) -> None:
        keys = list(keys)
        for key in keys:
            with contextlib.suppress(*FAILURES):
                await self._recall(key)
        await super().invalidate(keys)

    async def _drop_keys(self, keys: Sequence[Key]) -> None:
        for key in keys:
            await self._tell(self._key(digest(key)))

    async def _purge(self, facts: Sequence[Fact]) -> None:
        for fact in facts:
            await self._tell(fact)
        self._news.happen()

    async def _tell(self, news: str | Fact) -> None:
        if not await self._news.tell(news):
            self.stats.store_errors += 1
            running = self.opened() or await self.started()
            if running.settling is None or running.settling.done():
                running.settling = running.tasks.spawn(self._news.settle(), name="asgi_enhance.cache.settle")

    async def _catch_up(self) -> None:
        """Whatever fails here makes the lookup a miss."""
        running = self.opened() or await self.started()
        await self._news.catch_up(running.purges, running.catching_up)

    # -- leases ---------------------------------------------------------------------------------------------------

    async def claim(self, name: Hashable, give_up: float) -> Claim:
        try:
            return await self._leases.claim(name, give_up)
        except FAILURES:
            self.stats.store_errors += 1
            return Claim.PASS

    async def release(self, name: Hashable, *, passes: bool = False) -> None:
        try:
            await self._leases.release(name, mark=self.hit_for_miss if passes else 0.0)
        except FAILURES:
            self.stats.store_errors += 1  # it expires

    # -- values ---------------------------------------------------------------------------------------------------

    async def _value(self, key: str) -> Value | None:
        try:
            await self._catch_up()
            frame = await self.manager.execute("GET", self._value_key(key), idempotent=True)
            if frame is None:
                return None
            value = values.decode(frame)
            if value is None:
                self.stats.corrupt += 1
                await self.manager.execute("DEL", self._value_key(key))
                return None
        except FAILURES:
            self.stats.store_errors += 1
            return None
        if value.kept_until <= self.clock():
            return None
        return value if self.purges.verdict(value.epoch, value.tags) is Verdict.KEPT else None

    async def _write(self, key: str, value: Value, *, under_lease: bool = False) -> None:
        milliseconds = max(1, int((value.kept_until - self.clock()) * 1000))
        name, frame = self._value_key(key), values.encode(value)
        try:
            if not under_lease:
                self._leases.forget(name)
                await self.manager.execute("UNLINK", lease_of(name), idempotent=True)
                await self.manager.execute("SET", name, frame, "PX", milliseconds, idempotent=True)
            elif (token := self._leases.token(name)) is not None:
                await self._keep(keys=[name, lease_of(name)], args=[token, frame, milliseconds])
        except FAILURES:
            self.stats.store_errors += 1

    async def _erase(self, keys: Sequence[str]) -> None:
        try:
            for key in keys:
                name = self._value_key(key)
                self._leases.forget(name)
                await self.manager.execute("UNLINK", name, lease_of(name), idempotent=True)
        except FAILURES:
            self.stats.store_errors += 1

    def _value_key(self, key: str) -> str:
        return f"{self._values}{{{digest((key,))}}}"


def _fields(request: Request, varies: tuple[VaryNames, ...]) -> dict[str, VaryValues]:
    """Where the variant for this request may be, one for each Vary in use, and the values it is known by there."""
    if varies == NO_VARY:
        return _PLAIN
    values_of = {names: request.variant(names) for names in varies}
    return {_field(names, known_by): known_by for names, known_by in values_of.items()}


def _field(names: VaryNames, values: VaryValues) -> str:
    """Of the hash, for one variant."""
    return digest((*names, b"", *values)) if names else PLAIN


_varies = msgspec.msgpack.Decoder(list[str])  # Lua's msgpack knows only one kind of string
