"""Decides whether a request still fits its quotas. Pure: `now` comes in, nothing goes out.

The rules of the default algorithm:

- A quota admits at most `limit` units in any interval of its window. Time is cut into BUCKETS buckets a window; a
  decision counts the bucket it falls into and the BUCKETS before it. The oldest of them reaches past the window
  and is counted in full, which makes the bound exact; a steady stream gets BUCKETS / (BUCKETS + 1) of the limit.
- A quota with a burst below its limit is a GCRA as well (ITU-T I.371, in the form of the continuous-state leaky
  bucket): a level that each unit raises and that drains at limit / window must stay at or below the burst. So any
  interval t admits at most burst + t · limit / window units. With burst = limit this adds nothing to the window and
  is left out.
- What is refused consumes nothing. What is charged afterwards is not refused, it makes the debt larger.
- A clock that steps back moves the past with it: nothing is forgotten and nobody is locked out for longer than a
  window.

`window.lua` takes the same decisions inside Redis; a test plays the same traffic to both.
"""

from dataclasses import dataclass, field
from math import ceil, floor

import msgspec

from asgi_enhance.errors import ConfigError

BUCKETS = 32
"""Buckets a window is cut into: 97 % of the limit for a steady stream, and at most 33 counters an identity."""

REACH = BUCKETS + 1
"""Buckets from the beginning of one until it has left the window."""

SECOND = 1_000_000
"""Time is counted in whole microseconds."""

NEVER = -1
"""The wait of a cost that no quota of this size will ever admit."""

MAX_LIMIT = 2**31 - 1
MAX_WINDOW = 10 * 366 * 86_400 * SECOND

UNNAMED = "default"
"""The name of a quota that was not given one; also what all rules and types without a name are called."""

ROUNDING = 1e-6
"""Units by which a drained level may miss a whole number: floats forget that much at the largest limits."""


