"""A scripted ASGI server: it plays one scope to an app, message by message, and writes down what comes back.

It streams, does WebSocket, lifespan, state and every extension, leaves when told, blocks when told, and refuses what
a real server would refuse. `request` is for a whole exchange in one line; a `Driver` is for everything else:

    async with Driver(app, http_scope("/events")) as server:
        server.feed({"type": "http.request"})
        assert (await server.next())["status"] == 200
        server.feed({"type": "http.disconnect"})
"""

import asyncio
import json
from collections import deque
from collections.abc import Iterable
from time import monotonic
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote

from asgi_enhance.asgi.messages import ResponseTracker
from asgi_enhance.asgi.scope import header
from asgi_enhance.asgi.types import ASGIApp, Headers, Message, Scope

EXTENSIONS: dict[str, str] = {
    "http.response.trailers": "http.response.trailers",
    "http.response.pathsend": "http.response.pathsend",
    "http.response.zerocopysend": "http.response.zerocopysend",
    "http.response.early_hint": "http.response.early_hint",
    "http.response.push": "http.response.push",
    "http.response.debug": "http.response.debug",
    "websocket.http.response.start": "websocket.http.response",
    "websocket.http.response.body": "websocket.http.response",
}
"""Message type to the extension that has to be offered for it."""

TIMEOUT = 5.0
"""Seconds a driver waits for the app before it gives up."""


def http_scope(
    path: str = "/", *, method: str = "GET", headers: Iterable[tuple[bytes, bytes]] = (), **more: Any
) -> Scope:
    """The scope of an HTTP request as uvicorn would give it; `path` as in the request line, `more` goes on top."""
    raw, _, query = path.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(raw),
        "raw_path": raw.encode("latin-1"),
        "query_string": query.encode("latin-1"),
        "root_path": "",
        "headers": [(b"host", b"testserver"), *headers],
        "client": ("192.0.2.7", 50123),
        "server": ("testserver", 80),
        "state": {},
        "extensions": {name: {} for name in EXTENSIONS.values() if name.startswith("http.")},
        **more,
    }


def websocket_scope(path: str = "/", *, headers: Iterable[tuple[bytes, bytes]] = (), **more: Any) -> Scope:
    """The scope of a WebSocket handshake, with the denial response offered."""
    scope = http_scope(path, headers=headers)
    del scope["method"]
    return {
        **scope,
        "type": "websocket",
        "scheme": "ws",
        "subprotocols": [],
        "extensions": {"websocket.http.response": {}},
        **more,
    }


class Response:
    """What an app answered, put together from its messages."""

    def __init__(self, messages: list[Message]) -> None:
        start = next((m for m in messages if m["type"].endswith("http.response.start")), None)
        if start is None:
            raise AssertionError(f"the app sent no response, only {[m['type'] for m in messages]}")
        self.messages = messages
        self.status: int = start["status"]
        self.headers: Headers = list(start.get("headers", ()))
        self.body = b"".join(m.get("body", b"") for m in messages if m["type"].endswith("http.response.body"))

    def header(self, name: str) -> str | None:
        value = header(self.headers, name.lower().encode())
        return None if value is None else value.decode("latin-1")

    def json(self) -> Any:
        return json.loads(self.body)


