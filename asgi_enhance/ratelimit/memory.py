"""Keeps what identities have used in this process: bounded, swept a little at a time, and safe to spray.

Each quota has tables ordered by the last admission. Since its window is the same for all of them, that is also the
order in which they recover: the front of a table is always the next to go, and nothing else ever has to be looked at.
There are several tables so that none grows large: a dictionary that grows is copied, and everybody waits for it.

A full table makes room for a new identity by letting go of, in this order,

1. who has recovered (nothing is lost),
2. who is not limited at the moment (some of his use is forgotten),
3. nobody: while all that are looked at are limited, new identities share one entry. An attacker who fills the table
   limits himself and the unknown, and frees nobody who is limited.
"""

import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from itertools import islice, pairwise

from asgi_enhance.ratelimit.decision import GUARD, STRIKE, TAKE, Decision, Demand, Standing, Stats, refusal
from asgi_enhance.ratelimit.policy import SECOND, Quota, Usage

OVERFLOW = "\0overflow"
"""The identity that others share when there is no room for one of their own."""

SWEEP = 2
"""Recovered entries removed for each new one: more than come in, so a sweep never has to run through a table."""

LOOK = 64
"""Entries looked at for one that is not limited, when a table is full."""

TABLE = 8192
"""Entries a table should not grow far beyond: the copy takes well below a millisecond."""

_Table = OrderedDict[str, Usage]


