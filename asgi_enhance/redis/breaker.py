"""When to stop asking a Redis that does not answer, and when to ask again.

Closed, the breaker counts failures in a row; `threshold` of them open it. Open, callers are refused at once, and one
probe in the background asks after growing, jittered delays. The first success closes it, on trial: until a caller has
had an answer too, one failure opens it again. A server may answer a PING and nothing else.
"""

from random import Random


class Backoff:
    """Delays that double from `first` up to `last`; each is drawn between its half and its whole, so that many
    processes do not ask together."""

    __slots__ = ("_delay", "_first", "_last")

    def __init__(self, first: float, last: float) -> None:
        self._first = self._delay = first
        self._last = max(first, last)

    def next(self, rng: Random) -> float:
        delay = self._delay * (0.5 + rng.random() / 2)
        self._delay = min(self._delay * 2, self._last)
        return delay

    def reset(self) -> None:
        self._delay = self._first


class Breaker:
    """The state machine; `now` is an argument, nothing here waits or looks at a clock."""

    __slots__ = ("_threshold", "failures", "opened_at")

    def __init__(self, threshold: int) -> None:
        self._threshold = threshold
        self.failures = 0  # in a row
        self.opened_at: float | None = None

    @property
    def is_open(self) -> bool:
        return self.opened_at is not None

    def failed(self, now: float) -> bool:
        """Count a failure; True if this one opened it."""
        self.failures += 1
        if self.opened_at is not None or self.failures < self._threshold:
            return False
        self.opened_at = now
        return True

    def probed(self, now: float) -> float:
        """Close it on trial; the seconds it was open."""
        assert self.opened_at is not None
        opened_at, self.opened_at = self.opened_at, None
        return now - opened_at

    def succeeded(self) -> None:
        """Forget the failures."""
        self.failures = 0
