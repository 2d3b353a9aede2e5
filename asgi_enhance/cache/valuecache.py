"""Values for your own code: kept, purged by tags, and computed once however many ask.

Subclasses say how to read and write.
"""

import time
from collections.abc import Callable, Hashable, Sequence
from enum import Enum
from inspect import isawaitable
from math import inf
from typing import Any, Generic, TypeVar

from asgi_enhance.asgi.lifespan import Resource
from asgi_enhance.asgi.tasks import Tasks
from asgi_enhance.cache import values
from asgi_enhance.cache.flights import Flights, Outcome
from asgi_enhance.cache.policy.purges import Purges, Verdict
from asgi_enhance.cache.request import generate_cache_key
from asgi_enhance.cache.stats import CacheStats
from asgi_enhance.cache.values import Value
from asgi_enhance.errors import CacheError, ConfigError

R = TypeVar("R", bound="Running")


class Running:
    """What a started cache has on its event loop: at least the tasks that renew entries in the background."""

    def __init__(self) -> None:
        self.tasks = Tasks()


class Claim(Enum):
    """What became of the attempt to be the one who fetches."""

    GRANTED = "granted"
    PASS = "pass"
    """Everybody for himself: it is not for sharing, the time is up, or nobody knows."""
    AGAIN = "again"
    """Somebody else was at it. Look whether he has brought it, then ask again."""


