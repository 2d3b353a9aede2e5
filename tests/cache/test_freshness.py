"""RFC 9111 4.2: how old, how long fresh; and what a hit says of it."""

from typing import Any

import pytest

from asgi_enhance.cache import Cache, CacheMiddleware, CacheRule
from asgi_enhance.cache.policy import fields as f
from asgi_enhance.testing.driver import request
from tests.cache.origin import Answer, Clock, Origin, fields

NOW = 1_800_000_000.0  # Fri, 15 Jan 2027 08:00:00 GMT
DATE = "Date: Fri, 15 Jan 2027 08:00:00 GMT"


async def lifetime(cache: Cache[Any], clock: Clock, *lines: str, status: int = 200, **options: Any) -> float:
    """For how many seconds the response is used, by trying; 0 if it is not kept."""
    origin = Origin(Answer(*lines, status=status, body=b"" if status == 204 else b"x"))
    layer = CacheMiddleware(origin, cache=cache, **options)
    await request(layer, "/")
    answer = await request(layer, "/")
    if origin.calls == 2:
        return 0
    told = answer.header("cache-status")
    assert told is not None
    ttl = int(told.rpartition("ttl=")[2])
    clock.step(ttl - 0.5)
    await request(layer, "/")
    assert origin.calls == 1, "stale before its time"
    clock.step(1)
    await request(layer, "/")
    assert origin.calls == 2, "fresh after its time"
    return ttl


@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        (["Cache-Control: max-age=60"], 60),
        (["Cache-Control: MaX-AgE=60"], 60),
        (["Cache-Control: max-age=60, s-maxage=30"], 30),
        (["Cache-Control: s-maxage=90, max-age=60"], 90),
        (["Cache-Control: max-age=60", "Cache-Control: s-maxage=30"], 30),
        (["Cache-Control: max-age=30, max-age=60"], 30),
        (['Cache-Control: max-age="60"'], 60),
        (["Cache-Control: max-age=0060"], 60),
        (['Cache-Control: ext="max-age=600", max-age=60'], 60),
        (["Cache-Control: max-age=60", "Expires: Thu, 01 Jan 1970 00:00:00 GMT"], 60),
        (["Expires: Fri, 15 Jan 2027 08:01:00 GMT", DATE], 60),
        (["Expires: Fri, 15 Jan 2027 08:01:00 GMT"], 60),
        (["Expires: Friday, 15-Jan-27 08:01:00 GMT"], 60),
        (["Expires: Fri Jan 15 08:01:00 2027"], 60),
        (["Expires: fri, 15 jan 2027 08:01:00 gmt"], 60),
        (["Cache-Control: max-age=60", "Age: 20"], 40),
        (["Cache-Control: max-age=60", "Date: Fri, 15 Jan 2027 07:59:30 GMT"], 30),
        (["Cache-Control: max-age=60", "Age: 20", "Date: Fri, 15 Jan 2027 07:59:30 GMT"], 30),
        (["Cache-Control: max-age=60", "Age: 20, 50"], 40),
        (["Cache-Control: max-age=60", "Age: soon"], 60),
        (["Cache-Control: max-age=60", "Age: -5"], 60),
        (["Cache-Control: max-age=99999999999"], 2**31),
    ],
)
async def test_a_response_is_fresh_for_as_long_as_it_says(
    cache: Cache[Any], clock: Clock, lines: list[str], seconds: int
) -> None:
    assert await lifetime(cache, clock, *lines) == seconds


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["Cache-Control: max-age=0"],
        ["Cache-Control: max-age=-5"],
        ["Cache-Control: max-age='60'"],
        ["Cache-Control: max-age=60s"],
        ["Cache-Control: max-age=60.5"],
        ["Cache-Control: max-age=60, max-age=0"],
        ["Cache-Control: max-age =60"],
        ["Cache-Control: max-age=60, s-maxage=0"],
        ["Cache-Control: max-age=0", "Expires: Fri, 15 Jan 2027 08:01:00 GMT"],
        ["Cache-Control: max-age=60", "Age: 60"],
        ["Cache-Control: public"],
        ["Expires: 0"],
        ["Expires: Sat, 01 Jan 0000 00:00:00 GMT"],
        ["Expires: Fri, 15 Jan 2027 08:00:00 GMT"],
        ["Expires: Fri, 15 Jan 2027 08:01:00 UTC"],
        ["Expires: Fri, 15 Jan 2027 08:01:00 +0000"],
        ["Expires: Fri 15 Jan 2027 08:01:00 GMT"],
        ["Expires: Fri, 15 Jan 27 08:01:00 GMT"],
        ["Expires: Fri, 15-Jan-2027 08:01:00 GMT"],
        ["Expires: Fri, 15 Jan 2027 8:01:00 GMT"],
        ["Expires: Fri,  15 Jan 2027 08:01:00 GMT"],
        ["Expires: Fri, 15 Jan 2027 08:01:00 GMT", "Expires: Fri, 15 Jan 2027 09:01:00 GMT"],
        ["Last-Modified: Fri, 15 Jan 2027 07:00:00 GMT"],
    ],
)
async def test_a_response_without_freshness_is_not_used(cache: Cache[Any], clock: Clock, lines: list[str]) -> None:
    assert await lifetime(cache, clock, *lines) == 0


