"""Decisions in Redis: exact, in one call or none."""

import asyncio
from collections.abc import Callable

from asgi_enhance.ratelimit import Ban, RateLimiter, RateLimitMiddleware, Rule
from asgi_enhance.ratelimit.budget import Budget
from asgi_enhance.redis import RedisManager
from asgi_enhance.testing.driver import request
from tests.ratelimit.apps import hello, limits_of

Limiters = Callable[..., RateLimiter]


async def test_two_processes_worth_of_limiters_share_one_count(limiter_on: Limiters) -> None:
    one, other = limiter_on("10/minute"), limiter_on("10/minute")
    decisions = await asyncio.gather(*(limiter.hit("a") for limiter in (one, other) for _ in range(20)))
    assert sum(decision.allowed for decision in decisions) == 10


async def test_many_at_once_leave_in_few_calls_and_each_is_told_its_own_rest(limiter_on: Limiters) -> None:
    limiter = limiter_on()
    decisions = await asyncio.gather(*(limiter.hit("a") for _ in range(64)))
    assert [decision.remaining for decision in decisions if decision.allowed] == list(range(19, -1, -1))
    assert all(decision.retry_after for decision in decisions if not decision.allowed)
    assert limiter.stats.calls == 2


async def in_turn(limiter: RateLimiter, tasks: int, times: int) -> None:
    async def task() -> None:
        for _ in range(times):
            await limiter.hit("a")

    await asyncio.gather(*(task() for _ in range(tasks)))


async def test_who_asks_again_at_once_goes_with_the_next_call(limiter_on: Limiters) -> None:
    limiter = limiter_on("1000/minute")
    await in_turn(limiter, tasks=20, times=5)
    assert limiter.stats.allowed == 100
    assert limiter.stats.calls <= 7  # one for the first, and one a round


async def test_who_asks_again_at_once_after_a_refusal_makes_no_call(limiter_on: Limiters) -> None:
    limiter = limiter_on("5/minute")
    await in_turn(limiter, tasks=20, times=5)
    assert limiter.stats.allowed == 5
    assert limiter.stats.calls == 2


async def test_a_group_is_admitted_in_the_order_it_came(limiter_on: Limiters) -> None:
    limiter = limiter_on("5/minute")
    allowed = [decision.allowed for decision in await asyncio.gather(*(limiter.hit("b") for _ in range(9)))]
    assert allowed == [True] * 5 + [False] * 4


async def test_decisions_that_nobody_had_to_wait_for_leave_nothing_behind() -> None:
    async def at_once() -> int:
        return 1

    budget = Budget(60)
    assert sum([await budget.spend(at_once()) for _ in range(9)]) == 9
    assert not budget._calls
    budget.close()


async def test_who_is_refused_is_refused_without_a_call_until_his_time_has_come(limiter_on: Limiters) -> None:
    limiter = limiter_on("2/minute")
    for _ in range(3):
        first = await limiter.hit("a")
    calls = limiter.stats.calls
    again = [await limiter.hit("a") for _ in range(10)]
    assert limiter.stats.calls == calls
    assert limiter.stats.refused_locally == 10
    assert all(decision.violated == first.violated == ("default",) for decision in again)
    assert first.retry_after is not None
    assert first.retry_after - 2 < (again[-1].retry_after or 0) < first.retry_after
    assert (await limiter.hit("b")).allowed


async def test_the_deny_memory_can_be_turned_off(limiter_on: Limiters) -> None:
    limiter = limiter_on("1/minute", deny_keys=0)
    for _ in range(4):
        await limiter.hit("a")
    assert limiter.stats.calls == 4


async def test_he_is_admitted_again_when_the_script_said_he_would_be(limiter_on: Limiters) -> None:
    limiter = limiter_on({"requests": 1, "window": 0.2})
    assert (await limiter.hit("a")).allowed
    refused = await limiter.hit("a")
    assert refused.retry_after is not None
    await asyncio.sleep(refused.retry_after)
    assert (await limiter.hit("a")).allowed


async def test_all_quotas_admit_or_none_is_used(limiter_on: Limiters) -> None:
    limiter = limiter_on("2/second; 100/hour", deny_keys=0)
    for _ in range(2):
        await limiter.hit("a")
    refused = [await limiter.hit("a") for _ in range(5)]
    assert {decision.violated for decision in refused} == {("default-1s",)}
    hour = refused[-1].standings[1]
    assert (hour.quota.name, hour.remaining) == ("default-3600s", 98)


async def test_the_keys_hold_no_identity_and_share_a_slot(limiter_on: Limiters, redis: RedisManager) -> None:
    await limiter_on("2/second; 100/hour").hit("alice@example.org")
    keys = [key.decode() for key in await redis.execute("KEYS", f"{redis.prefix}:*")]
    assert len(keys) == 2
    assert not any("alice" in key for key in keys)
    assert len({key.partition("{")[2].partition("}")[0] for key in keys}) == 1


