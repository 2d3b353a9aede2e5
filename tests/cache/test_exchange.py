"""Who asks the app, for whom, and what is left when it goes wrong: what only shows in how often it was asked."""

import asyncio
from typing import Any

import pytest

from asgi_enhance.asgi.types import Message, Receive, Scope, Send
from asgi_enhance.cache import Cache, CacheMiddleware, CacheRule, MemoryCache
from asgi_enhance.testing.driver import Driver, http_scope, request
from tests.cache.origin import Answer, Clock, Origin, fields, until

FRESH = "Cache-Control: max-age=60"


async def calls_of_ten_at_once(layer: CacheMiddleware, origin: Origin) -> int:
    """How many of ten requests reach the app before it answers the first."""
    origin.gate, before = asyncio.Event(), origin.calls
    tasks = [asyncio.create_task(request(layer, "/")) for _ in range(10)]
    await until(lambda: origin.calls > before)
    for _ in range(30):
        await asyncio.sleep(0)
    reached = origin.calls - before
    origin.gate.set()
    await asyncio.gather(*tasks)
    return reached


@pytest.mark.parametrize("line", ['If-None-Match: "a"', "Range: bytes=0-1", "Cache-Control: no-store"])
async def test_what_one_client_has_wanted_for_itself_sends_nobody_else_alone(line: str) -> None:
    status = {"If": 304, "Ra": 206, "Ca": 200}[line[:2]]
    origin = Origin(Answer(FRESH, status=status), Answer(FRESH))
    layer = CacheMiddleware(origin)
    await request(layer, "/", headers=fields(line))
    assert await calls_of_ten_at_once(layer, origin) == 1


@pytest.mark.parametrize("lines", [["Cache-Control: no-cache", 'ETag: "a"'], ["Cache-Control: max-age=0", 'ETag: "a"']])
async def test_what_is_stale_when_it_comes_is_not_waited_for_again(lines: list[str]) -> None:
    origin = Origin(Answer(*lines))
    layer = CacheMiddleware(origin)
    for _ in range(3):  # the first makes the place, by which the second is remembered, and the third is alone
        await request(layer, "/")
    assert await calls_of_ten_at_once(layer, origin) == 10


async def test_one_failure_is_excused_for_all_who_have_waited(clock: Clock) -> None:
    origin = Origin(Answer("Cache-Control: max-age=60, stale-if-error=60", body=b"old"), RuntimeError("down"))
    layer = CacheMiddleware(origin, cache=MemoryCache(clock=clock))
    await request(layer, "/")
    clock.step(70)
    assert await calls_of_ten_at_once(layer, origin) == 1
    assert origin.calls == 2


async def test_a_response_that_has_begun_is_not_begun_again(cache: Cache[Any], clock: Clock) -> None:
    origin = Origin(Answer("Cache-Control: max-age=60, stale-if-error=60", body=b"old"))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await origin(scope, receive, send if origin.calls == 0 else _breaks_off(send))

    layer = CacheMiddleware(app, cache=cache)
    await request(layer, "/")
    clock.step(70)
    client = Driver(layer, http_scope("/"), [{"type": "http.request"}])
    with pytest.raises(RuntimeError, match="cut"):
        await client.run()
    assert [message["type"] for message in client.sent] == ["http.response.start"]


def _breaks_off(send: Send) -> Send:
    async def breaking(message: Message) -> None:
        if message["type"] == "http.response.body":
            raise RuntimeError("cut")
        await send(message)

    return breaking


async def test_a_copy_of_which_a_part_was_not_seen_is_given_up(cache: Cache[Any]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": fields(FRESH)})
        await send({"type": "http.response.zerocopysend", "file": 3, "more_body": True})
        await send({"type": "http.response.body", "body": b"the end"})

    layer = CacheMiddleware(app, cache=cache)
    for _ in range(2):
        messages: list[Message] = []

        async def send(message: Message, messages: list[Message] = messages) -> None:
            messages.append(message)

        await layer(http_scope("/"), _one_request, send)
        assert len(messages) == 3
    assert layer.stats.stored == 0


async def _one_request() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def test_a_validation_that_forbids_it_leaves_nothing_to_validate(cache: Cache[Any], clock: Clock) -> None:
    origin = Origin(Answer(FRESH, 'ETag: "a"'), Answer("Cache-Control: no-store", status=304), Answer(FRESH))
    layer = CacheMiddleware(origin, cache=cache)
    for _ in range(3):
        await request(layer, "/")
        clock.step(61)
    assert origin.sent("if-none-match", 1) == '"a"'
    assert origin.sent("if-none-match", 2) is None


async def test_only_a_200_to_head_says_something_of_what_is_stored(cache: Cache[Any], clock: Clock) -> None:
    """RFC 9111 4.3.5."""
    origin = Origin(Answer(FRESH, 'ETag: "a"'), Answer(FRESH, 'ETag: "b"', status=404), Answer(FRESH, status=304))
    layer = CacheMiddleware(origin, cache=cache)
    await request(layer, "/")
    clock.step(61)
    await request(layer, "/", method="HEAD")
    await request(layer, "/")
    assert origin.sent("if-none-match") == '"a"'


@pytest.mark.parametrize("also", [{}, {"stale_while_revalidate": 30}, {"stale_if_error": 30}])
@pytest.mark.parametrize("line", ["X: y", 'ETag: "a"'])
async def test_a_rule_does_not_make_anybody_wait_for_events(cache: Cache[Any], also: Any, line: str) -> None:
    async def events(scope: Scope, receive: Receive, send: Send) -> None:
        headers = fields(["Content-Type: text/event-stream; charset=utf-8", line])
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"data: x\n\n", "more_body": True})
        await asyncio.Event().wait()

    layer = CacheMiddleware(events, cache=cache, rules=[CacheRule("*", ttl=60, **also)])
    one, two = (Driver(layer, http_scope("/"), [{"type": "http.request"}]) for _ in range(2))
    async with one, two, asyncio.timeout(2):
        assert (await one.next())["type"] == "http.response.start"
        assert (await two.next())["type"] == "http.response.start"


