"""The limiter while Redis is away, slow, restarted or confused."""

import asyncio
import sys
import time

import pytest

from asgi_enhance.errors import RedisUnavailable
from asgi_enhance.ratelimit import Ban, RateLimiter, RateLimitMiddleware, Rule, share
from asgi_enhance.ratelimit.policy import SECOND
from asgi_enhance.ratelimit.shared import RedisStore
from asgi_enhance.redis import RedisManager
from asgi_enhance.testing.driver import request
from asgi_enhance.testing.servers import RedisServer
from tests.ratelimit.apps import hello

NOBODY = "redis://127.0.0.1:1"  # nobody listens there


async def test_without_redis_each_process_admits_its_share() -> None:
    async with RateLimiter("100/minute", redis=RedisManager(NOBODY), expected_workers=4) as limiter:
        decisions = [await limiter.hit("a") for _ in range(30)]
    assert sum(decision.allowed for decision in decisions) == 25
    assert all(decision.degraded for decision in decisions)
    assert limiter.stats.unavailable == 30


async def test_what_this_process_admitted_with_redis_counts_against_its_share_without(
    private_redis: RedisServer,
) -> None:
    async with RateLimiter("40/minute", redis=private_redis.url, expected_workers=4, budget=2.0) as limiter:
        while (await limiter.hit("warm")).degraded:
            pass
        decisions = await asyncio.gather(*(limiter.hit("a") for _ in range(7)))
        assert not any(decision.degraded for decision in decisions)
        private_redis.stop()
        alone = [await limiter.hit("a") for _ in range(6)]
    assert [decision.allowed for decision in alone] == [True] * 3 + [False] * 3


async def test_who_was_limited_with_redis_is_so_without_though_others_were_sprayed_meanwhile(
    private_redis: RedisServer,
) -> None:
    redis = RedisManager(private_redis.url, connect_timeout=2.0, command_timeout=2.0)
    async with RateLimiter("2/minute", redis=redis, budget=2.0, max_keys=10) as limiter:
        for _ in range(2):
            assert (await limiter.hit("victim")).allowed
        for i in range(100):
            await limiter.hit(f"{i}")
        private_redis.stop()
        alone = await limiter.hit("victim")
    assert (alone.allowed, alone.degraded) == (False, True)


async def test_without_redis_open_rules_admit_and_closed_ones_answer_503() -> None:
    async with RedisManager(NOBODY) as redis:
        rules = [
            Rule("1/minute", name="open", path="/open", on_error="open"),
            Rule("1000/minute", name="closed", path="/closed", on_error="closed"),
        ]
        app = RateLimitMiddleware(hello, rules, redis=redis, default="3/minute")
        async with app.limiter:
            assert (await request(app, "/open")).status == 200
            assert (await request(app, "/open")).status == 200
            closed = await request(app, "/closed")
            assert closed.status == 503
            assert closed.json()["type"].endswith("#temporary-reduced-capacity")
            assert closed.json()["violated-policies"] == ["closed"]
            assert closed.header("retry-after") == "1" or closed.header("retry-after") == "2"
            assert closed.header("cache-control") == "no-store"
            assert (await request(app, "/open")).status == 200
            assert (await request(app, "/open")).status == 429  # the default rule is local


@pytest.mark.parametrize("mode", ["local", "open", "closed"])
async def test_the_layer_says_what_happens_to_rules_that_do_not(mode: str) -> None:
    async with RedisManager(NOBODY) as redis:
        app = RateLimitMiddleware(hello, redis=redis, default="1/minute", on_error=mode)  # type: ignore[arg-type]
        async with app.limiter:
            statuses = [(await request(app)).status for _ in range(2)]
    assert statuses == {"local": [200, 429], "open": [200, 200], "closed": [503, 503]}[mode]


async def test_a_ban_works_in_the_share_of_a_process_too() -> None:
    async with RedisManager(NOBODY) as redis:
        app = RateLimitMiddleware(hello, [Rule("1/minute", name="x", ban=Ban(after=1))], redis=redis, default=None)
        async with app.limiter:
            last = [await request(app) for _ in range(3)][-1]
    assert last.json()["violated-policies"] == ["x-ban"]


