"""Latencies summed up so that sums of sums stay exact: what is kept of a duration, and what can be told from it.

The rules:

- A value v falls into the exponential bucket i with γ^(i-1) < v <= γ^i and γ = 2^(2^-SCHEMA), as in OpenTelemetry's
  exponential histogram and of Prometheus' native histogram.
- A quantile is answered by the bucket's point 2γ^i / (γ+1), which is within (γ-1)/(γ+1) of every value of the bucket
  (Masson, Rim, Lee: DDSketch, VLDB 2019). With SCHEMA 5 that is 1.083 %.
- Two sketches are merged by adding integers, so workers and time windows can be added without losing accuracy.
- Buckets are bounded by the clock: from its step of a nanosecond to a year there are 1 750 of them.
- Prometheus' classic buckets lie on other bounds, so they are counted beside the sketch and never derived from it.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from math import ceil, log2

SCHEMA = 5
_PER_DOUBLING = float(1 << SCHEMA)
GAMMA = 2.0 ** (1.0 / _PER_DOUBLING)
RELATIVE_ERROR = (GAMMA - 1) / (GAMMA + 1)

SHORTEST = 1e-9
"""Seconds; the clock's own step."""

_scaled = _PER_DOUBLING.__mul__


def bucket_indexes(values: Sequence[float]) -> list[int]:
    """The exponential bucket of each value (seconds), in one pass in C."""
    try:
        return list(map(ceil, map(_scaled, map(log2, values))))
    except ValueError:  # a clock may stand still: log2(0)
        return bucket_indexes([max(value, SHORTEST) for value in values])


def quantiles(counts: Mapping[int, int], ranks: Sequence[float]) -> list[float | None]:
    """The values (seconds) at `ranks`, which rise, of what a sketch has counted; None if that is nothing."""
    total = sum(counts.values())
    if not total:
        return [None] * len(ranks)
    answers: list[float | None] = []
    buckets = iter(sorted(counts.items()))
    index, below = 0, 0
    for rank in ranks:
        wanted = max(1, ceil(rank * total))
        while below < wanted:
            index, count = next(buckets)
            below += count
        answers.append(2 * GAMMA**index / (GAMMA + 1))
    return answers


class Distribution:
    """Durations of one kind: classic buckets at `bounds` (seconds), the sum, and the sketch if `sketched`."""

    __slots__ = ("bounds", "buckets", "count", "sketch", "total")

    def __init__(self, bounds: tuple[float, ...], *, sketched: bool = False) -> None:
        self.bounds = bounds
        self.buckets = [0] * (len(bounds) + 1)
        self.count = 0
        self.total = 0.0
        self.sketch: Counter[int] | None = Counter() if sketched else None

    def __add__(self, other: "Distribution") -> "Distribution":
        """Both together, in classic buckets; the bounds must be the same."""
        both = Distribution(self.bounds)
        both.buckets = [mine + theirs for mine, theirs in zip(self.buckets, other.buckets, strict=True)]
        both.count = self.count + other.count
        both.total = self.total + other.total
        return both

    def add(self, values: list[float]) -> list[int]:
        """Count values, which may be sorted on the way; their exponential buckets are returned if there is a sketch."""
        self._place(values)
        self.count += len(values)
        self.total += sum(values)
        if self.sketch is None:
            return []
        indexes = bucket_indexes(values)
        self.sketch.update(indexes)
        return indexes

    def _place(self, values: list[float]) -> None:
        below, count, buckets = 0, len(values), self.buckets
        if max(values) <= self.bounds[0]:  # most are, and to know that is cheaper than to sort
            buckets[0] += count
            return
        values.sort()
        for place, bound in enumerate(self.bounds):
            upto = bisect_right(values, bound, below)
            buckets[place] += upto - below
            if upto == count:
                return
            below = upto
        buckets[-1] += count - below