class ValueCache(Resource[R], Generic[R]):
    """The half of every cache that knows no HTTP."""

    remote = False
    """Whether there is more to ask than `peek` can see."""
    purges: Purges
    """As far as they are known here."""

    def __init__(self, *, ttl: float, collapse_timeout: float, clock: Callable[[], float]) -> None:
        super().__init__()
        if not 0 < ttl < inf:
            raise ConfigError(f"ttl must be a number of seconds above 0, not {ttl!r}")
        if not collapse_timeout > 0:
            raise ConfigError(f"collapse_timeout must be more than 0 seconds, not {collapse_timeout!r}")
        self.ttl = ttl
        self.collapse_timeout = collapse_timeout
        self.clock = clock
        self.stats = CacheStats()
        self.flights: Flights[Any] = Flights()

    async def connect(self) -> None:
        """Start, for code that has no lifespan; `async with cache:` does the same and stops, too."""
        await self.__aenter__()

    async def disconnect(self) -> None:
        """Leave again; the last one stops it."""
        await self.__aexit__(None, None, None)

    async def get(self, key: str, default: Any = None, *, as_type: Any = Any) -> Any:
        """The value kept under `key`, or `default`. `as_type`: what to decode a structure into (a msgspec type)."""
        value = await self._value(key)
        if value is None:
            self.stats.value_misses += 1
            return default
        self.stats.value_hits += 1
        return value.load(as_type)

    async def set(self, key: str, value: Any, ttl: float | None = None, *, tags: Sequence[str] = ()) -> None:
        """Keep `value` for `ttl` seconds (default: the cache's), to be purged by any of `tags`."""
        fresh = self._packed(value, ttl, tags, epoch=await self.latest_epoch(), render_time=0.0)
        self.flights.drop(self.value_name(key))
        await self._write(key, fresh)

    async def exists(self, key: str) -> bool:
        return await self._value(key) is not None

    async def delete(self, key: str, *more: str) -> None:
        for name in (key, *more):
            self.flights.drop(self.value_name(name))
        await self._erase((key, *more))

    def generate_cache_key(self, request: Any) -> str:
        """A key for a value that belongs to a request (a scope, or whatever has one): its method and URL."""
        return generate_cache_key(request)

    async def get_or_compute(
        self,
        key: str,
        compute: Callable[[], Any],
        ttl: float | None = None,
        *,
        tags: Sequence[str] = (),
        as_type: Any = Any,
    ) -> Any:
        """The value of `key`; if it is not there, what `compute` gives (or its coroutine): once, however many ask.

        Those who wait get the same value, or the same error. Nobody waits longer than `collapse_timeout` seconds:
        then he computes for himself, and it is not kept. Nor is what `set` or `delete` overtakes while it is computed,
        in whichever process.
        """
        give_up = time.monotonic() + self.collapse_timeout
        name = self.value_name(key)
        while True:
            found = await self._readable(key, as_type)
            if found is not None:
                self.stats.value_hits += 1
                return found[1]
            flight = self.flights.find(name)
            if flight is None:
                self.stats.value_misses += 1
                return await self._lead(name, key, compute, ttl, tags, as_type, give_up)
            outcome = await flight.wait(max(0.0, give_up - time.monotonic()))
            if (brought := flight.value) is not None:
                if self.purges.verdict(brought.epoch, brought.tags) is not Verdict.KEPT:
                    continue  # purged since it was begun
                try:
                    value = brought.load(as_type)
                except CacheError:  # it is not of the type it should be: for everybody what `compute` gives him
                    return await self._compute(compute)
                self.stats.collapsed += 1
                return value
            if outcome is Outcome.FAILED and flight.error is not None:
                raise flight.error
            if outcome is not Outcome.LOST:
                return await self._compute(compute)

    async def _lead(
        self,
        name: str,
        key: str,
        compute: Callable[[], Any],
        ttl: float | None,
        tags: Sequence[str],
        as_type: Any,
        give_up: float,
    ) -> Any:
        flight = self.flights.open(name)
        claim = Claim.PASS
        try:
            while self.remote and (claim := await self.claim(name, give_up)) is Claim.AGAIN:
                if (found := await self._readable(key, as_type)) is not None:
                    self.stats.collapsed += 1
                    flight.share(found[0])
                    return found[1]
            epoch, started = self.purges.number, time.perf_counter()
            computed = await self._compute(compute)
            kept = self._packed(computed, ttl, tags, epoch=epoch, render_time=time.perf_counter() - started)
            if self.flights.find(name) is flight:
                await self._write(key, kept, under_lease=self.remote)
            flight.share(kept)
            return computed
        except Exception as error:
            flight.fail(error)
            raise
        finally:
            overtaken = self.flights.find(name) is not flight
            self.flights.close(name, flight)
            if claim is Claim.GRANTED and not overtaken:
                await self.release(name)

    async def _readable(self, key: str, as_type: Any) -> tuple[Value, Any] | None:
        """The value, and what it is as `as_type`; None if it is not there, or if another release wrote another type."""
        value = await self._value(key)
        if value is None:
            return None
        try:
            return value, value.load(as_type)
        except CacheError:
            self.stats.corrupt += 1
            return None

    async def _compute(self, compute: Callable[[], Any]) -> Any:
        self.stats.computations += 1
        result = compute()
        return await result if isawaitable(result) else result

    def _packed(self, value: Any, ttl: float | None, tags: Sequence[str], *, epoch: int, render_time: float) -> Value:
        seconds = self.ttl if ttl is None else ttl
        if not 0 < seconds < inf:
            raise CacheError(f"ttl must be a number of seconds above 0, not {seconds!r}")
        if isinstance(tags, str):
            raise CacheError("tags must be a sequence of names, not one string")
        kind, data = values.dump(value)
        return Value(kind, self.clock() + seconds, tuple(tags), render_time, epoch, data)

    def value_name(self, key: str) -> str:
        """What a value is called among the flights and leases."""
        return f"value:{key}"

    # -- what subclasses say --------------------------------------------------------------------------------------

    async def latest_epoch(self) -> int:
        """The number of purges so far, those of other processes included."""
        return self.purges.number

    async def claim(self, name: Hashable, give_up: float) -> Claim:
        """Ask for the right to fetch `name`, among all processes; wait a while if another has it.

        `give_up`: when not to wait any more, by the monotonic clock.
        """
        return Claim.GRANTED

    async def release(self, name: Hashable, *, passes: bool = False) -> None:
        """Give back what `claim` gave. `passes`: what came is not for sharing, so nobody shall wait for the next."""

    async def _value(self, key: str) -> Value | None:
        raise NotImplementedError

    async def _write(self, key: str, value: Value, *, under_lease: bool = False) -> None:
        """Keep a value. `under_lease`: only if it was computed under a lease, and no write has ended that."""
        raise NotImplementedError

    async def _erase(self, keys: Sequence[str]) -> None:
        raise NotImplementedError
