"""What a miss waits for before the app is asked, and what of its answer waits for the store."""

import asyncio
from typing import Any

import pytest

from asgi_enhance.asgi.types import Receive, Scope, Send
from asgi_enhance.cache import Cache, CacheMiddleware, MemoryCache, RedisCache
from asgi_enhance.cache.core import Fetch
from asgi_enhance.cache.entry import Entry
from asgi_enhance.cache.request import Request
from asgi_enhance.redis import RedisManager
from asgi_enhance.testing.driver import Driver, http_scope, request
from tests.cache.origin import Answer, Clock, Origin, until

FRESH = "Cache-Control: max-age=60"


@pytest.mark.parametrize(("collapse", "commands"), [(True, 2), (False, 1)])
async def test_a_miss_asks_redis_for_the_entry_and_for_the_lease_before_the_app(
    redis: RedisManager, collapse: bool, commands: int
) -> None:
    asked: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked.append(redis.stats.commands)
        await Origin(Answer(FRESH))(scope, receive, send)

    async with RedisCache(redis) as cache:
        layer = CacheMiddleware(app, cache=cache, collapse=collapse)
        await request(layer, "/first")  # which also learns what was purged
        before = redis.stats.commands
        await request(layer, "/")
    assert asked[1] - before == commands


@pytest.mark.parametrize("lines", [[FRESH], [FRESH, 'ETag: "a"'], ["Cache-Control: no-store"]])
async def test_only_the_last_message_waits_for_the_store(cache: Cache[Any], lines: list[str]) -> None:
    storing, stored = asyncio.Event(), asyncio.Event()
    put = cache._put

    async def slow(request: Request, entry: Entry, fetch: Fetch) -> bool:
        storing.set()
        await stored.wait()
        return await put(request, entry, fetch)

    cache._put = slow  # type: ignore[method-assign]
    layer = CacheMiddleware(Origin(Answer(*lines, body=[b"one", b"two"])), cache=cache)
    async with Driver(layer, http_scope("/"), [{"type": "http.request"}]) as client:
        assert (await client.next())["type"] == "http.response.start"
        assert (await client.next())["body"] == b"one"
        if lines != ["Cache-Control: no-store"]:
            await storing.wait()
            assert len(client.sent) == 2
            stored.set()
        assert (await client.next())["body"] == b"two"


async def test_a_write_in_another_process_reaches_a_miss_that_has_only_looked(redis: RedisManager) -> None:
    memory = MemoryCache()
    await request(CacheMiddleware(Origin(Answer(FRESH)), cache=memory), "/")
    looked = Request(http_scope("/"))
    entry = memory.peek(looked)
    assert entry is not None
    async with RedisCache(redis) as here, RedisCache(redis) as there:
        assert await here.lookup(looked) is None
        await there.invalidate([looked.url])
        assert not await here.store(looked, entry, here.fetch(looked.key, looked.fence))


async def test_a_renewal_is_kept_though_a_write_came_before_it(redis: RedisManager, clock: Clock) -> None:
    """It has not looked into Redis itself, so it asks when the URL was last written to."""
    line = "Cache-Control: max-age=60, stale-while-revalidate=60"
    origin = Origin(
        Answer(line, body=b"gone"), Answer(status=204), Answer(line, body=b"old"), Answer(line, body=b"new")
    )
    async with RedisCache(redis, clock=clock) as cache:
        layer = CacheMiddleware(origin, cache=cache)
        await request(layer, "/")
        await request(layer, "/", method="POST")
        await request(layer, "/")
        clock.step(70)
        assert (await request(layer, "/")).body == b"old"
        await until(lambda: layer.stats.stored == 3)
        assert (await request(layer, "/")).body == b"new"


async def test_a_lease_that_cannot_be_given_back_makes_nobody_wait(redis: RedisManager, redis_url: str) -> None:
    """As with an ACL that forbids scripts."""
    await redis.execute("ACL", "SETUSER", "unscripted", "on", ">secret", "~*", "&*", "+@all", "-@scripting")
    limited = RedisManager(redis_url.replace("://", "://unscripted:secret@"), prefix=redis.prefix)
    origin = Origin(Answer(FRESH))
    try:
        async with limited, RedisCache(limited) as cache:
            layer = CacheMiddleware(origin, cache=cache)
            async with asyncio.timeout(5):
                for _ in range(3):
                    await request(layer, "/")
    finally:
        await redis.execute("ACL", "DELUSER", "unscripted")
    assert origin.calls == 3
