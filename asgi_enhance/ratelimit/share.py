"""What one process admits by itself while Redis is away, so that all of them together stay within the limit.

With N the limit, W its window and P the processes that share it:

- **While Redis answers**, each reply says how much of an identity's quota is left, and the process keeps no more room
  in its share (N ÷ P) than left ÷ P: what others have used is counted here, too, and leaves the window as theirs does.
  At any moment, what was used and the room in all shares are N together.
- **Without Redis**, it admits what fits its share. Shares only grow as far as what was used leaves the window, and are
  never above N ÷ P; so no window has more than N, neither one that the outage begins in nor any later one.
- **When Redis is back**, others may still be without it. For SETTLE a request must fit the share and be admitted by
  Redis as well. Before Redis is asked about an identity, it is told what was admitted here without it, at the time
  when it was; and if it came back empty, all that the share counts.

A share does not know what others are admitted after Redis has spoken to this process last. So all together may be over
by those units, of each process ÷ P; of a client whose requests come to all processes alike that is less than one round,
and nothing if all of them have been refused. And N must be at least P: a share is never less than one unit.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from asgi_enhance.ratelimit.decision import TAKE, Decision, Demand, Stats
from asgi_enhance.ratelimit.memory import MemoryStore
from asgi_enhance.ratelimit.policy import SECOND, Quota, Usage

if TYPE_CHECKING:
    from asgi_enhance.redis import RedisManager

SETTLE = 5 * SECOND
"""How long an outage is not quite over. By then every process knows that Redis is back: a `RedisManager` looks every
2 s, by default, and takes half a second for it."""

RETRY_UNAVAILABLE = 1.0
"""Seconds after which to come back to a limiter that could not decide: about when Redis is tried again."""


class Untold(msgspec.Struct, frozen=True, gc=False):
    """What was admitted here alone, under this quota at first. A hundred thousand of them must not slow the garbage
    collector down."""

    quota: Quota
    usage: Usage


class News(msgspec.Struct, frozen=True, gc=False):
    """Of one quota and identity: what was admitted here alone, all that is counted, and both as the script reads it."""

    quota: Quota
    identity: str
    alone: Usage
    counted: Usage
    told: int  # before
    packed: bytes


class Share:
    """This process' part of all limits, and what Redis does not know of it.

    memory:   where the use of the shares is kept.
    manager:  the Redis that is shared; None: there is none, and the share is all of it.
    workers:  processes that share a limit.
    on_error: what happens without Redis to demands that do not say.
    max_keys: identities that are remembered to tell Redis of, at most.
    """

    def __init__(
        self,
        memory: MemoryStore,
        stats: Stats,
        manager: "RedisManager | None",
        *,
        workers: int,
        on_error: str,
        max_keys: int,
    ) -> None:
        self._memory = memory
        self._stats = stats
        self._manager = manager
        self._counts = manager.stats if manager is not None else None
        self._workers = workers if manager is not None else 1
        self._on_error = on_error
        self._max_keys = max_keys
        self._part: Callable[[Quota], Quota] = lru_cache(maxsize=1024)(lambda quota: quota.share(self._workers))
        # By slot, as all that is counted: an identity's limits may change meanwhile.
        self._untold: OrderedDict[tuple[str, str], Untold] = OrderedDict()
        self._noticed = 0  # of the `troubles`
        self._troubled = 0  # when the last of them was noticed
        self._settled = 0  # when an outage is over for good

    # Without Redis.

    def hit(self, demands: tuple[Demand, ...]) -> Decision:
        """Decide alone: each demand as its rule wants it."""
        if self._manager is not None and not self._manager.available:
            self._settled = self._memory.now() + SETTLE
        decision = self._alone(demands, self._memory.hit)
        if decision.allowed and self._manager is not None:
            for part in self._local(demands):
                self._note(part)
        return decision

    def peek(self, demands: tuple[Demand, ...]) -> Decision:
        """What `hit` would say."""
        return self._alone(demands, self._memory.peek)

    def charge(self, demands: tuple[Demand, ...], *, told: bool) -> None:
        """Take, whether it fits or not; `told`: from Redis, too."""
        for part in self._local(demands):
            self._memory.charge(part.quota, part.identity, part.cost)
            if self._manager is not None and not told:
                self._note(part)

    def refund(self, demands: tuple[Demand, ...], admitted: int) -> None:
        """Give back what was admitted here at `admitted`, as far as it still counts."""
        parts = self._local(demands)
        self._memory.refund(parts, admitted)
        for part in parts:
            untold = self._untold.get((part.quota.slot, part.identity))
            if untold is not None:
                untold.usage.advance(part.quota, self._memory.now())
                untold.usage.refund(part.quota, part.cost, admitted)

    def reset(self, demands: tuple[Demand, ...]) -> None:
        """Forget what was used."""
        self._memory.reset(demands)
        for part in self._local(demands):
            self._untold.pop((part.quota.slot, part.identity), None)

    # When it is back.

    @property
    def troubles(self) -> int:
        """Signs so far that Redis was away or is another one. It is none when an idle connection was closed and made
        anew at once, on the same run of the server: nobody has missed anything."""
        counts = self._counts
        return counts.outages + counts.connect_failures if counts is not None else 0

    def unsettled(self) -> bool:
        """Whether Redis is away, for this process or maybe for another one, or was a moment ago."""
        if self._counts is None:
            return False
        troubles = self.troubles
        if troubles != self._noticed:
            self._noticed = troubles
            self._troubled = self._memory.now()
            self._settled = self._troubled + SETTLE
        return self._settled != 0 and self._memory.now() < self._settled

    def sooner(self, refused: Decision) -> Decision:
        """What this share alone has refused although Redis is back: it may be admitted when that is settled."""
        left = max(0.0, (self._settled - self._memory.now()) / SECOND)
        if refused.retry_after is not None and refused.retry_after > left:
            refused.retry_after = left
            refused.standings = tuple(replace(one, reset=min(one.reset, left)) for one in refused.standings)
        return refused

    def hold(self, demands: tuple[Demand, ...]) -> Decision | None:
        """Take from the shares until `release`; None if none of the demands is about a share."""
        parts = self._local(demands)
        if not parts:
            return None
        decision = self._memory.admit(parts)
        decision.degraded = True
        return decision

    def release(self, demands: tuple[Demand, ...], held: Decision) -> None:
        if held.allowed:
            self._memory.refund(self._local(demands), held.at)

    @property
    def has_news(self) -> bool:
        """Whether there may be something to tell Redis."""
        return self._troubled != 0 or bool(self._untold)

    def news(self, demand: Demand) -> "News | None":
        """What Redis has to be told before it is asked about this demand; None if it knows."""
        for part in self._local((demand,)):
            now = self._memory.now()
            untold = self._untold.pop((part.quota.slot, part.identity), None)
            alone = untold.usage if untold is not None else None
            counted = self._memory.find(part.quota, part.identity) or alone
            if counted is None or (alone is None and counted.told >= self._troubled):
                continue
            told, counted.told = counted.told, now
            alone = alone or Usage()
            diaries = alone.diary(part.quota, now), counted.diary(part.quota, now)
            if diaries[1][1]:
                packed = msgspec.msgpack.encode((now - told, *diaries))
                return News(part.quota, part.identity, alone, counted, told, packed)
        return None

    def keep(self, news: "News") -> None:
        """Redis could not be told, as far as is known."""
        alone = news.alone
        news.counted.told = news.told
        if alone.used:
            untold = self._untold.setdefault((news.quota.slot, news.identity), Untold(news.quota, alone))
            if untold.usage is not alone:  # more has come meanwhile
                untold.usage.add(untold.quota, alone.used)

    # While Redis answers.

    def learn(self, demands: tuple[Demand, ...], granted: int, left: Sequence[int], spare: Sequence[int]) -> None:
        """Redis has admitted these so many times; so much is left of each in its window, and at once."""
        for demand, room, burst in zip(demands, left, spare, strict=True):
            if demand.role == TAKE and self._mode(demand) == "local":
                quota = self._part(demand.quota)
                usage = self._memory.take(quota, demand.identity, demand.cost * granted)
                usage.cede(quota, max(0, room) // self._workers, max(0, burst) / self._workers)
                now = usage.told = self._memory.now()
                if room < 1 or burst < 1:  # limited: newcomers do not make him be forgotten
                    usage.blocked = now + usage.reset(quota, usage.room(quota), now)

    def _alone(self, demands: tuple[Demand, ...], decide: Callable[[tuple[Demand, ...]], Decision]) -> Decision:
        modes = [self._mode(demand) for demand in demands]
        if "closed" in modes:
            names = tuple(demand.quota.name for demand, mode in zip(demands, modes, strict=True) if mode == "closed")
            return self._stats.count(Decision(False, (), RETRY_UNAVAILABLE, names, "unavailable", degraded=True))
        local = tuple(demand for demand, mode in zip(demands, modes, strict=True) if mode == "local")
        if not local:
            return self._stats.count(Decision(True, degraded=True))
        decision = decide(tuple(replace(d, quota=self._part(d.quota)) if d.role == TAKE else d for d in local))
        decision.degraded = True
        if decision.reason == "cost" and all(demand.cost <= demand.quota.capacity for demand in local):
            # Too much for a share, and not for Redis: when that is back.
            later = max(RETRY_UNAVAILABLE, (self._settled - self._memory.now()) / SECOND)
            decision.reason, decision.retry_after = "quota", later
        return decision

    def _mode(self, demand: Demand) -> str:
        return demand.on_error or self._on_error

    def _local(self, demands: tuple[Demand, ...]) -> tuple[Demand, ...]:
        """What these demands are of the shares, as far as they are about quotas that are kept here."""
        return tuple(
            replace(demand, quota=self._part(demand.quota))
            for demand in demands
            if demand.role == TAKE and (self._manager is None or self._mode(demand) == "local")
        )

    def _note(self, part: Demand) -> None:
        """Remember to tell Redis of it."""
        key, now, untold = (part.quota.slot, part.identity), self._memory.now(), self._untold
        kept = untold.get(key)
        if kept is None:
            for oldest, one in list(islice(untold.items(), 2)):
                if len(untold) >= self._max_keys or one.usage.recovered(one.quota, now):
                    del untold[oldest]
            kept = untold[key] = Untold(part.quota, Usage())
        kept.usage.advance(part.quota, now)
        kept.usage.add(part.quota, part.cost)
