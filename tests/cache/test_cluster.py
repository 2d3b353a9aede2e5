"""RedisCache on a cluster: all keys of one decision share a slot, and purges reach what lies elsewhere."""

import asyncio
from collections.abc import Iterator

import pytest

from asgi_enhance.cache import CacheMiddleware, RedisCache
from asgi_enhance.redis import RedisManager
from asgi_enhance.testing.driver import request
from asgi_enhance.testing.redis_cluster import RedisCluster
from tests.cache.origin import Answer, Origin, fields

FRESH = "Cache-Control: max-age=60"


@pytest.fixture(scope="module")
def redis_cluster() -> Iterator[RedisCluster]:
    with RedisCluster() as cluster:
        yield cluster


async def test_responses_values_leases_and_purges_work_on_a_cluster(redis_cluster: RedisCluster) -> None:
    manager = RedisManager(redis_cluster.url, connect_timeout=2, command_timeout=2)
    async with RedisCache(manager) as cache:
        origin = Origin(Answer(FRESH, "Vary: X-Tenant", "Cache-Tag: all"))
        layer = CacheMiddleware(origin, cache=cache)
        paths = [f"/{number}" for number in range(20)]
        for _ in range(2):
            await asyncio.gather(*(request(layer, path, headers=fields("X-Tenant: 1")) for path in paths))
        assert (origin.calls, cache.stats.store_errors) == (20, 0)
        await request(layer, paths[0], method="POST")
        await request(layer, paths[0], headers=fields("X-Tenant: 1"))
        assert origin.calls == 22
        await cache.purge(tags=["all"])
        await asyncio.gather(*(request(layer, path, headers=fields("X-Tenant: 1")) for path in paths))
        assert origin.calls == 42

        calls = 0

        async def compute() -> int:
            nonlocal calls
            calls += 1
            return calls

        assert set(await asyncio.gather(*(cache.get_or_compute("key", compute) for _ in range(10)))) == {1}
        await cache.delete("key", "other")
        assert await cache.get("key") is None
        assert cache.stats.store_errors == 0


async def test_what_users_have_is_kept_and_goes_with_the_url_on_a_cluster(redis_cluster: RedisCluster) -> None:
    manager = RedisManager(redis_cluster.url, prefix="users", connect_timeout=2, command_timeout=2)
    async with RedisCache(manager) as cache:
        origin = Origin(Answer("Cache-Control: private, max-age=60"))
        layer = CacheMiddleware(origin, cache=cache, private=True)
        asked = [(f"/{number}", fields(f"Authorization: {user}")) for number in range(10) for user in ("ann", "bob")]
        for _ in range(2):
            await asyncio.gather(*(request(layer, path, headers=headers) for path, headers in asked))
        assert (origin.calls, cache.stats.store_errors) == (20, 0)
        await request(layer, "/0", method="POST")
        await asyncio.gather(*(request(layer, path, headers=headers) for path, headers in asked))
        assert (origin.calls, cache.stats.store_errors) == (23, 0), "the write, and what both had of its URL"
