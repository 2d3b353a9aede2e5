"""What RFC 9110, 9111 and 9213 oblige a cache to, section by section, beyond what the other files ask."""

from typing import Any

import pytest

from asgi_enhance.asgi.types import Receive, Scope, Send
from asgi_enhance.cache import Cache, CacheMiddleware
from asgi_enhance.testing.driver import Driver, Response, http_scope, request
from tests.cache.origin import Answer, Clock, Origin, fields

FRESH = "Cache-Control: max-age=60"
DATE = "Date: Fri, 15 Jan 2027 08:00:00 GMT"  # now, by the test's clock
OLD = "Last-Modified: Tue, 06 Oct 2026 08:00:00 GMT"  # 101 days ago
BEFORE = "Fri, 15 Jan 2027 07:59:00 GMT"


async def ask(layer: CacheMiddleware, *lines: str, method: str = "GET") -> Response:
    return await request(layer, "/", method=method, headers=fields(lines))


# -- RFC 9111 3: storing ----------------------------------------------------------------------------------------------


async def test_no_store_in_a_request_keeps_its_response_out(cache: Cache[Any]) -> None:
    origin = Origin(Answer(FRESH, body=b"one"), Answer(FRESH, body=b"two"))
    layer = CacheMiddleware(origin, cache=cache)
    await ask(layer, "Cache-Control: no-store")
    assert (await ask(layer)).body == b"two"


async def test_pragma_in_a_response_says_nothing(cache: Cache[Any]) -> None:
    origin = Origin(Answer(FRESH, "Pragma: no-cache"))
    layer = CacheMiddleware(origin, cache=cache)
    for _ in range(2):
        await ask(layer)
    assert origin.calls == 1


async def test_an_unknown_directive_says_nothing_and_one_within_quotes_is_none(cache: Cache[Any]) -> None:
    origin = Origin(Answer('Cache-Control: community="no-store, private", max-age=60, no-stores'))
    layer = CacheMiddleware(origin, cache=cache)
    for _ in range(2):
        await ask(layer)
    assert origin.calls == 1


async def test_an_interim_response_is_passed_on_and_nothing_of_it_is_kept(cache: Cache[Any]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.early_hint", "links": [b"</style.css>; rel=preload"]})
        await Origin(Answer(FRESH, body=b"body"))(scope, receive, send)

    layer = CacheMiddleware(app, cache=cache)
    first = await Driver(layer, http_scope("/"), [{"type": "http.request"}]).run()
    second = await Driver(layer, http_scope("/"), [{"type": "http.request"}]).run()
    assert [message["type"].rpartition(".")[2] for message in first] == ["early_hint", "start", "body"]
    assert [message["type"].rpartition(".")[2] for message in second] == ["start", "body"]


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ([FRESH, "Content-Location: /"], 201),
        ([FRESH, "Content-Location: /", "Content-Location: /"], 200),
        (["Content-Location: /", OLD, DATE], 200),
        (["Content-Location: /", 'ETag: "a"'], 200),
    ],
)
async def test_a_post_is_kept_only_with_explicit_freshness_and_its_own_location(
    cache: Cache[Any], lines: list[str], status: int
) -> None:
    """RFC 9110 9.3.3."""
    origin = Origin(Answer(*lines, status=status, body=b"posted"), Answer(body=b"got"))
    layer = CacheMiddleware(origin, cache=cache, heuristic=0.1)
    await ask(layer, method="POST")
    assert (await ask(layer)).body == b"got"
    assert origin.sent("if-none-match") is origin.sent("if-modified-since") is None


# -- RFC 9111 4.2: freshness ------------------------------------------------------------------------------------------


async def test_the_time_the_app_has_taken_counts_as_age_where_it_gives_one(cache: Cache[Any], clock: Clock) -> None:
    """4.2.3: corrected_age_value = age_value + response_delay."""
    origin = Origin(Answer(FRESH, "Age: 10"))

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        clock.step(5)
        await origin(scope, receive, send)

    layer = CacheMiddleware(slow, cache=cache)
    await ask(layer)
    assert (await ask(layer)).header("age") == "15"