class Driver:
    """Plays `scope` to `app`. `incoming` is what the client sends; more comes with `feed`.

    capacity:   how many sent messages may lie unread before `send` blocks, like a full socket. Default: no bound.
    send_error: raised by every `send`, as a server does whose client is gone. Default: none.

    What it noticed on the way is in `sent` and `times` (the messages and when they came, monotonic seconds),
    `overlapping_reads` (times `receive` was called while another call was waiting), `waiting_readers` (calls that wait
    now) and `reads_after_disconnect`.
    """

    def __init__(
        self,
        app: ASGIApp,
        scope: Scope,
        incoming: Iterable[Message] = (),
        *,
        capacity: int | None = None,
        send_error: BaseException | None = None,
    ) -> None:
        self.app = app
        self.scope = scope
        self.sent: list[Message] = []
        self.times: list[float] = []
        self.overlapping_reads = 0
        self.waiting_readers = 0
        self.reads_after_disconnect = 0
        self.task: asyncio.Task[None] | None = None
        self._incoming = deque(incoming)
        self._capacity = capacity
        self._send_error = send_error
        self._changed = asyncio.Event()
        self._read = 0  # how many of `sent` the test has taken
        self._gone = False
        self._tracker = ResponseTracker()
        self._promised: int | None = None  # bytes of body still to come, by Content-Length
        self._accepted = False
        self._closed = False

    # The server's side: what the app calls.

    async def receive(self) -> Message:
        if self._gone:
            self.reads_after_disconnect += 1
            await asyncio.Event().wait()  # as hypercorn and daphne do
        self.overlapping_reads += bool(self.waiting_readers)
        self.waiting_readers += 1
        try:
            while not self._incoming:
                await self._changed.wait()
            message = self._incoming.popleft()
        finally:
            self.waiting_readers -= 1
        self._gone = message["type"].endswith(".disconnect")
        return message

    async def send(self, message: Message) -> None:
        if self._send_error is not None:
            raise self._send_error
        self._refuse_what_servers_refuse(message)
        while self._capacity is not None and len(self.sent) - self._read >= self._capacity:
            await self._changed.wait()
        self.sent.append(message)
        self.times.append(monotonic())
        self._notify()

    def _refuse_what_servers_refuse(self, message: Message) -> None:
        kind = message["type"]
        extension = EXTENSIONS.get(kind)
        if extension and extension not in (self.scope.get("extensions") or {}):
            raise RuntimeError(f"{kind} was sent though {extension} is not offered")
        if kind.endswith("http.response.start") and self._tracker.started:
            raise RuntimeError("a second http.response.start")
        if kind.endswith("http.response.body") and not self._tracker.started:
            raise RuntimeError("a body before its http.response.start")
        if kind.startswith("http.response.") and self._tracker.finished:
            raise RuntimeError(f"{kind} after the response was finished")
        if kind in ("websocket.accept", "websocket.send", "websocket.close"):
            self._refuse_out_of_turn(kind)
        self._tracker.feed(message)
        if kind == "http.response.start":
            length = header(message.get("headers", ()), b"content-length")
            self._promised = None if length is None else int(length)
        elif kind == "http.response.body" and self._promised is not None:
            self._promised -= len(message.get("body", b""))
            if self._promised < 0:
                raise RuntimeError("the body is longer than its Content-Length")

    def _refuse_out_of_turn(self, kind: str) -> None:
        if self._closed:
            raise RuntimeError(f"{kind} after websocket.close")
        if kind == "websocket.accept" and self._accepted:
            raise RuntimeError("a second websocket.accept")
        if kind == "websocket.send" and not self._accepted:
            raise RuntimeError("websocket.send before websocket.accept")
        self._accepted = self._accepted or kind == "websocket.accept"
        self._closed = kind == "websocket.close"

    # The test's side.

    def feed(self, *messages: Message) -> None:
        """What the client sends next."""
        self._incoming.extend(messages)
        self._notify()

    async def next(self) -> Message:
        """The next message the app has sent, waiting for it. AssertionError if the app ended without one."""
        async with asyncio.timeout(TIMEOUT):
            while self._read >= len(self.sent):
                if self.task is not None and self.task.done():
                    await self.task
                    raise AssertionError("the app ended without another message")
                await self._changed.wait()
        message = self.sent[self._read]
        self._read += 1
        self._notify()
        return message

    async def run(self) -> list[Message]:
        """Call the app in this task until it returns; everything it sent."""
        await self.app(self.scope, self.receive, self.send)
        return self.sent

    async def __aenter__(self) -> Self:
        self.task = asyncio.create_task(self._play())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.task is not None
        if not self.task.done():
            self.task.cancel()
        await asyncio.wait([self.task])
        if kind is None and not self.task.cancelled() and (failure := self.task.exception()) is not None:
            raise failure

    async def ended(self) -> None:
        """Wait until the app has returned; its exception is raised here."""
        assert self.task is not None
        async with asyncio.timeout(TIMEOUT):
            await self.task

    async def _play(self) -> None:
        try:
            await self.run()
        finally:
            asyncio.get_running_loop().call_soon(self._notify)  # when the task is seen to be done

    def _notify(self) -> None:
        event, self._changed = self._changed, asyncio.Event()
        event.set()


async def request(
    app: ASGIApp,
    path: str = "/",
    *,
    method: str = "GET",
    headers: Iterable[tuple[bytes, bytes]] = (),
    body: bytes | Iterable[bytes] = b"",
    **scope: Any,
) -> Response:
    """One whole HTTP exchange; the client stays until the app has returned."""
    chunks = [body] if isinstance(body, bytes) else [*body]
    incoming = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    incoming[-1]["more_body"] = False
    driver = Driver(app, http_scope(path, method=method, headers=headers, **scope), incoming)
    async with asyncio.timeout(TIMEOUT):
        return Response(await driver.run())


class WebSocket(Driver):
    """A WebSocket client: `async with WebSocket(app, websocket_scope("/ws")) as socket: await socket.accepted()`."""

    async def __aenter__(self) -> Self:
        self.feed({"type": "websocket.connect"})
        return await super().__aenter__()

    async def accepted(self) -> Message:
        message = await self.next()
        assert message["type"] == "websocket.accept", f"not accepted: {message}"
        return message

    async def refused(self) -> Response | Message:
        """The denial response, or the close message of an app that was offered none."""
        message = await self.next()
        if message["type"] == "websocket.close":
            return message
        messages = [message]
        while not self._tracker.finished or self._read < len(self.sent):
            messages.append(await self.next())
        return Response(messages)

    def send_text(self, text: str) -> None:
        self.feed({"type": "websocket.receive", "text": text})

    def send_json(self, value: Any) -> None:
        self.send_text(json.dumps(value))

    async def receive_text(self) -> str:
        message = await self.next()
        assert message["type"] == "websocket.send", f"not a message: {message}"
        text: str | None = message.get("text")
        return text if text is not None else message["bytes"].decode()

    async def receive_json(self) -> Any:
        return json.loads(await self.receive_text())

    def leave(self, code: int = 1005) -> None:
        self.feed({"type": "websocket.disconnect", "code": code, "reason": ""})


class Lifetime(Driver):
    """An app between start-up and shutdown: `async with Lifetime(app) as life:`; what it stores is in `life.state`."""

    def __init__(self, app: ASGIApp) -> None:
        self.state: dict[str, Any] = {}
        asgi = {"version": "3.0", "spec_version": "2.0"}
        super().__init__(app, {"type": "lifespan", "asgi": asgi, "state": self.state})

    async def __aenter__(self) -> Self:
        self.feed({"type": "lifespan.startup"})
        await super().__aenter__()
        message = await self.next()
        assert message["type"] == "lifespan.startup.complete", f"start-up failed: {message}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.feed({"type": "lifespan.shutdown"})
            message = await self.next()
            assert message["type"] == "lifespan.shutdown.complete", f"shutdown failed: {message}"
            await self.ended()
        await super().__aexit__(kind, error, trace)