@pytest.mark.parametrize("age", ["soon", "0, 0", "-5", "7.5"])
async def test_an_age_that_is_an_error_can_be_taken_for_old(cache: Cache[Any], clock: Clock, age: str) -> None:
    assert await lifetime(cache, clock, "Cache-Control: max-age=60", f"Age: {age}", invalid_age="stale") == 0


async def test_heuristic_freshness_is_a_fraction_of_the_age_of_the_resource(cache: Cache[Any], clock: Clock) -> None:
    line = "Last-Modified: Fri, 15 Jan 2027 07:50:00 GMT"
    assert await lifetime(cache, clock, line, heuristic=0.1) == 60


@pytest.mark.parametrize("status", [201, 202, 302, 403, 502, 503, 599])
async def test_heuristic_freshness_is_for_some_statuses_only(cache: Cache[Any], clock: Clock, status: int) -> None:
    line = "Last-Modified: Fri, 15 Jan 2027 07:00:00 GMT"
    assert await lifetime(cache, clock, line, status=status, heuristic=0.1) == 0


@pytest.mark.parametrize("status", [200, 203, 204, 301, 302, 307, 400, 404, 410, 500, 503, 599])
async def test_any_final_status_is_kept_with_explicit_freshness(cache: Cache[Any], clock: Clock, status: int) -> None:
    assert await lifetime(cache, clock, "Cache-Control: max-age=60", status=status) == 60


@pytest.mark.parametrize(("status", "seconds"), [(200, 60), (299, 0)])
async def test_must_understand_takes_the_place_of_no_store_where_the_status_is_understood(
    cache: Cache[Any], clock: Clock, status: int, seconds: int
) -> None:
    line = "Cache-Control: max-age=60, no-store, must-understand"
    assert await lifetime(cache, clock, line, status=status) == seconds


@pytest.mark.parametrize(
    ("targeted", "seconds"),
    [
        ("max-age=30", 30),
        ("max-age=30;x=1", 30),
        ("no-store", 0),
        ("private", 0),
        ("no-cache", 0),
        ("s-maxage=20, max-age=30", 20),
        # Not a dictionary, or an empty one: as if it were not there
        ("max-age=30,", 60),
        ("max-age 30", 60),
        ("MAX-AGE=30", 60),
        ("", 60),
        # A dictionary, but max-age is no Integer: not consumed, and Cache-Control stays ignored
        ('max-age="30"', 0),
        ("max-age=30.5", 0),
        ("unknown", 0),
        ("max-age=0", 0),
        ("no-store=?0, max-age=30", 30),
    ],
)
async def test_a_targeted_field_comes_before_cache_control(
    cache: Cache[Any], clock: Clock, targeted: str, seconds: int
) -> None:
    """RFC 9213."""
    lines = ["Cache-Control: max-age=60", f"CDN-Cache-Control: {targeted}"]
    assert await lifetime(cache, clock, *lines) == seconds


async def test_a_targeted_field_takes_the_place_of_expires_and_no_store_too(cache: Cache[Any], clock: Clock) -> None:
    lines = ["Cache-Control: no-store", "Expires: 0", "CDN-Cache-Control: max-age=30"]
    assert await lifetime(cache, clock, *lines) == 30


async def test_the_first_target_that_is_there_counts(cache: Cache[Any], clock: Clock) -> None:
    lines = ["CDN-Cache-Control: max-age=30", "My-Cache-Control: max-age=20"]
    targeted = ("My-Cache-Control", "CDN-Cache-Control")
    assert await lifetime(cache, clock, *lines, targeted=targeted) == 20


