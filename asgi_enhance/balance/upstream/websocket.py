"""A WebSocket to a backend, over the `websockets` package: its frames, close codes, pings and flow control are theirs.

Only the handshake is our own: the target and fields go out as the client sent them, with nothing invented.
"""

import asyncio
from typing import TYPE_CHECKING

from websockets.asyncio.client import ClientConnection
from websockets.client import ClientProtocol
from websockets.datastructures import Headers as HandshakeHeaders
from websockets.exceptions import InvalidHeader, InvalidStatus
from websockets.http11 import Request
from websockets.typing import Subprotocol
from websockets.uri import WebSocketURI

from asgi_enhance.asgi.types import Headers
from asgi_enhance.balance.backend import Backend
from asgi_enhance.balance.failure import Rejected, UpstreamFailure
from asgi_enhance.balance.options import Limits, Timeouts
from asgi_enhance.balance.upstream.pool import connect_failure, dial, tls_of

if TYPE_CHECKING:
    from asgi_enhance.balance.exchange import Answer, Exchange

CLOSE_TIMEOUT = 1.0
"""Seconds a backend has to answer a close frame before the connection is cut."""


class WebSocketAnswer:
    """A handshake that was answered: 101 with an open `connection`, or another status with a body."""

    __slots__ = ("_body", "complete", "connection", "headers", "status", "trailers")

    def __init__(self, status: int, headers: HandshakeHeaders, body: bytes, connection: ClientConnection) -> None:
        self.status: int | None = status
        self.headers: Headers = [
            (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.raw_items()
        ]
        self.trailers: Headers = []
        self.connection = connection
        self.complete = True
        self._body = body

    def take(self) -> bytes:
        return self._body

    async def read(self) -> bytes:
        return b""


class WebSocketUpstream:
    """Opens WebSockets to one backend."""

    def __init__(self, backend: Backend, *, timeouts: Timeouts, limits: Limits, rewrite_host: bool) -> None:
        self._backend = backend
        self._timeouts = timeouts
        self._limits = limits
        self._host = backend.host.encode() if backend.host else backend.authority if rewrite_host else None
        self._tls = tls_of(backend)

    async def open(self, exchange: "Exchange", *, fresh: bool = False) -> WebSocketAnswer:
        protocol = _Handshake(self._backend, exchange, self._host, self._limits.max_message)
        connection = ClientConnection(protocol, close_timeout=CLOSE_TIMEOUT)
        try:
            await self._connect(connection)
            exchange.wait_until(self._timeouts.first_byte)
            try:
                await connection.handshake(user_agent_header=None)
            except InvalidStatus as refusal:
                response = refusal.response
                if response.status_code < 200:
                    text = "an interim response to a WebSocket's handshake"
                    raise UpstreamFailure(text, error="http_protocol_error") from None
                return WebSocketAnswer(response.status_code, response.headers, bytes(response.body), connection)
            except Rejected:
                raise
            except Exception as error:
                text = f"the backend's WebSocket handshake failed: {error}"
                raise UpstreamFailure(text, error="http_protocol_error") from error
            assert connection.response is not None
            connection.start_keepalive()
            return WebSocketAnswer(101, connection.response.headers, b"", connection)
        except BaseException:
            _abort(connection)
            raise

    def release(self, answer: "Answer") -> None:
        assert isinstance(answer, WebSocketAnswer)
        _abort(answer.connection)

    def close_idle(self) -> None:
        """Nothing is kept between exchanges."""

    async def aclose(self) -> None:
        """Nothing is kept between exchanges."""

    async def _connect(self, connection: ClientConnection) -> None:
        try:
            async with asyncio.timeout(self._timeouts.connect):
                await dial(self._backend, connection, self._tls)
        except Exception as error:
            raise connect_failure(error) from error


class _Handshake(ClientProtocol):
    """The handshake of a proxy: the client's own target and fields, and a key of ours."""

    def __init__(self, backend: Backend, exchange: "Exchange", host: bytes | None, max_message: int) -> None:
        path, _, query = backend.target(exchange.path, exchange.query).partition(b"?")
        uri = WebSocketURI(
            secure=backend.scheme == "https",
            host=backend.hostname,
            port=backend.port,
            path=path.decode("latin-1"),
            query=query.decode("latin-1"),
        )
        offered = [Subprotocol(name) for name in exchange.subprotocols]
        super().__init__(uri, subprotocols=offered or None, max_size=max_message)
        self._fields = exchange.head.fields
        self._host = (host or exchange.head.host or backend.authority).decode("latin-1")

    def connect(self) -> Request:
        request = super().connect()
        del request.headers["Host"]
        fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self._fields]
        try:
            request.headers = HandshakeHeaders([("Host", self._host), *request.headers.raw_items(), *fields])
            request.serialize()
        except (InvalidHeader, ValueError):  # whatever server is in front let in; no backend is to blame
            raise Rejected(400, "The handshake holds characters that must be encoded.") from None
        return request


def _abort(connection: ClientConnection) -> None:
    transport: asyncio.Transport | None = getattr(connection, "transport", None)
    if transport is not None:
        transport.abort()
