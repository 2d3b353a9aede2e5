"""Single flight: of all who want the same thing at once one fetches it, the others wait for what he brings.

What he brings is one of four: a thing all may share; the word that everybody has to go himself (it is not for
sharing); his failure; or nothing at all, since he was cancelled, and then the next one takes his place.
"""

import asyncio
from collections.abc import Hashable
from enum import Enum
from typing import Generic, TypeVar

T = TypeVar("T")


class Outcome(Enum):
    SHARED = "shared"
    ALONE = "alone"
    FAILED = "failed"
    LOST = "lost"
    PENDING = "pending"


class Flight(Generic[T]):
    """One fetch under way. Its leader says how it ended; whoever says nothing has lost it."""

    __slots__ = ("_done", "error", "outcome", "value")

    def __init__(self) -> None:
        self._done: asyncio.Event | None = None  # made by the first who waits: mostly nobody does
        self.outcome = Outcome.PENDING
        self.value: T | None = None
        self.error: BaseException | None = None

    def share(self, value: T) -> None:
        self._land(Outcome.SHARED, value)

    def alone(self) -> None:
        self._land(Outcome.ALONE)

    def fail(self, error: BaseException | None = None) -> None:
        self.error = error
        self._land(Outcome.FAILED)

    async def wait(self, patience: float) -> Outcome:
        """How it ended; PENDING if it has not, after `patience` seconds."""
        if self.outcome is Outcome.PENDING:
            if self._done is None:
                self._done = asyncio.Event()
            try:
                async with asyncio.timeout(patience):
                    await self._done.wait()
            except TimeoutError:
                return Outcome.PENDING
        return self.outcome

    def _land(self, outcome: Outcome, value: T | None = None) -> None:
        if self.outcome is Outcome.PENDING:
            self.outcome, self.value = outcome, value
            if self._done is not None:
                self._done.set()


class Flights(Generic[T]):
    """The flights under way, by what they fetch."""

    __slots__ = ("_flights", "_loop")

    def __init__(self) -> None:
        self._flights: dict[Hashable, Flight[T]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def __len__(self) -> int:
        return len(self._flights)

    def find(self, name: Hashable) -> Flight[T] | None:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # whoever flew on another loop can wake nobody here
            self._flights, self._loop = {}, loop
        return self._flights.get(name)

    def open(self, name: Hashable) -> Flight[T]:
        flight = self._flights[name] = Flight()
        return flight

    def drop(self, name: Hashable) -> None:
        """Whoever asks from now on is not to wait for this flight."""
        self._flights.pop(name, None)

    def close(self, name: Hashable, flight: Flight[T]) -> None:
        if self._flights.get(name) is flight:
            del self._flights[name]
        flight._land(Outcome.LOST)
