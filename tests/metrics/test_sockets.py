"""WebSockets: counted while they are open, and by how they ended."""

import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket as StarletteSocket
from starlette.websockets import WebSocketDisconnect

from asgi_enhance.asgi.types import Message, Receive, Scope, Send
from asgi_enhance.metrics import MetricsMiddleware
from asgi_enhance.metrics.series import SocketSeries
from asgi_enhance.testing.driver import WebSocket, request, websocket_scope


async def echo(socket: StarletteSocket) -> None:
    await socket.accept()
    async for text in socket.iter_text():
        await socket.send_text(text * 2)


async def leaves(socket: StarletteSocket) -> None:
    await socket.accept()
    await socket.close(4001)


async def breaks(socket: StarletteSocket) -> None:
    await socket.accept()
    raise LookupError


def layer() -> MetricsMiddleware:
    routes = [
        WebSocketRoute("/echo/{room}", echo),
        WebSocketRoute("/leaves", leaves),
        WebSocketRoute("/breaks", breaks),
    ]
    return MetricsMiddleware(Starlette(routes=routes))


def only(app: MetricsMiddleware) -> SocketSeries:
    (series,) = app.collector.table.sockets.values()
    return series


async def test_an_open_connection_is_seen_with_its_messages() -> None:
    app = layer()
    async with WebSocket(app, websocket_scope("/echo/kitchen")) as socket:
        await socket.accepted()
        socket.send_text("häh")
        assert await socket.receive_text() == "hähhäh"
        series = only(app)
        assert (series.route, series.active, series.accepted) == ("/echo/{room}", 1, 1)
        assert (series.messages_received, series.messages_sent) == (1, 1)
        assert (series.bytes_received, series.bytes_sent) == (4, 8)
        socket.leave(1001)
        await socket.ended()
    assert (only(app).active, only(app).closed, only(app).durations.count) == (0, {"1001": 1}, 1)


class Gone(OSError):
    """What servers raise for a client that has left."""


async def test_a_client_that_leaves_is_no_exception_of_the_app() -> None:
    async def reads_on(socket: StarletteSocket) -> None:
        await socket.accept()
        while True:
            await socket.receive_text()

    async def gone(message: Message) -> None:
        raise Gone

    async def bare(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})

    app = MetricsMiddleware(Starlette(routes=[WebSocketRoute("/reads", reads_on)]))
    socket = WebSocket(app, websocket_scope("/reads"), [{"type": "websocket.connect"}])
    socket.leave(1001)
    with pytest.raises(WebSocketDisconnect):
        await socket.run()
    too_late = MetricsMiddleware(bare)
    with pytest.raises(Gone):
        await too_late(websocket_scope("/"), WebSocket(bare, {}).receive, gone)
    assert only(app).closed == {"1001": 1}
    assert only(too_late).refused == 1
    assert app.collector.table.exceptions == too_late.collector.table.exceptions == {}


async def test_a_code_the_app_chose_is_a_label_and_one_the_client_chose_is_a_class() -> None:
    app = layer()
    async with WebSocket(app, websocket_scope("/leaves")) as socket:
        await socket.accepted()
        await socket.ended()
    assert only(app).closed == {"4001": 1}
    app = layer()
    async with WebSocket(app, websocket_scope("/echo/x")) as socket:
        await socket.accepted()
        socket.leave(4711)
        await socket.ended()
    assert only(app).closed == {"4xxx": 1}


async def test_an_app_that_raises_ends_with_1011_and_its_exception() -> None:
    app = layer()
    with pytest.raises(LookupError):
        await WebSocket(app, websocket_scope("/breaks"), [{"type": "websocket.connect"}]).run()
    assert only(app).closed == {"1011": 1}
    assert app.collector.table.exceptions == {("/breaks", "LookupError"): 1}


async def test_a_refused_handshake_is_counted_and_opens_nothing() -> None:
    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.close", "code": 1008})

    app = MetricsMiddleware(refuse)
    async with WebSocket(app, websocket_scope("/")) as socket:
        await socket.refused()
        await socket.ended()
    assert (only(app).refused, only(app).accepted, only(app).active) == (1, 0, 0)


async def test_the_scrape_tells_of_connections() -> None:
    app = layer()
    async with WebSocket(app, websocket_scope("/echo/kitchen")) as socket:
        await socket.accepted()
        body = (await request(app, "/metrics")).body.decode()
        assert 'asgi_enhance_websocket_active_connections{http_route="/echo/{room}"} 1' in body
        socket.leave()
        await socket.ended()
    body = (await request(app, "/metrics")).body.decode()
    assert 'asgi_enhance_websocket_closes_total{http_route="/echo/{room}",websocket_close_code="1005"} 1' in body
