"""Caches as the users' own code sees them, and what all of them promise."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from asgi_enhance.cache import (
    Cache,
    CacheMiddleware,
    CacheRule,
    MemoryCache,
    RedisCache,
    TieredCache,
    cached,
    generate_cache_key,
)
from asgi_enhance.cache.memory import Slot
from asgi_enhance.cache.valuecache import Claim
from asgi_enhance.errors import CacheError, ConfigError
from asgi_enhance.redis import RedisManager
from asgi_enhance.testing.driver import http_scope, request
from tests.cache.origin import Answer, Clock, Origin, until


class User(msgspec.Struct):
    name: str


@pytest.mark.parametrize("value", ["text", "", b"\x00\xff", 1, 1.5, None, True, [1, "a"], {"a": {"b": [1]}}])
async def test_a_value_comes_back_as_it_went_in(any_cache: Cache[Any], value: Any) -> None:
    await any_cache.set("key", value)
    for _ in range(2):
        assert await any_cache.get("key", "default") == value
    assert await any_cache.exists("key")


async def test_a_structure_comes_back_as_its_type(any_cache: Cache[Any]) -> None:
    await any_cache.set("user", User("alice"))
    assert await any_cache.get("user", as_type=User) == User("alice")
    assert await any_cache.get("user") == {"name": "alice"}
    with pytest.raises(CacheError, match="not a"):
        await any_cache.get("user", as_type=int)


async def test_what_cannot_be_encoded_is_refused(any_cache: Cache[Any]) -> None:
    with pytest.raises(CacheError, match="object cannot be cached"):
        await any_cache.set("key", object())


async def test_a_value_expires(any_cache: Cache[Any], clock: Clock) -> None:
    await any_cache.set("key", 1, ttl=10)
    clock.step(9.5)
    assert await any_cache.get("key") == 1
    clock.step(0.5)
    assert await any_cache.get("key") is None
    assert not await any_cache.exists("key")


async def test_a_value_is_deleted(any_cache: Cache[Any]) -> None:
    await any_cache.set("a", 1)
    await any_cache.set("b", 2)
    assert [await any_cache.get("a"), await any_cache.get("b")] == [1, 2]
    await any_cache.delete("a", "b", "c")
    assert [await any_cache.get("a"), await any_cache.get("b")] == [None, None]


async def test_nobody_changes_what_another_one_reads(any_cache: Cache[Any]) -> None:
    value = {"list": [1]}
    await any_cache.set("key", value)
    value["list"].append(2)
    first = await any_cache.get("key")
    first["list"].append(3)
    assert await any_cache.get("key") == {"list": [1]}


async def test_a_value_is_computed_once_for_all(any_cache: Cache[Any]) -> None:
    calls, gate = 0, asyncio.Event()

    async def compute() -> str:
        nonlocal calls
        calls += 1
        await gate.wait()
        return "computed"

    tasks = [asyncio.create_task(any_cache.get_or_compute("key", compute)) for _ in range(50)]
    await until(lambda: calls == 1)
    gate.set()
    assert set(await asyncio.gather(*tasks)) == {"computed"}
    assert await any_cache.get_or_compute("key", compute) == "computed"
    assert calls == 1


async def test_an_error_is_told_to_all_who_wait_and_not_kept(any_cache: Cache[Any]) -> None:
    calls, gate = 0, asyncio.Event()

    async def compute() -> str:
        nonlocal calls
        calls += 1
        await gate.wait()
        raise LookupError("no such user")

    tasks = [asyncio.create_task(any_cache.get_or_compute("key", compute)) for _ in range(5)]
    await until(lambda: calls == 1)
    gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(result) for result in results] == ["no such user"] * 5
    assert calls == 1
    assert await any_cache.get_or_compute("key", lambda: "better") == "better"


async def test_whoever_computes_and_is_cancelled_is_replaced(any_cache: Cache[Any]) -> None:
    calls, gate = 0, asyncio.Event()

    async def compute() -> int:
        nonlocal calls
        calls += 1
        await gate.wait()
        return calls

    first = asyncio.create_task(any_cache.get_or_compute("key", compute))
    await until(lambda: calls == 1)
    second = asyncio.create_task(any_cache.get_or_compute("key", compute))
    await asyncio.sleep(0)
    first.cancel()
    await until(lambda: calls == 2)
    gate.set()
    assert await second == 2


@pytest.mark.parametrize("where", ["here", "there"])
@pytest.mark.parametrize("how", ["set", "delete"])
async def test_a_write_overtakes_what_is_being_computed(
    any_cache: Cache[Any], redis_url: str, redis: RedisManager, how: str, where: str
) -> None:
    """Whether it comes from this process or from another."""
    started, gate = asyncio.Event(), asyncio.Event()

    async def compute(result: str) -> str:
        started.set()
        await gate.wait()
        return result

    async with RedisCache(RedisManager(redis_url, prefix=redis.prefix), clock=any_cache.clock) as another:
        writer: Cache[Any] = another if where == "there" and any_cache.remote else any_cache
        first = asyncio.create_task(any_cache.get_or_compute("key", lambda: compute("outdated")))
        await started.wait()
        await (writer.set("key", "written") if how == "set" else writer.delete("key"))
        second = asyncio.create_task(writer.get_or_compute("key", lambda: compute("computed later")))
        await asyncio.sleep(0)
        gate.set()
        assert await first == "outdated", "who asked before may be told what was true then"
        latest = "written" if how == "set" else "computed later"
        assert await second == latest
        assert await any_cache.get("key") == latest


class Slow:
    """What is computed for so long that another process computes it as well."""

    def __init__(self, cache: RedisCache, result: str) -> None:
        cache._leases._alone = 0
        self._result = result
        self._started, self._gate = asyncio.Event(), asyncio.Event()
        self._task = asyncio.create_task(cache.get_or_compute("key", self._compute))

    async def _compute(self) -> str:
        self._started.set()
        await self._gate.wait()
        return self._result

    async def started(self) -> None:
        await asyncio.wait_for(self._started.wait(), 5)

    async def finish(self) -> str:
        self._gate.set()
        return str(await self._task)


async def test_what_two_processes_compute_is_kept_by_the_first_who_has_it(redis: RedisManager) -> None:
    async with RedisCache(redis) as here, RedisCache(redis) as there:
        one = Slow(here, "one")
        await one.started()
        other = Slow(there, "other")
        await other.started()
        assert await one.finish() == "one"
        assert await there.get("key") == "one"
        assert await other.finish() == "other"
        assert await there.get("key") == "one"


@pytest.mark.parametrize("how", ["set", "delete"])
async def test_a_write_overtakes_what_is_computed_however_long_it_takes(redis: RedisManager, how: str) -> None:
    async with RedisCache(redis) as here, RedisCache(redis) as there, RedisCache(redis) as writer:
        one = Slow(here, "one")
        await one.started()
        other = Slow(there, "other")
        await other.started()
        await (writer.set("key", "written") if how == "set" else writer.delete("key"))
        assert [await one.finish(), await other.finish()] == ["one", "other"]
        assert await here.get("key") == ("written" if how == "set" else None)


async def test_what_is_computed_by_who_has_waited_in_vain_is_told_and_not_kept(redis: RedisManager) -> None:
    async with RedisCache(redis) as here, RedisCache(redis, collapse_timeout=0.01) as there:
        slow = Slow(here, "slow")
        await slow.started()
        assert await there.get_or_compute("key", lambda: "impatient") == "impatient"
        assert await there.get("key") is None
        await slow.finish()
        assert await there.get("key") == "slow"


async def test_a_lease_whose_holder_is_gone_is_granted_to_another_after_a_while(redis: RedisManager) -> None:
    async with RedisCache(redis) as gone, RedisCache(redis) as another:
        assert await gone.claim("name", 0.0) is Claim.GRANTED
        assert await another.claim("name", 0.0) is Claim.PASS
        another._leases._alone = 0
        assert await another.claim("name", 0.0) is Claim.GRANTED
        await another.release("name")
        assert not await redis.execute("EXISTS", "name:lease")


async def test_nobody_is_granted_what_is_not_for_sharing(redis: RedisManager) -> None:
    async with RedisCache(redis) as here, RedisCache(redis) as there:
        assert await here.claim("name", 0.0) is Claim.GRANTED
        await here.release("name", passes=True)
        give_up = time.monotonic() + 60
        assert [await there.claim("name", give_up), await there.claim("name", give_up)] == [Claim.PASS, Claim.PASS]


async def test_values_are_kept_where_nobody_may_be_woken(redis: RedisManager, redis_url: str) -> None:
    """As with an ACL that allows no channels."""
    await redis.execute("ACL", "SETUSER", "silent", "on", ">secret", "~*", "resetchannels", "+@all")
    limited = RedisManager(redis_url.replace("://", "://silent:secret@"), prefix=redis.prefix)
    try:
        async with limited, RedisCache(limited) as cache:
            for _ in range(2):
                for key in ("key", "other"):
                    assert await cache.get_or_compute(key, lambda: "value") == "value"
            assert cache.stats.computations == 2
    finally:
        await redis.execute("ACL", "DELUSER", "silent")


@pytest.mark.parametrize("how", ["set", "delete"])
async def test_a_lease_that_a_write_has_ended_is_not_remembered(redis: RedisManager, how: str) -> None:
    async with RedisCache(redis) as cache:
        await cache.get_or_compute("key", lambda: cache.set("key", 1) if how == "set" else cache.delete("key"))
        assert not cache._leases._held


async def test_no_lease_is_taken_for_a_value_and_no_value_for_a_lease(redis: RedisManager) -> None:
    async with RedisCache(redis) as cache:
        await cache.set("key:lease", "value")
        assert await cache.claim(cache.value_name("key"), 0.0) is Claim.GRANTED
        assert await cache.get_or_compute("other", lambda: cache.get("other:lease")) is None
        assert cache.stats.corrupt == 0


async def test_a_claim_that_is_cancelled_holds_nobody_up(redis: RedisManager) -> None:
    async with RedisCache(redis) as cache:
        for turns in range(6):
            task = asyncio.create_task(cache.claim(f"name{turns}", 0.0))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            if task.cancelled():
                assert await cache.claim(f"name{turns}", 0.0) is Claim.GRANTED


async def test_a_request_that_is_cancelled_leaves_nothing_behind(any_cache: Cache[Any]) -> None:
    layer = CacheMiddleware(Origin(Answer("Cache-Control: max-age=60")), cache=any_cache, collapse=False)
    for turns in range(40):
        task = asyncio.create_task(request(layer, f"/{turns}"))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    assert len(any_cache.flights) == 0


@pytest.mark.parametrize("what", [{"tags": ["news"]}, {"everything": True}])
@pytest.mark.parametrize("soft", [False, True])
async def test_values_are_purged(any_cache: Cache[Any], what: dict[str, Any], soft: bool) -> None:
    await any_cache.set("a", 1, tags=["news", "x"])
    assert await any_cache.get("a") == 1
    await any_cache.purge(**what, soft=soft)
    assert await any_cache.get("a") is None
    await any_cache.set("a", 2, tags=["news"])
    assert await any_cache.get("a") == 2


async def test_who_asks_after_a_purge_does_not_get_what_was_begun_before(any_cache: Cache[Any]) -> None:
    begun, go = asyncio.Event(), asyncio.Event()
    results = iter(["old", "new", "newer"])

    async def compute() -> str:
        result = next(results)
        begun.set()
        await go.wait()
        return result

    before = asyncio.create_task(any_cache.get_or_compute("key", compute, tags=["news"]))
    await begun.wait()
    await any_cache.purge(tags=["news"])
    after = [asyncio.create_task(any_cache.get_or_compute("key", compute)) for _ in range(5)]
    for _ in range(50):
        await asyncio.sleep(0)
    go.set()
    assert await before == "old"
    assert set(await asyncio.gather(*after)) == {"new"}


async def test_a_value_that_is_set_after_a_purge_is_there(redis_url: str, redis: RedisManager) -> None:
    async with RedisCache(redis) as here, RedisCache(RedisManager(redis_url, prefix=redis.prefix)) as there:
        await here.purge(tags=["news"])
        await here.set("a", 1, tags=["news"])
        await there.set("b", 2, tags=["news"])
        assert [await here.get("a"), await here.get("b")] == [1, 2]


@pytest.mark.parametrize(
    ("what", "gone"),
    [
        ({"tags": ["a"]}, "/news/1?x"),
        ({"tags": ["b"]}, "/news/1?x"),
        ({"tags": ["c"]}, "/news/1?x"),
        ({"url": "http://testserver/news/1?x"}, "/news/1?x"),
        ({"prefix": "http://testserver/news/"}, "/news/1?x"),
        ({"everything": True}, "/news/1?x"),
        ({"tags": ["A"]}, None),
        ({"url": "http://testserver/news/1"}, None),
        ({"prefix": "http://testserver/other/"}, None),
    ],
)
@pytest.mark.parametrize("soft", [False, True])
async def test_responses_are_purged(any_cache: Cache[Any], what: dict[str, Any], gone: str | None, soft: bool) -> None:
    lines = ["Cache-Control: max-age=60", "Surrogate-Key: a b", "Cache-Tag: c,d", 'ETag: "1"']
    origin = Origin(Answer(*lines, body=b"old"), Answer("Cache-Control: max-age=60", body=b"new"))
    layer = CacheMiddleware(origin, cache=any_cache)
    for _ in range(2):
        await request(layer, "/news/1?x")
    await any_cache.purge(**what, soft=soft)
    answer = await request(layer, "/news/1?x")
    assert answer.body == (b"old" if gone is None else b"new")
    if gone is not None:
        assert origin.sent("if-none-match") == ('"1"' if soft else None), "a soft purge leaves something to validate"
    assert (await request(layer, "/news/1?x")).body == answer.body


async def test_a_softly_purged_response_is_served_while_it_is_renewed(any_cache: Cache[Any]) -> None:
    line = "Cache-Control: max-age=60, stale-while-revalidate=60"
    origin = Origin(Answer(line, "Cache-Tag: a", body=b"old"), Answer(line, body=b"new"))
    layer = CacheMiddleware(origin, cache=any_cache)
    await request(layer, "/")
    await any_cache.purge(tags=["a"], soft=True)
    assert (await request(layer, "/")).body == b"old"
    await until(lambda: layer.stats.stored == 2)
    assert (await request(layer, "/")).body == b"new"


async def test_a_softly_purged_response_is_not_served_beyond_its_window(any_cache: Cache[Any], clock: Clock) -> None:
    line = "Cache-Control: max-age=10, stale-while-revalidate=5"
    origin = Origin(Answer(line, "Cache-Tag: a", 'ETag: "1"', body=b"old"), Answer(line, body=b"new"))
    layer = CacheMiddleware(origin, cache=any_cache)
    await request(layer, "/")
    await any_cache.purge(tags=["a"], soft=True)
    clock.step(15)
    assert (await request(layer, "/")).body == b"new"


async def test_nobody_is_answered_with_what_is_purged_while_another_reads_what_was_purged(
    any_cache: Cache[Any],
) -> None:
    origin = Origin(Answer("Cache-Control: max-age=60", "Cache-Tag: a"))
    layer = CacheMiddleware(origin, cache=any_cache)
    paths = [f"/{number}" for number in range(20)]
    for _ in range(5):
        calls = origin.calls
        await asyncio.gather(*(request(layer, path) for path in paths))
        await any_cache.purge(tags=["a"])
        await asyncio.gather(*(request(layer, path) for path in paths))
        assert origin.calls == calls + 40
        await any_cache.purge(tags=["a"])


async def test_a_purge_names_whole_urls_whatever_the_case_of_the_host(any_cache: Cache[Any]) -> None:
    layer = CacheMiddleware(Origin(Answer("Cache-Control: max-age=60")), cache=any_cache)
    purges = (any_cache.purge(url="HTTP://TestServer/a?b=C"), any_cache.purge(prefix="http://TESTSERVER/a"))
    for purge in purges:
        await request(layer, "/a?b=C")
        await purge
        told = (await request(layer, "/a?b=C")).header("cache-status")
        assert told == "asgi-enhance; fwd=uri-miss; fwd-status=200; stored"
        await any_cache.purge(everything=True)
    with pytest.raises(CacheError, match="url must be whole"):
        await any_cache.purge(url="/a")
    with pytest.raises(CacheError, match="prefix must be whole"):
        await any_cache.purge(prefix="/a")


async def test_a_purge_must_say_what(any_cache: Cache[Any]) -> None:
    with pytest.raises(CacheError, match="what"):
        await any_cache.purge()
    with pytest.raises(CacheError, match="tags"):
        await any_cache.purge(tags="news")


# -- bounds -----------------------------------------------------------------------------------------------------------


async def test_memory_is_bounded_by_bytes() -> None:
    cache = MemoryCache(max_bytes=100_000)
    for number in range(500):
        await cache.set(f"key {number}", b"x" * 1000)
        assert cache.stats.bytes <= 100_000
    assert cache.stats.evictions > 400
    assert await cache.get("key 499") is not None


async def test_memory_is_bounded_whatever_takes_it_up() -> None:
    """URLs, the fields that tell variants apart, tags: they come from clients, and may be long."""
    long = b"x" * 50_000
    origin = Origin(Answer("Cache-Control: max-age=60", "Vary: X-Tenant"))
    cache = MemoryCache(max_bytes=1_000_000)
    layer = CacheMiddleware(origin, cache=cache)
    for number in range(50):
        await request(layer, f"/?{number}{long.decode()}")
    assert 10 < cache.stats.entries < 20
    for number in range(50):
        await request(layer, "/", headers=[(b"x-tenant", b"%d" % number + long)])
    assert cache._bytes <= cache.max_bytes
    slot = cache._kept[(b"", "http", b"testserver", b"/", b"")]
    assert isinstance(slot, Slot)
    assert 10 < len(slot.entries) < 20
    await cache.purge(url="http://testserver/")
    for number in range(50):
        await request(layer, "/", headers=[(b"x-tenant", b"%d" % number + long)])
    await cache._drop_keys(list(cache._kept))  # type: ignore[arg-type]
    assert cache.stats.bytes == 0

    origin.answers = [Answer("Cache-Control: no-store")]
    for number in range(3):
        await request(layer, f"/?{number}{long.decode()}")
    assert len(cache._passes) == 3
    assert all(isinstance(name, int) for name in cache._passes)


async def test_memory_is_bounded_by_count() -> None:
    cache = MemoryCache(max_entries=10)
    for number in range(100):
        await cache.set(str(number), 1)
    assert cache.stats.entries == 10


async def test_a_value_larger_than_the_cache_is_not_kept_and_ends_its_predecessor() -> None:
    cache = MemoryCache(max_bytes=10_000)
    await cache.set("key", "small")
    await cache.set("key", b"x" * 20_000)
    assert await cache.get("key") is None
    assert cache.stats.bytes == 0


async def test_what_is_asked_for_outlives_what_is_not() -> None:
    cache = MemoryCache(max_entries=10)
    await cache.set("wanted", 1)
    for number in range(100):
        await cache.set(str(number), 1)
        assert await cache.get("wanted") == 1


async def test_what_has_expired_goes_before_it_is_in_the_way(clock: Clock) -> None:
    cache = MemoryCache(clock=clock)
    for number in range(100):
        await cache.set(str(number), 1, ttl=1)
    clock.step(2)
    for number in range(100, 150):
        await cache.set(str(number), 1, ttl=1)
    assert cache.stats.entries == 50
    assert cache.stats.evictions == 0


async def test_variants_are_capped_and_the_oldest_goes(any_cache: Cache[Any]) -> None:
    origin = Origin(Answer("Cache-Control: max-age=60", "Vary: X"))
    any_cache.max_variants = 4  # type: ignore[attr-defined]
    if isinstance(any_cache, TieredCache):
        any_cache.near.max_variants = 4
    layer = CacheMiddleware(origin, cache=any_cache)
    for number in range(6):
        await request(layer, "/", headers=[(b"x", b"%d" % number)])
    for number in (5, 4, 3, 2):
        await request(layer, "/", headers=[(b"x", b"%d" % number)])
    assert origin.calls == 6
    await request(layer, "/", headers=[(b"x", b"0")])
    assert origin.calls == 7


async def test_many_variants_of_one_url_make_no_store_dear() -> None:
    cache = MemoryCache()
    await request(CacheMiddleware(Origin(Answer("Cache-Control: max-age=60")), cache=cache), "/")
    (slot,) = cache._kept.values()
    assert isinstance(slot, Slot)
    assert slot.only is not None
    entry = slot.only

    def stores(first: int, number: int) -> float:
        before = time.process_time()
        for user in range(first, first + number):
            slot.put(((b"x",), (b"%d" % user,)), entry, entry.size, 10_000)
            assert slot.kept_until
        return time.process_time() - before

    few = stores(0, 500)
    stores(500, 4000)
    assert stores(4500, 500) < 10 * few


async def test_only_the_varys_that_are_in_use_are_looked_for() -> None:
    cache = MemoryCache(max_variants=2)
    layer = CacheMiddleware(
        Origin(*(Answer("Cache-Control: max-age=60", f"Vary: X-{n}") for n in (1, 2, 3))), cache=cache
    )
    for number in range(3):
        await request(layer, "/", headers=[(b"x-%d" % n, b"%d" % number) for n in (1, 2, 3)])
    (slot,) = cache._kept.values()
    assert isinstance(slot, Slot)
    assert slot.varies == ((b"x-3",), (b"x-2",))
    assert slot._uses == {(b"x-3",): 1, (b"x-2",): 1}


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"max_bytes": 0}, "max_bytes"),
        ({"max_entries": 0}, "max_entries"),
        ({"max_variants": 0}, "max_variants"),
        ({"ttl": 0}, "ttl"),
        ({"ttl": float("inf")}, "ttl"),
        ({"collapse_timeout": 0}, "collapse_timeout"),
        ({"hit_for_miss": -1}, "hit_for_miss"),
    ],
)
def test_a_bad_bound_is_named(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        MemoryCache(**options)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"honour": ["no-such"]}, "honour"),
        ({"set_cookie": "keep"}, "set_cookie"),
        ({"cookies": "x"}, "cookies"),
        ({"invalid_age": "x"}, "invalid_age"),
        ({"heuristic": 2}, "heuristic"),
        ({"jitter": -1}, "jitter"),
        ({"max_body": -1}, "max_body"),
        ({"early": -1}, "early"),
        ({"refresh_timeout": 0}, "refresh_timeout"),
        ({"cache_status": "two words"}, "cache_status"),
        ({"key_headers": "X-Tenant"}, "key_headers"),
        ({"key_headers": ["X Tenant"]}, "key_headers"),
        ({"targeted": ["CDN Cache"]}, "targeted"),
        ({"negative_ttl": {404: float("inf")}}, "negative_ttl"),
        ({"negative_ttl": {404: -1}}, "negative_ttl"),
        ({"cache": MemoryCache(), "redis": "redis://localhost"}, "cache and redis"),
    ],
)
def test_a_bad_option_is_named(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        CacheMiddleware(Origin(Answer()), **options)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"ttl": float("inf")}, "ttl"),
        ({"stale_if_error": -1}, "stale_if_error"),
        ({"path": "/a?b"}, "path"),
        ({"vary": ["*"]}, "vary"),
        ({"vary": [b"two words"]}, "vary"),
    ],
)
def test_a_rule_that_cannot_be_meant_is_named(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        CacheRule(**{"path": "/a", **options})


def test_a_cluster_cannot_be_tracked() -> None:
    with pytest.raises(ConfigError, match="cluster"):
        TieredCache("redis+cluster://127.0.0.1:7000")


# -- what is stored is data, or nothing -------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [b"", b"\x80\x04garbage", b"\x02" + b"\x00" * 20, None])
async def test_a_corrupt_entry_is_a_miss_and_deleted(redis: RedisManager, clock: Clock, damage: bytes | None) -> None:
    origin = Origin(Answer("Cache-Control: max-age=60", body=b"body"))
    async with RedisCache(redis, clock=clock) as cache:
        layer = CacheMiddleware(origin, cache=cache)
        await request(layer, "/")
        (key,) = [key for key in await redis.execute("KEYS", f"{redis.prefix}:cache:r:*") if key.endswith(b"}")]
        frame = await redis.execute("HGET", key, "-")
        await redis.execute("HSET", key, "-", frame[:-1] if damage is None else damage)
        assert (await request(layer, "/")).body == b"body"
        assert (origin.calls, layer.stats.corrupt) == (2, 1)
        await request(layer, "/")
        assert origin.calls == 2


async def test_a_corrupt_value_is_a_miss_and_deleted(redis: RedisManager) -> None:
    async with RedisCache(redis) as cache:
        await cache.set("key", "value")
        await redis.execute("SET", cache._value_key("key"), b"\x80\x04K\x01.")
        assert await cache.get("key") is None
        assert cache.stats.corrupt == 1
        assert await redis.execute("EXISTS", cache._value_key("key")) == 0


@pytest.mark.parametrize("damage", [lambda frame: frame[:-1], lambda frame: frame + b"x"], ids=["cut", "longer"])
async def test_a_value_that_is_not_whole_is_a_miss(redis: RedisManager, damage: Callable[[bytes], bytes]) -> None:
    async with RedisCache(redis) as cache:
        await cache.set("key", {"a": [1, 2, 3]})
        name = cache._value_key("key")
        await redis.execute("SET", name, damage(await redis.execute("GET", name)))
        assert await cache.get("key") is None
        assert cache.stats.corrupt == 1


async def test_a_purge_that_cannot_be_read_is_one_of_everything(redis: RedisManager) -> None:
    origin = Origin(Answer("Cache-Control: max-age=60"))
    async with RedisCache(redis) as cache:
        layer = CacheMiddleware(origin, cache=cache)
        await request(layer, "/")
        await redis.execute("ZADD", cache._news.key, cache.purges.number + 1, b"of another release")
        cache._news.happen()
        for _ in range(2):
            assert (await request(layer, "/")).status == 200
        assert origin.calls == 2


async def test_entries_in_redis_expire_there(redis: RedisManager) -> None:
    async with RedisCache(redis) as cache:
        await request(CacheMiddleware(Origin(Answer("Cache-Control: max-age=60")), cache=cache), "/")
        keys = await redis.execute("KEYS", f"{redis.prefix}:cache:r:*")
        assert keys
        for key in keys:
            assert 0 < await redis.execute("PTTL", key) <= 60_000


# -- decorator and keys -----------------------------------------------------------------------------------------------


async def test_a_cached_function_is_called_once_for_the_same_arguments() -> None:
    calls: list[Any] = []

    @cached(60)
    async def double(number: Any, times: int = 2) -> Any:
        calls.append(number)
        return number * times

    assert [await double(1), await double(1), await double(number=1, times=2), await double("1")] == [2, 2, 2, "11"]
    assert calls == [1, "1"]
    await double.forget(1)  # type: ignore[attr-defined]
    await double(1)
    assert calls == [1, "1", 1]


class Point(msgspec.Struct):
    x: int


@dataclass
class Named:
    name: str


async def test_a_hit_gives_what_the_function_declares_to_return() -> None:
    @cached(60)
    async def find(x: int) -> tuple[Point, Named | None, set[int], Decimal]:
        return Point(x), Named("a"), {1}, Decimal("1.5")

    assert await find(1) == await find(1) == (Point(1), Named("a"), {1}, Decimal("1.5"))
    assert find.cache.stats.value_hits == 1  # type: ignore[attr-defined]


async def test_a_declared_type_that_is_no_data_is_given_as_it_is_kept() -> None:
    class Opaque:
        pass

    @cached(60)
    async def declared(x: int) -> "Opaque | dict[str, int]":
        return {"x": x}

    @cached(60)
    async def silent(x):  # type: ignore[no-untyped-def]
        return {"x": x}

    for function in (declared, silent):
        assert await function(1) == await function(1) == {"x": 1}


async def test_a_declared_type_that_only_its_class_can_make_is_given_as_it_is_kept() -> None:
    @cached(60)
    async def rows() -> list[OrderedDict[str, int]]:
        return [OrderedDict(x=1)]

    assert await rows() == await rows() == [{"x": 1}]
    assert rows.cache.stats.value_hits == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("ttl", [0, float("inf"), "60", None])
def test_a_cached_function_needs_a_number_of_seconds(ttl: Any) -> None:
    with pytest.raises(ConfigError, match="ttl"):
        cached(ttl)


async def test_a_value_that_another_release_wrote_is_computed_anew(any_cache: Cache[Any]) -> None:
    async def compute() -> Point:
        return Point(2)

    await any_cache.set("key", {"y": 1})
    for _ in range(2):
        assert await any_cache.get_or_compute("key", compute, as_type=Point) == Point(2)
    assert (any_cache.stats.corrupt, any_cache.stats.computations) == (1, 1)


@pytest.mark.parametrize("former", ["text", b"bytes"])
async def test_a_text_that_another_release_wrote_is_computed_anew(any_cache: Cache[Any], former: Any) -> None:
    await any_cache.set("key", former)
    assert await any_cache.get_or_compute("key", lambda: Point(2), as_type=Point) == Point(2)
    assert await any_cache.get("key", as_type=Point) == Point(2)


async def test_who_waits_for_what_is_not_of_its_declared_type_computes_it() -> None:
    gate = asyncio.Event()

    @cached(60)
    async def half() -> int:
        await gate.wait()
        return 0.5  # type: ignore[return-value]

    calls = [asyncio.ensure_future(half()) for _ in range(3)]
    for _ in range(5):
        await asyncio.sleep(0)
    gate.set()
    assert await asyncio.gather(*calls) == [0.5, 0.5, 0.5]


async def test_tags_are_names_and_not_one_string(any_cache: Cache[Any]) -> None:
    with pytest.raises(CacheError, match="tags"):
        await any_cache.set("key", 1, tags="users")


async def test_arguments_of_two_types_are_two_calls() -> None:
    class Reader(msgspec.Struct):
        number: int

    class Writer(msgspec.Struct):
        number: int

    @cached(ttl=60)
    async def name(of: Any, **more: Any) -> str:
        return type(of).__name__

    assert [await name(Reader(1)), await name(Writer(1))] == ["Reader", "Writer"]
    assert [await name("1"), await name(Decimal(1))] == ["str", "Decimal"]
    assert name.key(1, a=1, b="2") == name.key(1, b="2", a=1)  # type: ignore[attr-defined]


async def test_a_cached_function_can_make_its_own_key() -> None:
    calls = 0

    @cached(60, key=lambda session, user: str(user))
    async def load(session: object, user: int) -> int:
        nonlocal calls
        calls += 1
        return user

    assert [await load(object(), 1), await load(object(), 1), await load(object(), 2)] == [1, 1, 2]
    assert calls == 2


async def test_arguments_that_make_no_key_are_refused() -> None:
    @cached(60)
    async def load(session: object) -> int:
        return 1

    with pytest.raises(CacheError, match="give `key`"):
        await load(object())
    with pytest.raises(ConfigError, match="ttl"):
        cached(0)


def test_a_generated_key_tells_urls_and_methods_apart() -> None:
    scopes = [http_scope("/a?b"), http_scope("/a"), http_scope("/a?b", method="POST"), http_scope("/a%3Fb")]
    assert len({generate_cache_key(scope) for scope in scopes}) == 4
    assert generate_cache_key(http_scope("/a?b")) == generate_cache_key(http_scope("/a?b"))
