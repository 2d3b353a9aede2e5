"""Both ends of the proxy over raw sockets: a scripted client, a scripted backend, and real uvicorn between them."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from asgi_enhance.asgi.types import ASGIApp
from asgi_enhance.balance import Backend, LoadBalanceApp, LoadBalancer

TIMEOUT = 5.0
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@dataclass
class HttpMessage:
    """A request or response as it was on the wire."""

    start: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""
    raw: bytes = b""
    trailers: list[tuple[bytes, bytes]] = field(default_factory=list)

    @property
    def status(self) -> int:
        return int(self.start.split()[1])

    @property
    def target(self) -> bytes:
        return self.start.split(b" ")[1]

    def all(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key.lower() == name]

    def one(self, name: bytes) -> bytes | None:
        values = self.all(name)
        assert len(values) <= 1, f"{name!r} is there {len(values)} times"
        return values[0] if values else None

    def names(self) -> set[bytes]:
        return {name.lower() for name, _ in self.headers}


class Wire:
    """One end of a connection: bytes out, whole messages or bytes in."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @property
    def over(self) -> bool:
        """Whether either side has closed."""
        return self.writer.is_closing() or self.reader.at_eof()

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        async with asyncio.timeout(TIMEOUT):
            await self.writer.drain()

    async def head(self) -> HttpMessage:
        async with asyncio.timeout(TIMEOUT):
            raw = await self.reader.readuntil(b"\r\n\r\n")
        start, *lines = raw[:-4].split(b"\r\n")
        pairs = [line.split(b":", 1) for line in lines]
        return HttpMessage(start, [(name, value.strip()) for name, value in pairs], raw=raw)

    async def message(self, *, no_body: bool = False) -> HttpMessage:
        """A whole message; one without framing is a request without a body or a response that ends with the line."""
        message = await self.head()
        response = message.start.startswith(b"HTTP/")
        if no_body or (response and (message.status in (204, 304) or message.status < 200)):
            return message
        async with asyncio.timeout(TIMEOUT):
            if message.one(b"transfer-encoding") is not None:
                await self._chunks(message)
            elif (length := message.one(b"content-length")) is not None:
                message.body = await self.reader.readexactly(int(length))
            elif response:
                message.body = await self.reader.read()
        return message

    async def _chunks(self, message: HttpMessage) -> None:
        while size := int(await self.line(), 16):
            message.body += await self.reader.readexactly(size)
            assert await self.line() == b""
        while line := await self.line():
            name, _, value = line.partition(b":")
            message.trailers.append((name, value.strip()))

    async def line(self) -> bytes:
        async with asyncio.timeout(TIMEOUT):
            return (await self.reader.readuntil(b"\r\n"))[:-2]

    async def read(self, size: int = 65536) -> bytes:
        async with asyncio.timeout(TIMEOUT):
            return await self.reader.read(size)

    async def rest(self) -> bytes:
        """Everything until the other side closes; a reset counts as closing."""
        data = b""
        with suppress(ConnectionError):
            async with asyncio.timeout(TIMEOUT):
                while piece := await self.reader.read(65536):
                    data += piece
        return data

    async def closed(self) -> bool:
        """Wait for the other side to close."""
        with suppress(ConnectionError):
            async with asyncio.timeout(TIMEOUT):
                while await self.reader.read(65536):
                    pass
        return True

    def reset(self) -> None:
        """Close with RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.writer.transport.abort()

    def close(self) -> None:
        self.writer.close()


Script = Callable[[Wire], Awaitable[None]]


class ScriptedBackend:
    """A TCP server that plays a script to every connection and remembers the requests it read whole."""

    def __init__(self, answer: bytes | Script = OK) -> None:
        self.answer = answer
        self.requests: list[HttpMessage] = []
        self.wires: list[Wire] = []
        self.port = 0
        self.app: LoadBalanceApp | None = None
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def last(self) -> HttpMessage:
        return self.requests[-1]

    @property
    def balancer(self) -> LoadBalancer:
        """The balancer `front` put before this backend."""
        assert self.app is not None
        return self.app.balancer

    async def __aenter__(self) -> "ScriptedBackend":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for wire in self.wires:
            with suppress(AttributeError):  # one that was closed, and had still to write then, has lost its loop
                wire.writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self.wires.clear()

    async def request(self, wire: Wire) -> HttpMessage:
        """Read one request and remember it."""
        message = await wire.message()
        self.requests.append(message)
        return message

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        wire = Wire(reader, writer)
        self.wires.append(wire)
        try:
            if callable(self.answer):
                await self.answer(wire)
            else:
                while True:
                    await self.request(wire)
                    await wire.send(self.answer)
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def connect(port: int | Path) -> AsyncIterator[Wire]:
    """A raw client connection, to a port or a UNIX socket."""
    if isinstance(port, Path):
        reader, writer = await asyncio.open_unix_connection(port)
    else:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    wire = Wire(reader, writer)
    try:
        yield wire
    finally:
        writer.transport.abort()  # a polite close would wait for whoever does not read
        with suppress(ConnectionError):
            await writer.wait_closed()


@asynccontextmanager
async def serve(
    app: ASGIApp, *, http: str = "httptools", unix: Path | None = None, **options: Any
) -> AsyncIterator[int]:
    """The app behind uvicorn's own protocols, in this very loop and without its half-second clock; gives the port.

    With `unix` it listens on a UNIX socket there instead, and the port is 0.
    """
    config = uvicorn.Config(
        app, http=http, lifespan="off", log_config=None, access_log=False, proxy_headers=False, **options
    )
    config.load()
    state = ServerState()
    state.default_headers = [(b"date", b"Thu, 01 Jan 1970 00:00:00 GMT"), (b"server", b"uvicorn")]
    quiet = logging.getLogger("uvicorn.error")
    level, quiet.level = quiet.level, logging.CRITICAL
    loop = asyncio.get_running_loop()

    def protocol() -> asyncio.Protocol:
        return config.http_protocol_class(config=config, server_state=state, app_state={})  # type: ignore[call-arg]

    if unix is None:
        server = await loop.create_server(protocol, "127.0.0.1", 0)
    else:
        server = await loop.create_unix_server(protocol, unix)
    try:
        yield 0 if unix else server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for connection in list(state.connections):
            connection.transport.abort()
        if state.tasks:
            _, late = await asyncio.wait(state.tasks, timeout=1)
            for task in late:
                task.cancel()
        quiet.level = level


@asynccontextmanager
async def front(
    answer: bytes | Script = OK, http: str = "httptools", *, base: str = "", **options: Any
) -> AsyncIterator[tuple[ScriptedBackend, int]]:
    """One scripted backend (at the path `base`) behind a balancer behind uvicorn; gives it and the balancer's port."""
    async with ScriptedBackend(answer) as backend:
        app = backend.app = LoadBalanceApp([Backend(backend.url + base)], **options)
        async with serve(app, http=http) as port:
            yield backend, port
        await app.balancer.close()


async def until(condition: Callable[[], bool], *, within: float = TIMEOUT) -> None:
    """Poll until a condition holds."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 there is no event for "any condition"
            await asyncio.sleep(0.005)


async def ask(port: int | Path, request: bytes, *, no_body: bool = False) -> HttpMessage:
    """One request on a connection of its own, one response."""
    async with connect(port) as client:
        await client.send(request)
        return await client.message(no_body=no_body)


def get(target: bytes = b"/", *lines: bytes, method: bytes = b"GET", body: bytes = b"") -> bytes:
    """The bytes of a request."""
    head = b"".join(line + b"\r\n" for line in (b"Host: front.example", *lines))
    return method + b" " + target + b" HTTP/1.1\r\n" + head + b"\r\n" + body
