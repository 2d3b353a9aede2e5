"""Keeps what identities have used in this process: bounded, swept a little at a time, and safe to spray.

Each quota has a table ordered by the last admission. Since its window is the same for all of them, that is also the
order in which they recover: the front of the table is always the next to go, and nothing else ever has to be looked at.

A full table makes room for a new identity by letting go of, in this order,

1. who has recovered (nothing is lost),
2. who is not limited at the moment (some of his use is forgotten),
3. nobody: while all that are looked at are limited, new identities share one entry. An attacker who fills the table
   limits himself and the unknown, and frees nobody who is limited.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from itertools import islice

from asgi_enhance.ratelimit.decision import STRIKE, TAKE, Decision, Demand, Standing, Stats, refusal
from asgi_enhance.ratelimit.policy import SECOND, Quota, Usage

OVERFLOW = "\0overflow"
"""The identity that others share when there is no room for one of their own."""

SWEEP = 2
"""Recovered entries removed for each new one: more than come in, so a sweep never has to run through a table."""

LOOK = 64
"""Entries looked at for one that is not limited, when a table is full."""

_Table = OrderedDict[str, Usage]


class MemoryStore:
    """Takes decisions at once, for one process.

    max_keys: identities kept for each quota.
    clock:    nanoseconds, as an integer.
    """

    def __init__(self, stats: Stats, *, max_keys: int = 100_000, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.stats = stats
        self._max_keys = max_keys
        self._clock = clock
        self._tables: dict[str, _Table] = {}

    def __len__(self) -> int:
        return sum(len(table) for table in self._tables.values())

    def hit(self, demands: tuple[Demand, ...]) -> Decision:
        """Admit all demands or none of them."""
        if len(demands) == 1:
            return self.hit_one(demands[0].quota, demands[0].identity, demands[0].cost)
        now = self._clock() // 1000
        found = [self._find(demand.quota, demand.identity, now) for demand in demands]
        for demand, (_, _, usage) in zip(demands, found, strict=True):
            if demand.role != STRIKE and usage.room(demand.quota) < demand.cost:
                usages = tuple(usage for _, _, usage in found)
                decision = self._refuse(demands, usages, now)
                return self._strike(demands, found, now) if decision.reason != "ban" else decision
        standings = []
        for demand, (table, identity, usage) in zip(demands, found, strict=True):
            if demand.role == TAKE:
                quota = demand.quota
                self._take(table, identity, usage, quota, demand.cost)
                standings.append(Standing(quota, usage.room(quota), usage.reset(quota, now) / SECOND))
        return Decision(True, tuple(standings), None, (), "", False, now)

    def hit_one(self, quota: Quota, identity: str, cost: int) -> Decision:
        """The same for a single demand: the common case, spared the lists."""
        now = self._clock() // 1000
        table, identity, usage = self._find(quota, identity, now)
        room = usage.room(quota)
        if room < cost:
            return self._refuse((Demand(quota, identity, cost),), (usage,), now)
        self._take(table, identity, usage, quota, cost)
        reset = usage.reset(quota, now)
        if room == cost:
            usage.blocked = now + reset
        return Decision(True, (Standing(quota, room - cost, reset / SECOND),), None, (), "", False, now)

    def peek(self, demands: tuple[Demand, ...]) -> Decision:
        """What `hit` would say, without taking anything."""
        now = self._clock() // 1000
        usages = tuple(self._seen(demand, now) for demand in demands)
        if not _fits(demands, usages):
            return self._refuse(demands, usages, now)
        return Decision(True, _standings(demands, usages, now), at=now)

    def charge(self, demands: Iterable[Demand]) -> None:
        """Take, whether it fits or not."""
        now = self._clock() // 1000
        for demand in demands:
            table, identity, usage = self._find(demand.quota, demand.identity, now)
            self._take(table, identity, usage, demand.quota, demand.cost)

    def refund(self, demands: Iterable[Demand], admitted: int) -> None:
        """Give back what was admitted at `admitted`, as far as it still counts."""
        now = self._clock() // 1000
        for demand in demands:
            usage = self._seen(demand, now)
            usage.refund(demand.quota, demand.cost, admitted)
            usage.blocked = 0

    def reset(self, demands: Iterable[Demand]) -> None:
        """Forget what has been used."""
        for demand in demands:
            if (table := self._tables.get(demand.quota.slot)) is not None:
                table.pop(demand.identity, None)

    def clear(self) -> None:
        self._tables.clear()

    def _find(self, quota: Quota, identity: str, now: int) -> tuple[_Table, str, Usage]:
        table = self._tables.get(quota.slot)
        if table is None:
            table = self._tables[quota.slot] = OrderedDict()
        usage = table.get(identity)
        if usage is None:
            if not self._make_room(table, quota, now):
                identity = OVERFLOW
                self.stats.overflowed += 1
            usage = table.get(identity) or Usage()
        if usage.newest != now // quota.width or quota.bursty:
            usage.advance(quota, now)
        return table, identity, usage

    def _seen(self, demand: Demand, now: int) -> Usage:
        table = self._tables.get(demand.quota.slot)
        usage = (table.get(demand.identity) if table else None) or Usage()
        usage.advance(demand.quota, now)
        return usage

    def _take(self, table: _Table, identity: str, usage: Usage, quota: Quota, cost: int) -> None:
        if not usage.count:  # the first of its bucket: only now does the order of recovery change
            table[identity] = usage
            table.move_to_end(identity)
        usage.add(quota, cost)

    def _strike(self, demands: tuple[Demand, ...], found: list[tuple[_Table, str, Usage]], now: int) -> Decision:
        """Count a refusal where refusals are counted; the refusal, which may have become a ban by that."""
        for i, demand in enumerate(demands):
            if demand.role == STRIKE:
                table, identity, usage = found[i]
                self._take(table, identity, usage, demand.quota, 1)
                if usage.room(demand.quota) < 1:
                    table, identity, usage = found[i + 1]
                    self._take(table, identity, usage, demands[i + 1].quota, 1)
        return self._refuse(demands, tuple(usage for _, _, usage in found), now)

    def _refuse(self, demands: tuple[Demand, ...], usages: tuple[Usage, ...], now: int) -> Decision:
        waits = []
        for demand, usage in zip(demands, usages, strict=True):
            wait = 0 if demand.role == STRIKE else usage.wait(demand.quota, demand.cost, now)
            if wait > 0 and demand.cost == 1:
                usage.blocked = now + wait
            waits.append(wait)
        return refusal(demands, waits, _standings(demands, usages, now))

    def _make_room(self, table: _Table, quota: Quota, now: int) -> bool:
        """Sweep a little; whether there is room for one more identity now."""
        for _ in range(SWEEP):
            identity = next(iter(table), None)
            if identity is None or not table[identity].recovered(quota, now):
                break
            del table[identity]
        if len(table) < self._max_keys:
            return True
        for identity, usage in islice(table.items(), LOOK):
            if usage.blocked <= now and identity != OVERFLOW:
                del table[identity]
                self.stats.evicted += 1
                return True
        return False


def _fits(demands: tuple[Demand, ...], usages: tuple[Usage, ...]) -> bool:
    return all(
        demand.role == STRIKE or usage.room(demand.quota) >= demand.cost
        for demand, usage in zip(demands, usages, strict=True)
    )


def _standings(demands: tuple[Demand, ...], usages: tuple[Usage, ...], now: int) -> tuple[Standing, ...]:
    return tuple(
        Standing(demand.quota, max(0, usage.room(demand.quota)), usage.reset(demand.quota, now) / SECOND)
        for demand, usage in zip(demands, usages, strict=True)
        if demand.role == TAKE
    )
