"""What is kept for each user, or whatever else is in the key: apart from the others', and gone with the URL."""

import gc
import tracemalloc
from typing import Any

import pytest

from asgi_enhance.asgi.types import Headers
from asgi_enhance.cache import Cache, CacheMiddleware, MemoryCache, RedisCache, TieredCache
from asgi_enhance.cache.request import Request, digest
from asgi_enhance.redis import RedisManager
from asgi_enhance.testing.driver import http_scope, request
from tests.cache.origin import Answer, Origin, fields, until

PRIVATE = "Cache-Control: private, max-age=60"


def user(name: object) -> Headers:
    return fields(f"Authorization: {name}")


def few_variants(cache: Any) -> None:
    cache.max_variants = 2
    if isinstance(cache, TieredCache):
        cache.near.max_variants = 2


async def test_a_user_loses_nothing_to_the_others_however_many(any_cache: Cache[Any]) -> None:
    few_variants(any_cache)
    origin = Origin(Answer(PRIVATE))
    layer = CacheMiddleware(origin, cache=any_cache, private=True)
    for _ in range(3):
        for name in range(5):
            await request(layer, "/", headers=user(name))
    assert origin.calls == 5


async def test_each_user_has_so_many_variants_at_most(any_cache: Cache[Any]) -> None:
    few_variants(any_cache)
    origin = Origin(Answer(PRIVATE, "Vary: X"))
    layer = CacheMiddleware(origin, cache=any_cache, private=True)
    for name, value in (("ann", 1), ("bob", 1), ("ann", 2), ("ann", 3)):
        await request(layer, "/", headers=[*user(name), (b"x", b"%d" % value)])
    for name, value in (("bob", 1), ("ann", 3), ("ann", 2)):
        await request(layer, "/", headers=[*user(name), (b"x", b"%d" % value)])
    assert origin.calls == 4
    await request(layer, "/", headers=[*user("ann"), (b"x", b"1")])
    assert origin.calls == 5


@pytest.mark.parametrize("how", ["write", "write elsewhere", "purge", "delete what is read"])
async def test_what_users_have_of_a_url_goes_with_it(
    any_cache: Cache[Any], redis: RedisManager, redis_url: str, how: str
) -> None:
    origin = Origin(Answer(PRIVATE))
    layer = CacheMiddleware(origin, cache=any_cache, private=True)
    for _ in range(2):
        for name in ("ann", "bob"):
            for path in ("/", "/other"):
                await request(layer, path, headers=user(name))
    assert origin.calls == 4
    if how == "purge":
        await any_cache.purge(url="http://testserver/")
    elif how == "write elsewhere" and any_cache.remote:
        async with RedisCache(RedisManager(redis_url, prefix=redis.prefix)) as another:
            await request(CacheMiddleware(Origin(Answer()), cache=another), "/", method="POST")
        near = any_cache.near if isinstance(any_cache, TieredCache) else MemoryCache()
        await until(lambda: not near.holds(Request(http_scope("/")).key))
    elif how == "delete what is read" and isinstance(any_cache, RedisCache):  # as an eviction does
        url = any_cache._key(digest(Request(http_scope("/")).key))
        assert await redis.execute("DEL", url)
        near = any_cache.near if isinstance(any_cache, TieredCache) else MemoryCache()
        await until(lambda: not near.holds(Request(http_scope("/")).key))
    else:
        await request(CacheMiddleware(Origin(Answer()), cache=any_cache, private=True), "/", method="POST")
    for name in ("ann", "bob", "ann", "bob"):
        for path in ("/", "/other"):
            await request(layer, path, headers=user(name))
    assert origin.calls == 6


async def test_what_a_user_fetches_after_a_write_brings_nothing_back_from_before(any_cache: Cache[Any]) -> None:
    origin = Origin(Answer(PRIVATE, "Vary: X"))
    layer = CacheMiddleware(origin, cache=any_cache, private=True)
    one, other = [*user("ann"), (b"x", b"1")], [*user("ann"), (b"x", b"2")]
    await request(layer, "/", headers=one)
    await request(layer, "/", headers=other)
    await request(layer, "/", method="POST", headers=one)
    await request(layer, "/", headers=one)
    assert origin.calls == 4
    await request(layer, "/", headers=other)
    assert origin.calls == 5


