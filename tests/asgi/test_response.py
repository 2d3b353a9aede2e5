import asyncio
import gc

import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from asgi_enhance.asgi.response import response_of
from asgi_enhance.asgi.types import ASGIApp, Receive, Scope, Send
from asgi_enhance.errors import EnhanceError
from asgi_enhance.testing.driver import Driver, http_scope, request


def handler_for(app: ASGIApp) -> ASGIApp:
    """A framework's app whose only handler answers with what `app` says."""

    async def handle(request: Request) -> Response:
        response = await response_of(app, request)
        response.headers["x-status-seen"] = str(response.status_code)
        return response

    return Starlette(routes=[Route("/{path:path}", handle, methods=["GET", "POST"])])


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    await send(
        {"type": "http.response.start", "status": 201, "headers": [(b"set-cookie", b"a"), (b"set-cookie", b"b")]}
    )
    more = True
    while more:
        message = await receive()
        more = message.get("more_body", False)
        await send({"type": "http.response.body", "body": message["body"], "more_body": more})


async def test_status_and_headers_can_be_read_and_changed_before_the_body_is_made() -> None:
    response = await request(handler_for(echo), "/x", method="POST", body=b"hello")
    assert (response.status, response.body) == (201, b"hello")
    assert [value for name, value in response.headers if name == b"set-cookie"] == [b"a", b"b"]
    assert response.header("x-status-seen") == "201"


async def test_the_body_streams_both_ways() -> None:
    async with Driver(handler_for(echo), http_scope("/x", method="POST")) as server:
        assert (await server.next())["status"] == 201
        for part in (b"one", b"two"):
            server.feed({"type": "http.request", "body": part, "more_body": True})
            assert (await server.next())["body"] == part
        server.feed({"type": "http.request", "body": b""})
        await server.next()
        await server.ended()


async def test_a_body_that_the_handler_has_read_is_put_back() -> None:
    async def handle(request: Request) -> Response:
        assert await request.body() == b"read before"
        return await response_of(echo, request)

    app = Starlette(routes=[Route("/", handle, methods=["POST"])])
    assert (await request(app, method="POST", body=b"read before")).body == b"read before"


async def test_a_body_that_is_gone_is_an_error_and_no_waiting() -> None:
    async def handle(request: Request) -> Response:
        async for _ in request.stream():
            pass
        return await response_of(echo, request)

    app = Starlette(routes=[Route("/", handle, methods=["POST"])])
    with pytest.raises(EnhanceError, match="read as a stream"):
        await request(app, method="POST", body=b"gone")


async def test_an_error_before_the_start_is_raised_to_the_handler() -> None:
    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("bug")

    with pytest.raises(ValueError, match="bug"):
        await response_of(fails, Request(http_scope()))


async def test_an_app_that_ends_cancelled_before_the_start_does_not_leave_the_handler_waiting() -> None:
    async def waits_for_something_cancelled(scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.get_running_loop().create_future()
        work.cancel()
        await work

    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(response_of(waits_for_something_cancelled, Request(http_scope())), 5)


async def test_an_app_without_an_answer_is_an_error() -> None:
    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        return

    with pytest.raises(RuntimeError, match="without a response"):
        await response_of(silent, Request(http_scope()))


async def test_an_app_without_an_answer_to_a_client_that_has_left_is_no_error() -> None:
    async def waits_for_the_end(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async with Driver(handler_for(waits_for_the_end), http_scope("/")) as server:
        server.feed({"type": "http.disconnect"})
        assert (await server.next())["status"] == 499
        await server.ended()


async def test_an_error_after_the_start_is_raised_by_the_response() -> None:
    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        raise ValueError("half way")

    response = await response_of(fails, Request(http_scope()))
    with pytest.raises(ValueError, match="half way"):
        await Driver(response, http_scope()).run()


async def test_early_hints_go_out_before_the_start() -> None:
    async def hints(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.early_hint", "links": []})
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body"})

    response = await response_of(hints, Request(http_scope()))
    sent = await Driver(response, http_scope()).run()
    assert [message["type"].rsplit(".", 1)[-1] for message in sent] == ["early_hint", "start", "body"]


async def test_a_background_task_runs_after_the_body() -> None:
    ran: list[bool] = []
    response = await response_of(
        echo, Request(http_scope(), Driver(echo, {}, [{"type": "http.request", "body": b""}]).receive)
    )
    response.background = BackgroundTask(ran.append, True)
    await Driver(response, http_scope()).run()
    assert ran == [True]


async def endless(scope: Scope, receive: Receive, send: Send) -> None:
    try:
        await send({"type": "http.response.start", "status": 200})
        await asyncio.Event().wait()
    finally:
        scope["ended"].set()


async def test_a_response_that_is_never_sent_ends_its_app() -> None:
    ended = asyncio.Event()
    response = await response_of(endless, Request(http_scope(ended=ended)))
    del response
    gc.collect()
    await asyncio.wait_for(ended.wait(), 5)


async def test_cancelling_the_response_or_the_handler_ends_the_app() -> None:
    ended = asyncio.Event()
    response = await response_of(endless, Request(http_scope(ended=ended)))
    sending = asyncio.create_task(Driver(response, http_scope()).run())
    await asyncio.sleep(0)
    sending.cancel()
    await asyncio.wait([sending])
    assert ended.is_set()

    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.clear()

    handling = asyncio.create_task(response_of(waits, Request(http_scope())))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    handling.cancel()
    await asyncio.wait([handling])
    assert not ended.is_set()