@dataclass(frozen=True, slots=True)
class Quota:
    """So many units in a window, and so many at once.

    limit:  units admitted in any window.
    window: microseconds.
    burst:  units admitted at once; default: `limit`, which leaves only the window.
    name:   what the header fields call it, and part of the name its state is kept under; default: what the rule or the
            endpoint type is called that it is given to.
    """

    limit: int
    window: int
    burst: int = 0
    name: str = UNNAMED
    width: int = field(init=False, repr=False)
    drain: float = field(init=False, repr=False)
    bursty: bool = field(init=False, repr=False)
    slot: str = field(init=False, repr=False)
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for what, value, most in (("limit", self.limit, MAX_LIMIT), ("window", self.window, MAX_WINDOW)):
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise ConfigError(f"{what} must be a whole number from 1 to {most}, not {value!r}")
        burst = self.burst if self.burst else self.limit
        if isinstance(burst, bool) or not isinstance(burst, int) or not 1 <= burst <= self.limit:
            raise ConfigError(f"burst must be from 1 to the limit ({self.limit}), not {self.burst!r}")
        if not self.name or not self.name.isascii() or not self.name.isprintable():
            raise ConfigError(f"name must be printable ASCII, it goes into header fields; not {self.name!r}")
        put = object.__setattr__  # frozen: these follow from the others
        put(self, "burst", burst)
        put(self, "width", ceil(self.window / BUCKETS))
        put(self, "drain", self.limit / self.window)
        put(self, "bursty", burst < self.limit)
        put(self, "slot", f"{self.name}:{self.window}")
        put(self, "_hash", hash((self.limit, self.window, burst, self.name)))

    def __hash__(self) -> int:  # looked up for every answer: kept
        return self._hash

    @property
    def seconds(self) -> int:
        """The window in the whole seconds that the header fields speak of."""
        return max(1, ceil(self.window / SECOND))

    @property
    def capacity(self) -> int:
        """The largest cost that can ever be admitted."""
        return self.burst

    def share(self, parts: int) -> "Quota":
        """One of `parts` equal shares of this quota, at least one unit each."""
        if parts == 1:
            return self
        limit = max(1, self.limit // parts)
        return Quota(limit, self.window, min(limit, max(1, self.burst // parts)), self.name)


class Usage(msgspec.Struct, gc=False):
    """What one identity has used of one quota. Call `advance` before anything else.

    `gc=False`, and plain numbers in a tuple: a hundred thousand of these must not slow the garbage collector down.
    """

    newest: int = 0  # the bucket `count` belongs to
    count: int = 0
    older: tuple[int, ...] = ()  # bucket, count, bucket, count, … oldest first
    past: int = 0  # the sum of those
    level: float = 0.0
    at: int = 0  # when `level` was drained last
    blocked: int = 0  # nothing fits before this time, as far as is known; kept by the store that evicts
    told: int = 0  # when Redis spoke of it last; kept by the share of a process

    @property
    def used(self) -> int:
        return self.past + self.count

    def spend(self, quota: Quota, cost: int, now: int) -> tuple[int, int] | None:
        """`advance`, and `add` if there is `room`: (the room left, its `reset`), or None. The others' work in one step,
        for the most frequent case of all."""
        bucket = now // quota.width
        if bucket != self.newest:
            self._turn(bucket)
        count = self.count + cost
        left = quota.limit - self.past - count
        reset = 0
        if quota.bursty:
            level = self.level
            if level and now > self.at:
                level -= (now - self.at) * quota.drain
                if level < 0.0:
                    level = 0.0
            self.level = level
            self.at = now
            burst = floor(quota.burst - level + ROUNDING) - cost
            if burst < left:
                left = burst
                reset = ceil((level + cost - quota.burst + burst + 1) / quota.drain)
            if left >= 0:
                self.level = level + cost
        if left < 0:
            return None
        self.count = count
        older = self.older
        return left, reset or ((older[0] if older else bucket) + REACH) * quota.width - now

    def advance(self, quota: Quota, now: int) -> None:
        """Let go of what has left the window and drain the level."""
        bucket = now // quota.width
        if bucket != self.newest:
            self._turn(bucket)
        if quota.bursty:
            if self.level and now > self.at:
                level = self.level - (now - self.at) * quota.drain
                self.level = level if level > 0.0 else 0.0
            self.at = now

    def room(self, quota: Quota) -> int:
        """How many units fit now; negative for who is in debt."""
        room = quota.limit - self.used
        if quota.bursty:
            burst = quota.burst - self.level + ROUNDING
            if burst < room:
                return floor(burst)
        return room

    def wait(self, quota: Quota, cost: int, now: int) -> int:
        """Microseconds until `cost` units fit if nobody else comes, 0 if they fit now, NEVER if they never will."""
        if cost > quota.burst:
            return NEVER
        wait = 0
        over = self.used + cost - quota.limit
        if over > 0:
            wait = (self._leaves(over) + REACH) * quota.width - now
        if quota.bursty and (excess := self.level + cost - quota.burst) > ROUNDING:
            wait = max(wait, ceil(excess / quota.drain))
        return wait

    def reset(self, quota: Quota, room: int, now: int) -> int:
        """Microseconds until there is more room than the `room` there is now; 0 if nothing is used. For who is in debt:
        until there is any."""
        if room < 0:
            return self.wait(quota, 1, now)
        if quota.bursty and room < quota.limit - self.used:
            excess = self.level - (quota.burst - room - 1 if room < quota.burst else 0)
            return ceil(excess / quota.drain) if excess > 0.0 else 0
        if self.older:
            return (self.older[0] + REACH) * quota.width - now
        return (self.newest + REACH) * quota.width - now if self.count else 0

    def add(self, quota: Quota, cost: int) -> None:
        self.count += cost
        if quota.bursty:
            self.level = min(self.level + cost, quota.limit)  # a debt, too, has drained when the window is over

    def refund(self, quota: Quota, cost: int, admitted: int) -> None:
        """Give back `cost` units that were admitted at the time `admitted`; what has left the window meanwhile, or
        has drained away, is not given back a second time."""
        bucket = admitted // quota.width
        if bucket == self.newest:
            back = min(cost, self.count)
            self.count -= back
        else:
            older = self.older
            for i in range(0, len(older), 2):
                if older[i] == bucket:
                    back = min(cost, older[i + 1])
                    rest = (bucket, older[i + 1] - back) if older[i + 1] > back else ()
                    self.older = (*older[:i], *rest, *older[i + 2 :])
                    self.past -= back
        if quota.bursty:
            self.level = max(0.0, self.level - max(0.0, cost - max(0, self.at - admitted) * quota.drain))

    def cede(self, quota: Quota, room: int, spare: float) -> None:
        """Count as used what others have, until there is `room` in the window and `spare` at once, or less already."""
        others = quota.limit - self.used - room
        if others > 0:
            self.count += others
        if quota.bursty:
            self.level = max(self.level, quota.burst - spare)

    def diary(self, quota: Quota, now: int) -> tuple[float, list[int]]:
        """`advance`, and tell the level and when what was used: (microseconds ago, units, …), oldest first. A bucket is
        as young as it may be: whoever has other buckets must not let it go too early."""
        self.advance(quota, now)
        counts = (*self.older, self.newest, self.count) if self.count else self.older
        return self.level, [n if i % 2 else max(0, now - (n + 1) * quota.width) for i, n in enumerate(counts)]

    def recovered(self, quota: Quota, now: int) -> bool:
        """Whether all that was used has left the window (the level has drained by then, too)."""
        last = self.newest if self.count else self.older[-2] if self.older else -BUCKETS
        return (last + REACH) * quota.width <= now

    def _turn(self, bucket: int) -> None:
        """Make `bucket` the newest."""
        past = self.used
        older = (*self.older, self.newest, self.count) if self.count else self.older
        back = older[-2] - bucket if older else 0
        if back > 0:  # the clock was set back
            older = tuple(n - back if i % 2 == 0 else n for i, n in enumerate(older))
        oldest, i = bucket - BUCKETS, 0
        while i < len(older) and older[i] < oldest:
            past -= older[i + 1]
            i += 2
        self.newest = bucket
        if older and older[-2] == bucket:
            self.count, self.older = older[-1], older[i:-2]
        else:
            self.count, self.older = 0, older[i:] if i else older
        self.past = past - self.count

    def _leaves(self, units: int) -> int:
        """The bucket with which, oldest first, `units` have left."""
        older = self.older
        for i in range(0, len(older), 2):
            units -= older[i + 1]
            if units <= 0:
                return older[i]
        return self.newest
