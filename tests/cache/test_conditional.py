"""Conditional requests, both ways; parts; HEAD; writes."""

from typing import Any

import pytest

from asgi_enhance.cache import Cache, CacheMiddleware
from asgi_enhance.cache.request import Request
from asgi_enhance.testing.driver import Response, http_scope, request
from tests.cache.origin import Answer, Clock, Origin, fields

FRESH = "Cache-Control: max-age=60"
MODIFIED = "Last-Modified: Fri, 15 Jan 2027 07:00:00 GMT"


async def ask(layer: CacheMiddleware, *lines: str, method: str = "GET", path: str = "/") -> Response:
    return await request(layer, path, method=method, headers=fields(lines))


@pytest.mark.parametrize(
    ("stored", "asked", "status"),
    [
        ('ETag: "a"', 'If-None-Match: "a"', 304),
        ('ETag: "a"', 'If-None-Match: W/"a"', 304),
        ('ETag: W/"a"', 'If-None-Match: "a"', 304),
        ('ETag: "a"', 'If-None-Match: "b", "a", "c"', 304),
        ('ETag: "a"', "If-None-Match: *", 304),
        ('ETag: "a"', 'If-None-Match: "b"', 200),
        ('ETag: "a,b"', 'If-None-Match: "a,b"', 304),
        ('ETag: "a"', 'If-None-Match: "a,b"', 200),
        (MODIFIED, "If-Modified-Since: Fri, 15 Jan 2027 07:00:00 GMT", 304),
        (MODIFIED, "If-Modified-Since: Fri, 15 Jan 2027 07:30:00 GMT", 304),
        (MODIFIED, "If-Modified-Since: Friday, 15-Jan-27 07:00:00 GMT", 304),
        (MODIFIED, "If-Modified-Since: Fri, 15 Jan 2027 06:59:59 GMT", 200),
        (MODIFIED, "If-Modified-Since: yesterday", 200),
        (MODIFIED, "If-Modified-Since: Sat, 01 Jan 0000 00:00:00 GMT", 200),
        ("X-None: 1", 'If-None-Match: "a"', 200),
    ],
)
async def test_a_client_that_has_it_gets_304(cache: Cache[Any], stored: str, asked: str, status: int) -> None:
    origin = Origin(Answer(FRESH, stored, body=b"body"))
    layer = CacheMiddleware(origin, cache=cache)
    await ask(layer)
    answer = await ask(layer, asked)
    assert (answer.status, answer.body) == (status, b"" if status == 304 else b"body")
    assert origin.calls == 1


async def test_if_none_match_comes_before_if_modified_since(cache: Cache[Any]) -> None:
    layer = CacheMiddleware(Origin(Answer(FRESH, 'ETag: "a"', MODIFIED)), cache=cache)
    await ask(layer)
    answer = await ask(layer, 'If-None-Match: "b"', "If-Modified-Since: Fri, 15 Jan 2027 07:00:00 GMT")
    assert answer.status == 200


async def test_a_304_carries_what_it_must(cache: Cache[Any]) -> None:
    lines = [FRESH, 'ETag: "a"', "Vary: X", "Content-Location: /x", "Content-Type: text/plain", "Content-Length: 4"]
    layer = CacheMiddleware(Origin(Answer(*lines, body=b"body")), cache=cache)
    await ask(layer)
    answer = await ask(layer, 'If-None-Match: "a"')
    names = {name for name, _ in answer.headers}
    assert names == {b"cache-control", b"etag", b"vary", b"content-location", b"age", b"cache-status"}


@pytest.mark.parametrize(
    ("validator", "condition"),
    [('ETag: "a"', "if-none-match"), ('ETag: W/"a"', "if-none-match"), (MODIFIED, "if-modified-since")],
)
async def test_a_stale_response_is_validated_and_freshened(
    cache: Cache[Any], clock: Clock, validator: str, condition: str
) -> None:
    origin = Origin(
        Answer(FRESH, validator, "X-Old: 1", "X-Both: old", body=b"body"),
        Answer("Cache-Control: max-age=120", "X-Both: new", "Content-Length: 999", status=304),
    )
    layer = CacheMiddleware(origin, cache=cache)
    await ask(layer)
    clock.step(61)
    answer = await ask(layer)
    assert origin.sent(condition) == validator.partition(": ")[2]
    assert (answer.status, answer.body) == (200, b"body")
    assert answer.header("x-old") == "1"
    assert answer.header("content-length") == "4"
    assert [value for name, value in answer.headers if name == b"x-both"] == [b"new"]
    told = answer.header("cache-status")
    assert told == "asgi-enhance; fwd=stale; fwd-status=304; stored"
    clock.step(119)
    assert (await ask(layer)).body == b"body"
    assert origin.calls == 2, "it was not freshened"
    assert layer.stats.not_modified == 1