# -- stale and renewed ------------------------------------------------------------------------------------------------


async def test_what_was_softly_purged_is_told_as_stale(cache: Cache[Any]) -> None:
    origin = Origin(Answer(FRESH, 'ETag: "a"'), Answer(FRESH, status=304))
    layer = CacheMiddleware(origin, cache=cache)
    await request(layer, "/")
    await cache.purge(everything=True, soft=True)
    assert (await request(layer, "/")).header("cache-status") == "asgi-enhance; fwd=stale; fwd-status=304; stored"


async def test_what_was_softly_purged_stays_stale_until_it_is_renewed(cache: Cache[Any]) -> None:
    origin = Origin(Answer("Cache-Control: max-age=60, stale-while-revalidate=60"))
    layer = CacheMiddleware(origin, cache=cache)
    await request(layer, "/")
    await cache.purge(everything=True, soft=True)
    origin.gate = asyncio.Event()
    for _ in range(3):
        await request(layer, "/")
    assert layer.stats.stale_hits == 3
    origin.gate.set()


async def test_a_renewal_has_state_of_its_own_and_ends_in_time(clock: Clock) -> None:
    states: list[Any] = []
    ended = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        states.append(scope["state"])
        if len(states) == 2:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
        await Origin(Answer("Cache-Control: max-age=60, stale-while-revalidate=60"))(scope, receive, send)

    cache = MemoryCache(clock=clock)
    async with cache:
        layer = CacheMiddleware(app, cache=cache, refresh_timeout=0.01)
        await request(layer, "/")
        clock.step(70)
        state: dict[str, Any] = {"user": "alice"}
        await request(layer, "/", state=state)
        async with asyncio.timeout(5):
            await ended.wait()
    assert states[1] == state
    assert states[1] is not state


# -- variants ---------------------------------------------------------------------------------------------------------


async def test_of_two_variants_that_fit_the_one_with_the_later_date_is_used(cache: Cache[Any]) -> None:
    """RFC 9111 4.1: whichever of them was stored last."""
    origin = Origin(
        Answer(FRESH, "Vary: X-A", "Date: Fri, 15 Jan 2027 08:00:00 GMT", body=b"later"),
        Answer(FRESH, "Vary: X-B", "Date: Fri, 15 Jan 2027 07:59:50 GMT", body=b"earlier"),
    )
    layer = CacheMiddleware(origin, cache=cache)
    await request(layer, "/", headers=fields(["X-A: 1", "X-B: 2"]))
    await request(layer, "/", headers=fields(["X-A: 2", "X-B: 1"]))
    assert (await request(layer, "/", headers=fields(["X-A: 1", "X-B: 1"]))).body == b"later"
    assert origin.calls == 2


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("gzip, br", "br , GZIP;q=1.0, unheard-of", True),
        ("gzip;q=0.50", "gzip; q=0.5", True),
        ("gzip", "gzip;q=0", False),
        ("gzip", "gzip, br", False),
        ("gzip;q=0.5, br", "gzip, br;q=0.5", False),
        ("identity;q=0, gzip", "gzip", False),
    ],
)
async def test_accept_encoding_is_told_apart_by_what_the_app_may_choose(
    cache: Cache[Any], one: str, other: str, same: bool
) -> None:
    origin = Origin(Answer(FRESH, "Vary: Accept-Encoding"))
    layer = CacheMiddleware(origin, cache=cache)
    for value in (one, other):
        await request(layer, "/", headers=fields(f"Accept-Encoding: {value}"))
    assert origin.calls == 2 - same
