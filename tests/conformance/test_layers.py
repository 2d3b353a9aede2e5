"""Every layer is transparent to what is not its business, alone, stacked, and with its state in Redis."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from asgi_enhance import (
    BroadcastRouter,
    CacheMiddleware,
    EnhancedAPI,
    EnhancedAPIMiddleware,
    HealthMiddleware,
    Lifespan,
    MetricsCollector,
    MetricsMiddleware,
    RateLimitMiddleware,
    RedisManager,
)
from asgi_enhance.asgi.types import ASGIApp
from asgi_enhance.testing.conformance import assert_transparent


def stacked(app: ASGIApp) -> Any:
    return MetricsMiddleware(RateLimitMiddleware(BroadcastRouter(CacheMiddleware(app))))


ALONE: dict[str, Callable[[ASGIApp], Any]] = {
    "cache": CacheMiddleware,
    "rate limit": RateLimitMiddleware,
    "metrics": MetricsMiddleware,
    "broadcast": BroadcastRouter,
    "lifespan": lambda app: Lifespan(app, MetricsCollector()),
    "health": HealthMiddleware,
    "all four": stacked,
    "the facade's middleware": EnhancedAPIMiddleware,
    "the facade's stack": lambda app: EnhancedAPI().wrap(app),
}


@pytest.mark.parametrize("layer", ALONE)
async def test_a_layer_is_transparent(layer: str) -> None:
    await assert_transparent(ALONE[layer])


SHARED: dict[str, Callable[..., Any]] = {
    "cache": CacheMiddleware,
    "rate limit": RateLimitMiddleware,
    "metrics": MetricsMiddleware,
    "broadcast": BroadcastRouter,
}


@pytest.fixture
async def stopped() -> AsyncIterator[list[Any]]:
    """The layers a test has made: what first use has started in them is stopped at its end."""
    made: list[Any] = []
    yield made
    for layer in made:
        for core in ("cache", "limiter", "collector", "processor"):
            if hasattr(layer, core):
                await getattr(layer, core).aclose()


@pytest.mark.parametrize("layer", SHARED)
async def test_a_layer_that_shares_redis_is_transparent(layer: str, redis: RedisManager, stopped: list[Any]) -> None:
    def factory(app: ASGIApp) -> Any:
        stopped.append(SHARED[layer](app, redis=redis))
        return stopped[-1]

    await assert_transparent(factory)


@pytest.mark.parametrize("layer", SHARED)
async def test_a_layer_whose_redis_is_away_is_transparent(layer: str, stopped: list[Any]) -> None:
    async with RedisManager("redis://127.0.0.1:1") as away:

        def factory(app: ASGIApp) -> Any:
            stopped.append(SHARED[layer](app, redis=away))
            return stopped[-1]

        await assert_transparent(factory)
