"""Behaviours 83–92: WebSockets, between real peers of the `websockets` package and, for the rare things, by hand."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from httpx2 import ASGITransport
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as ws_connect
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as ws_serve
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus
from websockets.http11 import Request, Response

from asgi_enhance.asgi.problem import Problem
from asgi_enhance.asgi.types import Message, Receive, Scope, Send
from asgi_enhance.balance import Backend, Limits, LoadBalanceApp, Retries, Timeouts
from asgi_enhance.testing.driver import Driver, websocket_scope
from asgi_enhance.testing.live import free_port
from tests.balance.wire import OK, ScriptedBackend, Wire, ask, connect, front, get, serve, until

Handler = Callable[[ServerConnection], Awaitable[None]]


Protocols = dict[str, Any]


@pytest.fixture(params=[("httptools", "websockets-sansio"), ("h11", "wsproto")], ids="-".join)
def ws(request: pytest.FixtureRequest) -> Protocols:
    """The protocols of the server in front: every HTTP parser with a WebSocket implementation."""
    http, ws = request.param
    return {"http": http, "ws": ws}


class Both:
    """A balancer before one WebSocket backend, and a way to connect to it."""

    def __init__(self, app: LoadBalanceApp, port: int) -> None:
        self.app = app
        self.port = port
        self.handshakes: list[Request] = []

    def connect(self, path: str = "/", **options: Any) -> ws_connect:
        return ws_connect(f"ws://127.0.0.1:{self.port}{path}", **options)


@asynccontextmanager
async def between(
    handler: Handler, ws: Protocols, *, backend: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[Both]:
    seen: list[Request] = []

    def note(connection: ServerConnection, request: Request) -> Response | None:
        seen.append(request)
        return None

    settings = {"process_request": note, **(backend or {})}
    async with ws_serve(handler, "127.0.0.1", 0, **settings) as server:
        app = LoadBalanceApp([f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"], **options)
        async with serve(app, **ws) as port:
            both = Both(app, port)
            both.handshakes = seen
            yield both
        await app.balancer.close()


async def echo(socket: ServerConnection) -> None:
    async for message in socket:
        await socket.send(message)


async def wait(socket: ServerConnection) -> None:
    await socket.wait_closed()


async def test_83_text_binary_empty_large_and_fragmented_messages_cross(ws: Protocols) -> None:
    async with between(echo, ws) as both, both.connect(max_size=None) as client:
        for message in ("text", "käse", b"bin\x00ary", "", b"", "x" * 1048576, bytes(1048576)):
            await client.send(message)
            assert await client.recv() == message
        await client.send(["in ", "three ", "pieces"])
        assert await client.recv() == "in three pieces"


@pytest.mark.parametrize(("offered", "chosen"), [(["b", "a"], "a"), ([], None)])
async def test_84_the_backends_subprotocol_is_accepted(ws: Protocols, offered: list[str], chosen: str | None) -> None:
    backend = {"subprotocols": ["a"] if offered else None}
    async with between(wait, ws, backend=backend) as both, both.connect(subprotocols=offered or None) as client:
        assert client.subprotocol == chosen


@pytest.mark.parametrize("more", [{"query_string": b"\xff"}, {"headers": [(b"x", b"a\r\nb: c")]}])
async def test_a_handshake_that_cannot_be_sent_is_the_clients_fault(more: dict[str, Any]) -> None:
    async with ScriptedBackend() as backend:
        app = LoadBalanceApp([backend.url])
        connected: list[Message] = [{"type": "websocket.connect"}]
        async with Driver(app, websocket_scope("/", **more), connected) as server:
            assert (await server.next())["status"] == 400
        assert (backend.requests, app.balancer.stats.backend_failures) == ([], 0)
        await app.balancer.close()


async def test_84_a_subprotocol_nobody_offered_is_a_502() -> None:
    async def answer(wire: Wire) -> None:
        head = await wire.head()
        await wire.send(_accept(head.one(b"sec-websocket-key") or b"", b"sec-websocket-protocol: other\r\n"))
        await wire.rest()

    assert (await _denial(answer))[0] == 502


async def test_86_an_interim_response_is_no_refusal() -> None:
    async def answer(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n")

    assert (await _denial(answer))[0] == 502


async def test_85_fields_of_the_backends_handshake_reach_the_client(ws: Protocols) -> None:
    def add(connection: ServerConnection, request: Request, response: Response) -> None:
        response.headers["Set-Cookie"] = "a=1"
        response.headers["Set-Cookie"] = "b=2"

    async with between(wait, ws, backend={"process_response": add}) as both, both.connect() as client:
        assert client.response is not None
        assert client.response.headers.get_all("Set-Cookie") == ["a=1", "b=2"]


async def test_85_the_backend_sees_the_clients_handshake_and_nothing_invented(ws: Protocols) -> None:
    async with between(wait, ws) as both:
        headers = [("Cookie", "c=1"), ("X-Two", "1"), ("X-Two", "2")]
        async with both.connect("/a%2Fb?c=%zz", additional_headers=headers, user_agent_header=None, origin="http://o"):
            request = both.handshakes[0]
        assert request.path == "/a%2Fb?c=%zz"
        assert request.headers["Host"] == f"127.0.0.1:{both.port}"
        assert request.headers["Cookie"] == "c=1"
        assert request.headers["Origin"] == "http://o"
        assert request.headers.get_all("X-Two") == ["1", "2"]
        assert "User-Agent" not in request.headers
        assert len(request.headers.get_all("Sec-WebSocket-Key")) == 1


@pytest.mark.parametrize("status", [401, 403, 503])
async def test_86_a_refusal_is_handed_on_with_its_status_and_body(ws: Protocols, status: int) -> None:
    def refuse(connection: ServerConnection, request: Request) -> Response:
        return connection.respond(status, "not you")

    async with between(wait, ws, backend={"process_request": refuse}) as both:
        with pytest.raises(InvalidStatus) as refusal:
            await both.connect()
        assert refusal.value.response.status_code == status
        assert refusal.value.response.body == b"not you"
        assert both.app.balancer.in_flight == 0


async def test_21_what_is_said_of_trailers_is_no_part_of_a_handshake(ws: Protocols) -> None:
    async with between(wait, ws) as both, both.connect(additional_headers=[("TE", "trailers")]):
        (handshake,) = both.handshakes
        assert "TE" not in handshake.headers
        assert handshake.headers.get_all("Connection") == ["Upgrade"]


async def test_86_without_the_denial_extension_a_refusal_is_a_close() -> None:
    async def answer(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 401 No\r\ncontent-length: 2\r\n\r\nno")

    assert await _denial(answer, extensions={}) == ("websocket.close", b"")


async def test_87_the_client_is_accepted_only_after_the_backend_has_accepted(ws: Protocols) -> None:
    go = asyncio.Event()

    async def answer(wire: Wire) -> None:
        head = await wire.head()
        await go.wait()
        await wire.send(_accept(head.one(b"sec-websocket-key") or b""))
        await wire.rest()

    async with ScriptedBackend(answer) as backend:
        app = LoadBalanceApp([backend.url])
        async with serve(app, **ws) as port, connect(port) as client:
            key = (b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", b"Sec-WebSocket-Version: 13")
            await client.send(get(b"/", b"Connection: Upgrade", b"Upgrade: websocket", *key))
            await until(lambda: backend.wires != [])
            first = asyncio.ensure_future(client.head())
            await asyncio.sleep(0.05)
            assert not first.done()
            go.set()
            assert (await first).status == 101
        await app.balancer.close()


async def test_88_the_backends_close_code_and_reason_reach_the_client(ws: Protocols) -> None:
    async def bye(socket: ServerConnection) -> None:
        await socket.close(4001, "bye")

    async with between(bye, ws) as both, both.connect() as client:
        with pytest.raises(ConnectionClosedError) as closed:
            await client.recv()
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "bye")


async def test_88_the_clients_close_code_and_reason_reach_the_backend(ws: Protocols) -> None:
    ended: list[tuple[int | None, str | None]] = []

    async def note(socket: ServerConnection) -> None:
        await socket.wait_closed()
        ended.append((socket.close_code, socket.close_reason))

    async with between(note, ws) as both:
        async with both.connect() as client:
            await client.close(4002, "cli")
        await until(lambda: ended != [])
        assert ended == [(4002, "cli")]
        await until(lambda: both.app.balancer.in_flight == 0)


async def test_88_a_backend_that_is_lost_closes_the_client_with_1011(ws: Protocols) -> None:
    async def drop(socket: ServerConnection) -> None:
        socket.transport.abort()

    async with between(drop, ws) as both, both.connect() as client:
        with pytest.raises(ConnectionClosed) as closed:
            await client.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1011


async def test_88_a_client_that_is_lost_closes_the_backend_within_a_second(ws: Protocols) -> None:
    ended: list[int | None] = []

    async def note(socket: ServerConnection) -> None:
        await socket.wait_closed()
        ended.append(socket.close_code)

    async with between(note, ws) as both:
        client: ClientConnection = await both.connect()
        client.transport.abort()
        await until(lambda: ended != [] and both.app.balancer.in_flight == 0, within=1)
        assert ended[0] in (1000, 1001)  # some servers do not tell a lost client from one that closed without a code


@pytest.mark.parametrize(("code", "gone"), [(1006, 1), (1005, 0), (1000, 0), (1001, 0)])
async def test_79_a_websocket_client_that_is_lost_has_gone_and_one_that_closes_has_not(code: int, gone: int) -> None:
    async with ws_serve(wait, "127.0.0.1", 0) as server:
        app = LoadBalanceApp([f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"])
        async with Driver(app, websocket_scope()) as driver:
            driver.feed({"type": "websocket.connect"})
            assert (await driver.next())["type"] == "websocket.accept"
            driver.feed({"type": "websocket.disconnect", "code": code})
            await until(lambda: app.balancer.in_flight == 0, within=1)
        assert app.balancer.stats.clients_gone == gone
        await app.balancer.close()


async def test_89_a_websocket_that_stands_still_too_long_is_closed_on_both_sides(ws: Protocols) -> None:
    async with between(wait, ws, timeouts=Timeouts(websocket_idle=0.15)) as both, both.connect() as client:
        with pytest.raises(ConnectionClosed) as closed:
            await client.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001
        await until(lambda: both.app.balancer.in_flight == 0)
        assert both.app.balancer.stats.backend_failures == 0  # or clients that say nothing could take a backend out


async def test_90_a_reader_that_is_slow_stalls_the_other_side(ws: Protocols) -> None:
    sent = 0
    noise = os.urandom(65536)  # what cannot be compressed

    async def flood(socket: ServerConnection) -> None:
        nonlocal sent
        while True:
            await socket.send(noise)
            sent += 1

    async with between(flood, ws) as both, both.connect(max_queue=1) as client:
        before = -1
        while sent != before:
            before = sent
            await asyncio.sleep(0.1)
        assert 0 < sent < 1000  # of an endless stream
        client.transport.abort()
        await until(lambda: both.app.balancer.in_flight == 0)


async def test_90_a_message_that_is_too_large_closes_both_sides_with_1009(ws: Protocols) -> None:
    async def large(socket: ServerConnection) -> None:
        await socket.send(bytes(2000))
        await socket.wait_closed()

    limits = Limits(max_message=1000)
    async with between(large, ws, limits=limits) as both, both.connect() as client:
        with pytest.raises(ConnectionClosed) as closed:
            await client.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009


async def test_90_a_message_of_the_client_that_is_too_large_closes_both_sides(ws: Protocols) -> None:
    async with between(wait, ws, limits=Limits(max_message=1000)) as both, both.connect() as client:
        await client.send(bytes(2000))
        with pytest.raises(ConnectionClosed) as closed:
            await client.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009


async def test_91_an_upgrade_to_anything_else_is_not_forwarded(http: str) -> None:
    async with front(http=http) as (backend, port):
        lines = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAAA")
        assert (await ask(port, get(b"/", *lines))).status == 200
        assert backend.last.names().isdisjoint({b"upgrade", b"connection", b"http2-settings"})


async def test_91_a_switch_of_protocols_nobody_asked_for_is_a_502(http: str) -> None:
    switch = b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"
    async with front(switch + OK, http) as (_, port):
        assert (await ask(port, get(method=b"POST"))).status == 502


async def test_92_an_open_websocket_counts_and_drain_closes_it_with_1001(ws: Protocols) -> None:
    async with between(wait, ws) as both, both.connect() as client:
        core = both.app.balancer
        assert core.endpoints[0].in_flight == 1
        assert await core.drain(core.endpoints[0].name, timeout=0.1)
        with pytest.raises(ConnectionClosed) as closed:
            await client.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001


async def test_92_a_balancer_that_is_closed_closes_its_websockets_with_1001(ws: Protocols) -> None:
    async with between(wait, ws) as both, both.connect() as client:
        await both.app.balancer.close()
        with pytest.raises(ConnectionClosed) as closed:
            await client.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001
        assert both.app.balancer.in_flight == 0


async def test_a_backend_that_refuses_the_connection_is_replaced_by_another(ws: Protocols) -> None:
    async with ws_serve(echo, "127.0.0.1", 0) as server:
        alive = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        app = LoadBalanceApp([f"http://127.0.0.1:{free_port()}", alive], algorithm="round-robin")
        async with serve(app, **ws) as port:
            for _ in range(2):
                async with ws_connect(f"ws://127.0.0.1:{port}/") as client:
                    await client.send("there?")
                    assert await client.recv() == "there?"
        await app.balancer.close()


async def test_a_websocket_takes_no_backend_out_that_only_a_transport_reaches() -> None:
    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await Problem(404)(scope, receive, send)

    backend = Backend(f"http://127.0.0.1:{free_port()}", transport=ASGITransport(inner))
    app = LoadBalanceApp([backend], retries=Retries(attempts=1))
    for _ in range(6):
        async with Driver(app, websocket_scope("/"), [{"type": "websocket.connect"}]) as server:
            assert (await server.next())["status"] == 502
    assert app.balancer.report()[backend.name]["state"] == "up"
    assert app.balancer.stats.backend_failures == 0
    await app.balancer.close()


async def test_a_client_that_leaves_during_the_handshake_lets_the_backend_go() -> None:
    async def never(wire: Wire) -> None:
        await wire.head()
        await wire.rest()

    async with ScriptedBackend(never) as backend:
        app = LoadBalanceApp([backend.url])
        async with Driver(app, websocket_scope()) as driver:
            driver.feed({"type": "websocket.connect"})
            await until(lambda: backend.wires != [])
            driver.feed({"type": "websocket.disconnect", "code": 1006})
            await until(lambda: app.balancer.in_flight == 0, within=1)
            await until(lambda: backend.wires[0].reader.at_eof(), within=1)
        assert app.balancer.stats.clients_gone == 1
        await app.balancer.close()


async def _denial(answer: Callable[[Wire], Awaitable[None]], **scope: Any) -> tuple[Any, bytes]:
    """Status (or message type) and body of what a client is told instead of an accept."""
    messages: list[Message] = []
    async with ScriptedBackend(answer) as backend:
        app = LoadBalanceApp([backend.url])
        async with Driver(app, websocket_scope(**scope)) as driver:
            driver.feed({"type": "websocket.connect"})
            messages.append(await driver.next())
            if messages[0]["type"] == "websocket.http.response.start":
                messages.append(await driver.next())
        await app.balancer.close()
    return messages[0].get("status", messages[0]["type"]), messages[-1].get("body", b"")


def _accept(key: bytes, extra: bytes = b"") -> bytes:
    from websockets.utils import accept_key

    token = accept_key(key.decode()).encode()
    head = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    return head + b"sec-websocket-accept: " + token + b"\r\n" + extra + b"\r\n"


@pytest.mark.parametrize("code", [None, 0, 999, 1004, 1016, 5000])
async def test_88_a_client_that_leaves_with_a_code_that_is_none_lets_the_backend_go(code: int | None) -> None:
    ended: list[int | None] = []

    async def note(socket: ServerConnection) -> None:
        await socket.wait_closed()
        ended.append(socket.close_code)

    async with ws_serve(note, "127.0.0.1", 0) as server:
        app = LoadBalanceApp([f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"])
        async with Driver(app, websocket_scope()) as driver:
            driver.feed({"type": "websocket.connect"})
            assert (await driver.next())["type"] == "websocket.accept"
            driver.feed({"type": "websocket.disconnect", "code": code})
            await until(lambda: ended != [] and app.balancer.in_flight == 0, within=1)
        assert ended[0] == 1001
        await app.balancer.close()


async def test_92_a_drain_called_off_closes_no_websocket(ws: Protocols) -> None:
    async with between(echo, ws) as both, both.connect() as client:
        balancer = both.app.balancer
        name = balancer.endpoints[0].name
        drained = asyncio.ensure_future(balancer.drain(name, timeout=0.2))
        await asyncio.sleep(0.02)
        balancer.add_backend(name)
        assert not await drained
        await client.send("still here")
        assert await client.recv() == "still here"
