"""No-Vary-Search, and warming."""

import asyncio
from typing import Any

import pytest

from asgi_enhance.cache import Cache, CacheMiddleware, RedisCache
from asgi_enhance.cache.core import MAX_SEARCH
from asgi_enhance.cache.policy.search import Search, parse, simplified
from asgi_enhance.errors import CacheError
from asgi_enhance.redis import RedisManager
from asgi_enhance.testing.driver import request
from tests.cache.origin import Answer, Clock, Origin, until

FRESH = "Cache-Control: max-age=60"


@pytest.mark.parametrize(
    ("value", "search"),
    [
        (b"params", Search(False, None)),
        (b'params=("a" "b")', Search(False, frozenset({b"a", b"b"}))),
        (b'params, except=("a")', Search(False, None, frozenset({b"a"}))),
        (b"key-order", Search(True, frozenset())),
        (b'key-order, params=("a")', Search(True, frozenset({b"a"}))),
        (b"params, key-order=?0, unknown=1", Search(False, None)),
        # Whatever is in doubt means that every query is another
        (b"", None),
        (b"params=?0", None),
        (b"params=()", None),
        (b"params=1", None),
        (b'params="a"', None),
        (b"params=(a)", None),
        (b"params=(1)", None),
        (b"key-order=1", None),
        (b'except=("a")', None),
        (b'params=("a"), except=("b")', None),
        (b'params, except="a"', None),
        (b"params, except=(a)", None),
        (b"params,", None),
    ],
)
def test_the_field_says_which_parameters_do_not_matter(value: bytes, search: Search | None) -> None:
    assert parse(value) == search


@pytest.mark.parametrize(
    ("value", "one", "other", "same"),
    [
        (b'params=("u")', b"a=1&u=2", b"u=3&a=1", True),
        (b'params=("u")', b"a=1&u=2", b"a=2&u=2", False),
        (b'params=("u")', b"a=1;u=2", b"a=1", False),
        (b'params=("u")', b"a=1&%75=2", b"a=1", True),
        (b'params=("u")', b"a=1&b=2", b"b=2&a=1", False),
        (b"key-order", b"a=1&b=2", b"b=2&a=1", True),
        (b"key-order", b"a=1&a=2", b"a=2&a=1", False),
        (b"params", b"a=1", b"", True),
        (b'params, except=("id")', b"id=1&a=1", b"b=2&id=1", True),
        (b'params, except=("id")', b"id=1", b"id=2", False),
        (b'params=("u")', b"a=%31", b"a=1", True),
        (b'params=("u")', b"a=b+c", b"a=b%20c", True),
        (b'params=("u")', b"a=1&b=2", b"a=1%26b=2", False),
    ],
)
def test_queries_are_compared_as_forms(value: bytes, one: bytes, other: bytes, same: bool) -> None:
    search = parse(value)
    assert search is not None
    assert (simplified(one, search) == simplified(other, search)) is same


async def test_queries_that_make_no_difference_share_a_response(any_cache: Cache[Any]) -> None:
    origin = Origin(Answer(FRESH, 'No-Vary-Search: params=("utm")', body=b"a"), Answer(FRESH, body=b"b"))
    layer = CacheMiddleware(origin, cache=any_cache)
    for path in ("/?utm=1", "/?utm=2", "/?", "/"):
        assert (await request(layer, path)).body == b"a"
    assert origin.calls == 1


async def test_queries_that_make_a_difference_do_not(any_cache: Cache[Any]) -> None:
    origin = Origin(*[Answer(FRESH, 'No-Vary-Search: params=("utm")', body=b"%d" % number) for number in range(3)])
    layer = CacheMiddleware(origin, cache=any_cache)
    bodies = [(await request(layer, path)).body for path in ("/?a=1&utm=1", "/?a=2&utm=1", "/?utm=2&a=1", "/x?a=1")]
    assert bodies == [b"0", b"1", b"0", b"2"]


@pytest.mark.parametrize(
    ("path", "params"), [("/" + "a" * MAX_SEARCH, "params"), ("/", "params, except=(" + '"a" ' * MAX_SEARCH + ")")]
)
async def test_what_takes_too_much_room_to_remember_is_not_heard(any_cache: Cache[Any], path: str, params: str) -> None:
    origin = Origin(Answer(FRESH, f"No-Vary-Search: {params}"))
    layer = CacheMiddleware(origin, cache=any_cache)
    for query in ("?b=1", "?b=2", "?b=1", "?b=2"):
        await request(layer, path + query)
    assert origin.calls == 2
    assert not any_cache._searches


async def test_a_write_reaches_the_response_that_queries_share(any_cache: Cache[Any]) -> None:
    search = 'No-Vary-Search: params=("utm")'
    origin = Origin(Answer(FRESH, search, body=b"old"), Answer(), Answer(FRESH, search, body=b"new"))
    layer = CacheMiddleware(origin, cache=any_cache)
    await request(layer, "/?a&utm=1")
    any_cache._searches.clear()  # as in another process, which has not seen the response
    if any_cache.remote:
        await request(layer, "/?utm=9&a", method="POST")
        assert (await request(layer, "/?a&utm=2")).body == b"new"