async def test_state_is_gone_from_redis_when_the_window_is(limiter_on: Limiters, redis: RedisManager) -> None:
    await limiter_on("100/minute").hit("a")
    (key,) = await redis.execute("KEYS", f"{redis.prefix}:*")
    assert 60_000 - 2_000 <= await redis.execute("PTTL", key) <= 62_000


async def test_a_full_window_of_a_big_limit_stays_small_in_redis(limiter_on: Limiters, redis: RedisManager) -> None:
    limiter = limiter_on({"requests": 10_000, "window": 0.5})
    async with asyncio.timeout(5):
        for _ in range(40):
            await limiter.hit("a", cost=100)
            await asyncio.sleep(0.01)
    (key,) = await redis.execute("KEYS", f"{redis.prefix}:*")
    assert await redis.execute("STRLEN", key) < 200


async def test_a_peek_takes_nothing(limiter_on: Limiters) -> None:
    limiter = limiter_on("2/minute")
    for _ in range(5):
        assert (await limiter.peek("a")).remaining == 2
    await limiter.hit("a")
    assert await limiter.get_remaining_requests("a") == 1


async def test_a_reset_forgets_and_forgives(limiter_on: Limiters) -> None:
    limiter = limiter_on("1/minute")
    for _ in range(2):
        await limiter.hit("a")
    await limiter.reset("a")
    assert (await limiter.hit("a")).allowed


async def test_a_ban_is_one_for_all_processes_and_is_then_refused_without_a_call(limiter_on: Limiters) -> None:
    rule = Rule("2/minute", name="login", ban=Ban(after=3, seconds=600))
    layers = [
        RateLimitMiddleware(hello, [rule], limiter=limiter_on(), default="1000/minute", rng=lambda: 0.0)
        for _ in range(2)
    ]
    kinds = []
    for i in range(6):
        response = await request(layers[i % 2])
        kinds.append("ok" if response.status == 200 else response.json()["type"].partition("#")[2])
    assert kinds == ["ok"] * 2 + ["quota-exceeded"] * 2 + ["abnormal-usage-detected"] * 2
    calls = layers[0].limiter.stats.calls
    banned = await request(layers[0])
    assert 590 <= int(banned.header("retry-after") or 0) <= 620
    assert layers[0].limiter.stats.calls == calls
    assert layers[0].limiter.stats.banned > 0


async def test_refusals_are_not_counted_while_the_ban_lasts(limiter_on: Limiters, redis: RedisManager) -> None:
    app = RateLimitMiddleware(hello, [Rule("1/minute", ban=Ban(after=2))], limiter=limiter_on(deny_keys=0))
    for _ in range(3):
        await request(app)
    (key,) = await redis.execute("KEYS", f"{redis.prefix}:*-refusals:*")
    before = await redis.execute("GET", key)
    assert (await request(app)).json()["violated-policies"] == ["rule-1-ban"]
    assert await redis.execute("GET", key) == before


async def test_the_layer_counts_over_redis_and_announces_it(limiter_on: Limiters) -> None:
    app = RateLimitMiddleware(hello, limiter=limiter_on(), default="2/minute")
    assert [(await request(app)).status for _ in range(3)] == [200, 200, 429]
    assert limits_of(await request(app, client=("198.51.100.1", 1)))["default"][0] == 1


async def test_what_waits_for_a_call_fails_with_the_limiter_that_is_closed(limiter_on: Limiters) -> None:
    limiter = limiter_on(on_error="closed")
    await limiter.connect()
    hits = [asyncio.ensure_future(limiter.hit("a")) for _ in range(3)]
    await asyncio.sleep(0)
    await limiter.disconnect()
    assert len(await asyncio.gather(*hits)) == 3


async def test_a_burst_is_not_forgotten_between_two_tiers_that_have_one(limiter_on: Limiters) -> None:
    limiter = limiter_on("100/hour burst 5", deny_keys=0)
    assert sum([await limiter.is_allowed("a") for _ in range(9)]) == 5
    limiter.limits = "100/hour"
    assert await limiter.is_allowed("a")
    limiter.limits = "100/hour burst 5"
    assert not await limiter.is_allowed("a")


async def test_it_fails_as_well_when_the_next_call_was_just_about_to_leave(limiter_on: Limiters) -> None:
    limiter = limiter_on(on_error="closed")
    await limiter.connect()
    await limiter.hit("a")

    async def ends_with_the_same_reply() -> None:
        await limiter.hit("b")
        await limiter.disconnect()

    first = asyncio.create_task(limiter.hit("a"))
    end = asyncio.create_task(ends_with_the_same_reply())
    await asyncio.sleep(0)
    second = asyncio.ensure_future(limiter.hit("a"))
    await asyncio.gather(first, end)
    assert (await asyncio.wait_for(second, 5)).reason == "unavailable"