async def test_a_hung_redis_costs_the_budget_and_no_more(private_redis: RedisServer) -> None:
    redis = RedisManager(private_redis.url, command_timeout=5.0)
    async with RateLimiter("100/minute", redis=redis, budget=0.05) as limiter:
        while (await limiter.hit("warm")).degraded:
            pass
        private_redis.pause()
        try:
            begun = time.monotonic()
            decisions = await asyncio.gather(*(limiter.hit("a") for _ in range(50)))
            taken = time.monotonic() - begun
        finally:
            private_redis.resume()
    assert all(decision.degraded and decision.allowed for decision in decisions)
    assert 0.04 < taken < 2.0


async def test_who_waits_behind_a_hung_call_waits_no_longer_than_his_own_budget(private_redis: RedisServer) -> None:
    redis = RedisManager(private_redis.url, command_timeout=5.0)
    async with RateLimiter("100/minute", redis=redis, budget=0.5) as limiter:
        while (await limiter.hit("a")).degraded:
            pass
        private_redis.pause()
        try:
            first = asyncio.ensure_future(limiter.hit("a"))
            await asyncio.sleep(0.3)
            begun = time.monotonic()
            assert (await limiter.hit("a")).degraded
            assert time.monotonic() - begun < 0.65
            assert (await first).degraded
        finally:
            private_redis.resume()


async def test_when_redis_is_back_it_decides_again(private_redis: RedisServer) -> None:
    async with RateLimiter("5/minute", redis=private_redis.url, budget=1.0) as limiter:
        while (await limiter.hit("a")).degraded:
            pass
        private_redis.stop()
        assert (await limiter.hit("a")).degraded
        private_redis.start()
        async with asyncio.timeout(10):
            while (await limiter.hit("b")).degraded:  # noqa: ASYNC110 nothing tells when it is back
                await asyncio.sleep(0.02)
        assert not any(decision.degraded for decision in await asyncio.gather(*(limiter.hit("c") for _ in range(3))))


async def test_who_is_refused_by_a_share_while_redis_is_back_may_ask_redis_when_that_is_settled(
    redis: RedisManager,
) -> None:
    async with RateLimiter("4/minute", redis=redis, budget=2.0, expected_workers=2) as limiter:
        for _ in range(2):
            assert (await limiter.hit("a")).allowed
        redis.stats.outages += 1
        refused = await limiter.hit("a")
        assert (refused.allowed, refused.degraded) == (False, True)
        assert 4 < (refused.retry_after or 0) <= 5
        assert 4 < refused.standings[0].reset <= 5


async def test_while_redis_is_away_who_is_refused_comes_back_when_the_share_has_room() -> None:
    async with RedisManager(NOBODY) as redis, RateLimiter("4/minute", redis=redis, expected_workers=2) as limiter:
        while redis.available:
            await limiter.hit("warm")
        refused = [await limiter.hit("a") for _ in range(3)][-1]
        assert (refused.retry_after or 0) > 50


async def test_what_is_too_much_for_a_share_and_not_for_redis_is_worth_another_try() -> None:
    async with RateLimiter("100/minute", redis=RedisManager(NOBODY), expected_workers=4) as limiter:
        dear, never = await limiter.hit("a", cost=30), await limiter.hit("a", cost=101)
        assert (dear.allowed, dear.reason, dear.violated) == (False, "quota", ("default",))
        assert 1 <= (dear.retry_after or 0) <= 5
        assert (never.allowed, never.reason, never.retry_after) == (False, "cost", None)


async def test_a_flushed_script_is_sent_again(redis: RedisManager) -> None:
    async with RateLimiter("5/minute", redis=redis, budget=2.0) as limiter:
        await limiter.hit("a")
        await redis.execute("SCRIPT", "FLUSH")
        decision = await limiter.hit("a")
        assert (decision.degraded, decision.remaining) == (False, 3)


async def test_a_foreign_value_under_a_key_is_a_failure_and_not_an_error_of_the_request(redis: RedisManager) -> None:
    async with RateLimiter("5/minute", redis=redis, budget=2.0) as limiter:
        await limiter.hit("a")
        (key,) = await redis.execute("KEYS", f"{redis.prefix}:*")
        await redis.execute("SET", key, "not what was there")
        assert (await limiter.hit("a")).degraded


