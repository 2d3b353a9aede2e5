"""`RateLimiter` called from one's own code, in memory."""

import asyncio
import math

import pytest

from asgi_enhance.errors import ConfigError, RateLimitError
from asgi_enhance.ratelimit import RateLimiter


async def test_the_limit_is_admitted_and_not_one_more() -> None:
    limiter = RateLimiter({"default": {"requests": 3, "window": 60}})
    assert [await limiter.is_allowed("a") for _ in range(5)] == [True] * 3 + [False] * 2
    assert await limiter.is_allowed("b")


async def test_the_rest_is_told_and_asking_takes_nothing() -> None:
    limiter = RateLimiter("10/minute")
    await limiter.is_allowed("a", cost=4)
    assert [await limiter.get_remaining_requests("a") for _ in range(3)] == [6, 6, 6]
    assert await limiter.get_remaining_requests("never seen") == 10


async def test_each_endpoint_type_has_limits_of_its_own_and_the_others_share_the_default() -> None:
    limiter = RateLimiter({"default": "2/minute", "login": "1/minute"})
    assert await limiter.is_allowed("a", "login")
    assert not await limiter.is_allowed("a", "login")
    assert await limiter.is_allowed("a", "search")
    assert await limiter.is_allowed("a", "upload")
    assert not await limiter.is_allowed("a", "anything else")


async def test_a_hit_tells_the_whole_decision() -> None:
    limiter = RateLimiter("10/second burst 1; 100/hour")
    assert (await limiter.hit("a")).allowed
    refused = await limiter.hit("a")
    assert (refused.allowed, refused.reason, refused.violated) == (False, "quota", ("default-1s",))
    assert refused.retry_after is not None
    assert 0 < refused.retry_after <= 0.1
    assert [standing.remaining for standing in refused.standings] == [0, 99]
    assert not refused.degraded


async def test_a_decision_is_true_if_it_admits() -> None:
    limiter = RateLimiter("1/minute")
    assert await limiter.hit("a")
    assert not await limiter.hit("a")


async def test_limits_can_be_assigned_at_run_time_and_what_was_used_stays_used() -> None:
    limiter = RateLimiter("5/minute")
    for _ in range(5):
        await limiter.hit("a")
    limiter.limits = {"default": {"requests": 7, "window": 60}, "api": {"requests": 7, "window": 60}}
    assert limiter.limits["api"] == {"requests": 7, "window": 60}
    assert await limiter.get_remaining_requests("a", "other") == 2


async def test_bad_limits_leave_the_old_ones_in_force() -> None:
    limiter = RateLimiter("5/minute")
    with pytest.raises(ConfigError):
        limiter.limits = {"default": "5/minute", "api": "0/minute"}
    with pytest.raises(ConfigError, match="default"):
        limiter.limits = {"api": "5/minute"}
    assert limiter.limits == {"default": "5/minute"}


def test_limits_cannot_be_changed_behind_the_limiters_back() -> None:
    with pytest.raises(TypeError):
        RateLimiter().limits["api"] = "5/minute"  # type: ignore[index]


@pytest.mark.parametrize("cost", [0, -1, -1000, math.nan, math.inf, 1.0, True, 2**31, "1", None])
async def test_a_cost_that_is_none_is_an_error_and_takes_nothing(cost: object) -> None:
    limiter = RateLimiter("10/minute")
    with pytest.raises(RateLimitError, match="cost"):
        await limiter.is_allowed("a", cost=cost)  # type: ignore[arg-type]
    assert await limiter.get_remaining_requests("a") == 10


async def test_a_cost_that_never_fits_is_refused_for_good() -> None:
    limiter = RateLimiter("10/minute burst 5")
    decision = await limiter.hit("a", cost=6)
    assert (decision.allowed, decision.retry_after, decision.reason) == (False, None, "cost")
    assert await limiter.get_remaining_requests("a") == 5