class MemoryStore:
    """Takes decisions at once, for one process.

    max_keys: identities kept for each quota.
    clock:    nanoseconds, as an integer.
    """

    def __init__(self, stats: Stats, *, max_keys: int = 100_000, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.stats = stats
        number = 1 << max(0, (max_keys // TABLE).bit_length())  # a power of two
        self._mask = number - 1
        self._max_keys = max_keys // number  # in each of them
        self.clock = clock
        self._tables: defaultdict[str, list[_Table]] = defaultdict(lambda: [OrderedDict() for _ in range(number)])

    def __len__(self) -> int:
        return sum(len(table) for tables in self._tables.values() for table in tables)

    def now(self) -> int:
        """Microseconds, by this store's clock."""
        return self.clock() // 1000

    def find(self, quota: Quota, identity: str) -> Usage | None:
        """What is kept of an identity."""
        return self._tables[quota.slot][hash(identity) & self._mask].get(identity)

    def hit(self, demands: tuple[Demand, ...]) -> Decision:
        """Admit all demands or none of them."""
        return self.stats.count(self.admit(demands))

    def admit(self, demands: tuple[Demand, ...]) -> Decision:
        """The same, and the decision is not counted."""
        now = self.now()
        standings: list[Standing] = []
        taken: list[Demand] = []
        for demand in demands:
            quota = demand.quota
            if demand.role == TAKE:
                spent = self.spend(quota, demand.identity, demand.cost, now)
                if spent is None:
                    break
                taken.append(demand)
                standings.append(Standing(quota, spent[0], spent[1] / SECOND))
            elif demand.role == GUARD and self._seen(demand, now).room(quota) < 1:
                break
        else:
            return Decision(True, tuple(standings), None, (), "", False, now)
        for demand in taken:
            self.unspend(demand.quota, demand.identity, demand.cost)
        usages = [self._seen(demand, now) for demand in demands]
        decision = self._refuse(demands, usages, now)
        if decision.reason == "ban" or not any(demand.role == STRIKE for demand in demands):
            return decision
        return self._strike(demands, usages, now)

    def spend(self, quota: Quota, identity: str, cost: int, now: int) -> tuple[int, int] | None:
        """Take it if it fits: the room left, and the microseconds until there is more; None if it does not."""
        table = self._tables[quota.slot][hash(identity) & self._mask]
        usage = table.get(identity)
        if usage is None:
            identity, usage = self._new(table, quota, identity, now)
        spent = usage.spend(quota, cost, now)
        if spent is not None:
            if usage.count == cost:
                self._order(table, identity, usage)
            if not spent[0]:
                usage.blocked = now + spent[1]
        return spent

    def unspend(self, quota: Quota, identity: str, cost: int) -> None:
        """Give back what was taken a moment ago."""
        table = self._tables[quota.slot][hash(identity) & self._mask]
        if identity not in table:
            identity = OVERFLOW
        usage = table[identity]
        usage.add(quota, -cost)
        usage.blocked = 0
        if not usage.used:
            del table[identity]

    def peek(self, demands: tuple[Demand, ...]) -> Decision:
        """What `hit` would say, without taking anything."""
        now = self.now()
        usages = [self._seen(demand, now) for demand in demands]
        if not _fits(demands, usages):
            return self._refuse(demands, usages, now)
        return Decision(True, _standings(demands, usages, now), at=now)

    def take(self, quota: Quota, identity: str, cost: int) -> Usage:
        """Take, whether it fits or not; what is used by then."""
        return self._take(quota, identity, cost, self.now())

    def charge(self, quota: Quota, identity: str, cost: int) -> None:
        """`take`, and who has no room left by that is limited from now on: newcomers do not make him be forgotten."""
        now = self.now()
        usage = self._take(quota, identity, cost, now)
        if (room := usage.room(quota)) < 1:
            usage.blocked = now + usage.reset(quota, room, now)

    def refund(self, demands: Iterable[Demand], admitted: int) -> None:
        """Give back what was admitted at `admitted`, as far as it still counts."""
        now = self.now()
        for demand in demands:
            usage = self._seen(demand, now)
            usage.refund(demand.quota, demand.cost, admitted)
            usage.blocked = 0

    def reset(self, demands: Iterable[Demand]) -> None:
        """Forget what has been used."""
        for demand in demands:
            self._table(demand).pop(demand.identity, None)

    def clear(self) -> None:
        self._tables.clear()

    def _table(self, demand: Demand) -> _Table:
        return self._tables[demand.quota.slot][hash(demand.identity) & self._mask]

    def _new(self, table: _Table, quota: Quota, identity: str, now: int) -> tuple[str, Usage]:
        """The usage for an identity that has none, and whose it is. It is kept when something is taken."""
        if self._make_room(table, quota, now):
            return identity, Usage()
        self.stats.overflowed += 1
        return OVERFLOW, table.get(OVERFLOW) or Usage()

    def _seen(self, demand: Demand, now: int) -> Usage:
        table = self._table(demand)
        usage = table.get(demand.identity)
        if usage is None:
            usage = (table.get(OVERFLOW) if len(table) >= self._max_keys else None) or Usage()
        usage.advance(demand.quota, now)
        return usage

    def _take(self, quota: Quota, identity: str, cost: int, now: int) -> Usage:
        table = self._tables[quota.slot][hash(identity) & self._mask]
        usage = table.get(identity)
        if usage is None:
            identity, usage = self._new(table, quota, identity, now)
        usage.advance(quota, now)
        usage.add(quota, cost)
        if usage.count == cost:
            self._order(table, identity, usage)
        return usage

    def _order(self, table: _Table, identity: str, usage: Usage) -> None:
        """Put it last, after the first admission of a bucket: only that changes the order of recovery."""
        table[identity] = usage
        table.move_to_end(identity)

    def _strike(self, demands: tuple[Demand, ...], usages: list[Usage], now: int) -> Decision:
        """Count a refusal where refusals are counted; the refusal, which may have become a ban by that."""
        for strike, ban in pairwise(demands):
            if strike.role == STRIKE:
                self._take(strike.quota, strike.identity, 1, now)
                if self._seen(strike, now).room(strike.quota) < 1:
                    self._take(ban.quota, ban.identity, 1, now)
        return self._refuse(demands, [self._seen(demand, now) for demand in demands], now)

    def _refuse(self, demands: tuple[Demand, ...], usages: list[Usage], now: int) -> Decision:
        waits = [
            0 if demand.role == STRIKE else usage.wait(demand.quota, demand.cost, now)
            for demand, usage in zip(demands, usages, strict=True)
        ]
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


def _fits(demands: tuple[Demand, ...], usages: list[Usage]) -> bool:
    return all(
        demand.role == STRIKE or usage.room(demand.quota) >= demand.cost
        for demand, usage in zip(demands, usages, strict=True)
    )


def _standing(usage: Usage, quota: Quota, room: int, now: int) -> Standing:
    reset = usage.reset(quota, room, now)
    if room < 1:
        usage.blocked = now + reset
        room = 0
    return Standing(quota, room, reset / SECOND)


def _standings(demands: tuple[Demand, ...], usages: list[Usage], now: int) -> tuple[Standing, ...]:
    return tuple(
        _standing(usage, demand.quota, usage.room(demand.quota), now)
        for demand, usage in zip(demands, usages, strict=True)
        if demand.role == TAKE
    )
