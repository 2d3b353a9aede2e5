"""The turn to fetch for all who want the same, here and in other processes.

It ends as soon as it is known what the others may have, not when the client of the one who fetches has read the last
byte: a stream that is not for sharing holds nobody up, and nobody who comes later is given what has landed before.
"""

import asyncio
from collections.abc import Hashable
from contextvars import ContextVar
from typing import Any, Final

from asgi_enhance.cache.core import Cache
from asgi_enhance.cache.entry import Entry
from asgi_enhance.cache.flights import Flight, Outcome

LEADING: Final[ContextVar[tuple[Hashable, ...]]] = ContextVar("asgi_enhance.cache.leading", default=())
"""What is being fetched by whom we are called: a cache further in, on the same store, would wait for itself."""


class Lead:
    """Whoever has it says how it ended; if he says nothing, the next one takes his place."""

    __slots__ = ("_cache", "_flight", "_name", "granted", "release")

    def __init__(self, cache: Cache[Any], name: Hashable) -> None:
        self._cache = cache
        self._name = name
        self._flight: Flight[Entry] = cache.flights.open(name)
        self.granted = False
        """Whether there is a lease to be given back."""
        self.release: asyncio.Task[None] | None = None

    def share(self, entry: Entry) -> None:
        self._flight.share(entry)
        self.end()

    def alone(self) -> None:
        """What came is not for sharing: everybody goes himself, and for a while nobody waits for the next."""
        if self._flight.outcome is Outcome.PENDING:
            self._flight.alone()
            self._cache.remember_pass(self._name)
            self.end(passes=True)

    def fail(self) -> None:
        self._flight.fail()
        self.end()

    def end(self, *, passes: bool = False) -> None:
        """Let the others go on. The lease is given back beside the response, which does not wait for it."""
        self._cache.flights.close(self._name, self._flight)
        if self.granted and (running := self._cache.opened()) is not None:
            self.granted = False
            release = self._cache.release(self._name, passes=passes)
            self.release = running.tasks.spawn(release, name="asgi_enhance.cache.release")