async def test_a_copy_is_known_to_be_a_users_however_many_urls_are_copied(redis: RedisManager) -> None:
    origin = Origin(Answer(PRIVATE))
    async with TieredCache(redis) as cache, RedisCache(redis) as another:
        await until(lambda: cache.is_tracking)
        layer = CacheMiddleware(origin, cache=cache, private=True)
        for _ in range(2):
            await request(layer, "/", headers=user("ann"))
        cache._note("name", "value")
        assert "name" in cache._copied, "to look which are no longer copied is for when there are many"
        for number in range(2_001):  # so many names that those of what is no longer copied are swept out
            cache._note(f"name{number}", f"value{number}")
        await request(CacheMiddleware(Origin(Answer()), cache=another), "/", method="POST")
        await until(lambda: not cache.near.holds(Request(http_scope("/")).key))
        await request(layer, "/", headers=user("ann"))
        assert origin.calls == 2


async def test_a_write_keeps_out_what_a_user_was_being_answered_with(any_cache: Cache[Any]) -> None:
    async def read(scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] == "GET" and not origin.calls:
            await origin(scope, receive, send=lambda message: _pass(message, send))
        else:
            await origin(scope, receive, send)

    async def _pass(message: Any, send: Any) -> None:
        await send(message)
        if message["type"] == "http.response.start":
            await request(layer, "/", method="POST", headers=user("bob"))

    origin = Origin(Answer(PRIVATE))
    layer = CacheMiddleware(read, cache=any_cache, private=True)
    for _ in range(3):
        await request(layer, "/", headers=user("ann"))
    assert origin.calls == 3, "the one that the write overtook, the write, and one that is kept"


async def test_all_that_users_have_expires_in_redis(redis: RedisManager) -> None:
    async with RedisCache(redis) as cache:
        layer = CacheMiddleware(Origin(Answer(PRIVATE)), cache=cache, private=True)
        for name in ("ann", "bob"):
            await request(layer, "/", headers=user(name))
        keys = await redis.execute("KEYS", f"{redis.prefix}:cache:r:*")
        assert len(keys) == 3, "the URL and two users"
        assert all([0 < await redis.execute("PTTL", key) <= 120_000 for key in keys])


async def test_memory_remembers_no_user_whose_entries_have_gone() -> None:
    cache = MemoryCache(max_entries=3)
    layer = CacheMiddleware(Origin(Answer(PRIVATE)), cache=cache, private=True)
    for name in range(10):
        await request(layer, f"/{name % 2}", headers=user(name))
    assert sum(map(len, cache._apart.values())) == 3
    await request(layer, "/0", method="POST")
    await request(layer, "/1", method="POST")
    assert not cache._apart
    assert (cache.stats.entries, cache.stats.bytes) == (0, 0)


@pytest.mark.parametrize("private", [False, True])
async def test_small_entries_take_up_what_is_counted(private: bool) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await Origin(Answer(PRIVATE if private else "Cache-Control: max-age=60", body=bytes(100)))(scope, receive, send)

    cache = MemoryCache()
    layer = CacheMiddleware(app, cache=cache, private=private)
    asked = [("/", user(n)) if private else (f"/{n}", []) for n in range(600)]
    for path, headers in asked[:100]:
        await request(layer, path, headers=headers)
    counted = cache.stats.bytes
    tracemalloc.start()
    for path, headers in asked[100:]:
        await request(layer, path, headers=headers)
    gc.collect()
    taken, counted = tracemalloc.get_traced_memory()[0], cache.stats.bytes - counted
    tracemalloc.stop()
    assert 0.67 < counted / taken < 1.5


@pytest.mark.parametrize("options", [{"private": True}, {"key_headers": ["Authorization"]}, {}])
@pytest.mark.parametrize("vary", ["Vary: Authorization, X", "Vary: X"])
async def test_no_credentials_lie_in_redis(redis: RedisManager, options: dict[str, Any], vary: str) -> None:
    async with RedisCache(redis) as cache:
        layer = CacheMiddleware(Origin(Answer("Cache-Control: public, max-age=60", vary)), cache=cache, **options)
        for _ in range(2):
            await request(layer, "/", headers=user("secret-of-ann"))
        assert cache.stats.hits == 1
        keys = await redis.execute("KEYS", f"{redis.prefix}:cache:r:*")
        stored = [await redis.execute("HGETALL", key) for key in keys]
        assert stored
        assert b"secret-of-ann" not in repr((keys, stored)).encode()
