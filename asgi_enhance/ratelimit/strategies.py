"""The strategies of `limits`, for who wants those: fixed window, moving window, sliding window.

They differ from the default: no burst, no ban and no charge; several quotas of a request are tested first and then
taken one by one, which is not atomic; a decision takes two or three calls and more; and what is admitted in a window
is at most twice the limit (fixed), nearly that (sliding), or exact at the price of an entry a request (moving).
"""

import asyncio
import time
from typing import Any

from limits import RateLimitItem, RateLimitItemPerSecond
from limits.aio import strategies
from limits.aio.storage import MemoryStorage, RedisStorage, Storage
from redis.exceptions import RedisError

from asgi_enhance.errors import RedisUnavailable
from asgi_enhance.ratelimit.decision import Decision, Demand, Standing, Stats
from asgi_enhance.ratelimit.keys import digest
from asgi_enhance.ratelimit.policy import SECOND, Quota
from asgi_enhance.redis import RedisManager

STRATEGIES: dict[str, type[strategies.RateLimiter]] = {
    "fixed-window": strategies.FixedWindowRateLimiter,
    "moving-window": strategies.MovingWindowRateLimiter,
    "sliding-window": strategies.SlidingWindowCounterRateLimiter,
}


class StrategyStore:
    """Takes decisions with a strategy of `limits`, in Redis over the manager's pool, or in memory without one.

    budget: seconds a decision may take.
    """

    def __init__(self, name: str, manager: RedisManager | None, stats: Stats, *, budget: float) -> None:
        storage: Storage = MemoryStorage()
        if manager is not None:
            storage = RedisStorage(
                "async+redis://",
                implementation="redispy",
                key_prefix=manager.key("ratelimit", name),
                connection_pool=manager.client.connection_pool,  # type: ignore[union-attr,arg-type]
            )
        self.stats = stats
        self._strategy = STRATEGIES[name](storage)
        self._budget = budget
        self._items: dict[Quota, RateLimitItem] = {}

    async def hit(self, demands: tuple[Demand, ...]) -> Decision:
        """Admit all demands or none of them, unless somebody else comes in between."""
        decision: Decision = await self._within(self._hit(demands))
        return decision

    async def tell(self, demands: tuple[Demand, ...]) -> None:
        """Nothing: what is admitted without Redis stays untold."""

    async def peek(self, demands: tuple[Demand, ...]) -> Decision:
        decision: Decision = await self._within(self._look(demands))
        return decision

    async def reset(self, demands: tuple[Demand, ...]) -> None:
        for demand in demands:
            await self._within(self._strategy.clear(*self._named(demand)))

    async def aclose(self) -> None:
        """Nothing of its own is open: the connections are the manager's."""

    async def _hit(self, demands: tuple[Demand, ...]) -> Decision:
        # A fixed window that refuses a cost has counted it all the same, and the others know nothing of all or none.
        if len(demands) > 1 or demands[0].cost > 1:
            looked = await self._look(demands)
            if not looked.allowed:
                return looked
        for demand in demands:
            self.stats.calls += 1
            if not await self._strategy.hit(*self._named(demand), cost=demand.cost):
                return await self._look(demands, refused=demand.quota.name)
        return Decision(True, await self._standings(demands))

    async def _look(self, demands: tuple[Demand, ...], refused: str = "") -> Decision:
        violated: tuple[str, ...] = (refused,) if refused else ()
        for demand in demands if not refused else ():
            if not await self._strategy.test(*self._named(demand), cost=demand.cost):
                violated += (demand.quota.name,)
        standings = await self._standings(demands)
        if not violated:
            return Decision(True, standings)
        if any(demand.cost > demand.quota.capacity for demand in demands):
            return Decision(False, standings, None, violated, "cost")
        waits = [standing.reset for standing in standings if standing.quota.name in violated]
        return Decision(False, standings, max(waits), violated, "quota")

    async def _standings(self, demands: tuple[Demand, ...]) -> tuple[Standing, ...]:
        standings = []
        for demand in demands:
            self.stats.calls += 1
            reset, remaining = await self._strategy.get_window_stats(*self._named(demand))
            standings.append(Standing(demand.quota, max(0, int(remaining)), max(0.0, reset - time.time())))
        return tuple(standings)

    def _named(self, demand: Demand) -> tuple[Any, ...]:
        """The item of `limits`, and the identifiers."""
        item = self._items.get(demand.quota)
        if item is None:
            item = RateLimitItemPerSecond(demand.quota.limit, demand.quota.window // SECOND)
            self._items[demand.quota] = item
        return item, demand.quota.name, digest(demand.identity)

    async def _within(self, call: Any) -> Any:
        try:
            async with asyncio.timeout(self._budget):
                return await call
        except TimeoutError:
            raise RedisUnavailable(f"redis did not decide within {self._budget * 1000:g} ms") from None
        except RedisError as error:
            raise RedisUnavailable(f"redis cannot decide: {error}") from error
