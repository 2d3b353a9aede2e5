"""What was not for sharing a moment ago goes straight to the app, and is kept once it may be."""

import pytest

from asgi_enhance.asgi.types import Message, Receive, Scope, Send
from asgi_enhance.cache import CacheMiddleware, MemoryCache
from asgi_enhance.testing.driver import Driver, Response, http_scope, request
from tests.cache.origin import Answer, Clock, Origin, fields

FRESH = "Cache-Control: max-age=60"
NO_STORE = Answer("Cache-Control: no-store", "X: 1", status=404, body=[b"one", b"two"])


async def passing(*answers: Answer | Exception) -> tuple[CacheMiddleware, Origin]:
    """A layer whose `/` has just been answered with something for one client only; then come `answers`."""
    origin = Origin(Answer("Set-Cookie: a=1"), *answers)
    layer = CacheMiddleware(origin, cache=MemoryCache())
    await request(layer, "/")
    return layer, origin


async def test_a_response_that_must_not_be_stored_goes_through_as_it_is_and_is_counted() -> None:
    layer, origin = await passing(NO_STORE)
    for _ in range(3):
        answer = await request(layer, "/")
        assert (answer.status, answer.body, answer.header("x")) == (404, b"onetwo", "1")
        assert answer.header("cache-status") == "asgi-enhance; fwd=uri-miss; fwd-status=404; detail=no-store"
    assert origin.calls == 4
    assert (layer.stats.misses, layer.stats.refused, layer.stats.stored) == (4, 4, 0)


async def test_its_status_is_not_told_where_that_is_switched_off() -> None:
    layer = CacheMiddleware(Origin(NO_STORE), cache_status=None)
    for _ in range(3):
        assert (await request(layer, "/")).header("cache-status") is None


async def test_what_may_be_kept_now_is_kept() -> None:
    layer, origin = await passing(NO_STORE, Answer(FRESH, body=b"for all"))
    bodies = [(await request(layer, "/")).body for _ in range(3)]
    assert bodies == [b"onetwo", b"for all", b"for all"]
    assert origin.calls == 3
    assert (layer.stats.stored, layer.stats.hits, layer.stats.misses) == (1, 1, 3)


async def test_what_was_written_to_meanwhile_is_not_kept() -> None:
    layer, _ = await passing(Answer(FRESH, body=b"old"), Answer(FRESH, body=b"new"))
    real = layer.app

    async def overtaken(scope: Scope, receive: Receive, send: Send) -> None:
        layer.app = real
        await layer.cache.invalidate([(b"", "http", b"testserver", b"/", b"")])
        await real(scope, receive, send)

    layer.app = overtaken
    assert (await request(layer, "/")).body == b"old"
    assert (await request(layer, "/")).body == b"new"


@pytest.mark.parametrize("late", [False, True])
async def test_what_may_be_made_of_a_body_is_not_kept(late: bool) -> None:
    seen: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        start: Message = {"type": "http.response.start", "status": 200, "headers": fields(FRESH)}
        if len(seen) == 0:
            start["headers"] = fields("Set-Cookie: a=1")
        if late:
            await send(start)
            seen.append((await receive())["body"])
        else:
            seen.append((await receive())["body"])
            await send(start)
        await send({"type": "http.response.body", "body": seen[-1]})

    layer = CacheMiddleware(app)
    for body in (b"", b"poison", b""):
        assert (await request(layer, "/", body=body)).body == body
    assert seen == [b"", b"poison", b""]


async def test_an_app_that_could_send_a_file_by_its_path_sends_bytes() -> None:
    layer, origin = await passing(Answer(FRESH))
    scope = http_scope("/", extensions={"http.response.pathsend": {}, "tls": {}})
    await Driver(layer, scope, [{"type": "http.request", "body": b"", "more_body": False}]).run()
    assert origin.asked[-1]["extensions"] == {"tls": {}}
    assert scope["extensions"] == {"http.response.pathsend": {}, "tls": {}}


async def test_the_age_counts_from_when_the_app_was_asked(clock: Clock) -> None:
    origin = Origin(Answer("Set-Cookie: a=1"), Answer(FRESH, "Age: 10"))
    layer = CacheMiddleware(origin, cache=MemoryCache(clock=clock))
    await request(layer, "/")

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        clock.step(5)
        await origin(scope, receive, send)

    layer.app = slow
    await request(layer, "/")
    assert (await request(layer, "/")).header("age") == "15"


async def test_an_error_of_the_app_passes() -> None:
    layer, _ = await passing(ValueError("the app's own"))
    with pytest.raises(ValueError, match="the app's own"):
        await request(layer, "/")


async def test_messages_that_nobody_knows_pass() -> None:
    hint: Message = {"type": "http.response.early_hint", "links": [b"</a.css>"]}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(hint)
        await send(NO_STORE.start)
        for chunk in NO_STORE.chunks:
            await send(chunk)

    layer = CacheMiddleware(app)
    for _ in range(2):
        sent = await Driver(layer, http_scope("/"), []).run()
        assert sent[0] == hint
        assert Response(sent[1:]).body == b"onetwo"
