"""What every cache does for the middleware, whatever it keeps its things in; `valuecache` is the other half.

Subclasses say how to read and write; that what was purged is gone, that a write overtakes what was being fetched when
it came, and what is not waited for, is decided here.
"""

import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from math import inf
from typing import Any, Final, Generic

import msgspec

from asgi_enhance.asgi.types import ASGIApp, Headers
from asgi_enhance.cache.entry import Entry
from asgi_enhance.cache.policy.purges import Fact, Verdict
from asgi_enhance.cache.policy.search import parse, simplified
from asgi_enhance.cache.policy.writes import Writes
from asgi_enhance.cache.recent import Recent
from asgi_enhance.cache.request import Key, Request
from asgi_enhance.cache.valuecache import R, ValueCache
from asgi_enhance.cache.warm import warm
from asgi_enhance.errors import CacheError, ConfigError

MAX_PASSES: Final = 10_000
"""How many names are remembered as hit-for-miss."""

MAX_SEARCH: Final = 1024
"""How many bytes a path and its word on queries may have to be remembered: clients choose paths, long ones, too."""

MAX_SAID_BEFORE: Final = 4
"""How many former words of a path on its queries are remembered: it may come back to them."""


class Shelf:
    """A place for the one entry of a URL, and for its fields as they were last sent."""

    __slots__ = ("only", "path", "sent")

    def __init__(self) -> None:
        self.path = ""
        """That of the request it was made for."""
        self.only: Entry | None = None
        self.sent: tuple[object, int, Headers] = (None, 0, [])
        """By whom, at which age, and the fields."""


class Fetch(msgspec.Struct):
    """What was known when a response was asked for: whatever is purged or written to afterwards overtakes it."""

    key: Key
    epoch: int
    writes: int
    fence: bytes | None = None
    """What the store knew of other processes' writes to its URL; None: it was not asked yet, or did not answer."""
    void: bool = False
    """It is not to be kept, whatever it will be."""


