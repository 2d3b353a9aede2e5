"""The strategies of `limits`, with a pool or without."""

from collections.abc import Callable

import pytest

from asgi_enhance.ratelimit import RateLimiter, RateLimitMiddleware
from asgi_enhance.redis import RedisManager
from asgi_enhance.testing.driver import request
from tests.ratelimit.apps import hello, limits_of

ALL = ["fixed-window", "moving-window", "sliding-window"]


@pytest.fixture(params=[*ALL, *(f"{name} in memory" for name in ALL)])
def limiter(request: pytest.FixtureRequest, limiter_on: Callable[..., RateLimiter]) -> RateLimiter:
    strategy, _, memory = request.param.partition(" ")
    return limiter_on("3/minute", strategy=strategy, **({"redis": None} if memory else {}))


async def test_they_admit_the_limit_and_tell_the_rest(limiter: RateLimiter) -> None:
    decisions = [await limiter.hit("a") for _ in range(5)]
    assert [decision.allowed for decision in decisions] == [True] * 3 + [False] * 2
    assert [decision.remaining for decision in decisions] == [2, 1, 0, 0, 0]
    assert 0 < (decisions[-1].retry_after or 0) <= 61
    assert await limiter.is_allowed("b")


async def test_a_refused_cost_uses_nothing(limiter: RateLimiter) -> None:
    await limiter.hit("a", cost=2)
    assert not await limiter.is_allowed("a", cost=2)
    assert await limiter.is_allowed("a")


async def test_a_reset_forgets(limiter: RateLimiter) -> None:
    await limiter.hit("a", cost=3)
    await limiter.reset("a")
    assert await limiter.get_remaining_requests("a") == 3


async def test_a_cost_that_never_fits_has_no_time_to_come_back(limiter: RateLimiter) -> None:
    decision = await limiter.hit("a", cost=4)
    assert (decision.allowed, decision.retry_after, decision.reason) == (False, None, "cost")


@pytest.mark.parametrize("strategy", ALL)
async def test_what_one_rate_refuses_the_others_do_not_count(
    strategy: str, limiter_on: Callable[..., RateLimiter]
) -> None:
    limiter = limiter_on("2/minute; 100/hour", strategy=strategy)
    refused = [await limiter.hit("a") for _ in range(6)][-1]
    assert refused.violated == ("default-60s",)
    assert refused.standings[1].remaining == 98


@pytest.mark.parametrize("strategy", ALL)
async def test_the_layer_announces_them_alike(strategy: str, limiter_on: Callable[..., RateLimiter]) -> None:
    app = RateLimitMiddleware(hello, limiter=limiter_on(strategy=strategy, limits="5/minute"), default="1/minute")
    responses = [await request(app) for _ in range(2)]
    assert [response.status for response in responses] == [200, 429]
    assert limits_of(responses[0])["default"][0] == 0


async def test_changing_the_strategy_on_live_keys_breaks_nothing(limiter_on: Callable[..., RateLimiter]) -> None:
    for strategy in [*ALL, "bucketed-window"]:
        assert not (await limiter_on("3/minute", strategy=strategy).hit("a")).degraded


async def test_without_redis_the_share_of_the_process_decides() -> None:
    redis = RedisManager("redis://127.0.0.1:1")
    async with RateLimiter("4/minute", strategy="moving-window", redis=redis, expected_workers=2) as limiter:
        assert [await limiter.is_allowed("a") for _ in range(3)] == [True, True, False]
