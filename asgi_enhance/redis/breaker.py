"""When to stop asking a Redis that does not answer, and when to ask again.

Closed, it counts failures in a row; `threshold` of them open it. Open, callers are refused at once and one probe in
the background asks, with a delay that doubles from `first_delay` up to `last_delay`; each delay is drawn between its
half and its whole, so that many processes do not ask together. The first success closes it.
"""

from random import Random


class Breaker:
    """The state machine; `now` and `rng` are arguments, nothing here waits or looks at a clock."""

    __slots__ = ("_delay", "_first_delay", "_last_delay", "_threshold", "failures", "opened_at")

    def __init__(self, *, threshold: int = 3, first_delay: float = 0.1, last_delay: float = 2.0) -> None:
        self._threshold = threshold
        self._first_delay = first_delay
        self._last_delay = last_delay
        self._delay = first_delay
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

    def succeeded(self, now: float) -> float | None:
        """Forget the failures; the seconds it was open if this closed it, else None."""
        self.failures = 0
        self._delay = self._first_delay
        if self.opened_at is None:
            return None
        opened_at, self.opened_at = self.opened_at, None
        return now - opened_at

    def next_probe(self, rng: Random) -> float:
        """The seconds to wait before the next probe."""
        delay = self._delay * (0.5 + rng.random() / 2)
        self._delay = min(self._delay * 2, self._last_delay)
        return delay
