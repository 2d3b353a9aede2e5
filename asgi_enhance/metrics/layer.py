"""Watches requests and WebSockets go by, and answers for the metrics' own addresses."""

import os
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Iterable
from time import perf_counter
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect
from starlette.websockets import WebSocketDisconnect

from asgi_enhance.asgi.lifespan import run_lifespan
from asgi_enhance.asgi.scope import path_below_mount
from asgi_enhance.asgi.types import ASGIApp, Message, Receive, Scope, Send
from asgi_enhance.errors import ConfigError
from asgi_enhance.metrics.core import MetricsCollector
from asgi_enhance.metrics.endpoint import Endpoint
from asgi_enhance.metrics.policy import CANCELLED, DISCONNECTED, INCOMPLETE, NO_RESPONSE, OTHER, close_code
from asgi_enhance.metrics.route import HOOK
from asgi_enhance.metrics.series import FULL, SocketSeries
from asgi_enhance.options import checked

if TYPE_CHECKING:
    from asgi_enhance.redis import RedisManager


@checked
class MetricsMiddleware:
    """Counts every request and WebSocket that passes, and serves the metrics at `path`.

    collector: the MetricsCollector to count into. Default: one of its own.
    redis:     a RedisManager or URL through which workers add up their metrics. Default: each worker for itself.
    path:      where to serve; None serves nothing. Default: "/metrics".
    dashboard: serve a live page at `path`/dashboard. Default: False.
    allow:     a predicate on the scope that says who may read; others get 403. Default: everybody.
    exclude:   paths that are passed on without being counted. Default: "/livez" and "/readyz".
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        collector: MetricsCollector | None = None,
        redis: "RedisManager | str | None" = None,
        path: str | None = "/metrics",
        dashboard: bool = False,
        allow: Callable[[Scope], bool] | None = None,
        exclude: Iterable[str] = ("/livez", "/readyz"),
    ) -> None:
        if collector is not None and redis is not None:
            raise ConfigError("redis belongs to the collector: give it to MetricsCollector(redis=…)")
        if dashboard and path is None:
            raise ConfigError("dashboard is served below path, which is None")
        if path is not None and (not path.startswith("/") or path.endswith("/")):
            raise ConfigError(f"path must begin with a slash and not end with one, not {path!r}")
        self.app = app
        self.collector = MetricsCollector(redis=redis) if collector is None else collector
        endpoint = Endpoint(self.collector, allow=allow)
        self._others: dict[str, ASGIApp] = dict.fromkeys((exclude,) if isinstance(exclude, str) else exclude, app)
        if path is not None:
            self._others[path] = endpoint.metrics
            if dashboard:
                self._others[f"{path}/dashboard"] = endpoint.dashboard
                self._others[f"{path}/dashboard/events"] = endpoint.events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._not_http(scope, receive, send)
            return
        path = path_below_mount(scope) if scope.get("root_path") else scope["path"]
        if path in self._others:
            await self._others[path](scope, receive, send)
            return
        collector = self.collector
        started = collector.table.started
        method = scope["method"]
        if method not in started:
            method = OTHER
        exchange = _Exchange()  # filled here and not by a constructor: a call costs as much as all of these
        exchange.layer = self
        exchange.scope = scope
        exchange.method = method
        exchange.server_receive = receive
        exchange.server_send = send
        exchange.head = None
        exchange.received = exchange.sent = 0
        exchange.gone = exchange.streamed = exchange.finished = False
        exchange.start = start = perf_counter()
        if start >= collector.turn_at:
            await collector.turn()
        started[method] += 1
        error = ""
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except CancelledError:
            error = CANCELLED
            raise
        except BaseException as failure:
            error = exchange.failed(failure)
            raise
        finally:
            if not exchange.finished:
                exchange.cut_short(error)

    async def _not_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket" and scope["path"] not in self._others:
            await self._websocket(scope, receive, send)
        elif scope["type"] == "lifespan":
            await run_lifespan(self.app, scope, receive, send, (self.collector,))
        else:
            await self.app(scope, receive, send)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        collector = self.collector
        if perf_counter() >= collector.turn_at:
            await collector.turn()
        series: SocketSeries | None = None
        accepted = 0.0
        code = ""
        too_late: OSError | None = None

        async def watched_receive() -> Message:
            nonlocal code
            message = await receive()
            if message["type"] == "websocket.receive":
                if series is not None:
                    series.messages_received += 1
                    series.bytes_received += _size(message)
            elif message["type"] == "websocket.disconnect" and not code:
                code = close_code(message.get("code") or 1005, chosen_by_client=True)
            return message

        async def watched_send(message: Message) -> None:
            nonlocal series, accepted, code, too_late
            try:
                await send(message)
            except OSError as left:  # so servers say, and ASGI has them, that the client is gone
                too_late = left
                raise
            kind = message["type"]
            if kind == "websocket.send":
                if series is not None:
                    series.messages_sent += 1
                    series.bytes_sent += _size(message)
            elif kind == "websocket.accept" and series is None:
                series = collector.socket(scope, self.app)
                series.accepted += 1
                series.active += 1
                accepted = perf_counter()
            elif kind == "websocket.close" and not code:
                code = close_code(message.get("code") or 1000, chosen_by_client=False)

        error: BaseException | None = None
        try:
            await self.app(scope, watched_receive, watched_send)
        except CancelledError:
            raise
        except BaseException as failure:
            if failure is not too_late and not isinstance(failure, WebSocketDisconnect):
                error = failure
                collector.raised(scope, error, self.app)
            raise
        finally:
            if series is None:
                collector.socket(scope, self.app).refused += 1
            else:
                series.active -= 1
                # an app that fails is closed with 1011 by its server; without a word it is 1006
                code = code or ("1011" if error is not None else "1006")
                series.closed[code] = series.closed.get(code, 0) + 1
                series.durations.add([perf_counter() - accepted])


class _Exchange:
    """One request on its way: what the app receives and sends goes through here, and is counted when it ends."""

    __slots__ = (
        "finished",
        "first",
        "gone",
        "head",
        "layer",
        "method",
        "received",
        "scope",
        "sent",
        "server_receive",
        "server_send",
        "start",
        "streamed",
    )

    layer: MetricsMiddleware
    scope: Scope
    method: str
    server_receive: Receive
    server_send: Send
    head: Message | None  # http.response.start
    start: float
    first: float  # when the head was sent
    received: int
    sent: int
    gone: bool  # the client has left
    streamed: bool  # there was more than one body message
    finished: bool

    async def receive(self) -> Message:
        message = await self.server_receive()
        if message["type"] == "http.request":
            self.received += len(message.get("body") or b"")
        else:
            self.gone = True
        return message

    def send(self, message: Message) -> Awaitable[None]:
        """Hands the server's own awaitable on, one coroutine less, except for the last message."""
        kind = message["type"]
        if kind == "http.response.start":
            self.head = message
            self.first = perf_counter()
        elif kind == "http.response.body":
            self.sent += len(message.get("body") or b"")
            if not message.get("more_body"):
                if self.head is None or not self.head.get("trailers"):
                    return self._send_last(message)
            else:
                self.streamed = True
        else:
            self.sent += _bytes_beside(message)
            if _is_last(message, self.head):
                return self._send_last(message)
        return self.server_send(message)

    async def _send_last(self, message: Message) -> None:
        # Asked before the server has the message: afterwards everybody is told that the client is gone.
        left = self.gone
        await self.server_send(message)
        seconds = perf_counter() - self.start
        if self.finished:
            return
        self.finished = True
        collector = self.layer.collector
        try:
            get = self.scope.get  # as series.shown does it, without the call
            shown = get("endpoint") or get("path_template") or get(HOOK)
            series = collector.table.bound.get((shown, self.method, self.head["status"]))  # type: ignore[index]
            if series is None or self.streamed or left:
                self._count(DISCONNECTED if left else "", seconds)
                return
            pending = series.pending
            pending += (self.first - self.start, seconds, self.received, self.sent)
            if len(pending) >= FULL:
                collector.fold(series)
            if collector.exemplars:
                series.exemplify(self.scope, seconds)
        except TypeError:  # an endpoint that cannot be hashed
            self._count(DISCONNECTED if left else "", seconds)
        except Exception:
            collector.failed()

    def failed(self, failure: BaseException) -> str:
        """The app raised; the name of its error."""
        if isinstance(failure, ClientDisconnect):
            return DISCONNECTED
        self.layer.collector.raised(self.scope, failure, self.layer.app)
        return type(failure).__name__

    def cut_short(self, error: str) -> None:
        """The app ended without finishing its response."""
        self.finished = True
        error = DISCONNECTED if self.gone else error or (INCOMPLETE if self.head else NO_RESPONSE)
        self._count(error, perf_counter() - self.start)

    def _count(self, error: str, seconds: float) -> None:
        """The long way, for everything that is not a plain response."""
        first = self.first - self.start if self.head else seconds
        numbers = (first, seconds, self.received, self.sent)
        layer = self.layer
        layer.collector.count(self.scope, self.method, self.head, error, numbers, streamed=self.streamed, app=layer.app)


def _size(message: Message) -> int:
    data = message.get("bytes")
    return len(data) if data is not None else len((message.get("text") or "").encode("utf-8", "replace"))


def _is_last(message: Message, head: Message | None) -> bool:
    """Whether a message that is neither start nor body ends the response (contract 8)."""
    kind = message["type"]
    if kind == "http.response.trailers":
        return not message.get("more_trailers", False)
    if kind == "http.response.zerocopysend":
        return not (message.get("more_body") or (head and head.get("trailers")))
    return bool(kind == "http.response.pathsend")


def _bytes_beside(message: Message) -> int:
    """Bytes that the server takes from a file: as many as the message says, or as the file has."""
    try:
        if message["type"] == "http.response.zerocopysend":
            count = message.get("count")
            if count is not None:
                return int(count)
            return max(0, os.fstat(message["file"].fileno()).st_size - (message.get("offset") or 0))
        if message["type"] == "http.response.pathsend":
            return os.stat(message["path"]).st_size
    except (OSError, KeyError, AttributeError, ValueError, TypeError):
        pass
    return 0
