"""The limiter itself: call it from your own code, or let `RateLimitMiddleware` do so.

limiter = RateLimiter({"default": "100/minute", "login": "5/minute burst 2"}, redis="redis://localhost")
if not await limiter.is_allowed(user_id, "login"):
    ...
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any
from weakref import WeakValueDictionary

from asgi_enhance.asgi.lifespan import Resource
from asgi_enhance.errors import ConfigError, RateLimitError, RedisUnavailable
from asgi_enhance.options import checked
from asgi_enhance.ratelimit.decision import STRIKE, Decision, Demand, Stats
from asgi_enhance.ratelimit.keys import Identity, spell
from asgi_enhance.ratelimit.memory import MemoryStore
from asgi_enhance.ratelimit.notation import Limits, quotas
from asgi_enhance.ratelimit.policy import MAX_LIMIT, SECOND, Quota
from asgi_enhance.ratelimit.share import Share

logger = logging.getLogger("asgi_enhance.ratelimit")

STRATEGIES = ("bucketed-window", "fixed-window", "moving-window", "sliding-window")

ON_ERROR = ("local", "open", "closed")

NO_DELAYS: Mapping[str, float] = MappingProxyType({})


@checked
class RateLimiter(Resource[Any]):
    """Admits so many requests of an identity in a window, and so many at once.

    limits:           by endpoint type, `"default"` for all others: `"100/minute burst 20"`, `{"requests": 100,
                      "window": 60}` or quotas; or one such for everything. Assignable at run time. Default: 100 a
                      minute.
    redis:            a `RedisManager` or a URL: one count for all processes. Default: each process counts for itself.
    redis_url:        the URL by another name.
    strategy:         `bucketed-window` (exact, with bursts), or one of `limits`: `fixed-window`, `moving-window`,
                      `sliding-window`; these know no burst, ban or charge. Default: `bucketed-window`.
    on_error:         without Redis: `local` (each process admits its share), `open` (admit) or `closed` (refuse).
                      Default: `local`.
    expected_workers: processes that share a limit, for `local`. Default: 1.
    budget:           seconds a decision of Redis may take. Default: 0.05.
    max_keys:         identities kept in memory for each quota. Default: 100 000.
    deny_keys:        refused identities remembered beside Redis; 0 turns this off. Default: 10 000.
    deny_seconds:     how long one of them is refused without asking Redis, at most. Default: 10.
    max_waiting:      requests that wait for one decision, or out a delay. Default: 10 000.

    Raises ConfigError for a limit or an option that cannot work.
    """

    def __init__(
        self,
        limits: Limits | Mapping[str, Limits] | None = None,
        *,
        redis: Any = None,
        redis_url: str | None = None,
        strategy: str = "bucketed-window",
        on_error: str = "local",
        expected_workers: int = 1,
        budget: float = 0.05,
        max_keys: int = 100_000,
        deny_keys: int = 10_000,
        deny_seconds: float = 10.0,
        max_waiting: int = 10_000,
    ) -> None:
        super().__init__()
        if strategy not in STRATEGIES:
            raise ConfigError(f"strategy must be one of {STRATEGIES}, not {strategy!r}")
        if on_error not in ON_ERROR:
            raise ConfigError(f"on_error must be one of {ON_ERROR}, not {on_error!r}")
        for name, value, least in (
            ("expected_workers", expected_workers, 1),
            ("max_keys", max_keys, 1),
            ("deny_keys", deny_keys, 0),
            ("max_waiting", max_waiting, 1),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name} must be a whole number of at least {least}, not {value!r}")
        for name, seconds in (("budget", budget), ("deny_seconds", deny_seconds)):
            if not 0 < seconds < float("inf"):
                raise ConfigError(f"{name} must be seconds, more than 0, not {seconds!r}")
        if redis is not None and redis_url is not None:
            raise ConfigError("redis and redis_url are the same thing: give one of them")
        redis = redis or redis_url
        self.stats = Stats()
        self.strategy = strategy
        self.limits = limits if limits is not None else {"default": {"requests": 100, "window": 60}}
        self._memory = MemoryStore(self.stats, max_keys=max_keys)
        self._manager = None
        if redis is not None:
            from asgi_enhance.redis import RedisManager

            self._manager = RedisManager.of(redis)
            self.needs = (self._manager,)
            if strategy != STRATEGIES[0] and self._manager is not None and self._manager.clustered:
                raise ConfigError(f"strategy {strategy!r} does not work on a cluster: limits takes no pool for one")
        self._at_once = self._manager is None and strategy == STRATEGIES[0]
        self._share = Share(
            self._memory, self.stats, self._manager, workers=expected_workers, on_error=on_error, max_keys=max_keys
        )
        self._options: dict[str, Any] = {
            "budget": budget,
            "deny_keys": deny_keys,
            "deny_seconds": deny_seconds,
            "max_waiting": max_waiting,
        }
        self._max_delayed = max_waiting
        self._delayed = 0
        # Of those that wait for the same, the first alone asks again: all of them would be a stampede with every unit.
        self._lines: WeakValueDictionary[Any, asyncio.Lock] = WeakValueDictionary()

    @property
    def limits(self) -> Mapping[str, Any]:
        """The limits by endpoint type, as they were given. Read-only: to change them, assign new ones."""
        return self._limits

    @limits.setter
    def limits(self, limits: Limits | Mapping[str, Limits]) -> None:
        by_type: Any = limits if isinstance(limits, Mapping) and "requests" not in limits else {"default": limits}
        if "default" not in by_type:
            raise ConfigError(f"limits must have a 'default' for all other endpoint types, not only {sorted(by_type)}")
        found = {name: quotas(given, name) for name, given in by_type.items()}
        for quotas_of_type in found.values():
            self.check(quotas_of_type)
        self._quotas = found
        self._limits = MappingProxyType(dict(by_type))

    @property
    def live_keys(self) -> int:
        """Identities kept in memory, over all quotas."""
        return len(self._memory)

    # What your own code calls.

    async def connect(self) -> None:
        """Start now instead of with the first decision. `async with limiter:` does the same and stops at its end."""
        await self.__aenter__()

    async def disconnect(self) -> None:
        """Leave again; the last one stops it."""
        await self.__aexit__(None, None, None)

    async def is_allowed(self, client_id: Identity, endpoint_type: str = "api", cost: int = 1) -> bool:
        """Take `cost` units if they fit, and say whether they did."""
        return (await self.hit(client_id, endpoint_type, cost)).allowed

    async def get_remaining_requests(self, client_id: Identity, endpoint_type: str = "api") -> int:
        """How many units would be admitted now."""
        return (await self.peek(client_id, endpoint_type)).remaining

    async def hit(self, client_id: Identity, endpoint_type: str = "api", cost: int = 1) -> Decision:
        """Take `cost` units if they fit: the whole decision."""
        return await self._decide(self.demands(client_id, endpoint_type, cost))

    async def peek(self, client_id: Identity, endpoint_type: str = "api", cost: int = 1) -> Decision:
        """What `hit` would say, without taking anything."""
        demands = self.demands(client_id, endpoint_type, cost)
        if self._at_once:
            return self._memory.peek(demands)
        try:
            decision: Decision = await (await self.started()).peek(demands)
        except RedisUnavailable:
            return self._share.peek(demands)
        return decision

    async def reset(self, client_id: Identity, endpoint_type: str = "api") -> None:
        """Forget what this client has used. Other processes may go on refusing him for `deny_seconds`.

        RedisUnavailable if Redis cannot be told."""
        demands = self.demands(client_id, endpoint_type, 1)
        self._share.reset(demands)
        if not self._at_once:
            await (await self.started()).reset(demands)

    def demands(self, client_id: Identity, endpoint_type: str, cost: int) -> tuple[Demand, ...]:
        """What a request of this client at an endpoint of this type asks for."""
        if isinstance(cost, bool) or not isinstance(cost, int) or not 1 <= cost <= MAX_LIMIT:
            raise RateLimitError(f"cost must be a whole number from 1 to {MAX_LIMIT}, not {cost!r}")
        identity = spell(client_id)
        found = self._quotas.get(endpoint_type) or self._quotas["default"]
        if len(found) == 1:
            return (Demand(found[0], identity, cost),)
        return tuple([Demand(quota, identity, cost) for quota in found])

    # What the layer calls, with demands of its own.

    def check(self, found: Iterable[Quota]) -> None:
        """ConfigError if the strategy cannot keep these quotas."""
        for quota in found:
            if self.strategy != STRATEGIES[0] and (quota.bursty or quota.window % SECOND):
                raise ConfigError(f"strategy {self.strategy!r}: {quota.name!r} must have whole seconds and no burst")

    @property
    def at_once(self) -> MemoryStore | None:
        """What decides without waiting, where nobody else has to be asked; None if there is somebody."""
        return self._memory if self._at_once else None

    async def acquire(self, demands: tuple[Demand, ...], *, delays: Mapping[str, float] = NO_DELAYS) -> Decision:
        """Admit all demands or none of them. Quotas named in `delays` may hold a request up for so many seconds, if it
        fits then."""
        if not any(delays.values()):
            return await self._decide(demands)
        uncounted = tuple(demand for demand in demands if demand.role != STRIKE)  # who waits is not refused yet
        decision = await self._decide(uncounted)
        if not decision.allowed and self._delayed < self._max_delayed:
            decision = await self._later(uncounted, decision, delays)
        if not decision.allowed and len(uncounted) < len(demands):
            decision = await self._decide(demands)
        return decision

    async def watch(self, demands: tuple[Demand, ...]) -> Decision:
        """Decide and count, for nobody to obey (a shadow rule)."""
        decision = await self._decide(demands)
        if not decision.allowed:
            self.shadowed(decision.violated)
        return decision

    def shadowed(self, names: Sequence[str]) -> None:
        """Count and log a refusal of a shadow rule."""
        self.stats.shadowed += 1
        logger.info("a shadow rule would have refused: %s", ", ".join(names))

    async def charge(self, demands: tuple[Demand, ...]) -> None:
        """Take units whether they fit or not: the price turned out higher."""
        self.stats.charged += sum(demand.cost for demand in demands)
        told = False
        if self._manager is not None:
            with suppress(RedisUnavailable):
                await (await self.started()).charge(demands)
                told = True
        self._share.charge(demands, told=told)

    async def refund(self, demands: tuple[Demand, ...], decision: Decision) -> None:
        """Give back units that `decision` admitted, as far as they still count."""
        self.stats.refunded += sum(demand.cost for demand in demands)
        if self._manager is None or decision.degraded:
            self._share.refund(demands, decision.at)
        else:
            try:
                await (await self.started()).refund(demands, decision.at)
            except RedisUnavailable:
                logger.debug("a refund was lost: Redis is away")

    async def _decide(self, demands: tuple[Demand, ...]) -> Decision:
        if self._at_once:
            return self._memory.hit(demands)
        if self._share.unsettled():
            return await self._decide_carefully(demands)
        try:
            decision: Decision = await (self.opened() or await self.started()).hit(demands)
        except RedisUnavailable:
            self.stats.unavailable += 1
            return self._share.hit(demands)
        return self.stats.count(decision)

    async def _decide_carefully(self, demands: tuple[Demand, ...]) -> Decision:
        """Redis is away, or was a moment ago: what it admits has to fit the share of this process as well."""
        store, held = await self.started(), None
        try:
            await store.tell(demands)
            held = self._share.hold(demands)
            if held is None or held.allowed:
                return self.stats.count(await store.hit(demands))
            self.stats.unavailable += 1
            return self._share.sooner(self._share.hit(demands))
        except RedisUnavailable:
            pass
        finally:
            if held is not None:
                self._share.release(demands, held)
        self.stats.unavailable += 1
        return self._share.hit(demands)

    async def _later(self, demands: tuple[Demand, ...], decision: Decision, delays: Mapping[str, float]) -> Decision:
        begun = time.monotonic()
        if not _in_time(decision, delays, begun):
            return decision
        line = self._lines.setdefault((asyncio.get_running_loop(), demands), asyncio.Lock())
        others = line.locked()
        self._delayed += 1
        try:
            async with line:  # who is before us began earlier, and loses patience earlier
                if others:
                    decision = await self._decide(demands)
                while _in_time(decision, delays, begun):
                    await asyncio.sleep(decision.retry_after or 0.0)
                    decision = await self._decide(demands)
        finally:
            self._delayed -= 1
        self.stats.delayed += decision.allowed
        return decision

    # The room (see `Resource`): what belongs to one event loop.

    async def _start(self) -> Any:
        if self._at_once:
            return self._memory
        return self._store()

    async def _stop(self, store: Any) -> None:
        if not self._at_once:
            await store.aclose()

    def _store(self) -> Any:
        if self.strategy != STRATEGIES[0]:
            from asgi_enhance.ratelimit.strategies import StrategyStore

            return StrategyStore(self.strategy, self._manager, self.stats, budget=self._options["budget"])
        from asgi_enhance.ratelimit.shared import RedisStore

        assert self._manager is not None
        return RedisStore(self._manager, self.stats, share=self._share, **self._options)


def _in_time(decision: Decision, delays: Mapping[str, float], begun: float) -> bool:
    """Whether what is refused may still fit before the patience is over that began then."""
    if decision.allowed or decision.retry_after is None:
        return False
    patience = min(delays.get(name, 0.0) for name in decision.violated)
    return time.monotonic() - begun + decision.retry_after <= patience
