"""A cache in this process, bounded by bytes and by count.

Eviction is CLOCK (Corbató 1968; kin of SIEVE, NSDI 2024): a hit sets a flag and moves nothing, so it costs one
dictionary lookup; the hand takes the oldest that nobody has asked for since it last came by. What has expired is
found when it is asked for, or when the hand meets it: no call pays for all that expire together.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Final

from asgi_enhance.cache.core import Cache, Fetch, Shelf
from asgi_enhance.cache.entry import Entry
from asgi_enhance.cache.policy.purges import Fact, Purges, Verdict
from asgi_enhance.cache.policy.vary import VaryNames, VaryValues
from asgi_enhance.cache.request import Key, Place, Request
from asgi_enhance.cache.valuecache import Running
from asgi_enhance.cache.values import Value
from asgi_enhance.errors import ConfigError
from asgi_enhance.options import checked

Variant = tuple[VaryNames, VaryValues]
PLAIN: Final[Variant] = ((), ())
EMPTY: Final = Shelf()
URL: Final = 5
"""How much of a place is the URL."""
SLOT: Final = 1024
"""Bytes that a URL takes up besides its name and its entries."""
PART: Final = 128
"""Bytes more for each field that is part of the key."""
SWEEP: Final = 2
"""How many of the oldest are looked at on every write: what has expired goes before it is in the way."""


class Slot(Shelf):
    """All variants of one URL; where users have their own, those of one user."""

    __slots__ = ("_uses", "entries", "kept_until", "size", "varies", "visited")

    def __init__(self, size: int) -> None:
        super().__init__()
        self.entries: dict[Variant, Entry] = {}
        self.varies: tuple[VaryNames, ...] = ()
        """The Vary of its responses, the latest first: different ones may be in use at once."""
        self._uses: dict[VaryNames, int] = {}  # by how many entries: there may be thousands
        self.kept_until = 0.0
        """When the last of all that were kept here will have expired, even if that one has gone before."""
        self.size = size
        self.visited = False

    def select(self, request: Request) -> Entry | None:
        """RFC 9111 4.1: of those that match, the latest."""
        best: Entry | None = None
        for names in self.varies:
            entry = self.entries.get((names, request.variant(names)))
            if entry is not None and (best is None or (entry.date, entry.received) > (best.date, best.received)):
                best = entry
        return best

    def put(self, variant: Variant, entry: Entry, size: int, limit: int) -> None:
        if variant in self.entries:
            self._drop(variant)
        while len(self.entries) >= limit:
            self._drop(next(iter(self.entries)))
        self.entries[variant] = entry
        self.size += size
        self.kept_until = max(self.kept_until, entry.kept_until)
        names = variant[0]
        self._uses[names] = self._uses.get(names, 0) + 1
        if self.varies[:1] != (names,):
            self.varies = (names, *[other for other in self.varies if other != names])
        self._settle()

    def remove(self, variant: Variant) -> None:
        self._drop(variant)
        self._settle()

    def _drop(self, variant: Variant) -> None:
        self.size -= self.entries.pop(variant).size
        names = variant[0]
        self._uses[names] -= 1
        if not self._uses[names]:
            del self._uses[names]
            self.varies = tuple([other for other in self.varies if other != names])

    def _settle(self) -> None:
        self.sent = (None, 0, [])
        self.only = self.entries.get(PLAIN) if len(self.entries) == 1 else None


@checked
class MemoryCache(Cache[Running]):
    """A cache in the memory of this process. Not shared with other processes, and to be used from one thread.

    max_bytes:    how much it may hold, bodies, headers and keys, in bytes. Default 64 MiB.
    max_entries:  how many URLs and values; where users have their own, each counts. Default 100 000.
    max_variants: how many variants of one URL, for each user; the oldest goes when there are more. Default 64.
    ttl:          how long a value is kept unless `set` says otherwise, in seconds. Default 300.
    collapse_timeout: how long anybody waits for what somebody else fetches, in seconds. Default 10.
    hit_for_miss: how long nobody waits any more after an answer that was for one client only, in seconds. Default 10.
    clock:        the time of day in seconds, for tests.
    """

    def __init__(
        self,
        *,
        max_bytes: int = 64 << 20,
        max_entries: int = 100_000,
        max_variants: int = 64,
        ttl: float = 300.0,
        collapse_timeout: float = 10.0,
        hit_for_miss: float = 10.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(ttl=ttl, collapse_timeout=collapse_timeout, hit_for_miss=hit_for_miss, clock=clock)
        for name, limit in (("max_bytes", max_bytes), ("max_entries", max_entries), ("max_variants", max_variants)):
            if limit < 1:
                raise ConfigError(f"{name} must be at least 1, not {limit!r}")
        self.max_bytes = max_bytes
        self.max_entries = max_entries
        self.max_variants = max_variants
        self.purges = Purges()
        self._kept: OrderedDict[Place | str, Slot | _Box] = OrderedDict()
        self._apart: dict[Place | str, set[Place]] = {}  # URL → where users have their own
        self._bytes = 0

    async def _start(self) -> Running:
        return Running()

    async def _stop(self, value: Running) -> None:
        await value.tasks.cancel()

    # -- responses ------------------------------------------------------------------------------------------------

    @property
    def largest(self) -> float:
        return self.max_bytes

    def glance(self, key: Key) -> Shelf | None:
        slot = self._kept.get(key)
        if slot is None:
            return EMPTY if self._passes and self.passes(key) else None
        slot.visited = True
        entry = slot.only
        return slot if entry is not None and entry.epoch == self.purges.number else None  # type: ignore[return-value]

    def peek(self, request: Request) -> Entry | None:
        slot = self._kept.get(request.place)
        if slot is None:
            return None
        assert type(slot) is Slot
        slot.visited = True
        entry = slot.only
        if entry is None:
            entry = slot.select(request)
            if entry is None:
                return None
        if entry.epoch != self.purges.number and not self._survives(request, entry):
            return None
        return entry

    def _survives(self, request: Request, entry: Entry) -> bool:
        verdict = self.purges.of(entry, request.url)
        if verdict is Verdict.GONE:
            self.remove(request, entry)
            return False
        entry.purged = entry.purged or verdict is Verdict.SOFT
        entry.epoch = self.purges.number
        return True

    def knows(self, request: Request) -> bool:
        return request.place in self._kept

    def flight_name(self, request: Request) -> Hashable:
        place = request.place
        slot = self._kept.get(place)
        if slot is None:
            return place
        names = slot.varies[0] if type(slot) is Slot and slot.varies else ()
        return (place, names, request.variant(names))

    async def _put(self, request: Request, entry: Entry, fetch: Fetch) -> bool:
        return self.put(request, entry)

    def put(self, request: Request, entry: Entry) -> bool:
        size, place = entry.size, request.place
        its_own = _size_of(place)
        if size + its_own > self.max_bytes:
            return False
        slot = self._kept.get(place)
        if slot is None:
            slot = Slot(its_own)
            if request.partition:
                self._apart.setdefault(request.key, set()).add(place)
        else:
            assert type(slot) is Slot
            self._bytes -= slot.size
        slot.path = request.path
        slot.put((entry.vary, entry.vary_values), entry, size, self.max_variants)
        while slot.size > self.max_bytes:
            slot.remove(next(iter(slot.entries)))
        self._admit(place, slot)
        return True

    def remove(self, request: Request, entry: Entry) -> None:
        slot = self._kept.get(request.place)
        variant = (entry.vary, entry.vary_values)
        if type(slot) is Slot and slot.entries.get(variant) is entry:
            self._bytes -= entry.size
            slot.remove(variant)
            if not slot.entries:
                self._discard(request.place)
            self._gauge()

    async def _drop_keys(self, keys: Sequence[Key]) -> None:
        for key in keys:
            self.forget(key)

    async def _purge(self, facts: Sequence[Fact]) -> None:
        for fact in facts:
            self.purges.add(fact)
            if fact.kind == "all" and not fact.soft:
                self.clear()

    def holds(self, key: Place | str) -> bool:
        return key in self._kept or key in self._apart

    def forget(self, key: Place | str) -> None:
        """Let go of one URL, with what each user has of it, of one user's own, or of one value."""
        for place in (key, *self._apart.get(key, ())):
            self._discard(place)
        self._gauge()

    def clear(self) -> None:
        self._kept.clear()
        self._apart.clear()
        self._bytes = 0
        self._gauge()

    # -- values ---------------------------------------------------------------------------------------------------

    async def _value(self, key: str) -> Value | None:
        return self.peek_value(key)

    def peek_value(self, key: str) -> Value | None:
        box = self._kept.get(key)
        if box is None:
            return None
        assert type(box) is _Box
        value = box.value
        if value.kept_until <= self.clock() or (
            value.epoch != self.purges.number and self.purges.verdict(value.epoch, value.tags) is not Verdict.KEPT
        ):
            self.forget(key)
            return None
        box.visited = True
        return value

    async def _write(self, key: str, value: Value, *, under_lease: bool = False) -> None:
        self.put_value(key, value)

    def put_value(self, key: str, value: Value) -> None:
        self._discard(key)
        box = _Box(value, len(key))
        if box.size <= self.max_bytes:
            self._admit(key, box)
        self._gauge()

    async def _erase(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._discard(key)
        self._gauge()

    # -- bounds ---------------------------------------------------------------------------------------------------

    def _admit(self, key: Place | str, item: "Slot | _Box") -> None:
        self._kept[key] = item
        self._bytes += item.size
        self._sweep()
        while self._bytes > self.max_bytes or len(self._kept) > self.max_entries:
            self._evict()
        self._gauge()

    def _evict(self) -> None:
        """Take the oldest that was not asked for since the hand last passed it."""
        key, item = next(iter(self._kept.items()))
        if item.visited:
            item.visited = False
            self._kept.move_to_end(key)
            return
        self._discard(key)
        self.stats.evictions += 1

    def _sweep(self) -> None:
        now = self.clock()
        for _ in range(min(SWEEP, len(self._kept) - 1)):
            key, item = next(iter(self._kept.items()))
            if item.kept_until > now:
                return
            self._discard(key)

    def _discard(self, key: Place | str) -> None:
        item = self._kept.pop(key, None)
        if item is not None:
            self._bytes -= item.size
            if self._apart and type(key) is tuple and (places := self._apart.get(key[:URL])) is not None:
                places.discard(key)
                if not places:
                    del self._apart[key[:URL]]

    def _gauge(self) -> None:
        self.stats.entries = len(self._kept)
        self.stats.bytes = self._bytes


class _Box:
    """One value in the store."""

    __slots__ = ("size", "value", "visited")
    only: Final = None

    def __init__(self, value: Value, key_size: int) -> None:
        self.value = value
        self.size = value.size + key_size
        self.visited = False

    @property
    def kept_until(self) -> float:
        return self.value.kept_until


def _size_of(place: Place) -> int:
    return SLOT + PART * (len(place) - URL) + sum(map(len, place))
