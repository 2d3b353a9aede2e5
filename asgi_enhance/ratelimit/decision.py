"""What the limiter is asked and what it answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from msgspec.structs import replace

from asgi_enhance.ratelimit.policy import NEVER, SECOND, Quota

TAKE, GUARD, STRIKE = "take", "guard", "strike"


class Demand(msgspec.Struct, frozen=True, gc=False):
    """So much of a quota for an identity. A request makes one or several, which are granted all or none.

    role: TAKE: the usual one. GUARD: there must be room, but none is taken. STRIKE: counts a refusal; when there is
          no room left for more, the GUARD that follows it is taken from. These two make a ban.
    on_error: what happens to it without Redis: "local", "open", "closed", or "" for what the limiter does by default.
    """

    quota: Quota
    identity: str
    cost: int = 1
    role: str = TAKE
    on_error: str = ""


class Standing(msgspec.Struct, frozen=True, gc=False):
    """Where an identity stands with a quota after the decision.

    remaining: units it may still use now.
    reset:     seconds until there are more than that; 0 if nothing is used.
    """

    quota: Quota
    remaining: int
    reset: float


class Decision(msgspec.Struct, gc=False):
    """Whether a request is admitted, and all that an answer says about it. True if it is.

    allowed:     the request may go on.
    standings:   one for each quota that was asked.
    retry_after: seconds until the same request can be admitted if nobody else comes; None if it is admitted or never
                 will be.
    violated:    the names of the quotas that refused.
    reason:      `quota` · `ban` · `concurrency` · `cost` (can never be admitted) · `unavailable`.
    degraded:    decided without Redis although there is one.
    at:          when it was admitted, in microseconds of the deciding clock; a refund needs it.
    """

    allowed: bool
    standings: tuple[Standing, ...] = ()
    retry_after: float | None = None
    violated: tuple[str, ...] = ()
    reason: str = ""
    degraded: bool = False
    at: int = 0

    def __bool__(self) -> bool:
        return self.allowed

    @property
    def remaining(self) -> int:
        """The least that is left of any quota."""
        return min((standing.remaining for standing in self.standings), default=0)


def distinct(demands: tuple[Demand, ...]) -> tuple[Demand, ...]:
    """Each quota of an identity once, however many rules ask for it (tiers may): at its dearest, and narrowest."""
    found: dict[tuple[str, str], Demand] = {}
    for demand in demands:
        key = (demand.quota.slot, demand.identity)
        same = found.setdefault(key, demand)
        if same is not demand:
            narrow = min(same, demand, key=lambda one: (one.quota.limit, one.quota.burst))
            found[key] = replace(narrow, cost=max(same.cost, demand.cost))
    return tuple(found.values())


def refusal(demands: Sequence[Demand], waits: Sequence[int], standings: tuple[Standing, ...]) -> Decision:
    """The refusal of demands that would have to wait so many microseconds each (policy.NEVER: for ever)."""
    refusing = [(demand, wait) for demand, wait in zip(demands, waits, strict=True) if demand.role != STRIKE and wait]
    bans = [(demand, wait) for demand, wait in refusing if demand.role == GUARD]
    reason = "ban" if bans else "quota"
    # A ban may end before there is room again.
    retry_after: float | None = max(wait for _, wait in refusing) / SECOND
    if any(wait == NEVER for _, wait in refusing):
        reason, retry_after = reason if bans else "cost", None
    return Decision(False, standings, retry_after, tuple(demand.quota.name for demand, _ in bans or refusing), reason)


@dataclass(slots=True)
class Stats:
    """What a limiter has done since it was made."""

    allowed: int = 0  # decisions; shadow rules' and those after a delay are counted like all others
    refused: int = 0
    refused_locally: int = 0  # of those: from the deny memory, without a call
    calls: int = 0  # script calls to Redis
    unavailable: int = 0  # decisions that Redis did not take: it was away, too slow, or back only just
    charged: int = 0
    refunded: int = 0
    delayed: int = 0
    banned: int = 0  # refused because of a ban
    shadowed: int = 0  # would have been refused
    overflowed: int = 0  # decided in the bucket that identities share when the memory is full
    evicted: int = 0  # had not recovered, had to give way

    def count(self, decision: Decision) -> Decision:
        if decision.allowed:
            self.allowed += 1
        else:
            self.refused += 1
            self.banned += decision.reason == "ban"
        return decision