async def test_a_new_response_takes_the_place_of_a_stale_one(cache: Cache[Any], clock: Clock) -> None:
    origin = Origin(Answer(FRESH, 'ETag: "a"', body=b"old"), Answer(FRESH, 'ETag: "b"', body=b"new"))
    layer = CacheMiddleware(origin, cache=cache)
    await ask(layer)
    clock.step(61)
    assert (await ask(layer)).body == b"new"
    assert (await ask(layer)).body == b"new"
    assert origin.calls == 2


async def test_a_validation_may_forbid_what_it_validates(cache: Cache[Any], clock: Clock) -> None:
    origin = Origin(Answer(FRESH, 'ETag: "a"', body=b"body"), Answer("Cache-Control: no-store", status=304))
    layer = CacheMiddleware(origin, cache=cache)
    await ask(layer)
    clock.step(61)
    assert (await ask(layer)).body == b"body"
    origin.answers.append(Answer(FRESH, body=b"new"))
    assert (await ask(layer)).body == b"new"


async def test_a_clients_own_conditions_are_not_in_the_way_of_a_validation(cache: Cache[Any], clock: Clock) -> None:
    origin = Origin(Answer(FRESH, 'ETag: "a"', body=b"body"), Answer(FRESH, status=304))
    layer = CacheMiddleware(origin, cache=cache)
    await ask(layer)
    clock.step(61)
    answer = await ask(layer, 'If-None-Match: "client"')
    assert origin.sent("if-none-match") == '"a"'
    assert (answer.status, answer.body) == (200, b"body")


async def test_conditions_reach_the_app_where_nothing_is_stored(cache: Cache[Any]) -> None:
    origin = Origin(Answer(FRESH, status=304), Answer(FRESH, body=b"body"))
    layer = CacheMiddleware(origin, cache=cache)
    assert (await ask(layer, 'If-None-Match: "a"')).status == 304
    assert origin.sent("if-none-match") == '"a"'
    assert (await ask(layer)).body == b"body"


@pytest.mark.parametrize("line", ['If-Match: "a"', "If-Unmodified-Since: Fri, 15 Jan 2027 07:00:00 GMT"])
async def test_what_only_the_origin_can_judge_is_left_to_it(cache: Cache[Any], line: str) -> None:
    origin = Origin(Answer(FRESH, 'ETag: "a"'))
    layer = CacheMiddleware(origin, cache=cache)
    await ask(layer)
    await ask(layer, line)
    assert origin.calls == 2


async def test_no_cache_is_validated_each_time(cache: Cache[Any]) -> None:
    origin = Origin(Answer("Cache-Control: no-cache", 'ETag: "a"', body=b"body"), Answer(status=304))
    layer = CacheMiddleware(origin, cache=cache)
    for calls in (1, 2, 3):
        assert (await ask(layer)).body == b"body"
        assert origin.calls == calls


# -- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "status", "content_range", "body"),
    [
        ("bytes=0-1", 206, "bytes 0-1/10", b"01"),
        ("bytes=7-", 206, "bytes 7-9/10", b"789"),
        ("bytes=-2", 206, "bytes 8-9/10", b"89"),
        ("bytes=-99", 206, "bytes 0-9/10", b"0123456789"),
        ("bytes=8-99", 206, "bytes 8-9/10", b"89"),
        ("BYTES=0-0", 206, "bytes 0-0/10", b"0"),
        ("bytes=10-", 416, "bytes */10", b""),
        ("bytes=-0", 416, "bytes */10", b""),
        ("bytes=2-1", 200, None, b"0123456789"),
        ("bytes=a-b", 200, None, b"0123456789"),
        ("lines=0-1", 200, None, b"0123456789"),
        ("bytes=", 200, None, b"0123456789"),
        ("bytes=0-5,3-9", 200, None, b"0123456789"),
        ("bytes=" + ",".join(["0-0"] * 9), 200, None, b"0123456789"),
    ],
)
async def test_a_part_comes_from_the_stored_whole(
    cache: Cache[Any], wanted: str, status: int, content_range: str | None, body: bytes
) -> None:
    origin = Origin(Answer(FRESH, body=b"0123456789"))
    layer = CacheMiddleware(origin, cache=cache)
    await ask(layer)
    answer = await ask(layer, f"Range: {wanted}")
    assert (answer.status, answer.header("content-range"), answer.body) == (status, content_range, body)
    assert answer.header("content-length") == str(len(body))
    assert origin.calls == 1