async def test_a_guess_goes_no_further_than_a_day(cache: Cache[Any], clock: Clock) -> None:
    origin = Origin(Answer(OLD, DATE))
    layer = CacheMiddleware(origin, cache=cache, heuristic=0.1)
    await ask(layer)
    clock.step(86_399)
    await ask(layer)
    assert origin.calls == 1
    clock.step(2)
    await ask(layer)
    assert origin.calls == 2


@pytest.mark.parametrize(("lines", "calls"), [([], 2), (["Cache-Control: public"], 1)])
async def test_public_lets_a_guess_be_made_for_any_status(cache: Cache[Any], lines: list[str], calls: int) -> None:
    origin = Origin(Answer(*lines, OLD, DATE, status=201))
    layer = CacheMiddleware(origin, cache=cache, heuristic=0.1)
    for _ in range(2):
        await ask(layer)
    assert origin.calls == calls


@pytest.mark.parametrize(("private", "status"), [(True, 200), (False, 503)])
async def test_s_maxage_forbids_staleness_to_shared_caches_only(
    cache: Cache[Any], clock: Clock, private: bool, status: int
) -> None:
    line = "Cache-Control: max-age=60, s-maxage=60, stale-if-error=300"
    layer = CacheMiddleware(Origin(Answer(line), Answer(status=503)), cache=cache, private=private)
    await ask(layer)
    clock.step(70)
    assert (await ask(layer)).status == status


# -- RFC 9111 4.3: validation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", ['If-None-Match: "a"', "If-Modified-Since: Fri, 15 Jan 2027 08:00:00 GMT"])
async def test_only_a_success_is_answered_with_304(cache: Cache[Any], condition: str) -> None:
    """RFC 9110 13.2.1: a condition is for what would be a 2xx without it."""
    layer = CacheMiddleware(Origin(Answer(FRESH, 'ETag: "a"', OLD, status=404, body=b"none")), cache=cache)
    await ask(layer)
    assert (await ask(layer, condition)).status == 404


@pytest.mark.parametrize(
    ("since", "status"), [("Fri, 15 Jan 2027 08:00:00 GMT", 304), ("Fri, 15 Jan 2027 08:00:01 GMT", 304), (BEFORE, 200)]
)
async def test_date_stands_in_for_last_modified(cache: Cache[Any], since: str, status: int) -> None:
    """4.3.2."""
    layer = CacheMiddleware(Origin(Answer(FRESH, DATE, body=b"body")), cache=cache)
    await ask(layer)
    assert (await ask(layer, f"If-Modified-Since: {since}")).status == status


async def test_a_304_makes_a_response_as_young_as_itself(cache: Cache[Any], clock: Clock) -> None:
    origin = Origin(Answer(FRESH, 'ETag: "a"', DATE, body=b"body"), Answer(FRESH, status=304))
    layer = CacheMiddleware(origin, cache=cache)
    await ask(layer)
    clock.step(61)
    for _ in range(2):
        answer = await ask(layer)
    assert origin.calls == 2
    assert answer.header("age") == "0"
    assert answer.header("date") is None, "the old one would make it as old as before"


@pytest.mark.parametrize("kept", [True, False])
async def test_a_304_changes_what_it_says_and_nothing_about_the_stored_bytes(
    cache: Cache[Any], clock: Clock, kept: bool
) -> None:
    """3.2, 3.1."""
    stored = ["Content-Type: text/plain", "Content-Encoding: gzip", "X-Kept: 1", 'ETag: "a"']
    said = ["Content-Type: text/html", "Content-Encoding: br", "Content-Length: 99", "Content-Range: bytes 0-1/2"]
    said += ["Connection: X-Hop", "X-Hop: 1", "Keep-Alive: 5", "X-New: 1"]
    control = FRESH if kept else "Cache-Control: no-store"
    origin = Origin(Answer(FRESH, *stored, body=b"body"), Answer(control, *said, status=304))
    layer = CacheMiddleware(origin, cache=cache)
    await ask(layer)
    clock.step(61)
    for _ in range(1 + kept):
        answer = await ask(layer)
        names = {name.decode(): value.decode() for name, value in answer.headers}
        del names["age"], names["cache-status"], names["cache-control"]
        assert names == {
            "content-type": "text/html",
            "content-encoding": "gzip",
            "content-length": "4",
            "etag": '"a"',
            "x-kept": "1",
            "x-new": "1",
        }
    assert origin.calls == 2