class Cache(ValueCache[R], Generic[R]):
    """The common part of MemoryCache, RedisCache and TieredCache."""

    def __init__(
        self,
        *,
        ttl: float = 300.0,
        collapse_timeout: float = 10.0,
        hit_for_miss: float = 10.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(ttl=ttl, collapse_timeout=collapse_timeout, clock=clock)
        if not hit_for_miss >= 0:
            raise ConfigError(f"hit_for_miss must be at least 0 seconds, not {hit_for_miss!r}")
        self.hit_for_miss = hit_for_miss
        self._writes = Writes()
        self._searches: Recent[tuple[Any, ...], bytes] = Recent(MAX_PASSES)
        self._said_before: Recent[tuple[Any, ...], tuple[bytes, ...]] = Recent(MAX_PASSES)
        # By the hash of the name, for a name holds a whole URL; where two share one, somebody does not wait
        self._passes: Recent[int, float] = Recent(MAX_PASSES)

    # -- responses ------------------------------------------------------------------------------------------------

    @property
    def largest(self) -> float:
        """No body with more bytes is kept."""
        return inf

    def glance(self, key: Key) -> Shelf | None:
        """Where the entry for any request to this URL lies, if it is here, is the only one, and does not vary.

        An empty shelf: nothing is kept for this URL, and its last answer was for one client only.
        """
        return None

    def peek(self, request: Request) -> Entry | None:
        """The entry for this request, if it can be told at once."""
        raise NotImplementedError

    async def lookup(self, request: Request) -> Entry | None:
        """The entry for this request, if there is one anywhere."""
        return self.peek(request)

    def knows(self, request: Request) -> bool:
        """Whether some variant of what is asked for is known here."""
        raise NotImplementedError

    def flight_name(self, request: Request) -> Hashable:
        """What requests must have in common for one answer to do for all, as far as it is known before there is one."""
        raise NotImplementedError

    async def warm(
        self, app: ASGIApp, urls: Iterable[str], *, headers: Headers | None = None, at_once: int = 8
    ) -> dict[str, int]:
        """Ask `app` (with the middleware round it, and this cache in that) for whole URLs; the status of each.

        `headers` go with every request: what responses vary by. `at_once`: how many are asked for together.
        """
        return await warm(app, urls, headers or [], at_once)

    def simplify(self, request: Request) -> None:
        """Look for this request where all go whose query makes no difference (No-Vary-Search)."""
        said = self._searches.get(request.key[:4]) if self._searches else None
        if said is not None and (search := parse(said)) is not None:
            request.key = (*request.key[:4], simplified(request.key[4], search))

    def _settle_search(self, request: Request, entry: Entry) -> None:
        """Learn from a response which queries of its path are one, and keep it under the key of them all."""
        place = request.url[:4]
        if entry.no_vary_search and sum(map(len, place)) + len(entry.no_vary_search) > MAX_SEARCH:
            entry.no_vary_search = b""
        search = parse(entry.no_vary_search)
        said = self._searches.get(place)
        if said is not None and said != entry.no_vary_search:
            self._said_before.put(place, (said, *self._said_before.get(place, ()))[:MAX_SAID_BEFORE])
        if search is None:
            self._searches.pop(place, None)
            request.key = request.url
        else:
            self._searches.put(place, entry.no_vary_search)
            request.key = (*place, simplified(request.url[4], search))

    def fetch(self, key: Key, fence: bytes | None = None) -> Fetch:
        """To be made before the app is asked, and given to `store` with what the app has said."""
        return Fetch(key, self.purges.number, self._writes.number, fence)

    async def fence(self, fetch: Fetch) -> None:
        """Complete a fetch with what only other processes know. Needed where the cache is `remote`."""

    def overtaken(self, fetch: Fetch) -> bool:
        """Whether what was fetched must not be kept or shared, as far as it is known here."""
        return fetch.void or self._writes.since(fetch.writes, fetch.key)

    def obstacle(self, fetch: Fetch) -> str | None:
        """Why what was fetched would not be kept if it were whole now, in a word, as far as it is known here."""
        return "overtaken" if self.overtaken(fetch) else None

    def purged(self, request: Request, entry: Entry) -> bool:
        """Whether it went, or went stale, after it was asked for."""
        return self.purges.of(entry, request.url) is not Verdict.KEPT

    async def store(self, request: Request, entry: Entry, fetch: Fetch) -> bool:
        """Keep the entry, unless its URL was written to since it was asked for."""
        if self.overtaken(fetch):
            return False
        entry.epoch = fetch.epoch
        self._settle_search(request, entry)
        if request.key != fetch.key and self._writes.since(fetch.writes, request.key):
            fetch.void = True
            return False
        if not await self._put(request, entry, fetch):
            return False
        self.stats.stored += 1
        return True

    async def invalidate(self, keys: Iterable[Key]) -> None:
        """Delete whatever is kept for these URLs, and overtake what is being fetched for them."""
        keys = [key for url in keys for key in self._spellings(url)]
        for key in keys:
            self._writes.add(key)
        self.stats.invalidations += len(keys)
        await self._drop_keys(keys)

    def _spellings(self, key: Key) -> list[Key]:
        """A key, and those it is or was kept under if its query makes no difference."""
        place, found = key[:4], {key: None}
        for said in (self._searches.get(place, b""), *self._said_before.get(place, ())):
            if (search := parse(said)) is not None:
                found[*place, simplified(key[4], search)] = None
        return list(found)

    async def purge(
        self,
        *,
        tags: Sequence[str] = (),
        url: str | None = None,
        prefix: str | None = None,
        everything: bool = False,
        soft: bool = False,
    ) -> None:
        """Make entries and values go: those with any of `tags`, of one URL, of all URLs that begin with `prefix`, all.

        URLs are whole and as the app sees them, query included: `https://host/path?query`; they are those of responses,
        not the keys of values. `soft` marks responses stale instead of removing
        them, so that they are validated, or served while they are renewed. The cost does not depend on how much is
        kept. A response that is being made while the purge comes is purged as well.
        """
        if isinstance(tags, str):
            raise CacheError("tags must be a sequence of names, not one string")
        facts = [Fact("tag", tag, soft) for tag in tags]
        if url is not None:
            facts.append(Fact("url", _absolute("url", url), soft))
        if prefix is not None:
            facts.append(Fact("prefix", _absolute("prefix", prefix), soft))
        if everything:
            facts.append(Fact("all", "", soft))
        if not facts:
            raise CacheError("purge needs to be told what: tags, url, prefix or everything")
        self.stats.purges += len(facts)
        await self._purge(facts)

    # -- hit-for-miss: what is not for sharing is not waited for --------------------------------------------------

    def passes(self, name: Hashable) -> bool:
        """Whether the last answer to this was for one client only, so that nobody should wait for the next."""
        until = self._passes.get(hash(name))
        return (
            until is not None and 0 < until - self.clock() <= self.hit_for_miss
        )  # not longer if the clock is put back

    def remember_pass(self, name: Hashable) -> None:
        if self.hit_for_miss:
            self._passes.put(hash(name), self.clock() + self.hit_for_miss)

    def forget_pass(self, request: Request) -> None:
        if self._passes:
            self._passes.pop(hash(self.flight_name(request)), None)

    # -- what subclasses say --------------------------------------------------------------------------------------

    async def _put(self, request: Request, entry: Entry, fetch: Fetch) -> bool:
        raise NotImplementedError

    async def _drop_keys(self, keys: Sequence[Key]) -> None:
        raise NotImplementedError

    async def _purge(self, facts: Sequence[Fact]) -> None:
        raise NotImplementedError


def _absolute(name: str, url: str) -> str:
    """A URL as keys have it: scheme and host in lower case (RFC 3986 6.2.2.1)."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise CacheError(f"{name} must be whole, as https://example.org/path, not {url!r}")
    host, slash, path = rest.partition("/")
    return f"{scheme.lower()}://{host.lower()}{slash}{path}"