async def test_several_parts_come_as_multipart(cache: Cache[Any]) -> None:
    layer = CacheMiddleware(Origin(Answer(FRESH, "Content-Type: text/plain", body=b"0123456789")), cache=cache)
    await ask(layer)
    answer = await ask(layer, "Range: bytes=0-1, 8-9")
    kind = answer.header("content-type") or ""
    boundary = kind.partition("boundary=")[2].encode()
    assert answer.status == 206
    assert kind.startswith("multipart/byteranges")
    parts = answer.body.split(b"--" + boundary)
    assert parts[1] == b"\r\nContent-Type: text/plain\r\nContent-Range: bytes 0-1/10\r\n\r\n01\r\n"
    assert parts[2] == b"\r\nContent-Type: text/plain\r\nContent-Range: bytes 8-9/10\r\n\r\n89\r\n"
    assert parts[3] == b"--\r\n"


@pytest.mark.parametrize(
    ("condition", "status"),
    [
        ('"a"', 206),
        ('"b"', 200),
        ('W/"a"', 200),
        ("Fri, 15 Jan 2027 07:00:00 GMT", 206),
        ("Fri, 15 Jan 2027 07:30:00 GMT", 200),
    ],
)
async def test_if_range_guards_the_part(cache: Cache[Any], condition: str, status: int) -> None:
    layer = CacheMiddleware(Origin(Answer(FRESH, 'ETag: "a"', MODIFIED, body=b"0123456789")), cache=cache)
    await ask(layer)
    assert (await ask(layer, "Range: bytes=0-1", f"If-Range: {condition}")).status == status


# -- HEAD -------------------------------------------------------------------------------------------------------------


async def test_head_is_answered_from_a_stored_get(cache: Cache[Any]) -> None:
    origin = Origin(Answer(FRESH, body=b"body"))
    layer = CacheMiddleware(origin, cache=cache)
    await ask(layer)
    answer = await ask(layer, method="HEAD")
    assert (answer.status, answer.body, answer.header("content-length")) == (200, b"", "4")
    assert origin.calls == 1


async def test_a_response_to_head_freshens_what_it_agrees_with(cache: Cache[Any], clock: Clock) -> None:
    origin = Origin(Answer(FRESH, 'ETag: "a"', body=b"body"), Answer(FRESH, 'ETag: "a"', "X: new"))
    layer = CacheMiddleware(origin, cache=cache)
    await ask(layer)
    clock.step(61)
    await ask(layer, method="HEAD")
    answer = await ask(layer)
    assert (answer.body, answer.header("x")) == (b"body", "new")
    assert origin.calls == 2


@pytest.mark.parametrize("line", ['ETag: "b"', "Content-Length: 99"])
async def test_a_response_to_head_ends_what_it_disagrees_with(cache: Cache[Any], clock: Clock, line: str) -> None:
    origin = Origin(Answer(FRESH, 'ETag: "a"', body=b"body"), Answer(FRESH, line), Answer(FRESH, body=b"new"))
    layer = CacheMiddleware(origin, cache=cache)
    await ask(layer)
    clock.step(61)
    await ask(layer, method="HEAD")
    assert (await ask(layer)).body == b"new"
    assert origin.sent("if-none-match") is None


# -- writes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "M-SEARCH"])
@pytest.mark.parametrize(("status", "calls"), [(200, 3), (204, 3), (303, 3), (404, 2), (500, 2)])
async def test_a_write_invalidates_its_url_if_it_succeeds(
    cache: Cache[Any], method: str, status: int, calls: int
) -> None:
    origin = Origin(Answer(FRESH), Answer(status=status), Answer(FRESH))
    layer = CacheMiddleware(origin, cache=cache)
    await ask(layer)
    await ask(layer, method=method)
    await ask(layer)
    assert origin.calls == calls


