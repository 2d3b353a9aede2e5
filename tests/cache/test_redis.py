"""What a cache in Redis reads, and what changes while it reads."""

from typing import Any

import pytest

from asgi_enhance.cache import CacheMiddleware, RedisCache, TieredCache, news
from asgi_enhance.cache.entry import Entry
from asgi_enhance.cache.request import Request, digest
from asgi_enhance.errors import ConfigError
from asgi_enhance.redis import RedisManager
from asgi_enhance.testing.driver import http_scope, request
from asgi_enhance.testing.servers import RedisServer
from tests.cache.origin import Answer, Clock, Origin, until

FRESH = "Cache-Control: max-age=60"


async def test_what_cannot_be_read_is_deleted_by_whoever_finds_it(redis: RedisManager) -> None:
    async with RedisCache(redis) as cache:
        await request(CacheMiddleware(Origin(Answer(FRESH)), cache=cache), "/")
        looked = Request(http_scope("/"))
        key = cache._key(digest(looked.key))
        await redis.execute("HSET", key, "-", b"not an entry")
        assert await cache.lookup(looked) is None
        assert await redis.execute("HEXISTS", key, "-") == 0


async def test_what_is_past_keeping_by_the_clock_of_the_cache_is_not_found(redis: RedisManager, clock: Clock) -> None:
    async with RedisCache(redis, clock=clock) as cache:
        await request(CacheMiddleware(Origin(Answer(FRESH, 'ETag: "a"')), cache=cache), "/")
        clock.step(3600)
        assert await cache.lookup(Request(http_scope("/"))) is not None
        clock.step(61)
        assert await cache.lookup(Request(http_scope("/"))) is None


async def test_what_is_written_while_nobody_reads_it_is_not_remembered(redis: RedisManager) -> None:
    async with TieredCache(redis) as cache:
        await cache.set("key", 1)
        await cache.delete("key")
        assert not cache._changed


async def test_a_purge_that_is_heard_while_purges_are_read_is_read_as_well(
    redis: RedisManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with RedisCache(redis) as cache:
        read = cache._news._read
        reads = 0

        async def interrupted() -> None:
            nonlocal reads
            reads += 1
            await read()
            if reads == 1:
                cache._news.happen()

        monkeypatch.setattr(cache._news, "_read", interrupted)
        await cache.get("key")
        await until(lambda: cache.opened() is not None and cache.opened().purges.is_ready)  # type: ignore[union-attr]
        assert cache._news.behind
        await cache.get("key")
        assert not cache._news.behind


@pytest.mark.parametrize("who", ["Redis says so", "it was written from here"])
async def test_what_changes_while_it_is_read_is_not_copied(
    redis: RedisManager, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    async with TieredCache(redis) as cache:
        await until(lambda: cache.is_tracking)
        await request(CacheMiddleware(Origin(Answer(FRESH)), cache=cache), "/")
        find = RedisCache._find

        async def changed(self: Any, looked: Request) -> Entry | None:
            entry = await find(self, looked)
            name = self._key(digest(looked.key))
            if who == "Redis says so":
                self._on_change(name.encode())
            else:
                self._outdate(name, looked.key)
            return entry

        monkeypatch.setattr(RedisCache, "_find", changed)
        assert await cache.lookup(Request(http_scope("/"))) is not None
        assert cache.peek(Request(http_scope("/"))) is None
        monkeypatch.setattr(RedisCache, "_find", find)
        await cache.lookup(Request(http_scope("/")))
        assert cache.peek(Request(http_scope("/"))) is not None
        assert not cache._changed


@pytest.mark.parametrize("how", ["purge", "write"])
async def test_what_redis_could_not_be_told_is_told_by_a_process_that_asks_nothing_more(
    private_redis: RedisServer, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(news, "RETRY", 0.01)
    origin = Origin(Answer(FRESH))
    async with (
        RedisCache(RedisManager(private_redis.url)) as reader,
        RedisCache(RedisManager(private_redis.url, command_timeout=0.05)) as writer,
    ):
        layer = CacheMiddleware(origin, cache=reader)
        await request(layer, "/")
        private_redis.pause()
        if how == "purge":
            await writer.purge(everything=True)
        else:
            await request(CacheMiddleware(Origin(Answer()), cache=writer), "/", method="POST")
        private_redis.resume()
        await until(lambda: not writer._news._owed)
        await until(lambda: how == "write" or reader._news.behind)
        await request(layer, "/")
        assert origin.calls == 2


@pytest.mark.parametrize("limit", [0, True, "5"])
def test_max_connections_is_a_number_that_others_read(limit: Any) -> None:
    cache = RedisCache("redis://127.0.0.1:1")
    assert cache.max_connections == 10
    cache.max_connections = 5
    assert cache.max_connections == 5
    with pytest.raises(ConfigError, match="max_connections"):
        cache.max_connections = limit
    assert cache.max_connections == 5
