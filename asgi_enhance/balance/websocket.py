"""A client's WebSocket joined to a backend's: two directions, each waiting for its own reader, one end for both.

The client is accepted only after the backend has accepted, with the backend's subprotocol and fields; a refusal is
handed on as it is. Close codes and reasons cross in both directions; those that never are on the wire (1005, 1006,
1015) become what they mean: a side that ended without a word.
"""

import logging

from websockets.exceptions import ConnectionClosed
from websockets.frames import EXTERNAL_CLOSE_CODES

from asgi_enhance.asgi.types import Receive, Scope, Send
from asgi_enhance.balance.core import LoadBalancer
from asgi_enhance.balance.exchange import Exchange
from asgi_enhance.balance.failure import ClientGone, GoingAway, Rejected, Unavailable, UpstreamFailure, problem
from asgi_enhance.balance.upstream.websocket import WebSocketAnswer

logger = logging.getLogger("asgi_enhance.balance")

GOING_AWAY = 1001
MESSAGE_TOO_BIG = 1009
INTERNAL_ERROR = 1011
_LOST = 1006
_NOT_ON_THE_WIRE = frozenset({1005, _LOST, 1015})
_HANDSHAKE = (b"sec-websocket-",)


async def proxy_websocket(
    core: LoadBalancer, scope: Scope, receive: Receive, send: Send, proxy_status: str | None
) -> None:
    """Serve one WebSocket."""
    message = await receive()
    if message["type"] != "websocket.connect":
        return
    core.stats.websockets += 1
    runtime = core.opened() or await core.started()
    relay = _Relay(core, scope, receive, send)
    try:
        exchange = core.translator.handshake(scope, receive, runtime)
        with exchange:
            exchange.watcher = runtime.tasks.spawn(relay.read_client(exchange), name="balance-websocket-client")
            answer = await core.dispatcher.forward(exchange, runtime)
            assert isinstance(answer, WebSocketAnswer)
            if answer.status == 101:
                await relay.read_backend(exchange, answer)
            else:
                await relay.refuse(exchange, answer)
    except ClientGone:
        logger.info("499 WebSocket %r: the client left", scope["path"])
    except GoingAway:
        await relay.close(GOING_AWAY, "")
    except (Rejected, Unavailable, UpstreamFailure) as error:
        if not isinstance(error, Rejected):
            logger.warning("%d WebSocket %r: %s", error.status, scope["path"], error)
        if relay.accepted:
            await relay.close(INTERNAL_ERROR, "")
        else:
            await problem(error, proxy_status).refuse(scope, send)
    except ConnectionClosed:
        await relay.close(INTERNAL_ERROR, "")


class _Relay:
    """Both directions of one WebSocket."""

    __slots__ = ("_answer", "_core", "_lost", "_max_message", "_receive", "_scope", "_send", "accepted", "gone")

    def __init__(self, core: LoadBalancer, scope: Scope, receive: Receive, send: Send) -> None:
        self._core = core
        self._scope = scope
        self._receive = receive
        self._send = send
        self._max_message = core.limits.max_message
        self._answer: WebSocketAnswer | None = None
        self.accepted = False
        self.gone = False
        self._lost = False  # without a close frame, which is how a client takes its leave of a WebSocket

    async def read_client(self, exchange: Exchange) -> None:
        """Client to backend. Also the one who sees the client leave, from before it was accepted."""
        while True:
            message = await self._receive()
            answer = self._answer
            if message["type"] == "websocket.disconnect":
                await self._client_left(exchange, message.get("code", 1005), message.get("reason") or "")
                return
            if answer is None:
                continue
            text, data = message.get("text"), message.get("bytes")
            payload: str | bytes = text if text is not None else data if data is not None else b""
            exchange.progress()
            if len(payload) > self._max_message:
                await answer.connection.close(MESSAGE_TOO_BIG, "")
                return
            try:
                await answer.connection.send(payload)
            except ConnectionClosed:
                return  # the other direction knows why

    async def read_backend(self, exchange: Exchange, answer: WebSocketAnswer) -> None:
        """Backend to client, from the handshake to the close."""
        connection = answer.connection
        kept = self._core.translator.response(exchange, answer, self._scope)
        headers = [pair for pair in kept if not pair[0].startswith(_HANDSHAKE)]
        self._answer = answer
        exchange.progress()
        await self._send({"type": "websocket.accept", "subprotocol": connection.subprotocol, "headers": headers})
        self.accepted = True
        try:
            while True:
                payload = await connection.recv()
                exchange.progress()
                if isinstance(payload, str):
                    await self._send({"type": "websocket.send", "text": payload})
                else:
                    await self._send({"type": "websocket.send", "bytes": payload})
        except ConnectionClosed as end:
            if self._lost:
                raise ClientGone("the client was lost") from None
            if end.rcvd is not None:
                await self.close(end.rcvd.code, end.rcvd.reason)
            elif end.sent is not None and end.sent.code == MESSAGE_TOO_BIG:
                await self.close(MESSAGE_TOO_BIG, "")
            else:
                await self.close(INTERNAL_ERROR, "")

    async def refuse(self, exchange: Exchange, answer: WebSocketAnswer) -> None:
        """Hand on the backend's refusal; servers without that extension make 403 of a close."""
        if "websocket.http.response" not in (self._scope.get("extensions") or ()):
            await self.close(1000, "")
            return
        body = answer.take()
        kept = self._core.translator.response(exchange, answer, self._scope)
        headers = [pair for pair in kept if pair[0] != _LENGTH]
        headers.append((_LENGTH, b"%d" % len(body)))
        start = {"type": "websocket.http.response.start", "status": answer.status, "headers": headers}
        await self._send(start)
        await self._send({"type": "websocket.http.response.body", "body": body, "more_body": False})

    async def close(self, code: int, reason: str) -> None:
        if not self.gone:
            code = 1000 if code in _NOT_ON_THE_WIRE else code
            await self._send({"type": "websocket.close", "code": code, "reason": reason})

    async def _client_left(self, exchange: Exchange, code: int | None, reason: str) -> None:
        self.gone = True
        self._lost = code == _LOST
        try:
            if self._answer is not None:
                if code == 1005:
                    code = 1000
                elif code is None or not (code in EXTERNAL_CLOSE_CODES or 3000 <= code < 5000):
                    code = GOING_AWAY
                await self._answer.connection.close(code, reason)
        finally:
            exchange.interrupt(ClientGone("the client left"))


_LENGTH = b"content-length"