async def test_a_cancelled_caller_does_not_take_those_behind_him_along(redis: RedisManager) -> None:
    async with RateLimiter("10/minute", redis=redis, budget=2.0) as limiter:
        hits = [asyncio.ensure_future(limiter.hit("a")) for _ in range(4)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        hits[0].cancel()
        hits[2].cancel()
        results = await asyncio.gather(*hits, return_exceptions=True)
        assert [getattr(result, "allowed", None) for result in results] == [None, True, None, True]
        assert (await limiter.hit("b")).allowed


async def test_who_was_cancelled_while_he_waited_has_used_nothing(redis: RedisManager) -> None:
    async with RateLimiter("10/minute", redis=redis, budget=2.0) as limiter:
        hits = [asyncio.ensure_future(limiter.hit("a")) for _ in range(9)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for hit in hits[2:]:
            hit.cancel()
        await asyncio.gather(*hits, return_exceptions=True)
        assert await limiter.get_remaining_requests("a") == 8


async def test_a_full_queue_is_a_failure_like_any_other(redis: RedisManager) -> None:
    async with RateLimiter("100/minute", max_waiting=3, on_error="closed", redis=redis, budget=2.0) as limiter:
        decisions = await asyncio.gather(*(limiter.hit("a") for _ in range(10)))
        assert [decision.reason for decision in decisions] == [""] * 4 + ["unavailable"] * 6


async def test_a_charge_and_a_refund_without_redis_stay_here() -> None:
    async with RateLimiter("10/minute", redis=RedisManager(NOBODY)) as limiter:
        ask = limiter.demands("a", "api", 4)
        decision = await limiter.acquire(ask)
        await limiter.charge(limiter.demands("a", "api", 5))
        assert await limiter.get_remaining_requests("a") == 1
        await limiter.refund(ask, decision)
        assert await limiter.get_remaining_requests("a") == 5


async def test_a_limiter_that_fails_to_start_leaves_its_redis(
    private_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis = RedisManager(private_redis.url)
    monkeypatch.setitem(sys.modules, "asgi_enhance.ratelimit.strategies", None)  # as if `limits` were not there
    with pytest.raises(ImportError):
        await RateLimiter("5/minute", redis=redis, strategy="fixed-window").connect()
    assert redis.opened() is None


async def test_a_limiter_that_fails_to_stop_leaves_its_redis(
    private_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(store: RedisStore) -> None:
        raise OSError("no")

    redis = RedisManager(private_redis.url)
    limiter = RateLimiter("5/minute", redis=redis)
    await limiter.connect()
    monkeypatch.setattr(RedisStore, "aclose", fails)
    with pytest.raises(OSError, match="no"):
        await limiter.disconnect()
    assert redis.opened() is None


@pytest.mark.parametrize("settle", [0, 5 * SECOND], ids=["settled at once", "just after the outage"])
@pytest.mark.parametrize("kept", [False, True], ids=["losing everything", "keeping everything"])
async def test_a_restart_lets_nobody_beyond_the_limit(monkeypatch: pytest.MonkeyPatch, settle: int, kept: bool) -> None:
    monkeypatch.setattr(share, "SETTLE", settle)
    with RedisServer(config={"appendonly": "yes", "appendfsync": "always"} if kept else {}) as server:
        assert await admitted_over_a_restart(server) == 40


async def admitted_over_a_restart(private_redis: RedisServer) -> int:
    """How many two limiters of 40 a minute admit who are asked before, while and after Redis is away."""
    managers = [RedisManager(private_redis.url) for _ in range(2)]
    one, other = (
        RateLimiter("40/minute", redis=redis, expected_workers=2, budget=2.0, deny_keys=0) for redis in managers
    )
    async with one, other:
        for limiter in (one, other):
            while (await limiter.hit("warm")).degraded:
                pass
        admitted = 0
        for _ in range(8):
            admitted += await one.is_allowed("a") + await other.is_allowed("a")
        private_redis.kill()
        for _ in range(3):
            admitted += await one.is_allowed("a") + await other.is_allowed("a")
        assert one.stats.unavailable
        private_redis.start()
        async with asyncio.timeout(10):
            for redis in managers:
                while True:
                    try:
                        await redis.ping()
                        break
                    except RedisUnavailable:
                        await asyncio.sleep(0.02)
        for _ in range(20):
            admitted += await one.is_allowed("a") + await other.is_allowed("a")
        admitted += sum([await one.is_allowed("a") for _ in range(40)])
    return admitted
