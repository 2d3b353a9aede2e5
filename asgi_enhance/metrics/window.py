"""What happened in the last 1, 5 and 15 minutes: a ring of slots, added up when somebody asks.

A slot holds one sketch of all durations and, for each endpoint, plain counts. Slots are numbered by wall-clock time, so
that those of several workers can be added. A window is the slot that is filling and as many full ones before it as make
up its length; its rate is divided by the time those have really lasted.
"""

from collections import Counter, deque
from collections.abc import Iterable

SLOT = 10
"""Seconds a slot lasts."""

WINDOWS = {"1m": 60, "5m": 300, "15m": 900}
"""Seconds of each window."""

Endpoint = tuple[str, str]
"""Method and route."""


class Slot:
    """The counts of one slot: durations by exponential bucket, bytes, and requests, errors and seconds by endpoint."""

    __slots__ = ("endpoints", "number", "received", "sent", "sketch")

    def __init__(self, number: int) -> None:
        self.number = number
        self.sketch: Counter[int] = Counter()
        self.endpoints: dict[Endpoint, list[float]] = {}
        self.received = 0.0
        self.sent = 0.0

    def add(self, endpoint: Endpoint, indexes: Iterable[int], requests: float, errors: float, seconds: float) -> None:
        self.sketch.update(indexes)
        counts = self.endpoints.get(endpoint)
        if counts is None:
            counts = self.endpoints[endpoint] = [0, 0, 0.0]
        counts[0] += requests
        counts[1] += errors
        counts[2] += seconds


class Window:
    """Slots added up, and the seconds they cover: from `began`, or from the first slot if that was full before it."""

    __slots__ = ("_now", "_since", "endpoints", "errors", "oldest", "received", "requests", "sent", "sketch")

    def __init__(self, seconds: int, now: float, began: float) -> None:
        self.oldest = int(now // SLOT) - seconds // SLOT + 1
        """Number of the first slot that belongs to it."""
        self._now = now
        self._since = max(self.oldest * SLOT, began)
        self.sketch: Counter[int] = Counter()
        self.endpoints: dict[Endpoint, list[float]] = {}
        self.requests = self.errors = self.received = self.sent = 0.0

    @property
    def seconds(self) -> float:
        return max(1.0, self._now - self._since)

    def add(self, slot: Slot) -> None:
        """Count a slot in, if it belongs to the window."""
        if slot.number < self.oldest:
            return
        if (slot.number + 1) * SLOT <= self._since:  # other workers have counted before those of now began
            self._since = slot.number * SLOT
        self.received += slot.received
        self.sent += slot.sent
        for index, count in slot.sketch.items():
            self.sketch[index] += count
        for endpoint, counts in slot.endpoints.items():
            mine = self.endpoints.setdefault(endpoint, [0, 0, 0.0])
            for position, value in enumerate(counts):
                mine[position] += value
            self.requests += counts[0]
            self.errors += counts[1]


class Ring:
    """The slots of the longest window, the newest last. `now` is wall-clock seconds."""

    def __init__(self, now: float) -> None:
        self.began = now
        self.slots: deque[Slot] = deque([Slot(int(now // SLOT))], maxlen=max(WINDOWS.values()) // SLOT)

    @property
    def current(self) -> Slot:
        return self.slots[-1]

    def turn(self, now: float) -> float:
        """Begin the slot of `now` unless it has begun; the seconds until the next one."""
        number = int(now // SLOT)
        if number != self.current.number:
            self.slots.append(Slot(number))
        return (number + 1) * SLOT - now