@pytest.mark.parametrize("name", ["Location", "Content-Location"])
@pytest.mark.parametrize(
    ("reference", "calls"), [("/b", 3), ("b", 3), ("http://testserver/b", 3), ("http://elsewhere/b", 2), ("/c", 2)]
)
async def test_a_write_invalidates_what_it_points_to_on_its_own_origin(
    cache: Cache[Any], name: str, reference: str, calls: int
) -> None:
    origin = Origin(Answer(FRESH), Answer(f"{name}: {reference}", status=201), Answer(FRESH))
    layer = CacheMiddleware(origin, cache=cache)
    await ask(layer, path="/b")
    await ask(layer, method="POST", path="/a")
    await ask(layer, path="/b")
    assert origin.calls == calls


@pytest.mark.parametrize("method", ["OPTIONS", "HEAD", "PROPFIND"])
async def test_a_safe_method_invalidates_nothing(cache: Cache[Any], method: str) -> None:
    origin = Origin(Answer(FRESH))
    layer = CacheMiddleware(origin, cache=cache)
    await ask(layer)
    await ask(layer, method=method)
    await ask(layer)
    assert [scope["method"] for scope in origin.asked if scope["method"] == "GET"] == ["GET"]


async def test_the_response_to_a_post_that_is_what_get_would_get_is_kept(cache: Cache[Any]) -> None:
    origin = Origin(Answer(FRESH, "Content-Location: /", body=b"posted"))
    layer = CacheMiddleware(origin, cache=cache)
    await ask(layer, method="POST")
    assert (await ask(layer)).body == b"posted"
    assert origin.calls == 1


@pytest.mark.parametrize("lines", [[FRESH], [FRESH, "Content-Location: /b"], ["Content-Location: /", 'ETag: "a"']])
async def test_any_other_response_to_a_post_is_not_kept(cache: Cache[Any], lines: list[str]) -> None:
    origin = Origin(Answer(*lines, body=b"posted"), Answer(body=b"got"))
    layer = CacheMiddleware(origin, cache=cache)
    await ask(layer, method="POST")
    assert (await ask(layer)).body == b"got"


async def test_a_group_goes_with_a_write_that_names_it(cache: Cache[Any]) -> None:
    """RFC 9875."""
    origin = Origin(
        Answer(FRESH, 'Cache-Groups: "news", "all"', body=b"a"),
        Answer(FRESH, 'Cache-Groups: "NEWS"', body=b"b"),
        Answer('Cache-Group-Invalidation: "news";x'),
        Answer(FRESH, body=b"c"),
    )
    layer = CacheMiddleware(origin, cache=cache)
    await ask(layer, path="/a")
    await ask(layer, path="/b")
    await ask(layer, method="POST", path="/c")
    assert (await ask(layer, path="/a")).body == b"c"
    assert (await ask(layer, path="/b")).body == b"b", "groups are case-sensitive"


async def test_a_group_is_of_one_origin_and_no_safe_method_ends_it(cache: Cache[Any]) -> None:
    invalidation = 'Cache-Group-Invalidation: "news"'
    origin = Origin(Answer(FRESH, 'Cache-Groups: "news"', body=b"a"), Answer(invalidation), Answer(invalidation))
    layer = CacheMiddleware(origin, cache=cache)
    await ask(layer)
    await ask(layer, path="/other")
    await request(layer, "/other", method="POST", scheme="https")
    assert (await ask(layer)).body == b"a"
    assert origin.calls == 3


@pytest.mark.parametrize("set_cookie", ["refuse", "strip", "store"])
async def test_a_client_whose_request_was_validated_gets_the_cookie_and_one_age(
    cache: Cache[Any], set_cookie: Any
) -> None:
    lines = ("Cache-Control: public, no-cache", 'ETag: "a"')
    origin = Origin(Answer(*lines, body=b"body"), Answer("Set-Cookie: a=1", "Age: 5", status=304))
    layer = CacheMiddleware(origin, cache=cache, set_cookie=set_cookie)
    await request(layer, "/")
    answer = await request(layer, "/")
    assert (answer.status, answer.body, answer.header("set-cookie")) == (200, b"body", "a=1")
    assert len([name for name, _ in answer.headers if name == b"age"]) == 1
    stored = cache.peek(Request(http_scope("/"))) or await cache.lookup(Request(http_scope("/")))
    assert (stored is not None) is (set_cookie != "refuse")
    if stored is not None:
        assert (b"set-cookie" in dict(stored.headers)) is (set_cookie == "store")
