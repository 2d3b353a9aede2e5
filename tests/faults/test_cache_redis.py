"""Redis slow, away and back: the cache does without it, at once, and believes nothing it may have missed."""

import time
from typing import Any

import pytest

from asgi_enhance.cache import Cache, CacheMiddleware, RedisCache, TieredCache
from asgi_enhance.redis import RedisManager
from asgi_enhance.testing.driver import request
from asgi_enhance.testing.servers import RedisServer
from tests.cache.origin import Answer, Origin, until

FRESH = "Cache-Control: max-age=60"


async def available(cache: RedisCache) -> None:
    """Wait until Redis is believed to be there again."""
    await cache.get("anything")
    await until(lambda: cache.manager.available, 10)


@pytest.fixture(params=[RedisCache, TieredCache])
def cache(request: pytest.FixtureRequest, private_redis: RedisServer) -> Any:
    return request.param(RedisManager(private_redis.url, max_probe_delay=0.1))


@pytest.mark.parametrize("how", ["stop", "pause"])
async def test_without_redis_every_request_is_answered_and_quickly(
    cache: RedisCache, private_redis: RedisServer, how: str
) -> None:
    origin = Origin(Answer(FRESH, body=b"body"))
    layer = CacheMiddleware(origin, cache=cache)
    async with cache:
        await request(layer, "/")
        getattr(private_redis, how)()
        begun = time.monotonic()
        for _ in range(50):
            assert (await request(layer, "/")).body == b"body"
        took = time.monotonic() - begun
        assert took < 3, f"50 requests took {took:.1f} s: each of them waited for Redis"
        assert cache.stats.store_errors > 0
        assert await cache.get_or_compute("key", lambda: "computed") == "computed"
        private_redis.resume() if how == "pause" else private_redis.start()
        await available(cache)
        calls = origin.calls
        await request(layer, "/other")
        await request(layer, "/other")
        assert origin.calls == calls + 1, "it does not store again"


async def test_a_write_while_redis_is_away_is_told_before_redis_is_believed_again(
    cache: RedisCache, private_redis: RedisServer
) -> None:
    origin = Origin(Answer(FRESH, body=b"old"), Answer(), Answer(FRESH, body=b"new"))
    layer = CacheMiddleware(origin, cache=cache)
    async with cache:
        await request(layer, "/")
        private_redis.pause()
        await request(layer, "/", method="POST")
        private_redis.resume()
        await available(cache)
        assert (await request(layer, "/")).body == b"new"


async def test_a_purge_while_redis_is_away_is_told_before_redis_is_believed_again(
    cache: RedisCache, private_redis: RedisServer
) -> None:
    origin = Origin(Answer(FRESH, "Cache-Tag: a", body=b"old"), Answer(FRESH, body=b"new"))
    layer = CacheMiddleware(origin, cache=cache)
    async with cache:
        await request(layer, "/")
        private_redis.pause()
        await cache.purge(tags=["a"])
        private_redis.resume()
        await available(cache)
        assert (await request(layer, "/")).body == b"new"


async def test_memory_in_front_is_not_believed_while_redis_cannot_be_heard(private_redis: RedisServer) -> None:
    origin = Origin(Answer(FRESH, body=b"body"))
    async with TieredCache(RedisManager(private_redis.url, max_probe_delay=0.1)) as cache:
        await until(lambda: cache.is_tracking)
        layer = CacheMiddleware(origin, cache=cache)
        await request(layer, "/")
        await request(layer, "/")
        await until(lambda: cache.is_current)
        assert cache.stats.entries == 1
        private_redis.stop()
        await until(lambda: not cache.is_current)
        assert cache.stats.entries == 0
        await request(layer, "/")
        assert origin.calls == 2
        private_redis.start()
        await until(lambda: cache.is_tracking, 10)


async def test_whoever_writes_reads_what_he_has_written(redis: RedisManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if somebody has read the old one in between, and Redis' word that it has changed is slow."""
    async with TieredCache(redis) as cache:
        await until(lambda: cache.is_current or cache.is_tracking)
        await cache.set("key", "old")
        execute = redis.execute

        async def read_before(*command: Any, **options: Any) -> Any:
            if command[0] in ("SET", "UNLINK"):
                assert await cache.get("key") in ("old", "new")
            return await execute(*command, **options)

        monkeypatch.setattr(redis, "execute", read_before)
        monkeypatch.setattr(cache, "_on_change", lambda name: None)
        assert cache._tracking is not None
        monkeypatch.setattr(cache._tracking, "_on_change", lambda name: None)
        await cache.set("key", "new")
        assert await cache.get("key") == "new"
        await cache.delete("key")
        assert await cache.get("key") is None


async def test_what_one_process_writes_another_forgets(redis_url: str, redis: RedisManager) -> None:
    one: Cache[Any] = RedisCache(redis)
    origin = Origin(Answer(FRESH, body=b"old"), Answer(), Answer(FRESH, body=b"new"))
    async with one, TieredCache(RedisManager(redis_url, prefix=redis.prefix)) as other:
        await until(lambda: other.is_tracking)
        here, there = CacheMiddleware(origin, cache=one), CacheMiddleware(origin, cache=other)
        await request(there, "/")
        await request(there, "/")
        assert other.stats.entries == 1
        assert (await request(there, "/")).body == b"old"
        await request(here, "/", method="POST")
        await until(lambda: other.stats.entries == 0)
        assert (await request(there, "/")).body == b"new"

        search = 'No-Vary-Search: params=("utm")'
        origin.answers = [Answer(FRESH, search, body=b"1"), Answer(), Answer(FRESH, search, body=b"2")]
        origin.asked.clear()
        await request(here, "/s?utm=1&a")
        assert (await request(there, "/s?utm=2&a")).body == b"1"
        await until(lambda: other.stats.entries == 1)
        await request(here, "/s?utm=3&a", method="POST")
        await until(lambda: other.stats.entries == 0)
        assert (await request(there, "/s?utm=2&a")).body == b"2"

        await one.set("key", "old")
        assert await other.get("key") == "old"
        await until(lambda: other.near.holds("key"))
        await one.set("key", "new")
        await until(lambda: not other.near.holds("key"))
        assert await other.get("key") == "new"

        await one.purge(everything=True)
        await until(lambda: not other.is_current)
        assert await other.get("key") is None
