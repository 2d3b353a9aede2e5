"""The connections to one backend over HTTP/1.1, and how a request is put on the wire.

How many are open is decided by the balancer's slots; the pool only keeps the idle ones and gives out the newest first,
so that the rest grow old enough to be closed. Nothing waits here but the connect itself.
"""

import asyncio
import ssl
from functools import cache

from asgi_enhance.asgi.tasks import Tasks
from asgi_enhance.balance.backend import Backend
from asgi_enhance.balance.exchange import IDEMPOTENT, Answer, Exchange
from asgi_enhance.balance.failure import Rejected, UpstreamFailure
from asgi_enhance.balance.options import Limits, Timeouts
from asgi_enhance.balance.upstream.http1 import Connection


class Http1Upstream:
    """The pool of one backend on one event loop."""

    def __init__(
        self, backend: Backend, tasks: Tasks, *, timeouts: Timeouts, limits: Limits, rewrite_host: bool
    ) -> None:
        self._backend = backend
        self._loop = asyncio.get_running_loop()
        self._tasks = tasks
        self._timeouts = timeouts
        self._limits = limits
        self._host = backend.host.encode() if backend.host else backend.authority if rewrite_host else None
        self._tls = tls_of(backend)
        self._idle: list[Connection] = []  # the oldest first
        self._sweeper: asyncio.TimerHandle | None = None
        self._open: set[Connection] = set()

    def __repr__(self) -> str:
        return f"<Http1Upstream {self._backend.name}: {len(self._open)} open, {len(self._idle)} idle>"

    async def open(self, exchange: Exchange, *, fresh: bool = False) -> Connection:
        connection = None if fresh else self._take_idle(careful=exchange.method not in IDEMPOTENT)
        if connection is None:
            connection = await self._connect()
        body = exchange.body
        try:
            connection.begin(self._encode(exchange), to_head=exchange.method == "HEAD", whole=not body.more)
            if body.more:
                exchange.wait_until(exchange.idle)
                exchange.upload = self._tasks.spawn(self._upload(connection, exchange), name="balance-upload")
            else:
                exchange.wait_until(self._timeouts.first_byte)
            while connection.status is None:
                await connection.progress()
                if connection.interim:
                    await _hand_on_interim(connection, exchange)
        except BaseException:
            self._close(connection)
            raise
        return connection

    def release(self, answer: Answer) -> None:
        assert isinstance(answer, Connection)
        if answer.release(self._loop.time()):
            self._idle.append(answer)
            if self._sweeper is None:
                self._sweeper = self._loop.call_later(self._timeouts.keep_alive, self._sweep)
        else:
            self._open.discard(answer)

    def lost(self, connection: Connection) -> None:
        """An idle connection has ended."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def close_idle(self) -> None:
        """Close what no exchange uses."""
        while self._idle:
            self._close(self._idle.pop())

    async def aclose(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self._open):
            self._close(connection)
        self._idle.clear()

    def _close(self, connection: Connection) -> None:
        self._open.discard(connection)
        connection.abort()

    def _sweep(self) -> None:
        """Close what has not been used for long: the pool of a quiet time is smaller than that of the last burst."""
        self._sweeper = None
        now, keep = self._loop.time(), self._timeouts.keep_alive
        while self._idle and self._idle[0].idle_since + keep <= now:
            self._close(self._idle.pop(0))
        if self._idle:
            self._sweeper = self._loop.call_at(self._idle[0].idle_since + keep, self._sweep)

    def _take_idle(self, *, careful: bool) -> Connection | None:
        """The newest connection that is good. With `careful`, or after a response without a body, the socket is asked.

        Elsewhere what has come meanwhile is seen by the loop, or is a backend's goodbye that a second try makes good.
        """
        if self._idle:
            oldest = self._loop.time() - self._timeouts.keep_alive
            while self._idle:
                connection = self._idle.pop()
                good = connection.idle_since > oldest and not connection.closed
                if good and (not (careful or connection.bodiless) or connection.silent()):
                    return connection
                self._close(connection)
        return None

    async def _connect(self) -> Connection:
        connection = Connection(self._loop, self, max_head=self._limits.max_response_head)
        try:
            async with asyncio.timeout(self._timeouts.connect):
                await dial(self._backend, connection, self._tls)
        except BaseException as error:
            connection.abort()
            if isinstance(error, Exception):
                raise connect_failure(error) from error
            raise
        self._open.add(connection)
        return connection

    def _encode(self, exchange: Exchange) -> bytes:
        head, body = exchange.head, exchange.body
        first = body.first
        if not body.more:
            framing = b"content-length: %d\r\n" % len(first) if first or head.has_body else b""
        elif body.length is not None:
            framing = b"content-length: %d\r\n" % body.length
        else:
            framing = b"transfer-encoding: chunked\r\n"
            first = b"%x\r\n%b\r\n" % (len(first), first) if first else b""
        lines = len(head.fields) + (4 if framing else 3)
        if head.trailers:
            framing += b"te: trailers\r\nconnection: te\r\n"  # a field of this hop is named (RFC 9110, 10.1.4)
            lines += 2
        target = self._backend.target(exchange.path, exchange.query)
        data = b"%b %b HTTP/1.1\r\nhost: %b\r\n%b\r\n%b\r\n" % (
            exchange.method.encode("ascii"),
            target,
            self._host or head.host or self._backend.authority,
            b"\r\n".join(map(b": ".join, head.fields)),
            framing,
        )
        # whatever server or middleware is in front: no line more than the ones that were meant
        if len(data.translate(None, b"\r\n\0")) != len(data) - 2 * lines:
            raise Rejected(400, "The request holds control characters.")
        return data + first if first else data

    async def _upload(self, connection: Connection, exchange: Exchange) -> None:
        body = exchange.body
        chunked = body.length is None
        try:
            while piece := await body.next():
                connection.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                exchange.progress()
                await connection.drain(exchange.idle)  # an answer that moves meanwhile is no excuse
                if connection.closed:
                    break  # whoever reads the response finds out why
            else:
                if chunked:
                    connection.write(b"0\r\n\r\n")
                connection.sent_whole = True
                if connection.status is None:
                    exchange.wait_until(self._timeouts.first_byte)
        except Exception as error:  # the client left, its body is not what it said, or no one takes it
            exchange.interrupt(error)


async def _hand_on_interim(connection: Connection, exchange: Exchange) -> None:
    interim, connection.interim = connection.interim, []
    if exchange.on_interim is not None:
        for status, fields in interim:
            await exchange.on_interim(status, fields)


async def dial(backend: Backend, protocol: asyncio.Protocol, tls: ssl.SSLContext | None) -> None:
    """Connect to a backend. Raises what `connect_failure` understands."""
    await asyncio.get_running_loop().create_connection(
        lambda: protocol,
        backend.address or backend.hostname,
        backend.port,
        ssl=tls,
        server_hostname=backend.hostname if tls else None,
    )


def tls_of(backend: Backend) -> ssl.SSLContext | None:
    if backend.scheme != "https":
        return None
    return backend.tls or _default_tls()


@cache
def _default_tls() -> ssl.SSLContext:
    """Made once: reading the system's trust store holds the loop for milliseconds."""
    return ssl.create_default_context()


def connect_failure(error: Exception) -> UpstreamFailure:
    """A failed connect in the words of RFC 9209. Nothing was sent, so any method may go elsewhere."""
    if isinstance(error, TimeoutError):
        kind = "connection_timeout"
    elif isinstance(error, ConnectionRefusedError):
        kind = "connection_refused"
    elif isinstance(error, ssl.SSLCertVerificationError):
        kind = "tls_certificate_error"
    elif isinstance(error, ssl.SSLError):
        kind = "tls_protocol_error"
    elif isinstance(error, OSError) and type(error).__name__ == "gaierror":
        kind = "dns_error"
    else:
        kind = "destination_ip_unroutable" if isinstance(error, OSError) else "proxy_internal_error"
    return UpstreamFailure(f"cannot connect: {error}", error=kind, unsent=True)