@pytest.mark.parametrize("line", ["Vary: *", "Set-Cookie: a=1", "Cache-Control: private"])
async def test_a_304_may_end_what_it_validates(cache: Cache[Any], clock: Clock, line: str) -> None:
    origin = Origin(
        Answer(FRESH, 'ETag: "a"', body=b"body"), Answer(FRESH, line, status=304), Answer(FRESH, body=b"new")
    )
    layer = CacheMiddleware(origin, cache=cache)
    await ask(layer)
    clock.step(61)
    assert (await ask(layer)).body == b"body"
    assert (await ask(layer)).body == b"new"


# -- RFC 9110 14: ranges ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 404)])
async def test_a_range_is_for_get_and_for_a_stored_200(cache: Cache[Any], method: str, status: int) -> None:
    layer = CacheMiddleware(Origin(Answer(FRESH, status=status, body=b"0123456789")), cache=cache)
    await ask(layer)
    answer = await ask(layer, "Range: bytes=0-1", method=method)
    assert (answer.status, answer.header("content-length")) == (status, "10")


async def test_a_range_that_is_nowhere_is_told_without_what_describes_the_body(cache: Cache[Any]) -> None:
    lines = ["Content-Type: text/plain", "Content-Encoding: gzip", 'ETag: "a"']
    layer = CacheMiddleware(Origin(Answer(FRESH, *lines, body=b"0123456789")), cache=cache)
    await ask(layer)
    answer = await ask(layer, "Range: bytes=10-")
    names = {name for name, _ in answer.headers}
    assert answer.status == 416
    assert not names & {b"content-type", b"content-encoding"}
    assert b"content-range" in names


async def test_a_part_that_the_app_sends_is_passed_on_and_not_kept(cache: Cache[Any]) -> None:
    """3.3 allows it to be kept as incomplete; this cache does not."""
    part = Answer(FRESH, 'ETag: "a"', "Content-Range: bytes 0-1/4", status=206, body=b"bo")
    origin = Origin(part, part, Answer(FRESH, 'ETag: "a"', body=b"body"))
    layer = CacheMiddleware(origin, cache=cache)
    for calls in (1, 2):
        answer = await ask(layer, "Range: bytes=0-1")
        assert (answer.status, answer.body, origin.calls) == (206, b"bo", calls)
        assert origin.sent("range") == "bytes=0-1"
    assert (await ask(layer)).body == b"body"


# -- RFC 9213: targeted fields ----------------------------------------------------------------------------------------


async def test_a_targeted_field_rules_staleness_and_is_passed_on(cache: Cache[Any], clock: Clock) -> None:
    lines = ["Cache-Control: max-age=5, must-revalidate", "CDN-Cache-Control: max-age=60, stale-if-error=60"]
    layer = CacheMiddleware(Origin(Answer(*lines, body=b"old"), Answer(status=503)), cache=cache)
    assert (await ask(layer)).header("cdn-cache-control") == "max-age=60, stale-if-error=60"
    clock.step(70)
    assert (await ask(layer)).body == b"old"


@pytest.mark.parametrize(
    ("targeted", "calls"),
    [
        (["CDN-Cache-Control: max-age=0", "CDN-Cache-Control: max-age=60"], 1),  # one dictionary: the last one counts
        (["CDN-Cache-Control: max-age=60", "CDN-Cache-Control: no-store"], 2),
        (["CDN-Cache-Control: max-age=60, ;"], 2),
        (["CDN-Cache-Control: max-age=-1"], 2),
        (["CDN-Cache-Control: private=?0, max-age=60"], 1),
    ],
)
async def test_a_targeted_field_is_one_structured_dictionary(
    cache: Cache[Any], targeted: list[str], calls: int
) -> None:
    origin = Origin(Answer("Cache-Control: no-store", *targeted))
    layer = CacheMiddleware(origin, cache=cache)
    for _ in range(2):
        await ask(layer)
    assert origin.calls == calls