async def test_a_write_reaches_the_response_whatever_was_said_since(any_cache: Cache[Any]) -> None:
    search = 'No-Vary-Search: params=("utm")'
    origin = Origin(
        Answer(FRESH, search, body=b"old"),
        Answer(FRESH, body=b"another query, without the field"),
        Answer(),
        Answer(FRESH, search, body=b"and with it"),
        Answer(FRESH, search, body=b"new"),
    )
    layer = CacheMiddleware(origin, cache=any_cache)
    for path in ("/?a", "/?b"):
        await request(layer, path)
    await request(layer, "/?a", method="POST")
    await request(layer, "/?c")
    assert (await request(layer, "/?a")).body == b"new"


async def test_a_response_that_says_it_no_more_ends_it(any_cache: Cache[Any]) -> None:
    origin = Origin(
        Answer("Cache-Control: max-age=0", 'ETag: "a"', "No-Vary-Search: params", body=b"a"),
        Answer(FRESH, body=b"b"),
        Answer(FRESH, body=b"c"),
    )
    layer = CacheMiddleware(origin, cache=any_cache)
    assert [(await request(layer, f"/?{number}")).body for number in (1, 2, 3, 2)] == [b"a", b"b", b"c", b"b"]


async def test_who_waits_is_not_given_the_response_to_another_query_that_makes_a_difference_now(
    any_cache: Cache[Any], clock: Clock
) -> None:
    origin = Origin(Answer(FRESH, 'No-Vary-Search: params=("a")'), Answer(FRESH, body=b"2"), Answer(FRESH, body=b"3"))
    layer = CacheMiddleware(origin, cache=any_cache)
    await request(layer, "/?a=1")
    clock.step(61)
    origin.gate = asyncio.Event()
    leader = asyncio.create_task(request(layer, "/?a=2"))
    await until(lambda: origin.calls == 2)
    follower = asyncio.create_task(request(layer, "/?a=3"))
    for _ in range(20):
        await asyncio.sleep(0)
    origin.gate.set()
    assert [(await leader).body, (await follower).body] == [b"2", b"3"]


async def test_a_write_overtakes_a_renewal_whatever_query_it_began_with(any_cache: Cache[Any], clock: Clock) -> None:
    search = 'No-Vary-Search: params=("a")'
    lines = (f"{FRESH}, stale-while-revalidate=60", search)
    origin = Origin(Answer(*lines, body=b"old"), Answer(*lines, body=b"old"), Answer(), Answer(*lines, body=b"new"))
    layer = CacheMiddleware(origin, cache=any_cache)
    await request(layer, "/?a=1")
    clock.step(61)
    gate = origin.gate = asyncio.Event()
    await request(layer, "/?a=1")
    await until(lambda: origin.calls == 2)
    origin.gate = None
    await request(layer, "/?a=2", method="POST")
    gate.set()
    await until(lambda: not any_cache.flights)
    assert (await request(layer, "/?a=2")).body == b"new"


async def test_a_write_overtakes_what_was_asked_for_by_another_query(any_cache: Cache[Any], clock: Clock) -> None:
    known = Answer("Cache-Control: max-age=5", 'No-Vary-Search: params=("a")', body=b"old")
    origin = Origin(Answer("Cache-Control: no-store"), known, known, Answer(), Answer(FRESH, body=b"new"))
    layer = CacheMiddleware(origin, cache=any_cache)
    await request(layer, "/?a=1")
    await request(layer, "/?a=2")
    clock.step(5)
    gate = origin.gate = asyncio.Event()
    reading = asyncio.create_task(request(layer, "/?a=1"))
    await until(lambda: origin.calls == 3)
    origin.gate = None
    await request(layer, "/?a=3", method="POST")
    gate.set()
    await reading
    assert (await request(layer, "/?a=2")).body == b"new"


async def test_a_write_in_another_process_overtakes_what_shows_only_now_that_its_query_makes_no_difference(
    redis: RedisManager,
) -> None:
    origin = Origin(Answer(FRESH, 'No-Vary-Search: params=("a")', body=b"old"), Answer(FRESH, body=b"new"))
    async with RedisCache(redis) as here, RedisCache(redis) as there:
        layer = CacheMiddleware(origin, cache=here)
        origin.gate = asyncio.Event()
        reading = asyncio.create_task(request(layer, "/?a=1"))
        await origin.called.wait()
        await request(CacheMiddleware(Origin(Answer()), cache=there), "/?a=1", method="POST")
        origin.gate.set()
        await reading
        assert (await request(layer, "/?a=1")).body == b"new"


async def test_a_cache_is_warmed_through_the_app(any_cache: Cache[Any]) -> None:
    origin = Origin(Answer(FRESH), RuntimeError("no"), Answer(FRESH, status=404))
    layer = CacheMiddleware(origin, cache=any_cache)
    urls = ["http://testserver/a?b", "http://testserver/c", "http://testserver/d"]
    assert await any_cache.warm(layer, [*urls, urls[0]], at_once=1) == dict(zip(urls, (200, 500, 404), strict=True))
    await request(layer, "/a?b")
    assert origin.calls == 3
    with pytest.raises(CacheError, match="whole"):
        await any_cache.warm(layer, ["/a"])