async def test_a_refused_cost_uses_nothing() -> None:
    limiter = RateLimiter("10/minute")
    await limiter.hit("a", cost=8)
    assert not await limiter.is_allowed("a", cost=3)
    assert await limiter.is_allowed("a", cost=2)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a/b", "c"), ("a", "b/c")),
        (("a", "b"), ("ab",)),
        (("a", ("b", "c")), ("a", "b", "c")),
        (1, "1"),
        (b"a", "a"),
        ("None", "none"),
        ("x" * 5000, "x" * 5001),
        ("\0i1", 1),
        ("a}b{c", "a"),
        ("é", "e\u0301"),
    ],
)
async def test_identities_never_collide(one: object, other: object) -> None:
    limiter = RateLimiter("1/minute")
    assert await limiter.is_allowed(one)  # type: ignore[arg-type]
    assert await limiter.is_allowed(other)  # type: ignore[arg-type]
    assert not await limiter.is_allowed(one)  # type: ignore[arg-type]


@pytest.mark.parametrize("identity", [None, True, 1.5, ["a"], ("a", None)])
async def test_what_cannot_be_an_identity_is_an_error(identity: object) -> None:
    with pytest.raises(RateLimitError):
        await RateLimiter().is_allowed(identity)  # type: ignore[arg-type]


async def test_a_reset_forgets() -> None:
    limiter = RateLimiter("1/minute")
    await limiter.hit("a")
    await limiter.reset("a")
    assert await limiter.is_allowed("a")


async def test_a_delay_admits_what_fits_in_time_and_refuses_the_rest_at_once() -> None:
    limiter = RateLimiter({"requests": 10, "window": 1, "burst": 1})
    ask = limiter.demands("a", "api", 1)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    decisions = [await limiter.acquire(ask, delays={"default": 0.5}) for _ in range(3)]
    assert all(decision.allowed for decision in decisions)
    assert loop.time() - begun >= 0.19
    assert not (await limiter.acquire(ask, delays={"default": 0.001})).allowed
    assert limiter.stats.delayed == 2


async def test_only_so_many_wait_out_a_delay() -> None:
    limiter = RateLimiter({"requests": 10, "window": 1, "burst": 1}, max_waiting=1)
    ask = limiter.demands("a", "api", 1)
    await limiter.hit("a")
    decisions = await asyncio.gather(*(limiter.acquire(ask, delays={"default": 0.45}) for _ in range(4)))
    assert sorted(decision.allowed for decision in decisions) == [False, False, False, True]


async def test_connect_and_disconnect_are_there_without_redis_too() -> None:
    limiter = RateLimiter("1/minute")
    await limiter.connect()
    assert await limiter.is_allowed("a")
    await limiter.disconnect()
    assert not await limiter.is_allowed("a")


async def test_what_is_done_is_counted() -> None:
    limiter = RateLimiter("1/minute")
    for _ in range(3):
        await limiter.hit("a")
    assert (limiter.stats.allowed, limiter.stats.refused) == (1, 2)


@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "leaky-bucket"},
        {"on_error": "ajar"},
        {"expected_workers": 0},
        {"max_keys": 0},
        {"max_keys": True},
        {"deny_keys": -1},
        {"max_waiting": 0},
        {"budget": 0},
        {"budget": math.nan},
        {"deny_seconds": -1},
        {"limits": {"default": "0/minute"}},
        {"limits": {}},
        {"redis": "http://localhost"},
        {"strategy": "fixed-window", "limits": "5/minute burst 2"},
        {"strategy": "fixed-window", "limits": {"requests": 5, "window": 0.5}},
        {"strategy": "fixed-window", "redis": "redis+cluster://localhost"},
    ],
)
def test_a_bad_option_is_a_config_error(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        RateLimiter(**options)  # type: ignore[arg-type]


async def test_a_charge_in_memory_is_of_the_whole_limit_however_many_workers_there_are() -> None:
    limiter = RateLimiter("100/minute burst 20", expected_workers=4)
    await limiter.charge(limiter.demands("a", "api", 60))
    wait = (await limiter.peek("a")).retry_after
    assert wait is not None
    assert 24 < wait < 25


async def test_who_was_charged_his_last_unit_is_not_forgotten_while_others_are_sprayed() -> None:
    limiter = RateLimiter("2/minute", max_keys=10)
    await limiter.charge(limiter.demands("victim", "api", 5))
    for i in range(1000):
        await limiter.hit(f"{i}")
    assert not await limiter.is_allowed("victim")
