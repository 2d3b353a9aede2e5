"""On a Cluster: one identity is one slot, and several identities admit together or give back."""

from collections.abc import AsyncIterator, Iterator

import pytest

from asgi_enhance.ratelimit import Demand, Quota, RateLimiter, RateLimitMiddleware, Rule
from asgi_enhance.ratelimit.policy import SECOND
from asgi_enhance.redis import RedisManager
from asgi_enhance.testing.driver import request
from asgi_enhance.testing.servers import RedisCluster
from tests.ratelimit.apps import hello, limits_of

USER, EVERYBODY = Quota(2, 60 * SECOND, name="user"), Quota(100, 60 * SECOND, name="everybody")


@pytest.fixture(scope="module")
def nodes() -> Iterator[RedisCluster]:
    cluster = RedisCluster().start()
    yield cluster
    cluster.close()


@pytest.fixture
async def limiter(nodes: RedisCluster) -> AsyncIterator[RateLimiter]:
    nodes.flush()
    limiter = RateLimiter("3/minute; 100/hour", redis=RedisManager(nodes.url), budget=2.0, on_error="closed")
    async with limiter:
        yield limiter


async def test_all_quotas_of_an_identity_are_one_call(limiter: RateLimiter) -> None:
    decisions = [await limiter.hit(f"user {i}") for i in range(20)]
    assert all(decision.allowed and not decision.degraded for decision in decisions)
    assert limiter.stats.calls == 20


async def test_identities_in_different_slots_are_admitted_together(limiter: RateLimiter) -> None:
    decision = await limiter.acquire((Demand(EVERYBODY, "all"), Demand(USER, "alice")))
    assert decision.allowed
    assert {standing.quota.name: standing.remaining for standing in decision.standings} == {"user": 1, "everybody": 99}


async def test_what_the_wide_quota_admitted_before_the_narrow_one_refused_is_given_back(limiter: RateLimiter) -> None:
    tight = Quota(1, SECOND, name="tight")  # the higher rate, so it is asked last, but used up first
    demands = (Demand(USER, "alice"), Demand(tight, "all"))
    assert (await limiter.acquire(demands)).allowed
    refused = await limiter.acquire(demands)
    assert (refused.allowed, refused.violated) == (False, ("tight",))
    seen = await limiter.acquire((Demand(USER, "alice"),))
    assert seen.allowed
    assert seen.remaining == 0


async def test_the_layer_works_on_a_cluster(limiter: RateLimiter) -> None:
    rule = Rule("2/minute", name="key", key="header:x-key")
    app = RateLimitMiddleware(hello, [rule], limiter=limiter, default="100/minute")
    statuses = [(await request(app, headers=[(b"x-key", b"k")])).status for _ in range(3)]
    assert statuses == [200, 200, 429]
    assert limits_of(await request(app))["default"][0] == 97
