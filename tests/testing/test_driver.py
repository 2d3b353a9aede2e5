import asyncio

import pytest

from asgi_enhance.asgi.types import Message, Receive, Scope, Send
from asgi_enhance.testing.driver import Driver, Lifetime, WebSocket, http_scope, request, websocket_scope

START: Message = {"type": "http.response.start", "status": 200, "headers": [(b"X-A", b"1")]}


FIVE: Message = {"type": "http.response.start", "status": 200, "headers": [(b"Content-Length", b"5")]}
ACCEPT: Message = {"type": "websocket.accept"}
CLOSE: Message = {"type": "websocket.close"}


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    await send(START)
    more = True
    while more:
        message = await receive()
        more = message.get("more_body", False)
        await send({"type": "http.response.body", "body": message["body"], "more_body": more})


async def test_a_whole_exchange_is_one_line() -> None:
    response = await request(echo, "/x?y=z", method="POST", body=[b"a", b"b"])
    assert (response.status, response.header("x-a"), response.body) == (200, "1", b"ab")


async def test_a_scope_tells_path_raw_path_and_query_apart() -> None:
    scope = http_scope("/a%2Fb?c=%20", headers=[(b"x", b"1")])
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == ("/a/b", b"/a%2Fb", b"c=%20")
    assert (b"x", b"1") in scope["headers"]


async def test_a_conversation_goes_step_by_step() -> None:
    async with Driver(echo, http_scope(method="POST")) as server:
        assert (await server.next())["type"] == "http.response.start"
        server.feed({"type": "http.request", "body": b"one", "more_body": True})
        assert (await server.next())["body"] == b"one"
        server.feed({"type": "http.request", "body": b"two"})
        assert (await server.next())["body"] == b"two"
        await server.ended()
    assert server.times == sorted(server.times)


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([START, START], "second"),
        ([{"type": "http.response.body"}], "before"),
        ([START, {"type": "http.response.body"}, {"type": "http.response.body"}], "after"),
        ([{"type": "http.response.early_hint", "links": []}], "not offered"),
        ([FIVE, {"type": "http.response.body", "body": b"sixsix"}], "longer than its Content-Length"),
    ],
)
async def test_it_refuses_what_servers_refuse(messages: list[Message], why: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    with pytest.raises(RuntimeError, match=why):
        await Driver(app, http_scope(extensions={})).run()


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([{"type": "websocket.send", "text": "x"}], "before"),
        ([ACCEPT, ACCEPT], "second"),
        ([ACCEPT, CLOSE, {"type": "websocket.send", "text": "x"}], "after"),
        ([CLOSE, CLOSE], "after"),
    ],
)
async def test_it_refuses_what_servers_refuse_of_a_websocket(messages: list[Message], why: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    with pytest.raises(RuntimeError, match=why):
        await Driver(app, websocket_scope()).run()


async def test_a_full_socket_blocks_send_until_somebody_reads() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        for number in range(9):
            await send({"type": "http.response.body", "body": b"x", "more_body": number < 8})

    async with Driver(app, http_scope(), capacity=3) as server:
        await server.next()
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(server.sent) == 4
        for _ in range(9):
            await server.next()
        await server.ended()


async def test_it_notices_two_readers_and_reads_after_the_disconnect() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        readers = [asyncio.ensure_future(receive()) for _ in range(2)]
        await asyncio.sleep(0)
        for reader in readers:
            reader.cancel()
        await asyncio.wait(readers)
        await send(START)
        assert (await receive())["type"] == "http.disconnect"
        await send({"type": "http.response.body", "more_body": True})
        await receive()

    async with Driver(app, http_scope()) as server:
        await server.next()
        server.feed({"type": "http.disconnect"})
        await server.next()
        await asyncio.sleep(0)
    assert server.overlapping_reads == 1
    assert server.reads_after_disconnect == 1


async def test_an_app_that_ends_early_is_not_waited_for() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()

    async with Driver(app, http_scope(), [{"type": "http.request"}]) as server:
        with pytest.raises(AssertionError, match="ended"):
            await server.next()


async def test_an_app_that_fails_fails_the_test() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("bug")

    with pytest.raises(ValueError, match="bug"):
        async with Driver(app, http_scope()) as server:
            await server.next()


async def test_a_websocket_talks_json() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})

    async with WebSocket(app, websocket_scope()) as socket:
        await socket.accepted()
        socket.send_json({"a": 1})
        assert await socket.receive_json() == {"a": 1}
        socket.leave()
        await socket.ended()


async def test_a_lifetime_that_cannot_begin_says_so() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    with pytest.raises(AssertionError, match="no database"):
        async with Lifetime(app):
            pass