async def test_a_rule_speaks_where_the_app_is_silent(cache: Cache[Any], clock: Clock) -> None:
    rules = [CacheRule("/elsewhere", ttl=9), CacheRule("/*", ttl=60)]
    assert await lifetime(cache, clock, rules=rules) == 60
    assert await lifetime(cache, clock, "Cache-Control: max-age=5", rules=rules, namespace="b") == 5


async def test_a_rule_can_keep_a_path_out(cache: Cache[Any], clock: Clock) -> None:
    assert await lifetime(cache, clock, "Cache-Control: max-age=60", rules=[CacheRule("/", bypass=True)]) == 0


async def test_jitter_takes_its_share(cache: Cache[Any], clock: Clock) -> None:
    assert await lifetime(cache, clock, "Cache-Control: max-age=60", jitter=0.5, rng=lambda: 0.5) == 45


async def test_a_hit_tells_its_age_and_keeps_its_date(cache: Cache[Any], clock: Clock) -> None:
    layer = CacheMiddleware(Origin(Answer("Cache-Control: max-age=60", "Age: 5", DATE)), cache=cache)
    await request(layer, "/")
    clock.step(7)
    answer = await request(layer, "/")
    assert [value for name, value in answer.headers if name == b"age"] == [b"12"]
    assert answer.header("date") == "Fri, 15 Jan 2027 08:00:00 GMT"
    assert answer.header("cache-status") == "asgi-enhance; hit; ttl=48"


async def test_age_and_cache_status_can_be_kept_quiet(cache: Cache[Any]) -> None:
    layer = CacheMiddleware(Origin(Answer("Cache-Control: max-age=60")), cache=cache, age=False, cache_status=None)
    await request(layer, "/")
    answer = await request(layer, "/")
    assert layer.stats.hits == 1
    assert answer.header("age") is answer.header("cache-status") is None


async def test_a_clock_that_is_set_back_makes_no_negative_age(cache: Cache[Any], clock: Clock) -> None:
    layer = CacheMiddleware(Origin(Answer("Cache-Control: max-age=60")), cache=cache)
    await request(layer, "/")
    clock.step(-100)
    assert (await request(layer, "/")).header("age") == "0"


async def test_fields_of_the_connection_are_not_replayed(cache: Cache[Any]) -> None:
    lines = ["Cache-Control: max-age=60", "Connection: X-Hop", "X-Hop: 1", "Keep-Alive: 5", "TE: x", "X-Kept: 1"]
    layer = CacheMiddleware(Origin(Answer(*lines)), cache=cache)
    await request(layer, "/")
    answer = await request(layer, "/")
    names = {name for name, _ in answer.headers}
    assert names == {b"cache-control", b"x-kept", b"content-length", b"age", b"cache-status"}


async def test_fields_that_no_cache_and_private_list_are_not_kept(cache: Cache[Any]) -> None:
    lines = ['Cache-Control: max-age=60, no-cache="a, B", private="c"', "A: 1", "B: 1", "C: 1", "D: 1"]
    layer = CacheMiddleware(Origin(Answer(*lines)), cache=cache)
    await request(layer, "/")
    answer = await request(layer, "/")
    assert layer.stats.hits == 1
    assert {name for name, _ in answer.headers} >= {b"d"}
    assert not {name for name, _ in answer.headers} & {b"a", b"b", b"c"}


def test_two_digit_years_are_never_more_than_fifty_years_ahead() -> None:
    assert f.http_date(b"Friday, 15-Jan-27 08:00:00 GMT", NOW) == NOW
    past = f.http_date(b"Friday, 15-Jan-99 08:00:00 GMT", NOW)
    assert past is not None
    assert past < NOW


@pytest.mark.parametrize(
    ("private", "user", "calls"),
    [(True, "alice", 1), (True, "bob", 2), (False, "alice", 2)],
)
async def test_a_private_cache_keeps_what_is_private_for_each_user(
    cache: Cache[Any], private: bool, user: str, calls: int
) -> None:
    origin = Origin(Answer("Cache-Control: private, max-age=60, s-maxage=0"))
    layer = CacheMiddleware(origin, cache=cache, private=private)
    await request(layer, "/", headers=fields("Cookie: alice"))
    await request(layer, "/", headers=fields(f"Cookie: {user}"))
    assert origin.calls == calls


async def test_key_headers_are_part_of_the_key(cache: Cache[Any]) -> None:
    origin = Origin(Answer("Cache-Control: max-age=60"))
    layer = CacheMiddleware(origin, cache=cache, key_headers=["X-Tenant"])
    for tenant in ("a", "b", "a"):
        await request(layer, "/", headers=fields(f"X-Tenant: {tenant}"))
    assert origin.calls == 2
