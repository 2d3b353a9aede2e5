"""The broadcaster as ASGI: answers its WebSocket and event-stream paths, passes the rest on."""

import inspect
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias
from urllib.parse import parse_qsl

from asgi_enhance.asgi.lifespan import run_lifespan
from asgi_enhance.asgi.problem import Problem
from asgi_enhance.asgi.scope import header, path_below_mount
from asgi_enhance.asgi.types import ASGIApp, Headers, Receive, Scope, Send
from asgi_enhance.broadcast.connection import Connection
from asgi_enhance.broadcast.core import RealTimeStreamProcessor
from asgi_enhance.broadcast.log import Position, Start
from asgi_enhance.broadcast.node import Authorize, Hook, Node, Refused
from asgi_enhance.broadcast.policy import History, checked_name, listed_origin, origin_allowed
from asgi_enhance.broadcast.sigterm import DrainOnSigterm
from asgi_enhance.broadcast.wire import Encoding, cursor_positions
from asgi_enhance.errors import ConfigError, RedisUnavailable
from asgi_enhance.options import checked
from asgi_enhance.redis import RedisManager

Identity: TypeAlias = str | Problem | None
Starts: TypeAlias = dict[str, Start]
Authenticate: TypeAlias = Callable[[Scope], Identity | Awaitable[Identity]]


RETRY = [(b"retry-after", b"1")]
ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/?#*\s]+", re.IGNORECASE)
"""As RFC 6454 §6.2 writes them: no path, and no slash at the end."""


@checked
class BroadcastRouter:
    """Serves WebSockets at `path` and Server-Sent Events at `sse_path`; everything else goes to `app`.

    Both take the groups to join from the query (`?group=a&group=b`), and continue them after the cursor in the
    Last-Event-ID header, or in the query as `last_event_id`, where a browser can set no header. Groups that the cursor
    does not name begin with their last messages, `?last=20`, or with the next one.

    app:           the app for everything else. Default: none, and everything else is 404.
    processor:     the RealTimeStreamProcessor behind it, to share it with your own code. Default: one of its own, made
                   of `redis`, `history`, `authorize`, `on_connect` and `on_disconnect`, which exclude `processor`.
    path:          of WebSockets; `{client_id}` stands for one segment. None: no WebSockets.
    sse_path:      of event streams, likewise. None: no event streams.
    authenticate:  `(scope)`, sync or async, gives the client id, or None (401) or a Problem to refuse. Default: whoever
                   connects is who the path says. Anybody can say so: authenticate where that matters.
    origins:       pages that may connect besides those of the same host: `https://example.org`, or `*` for all.
    drain_spread:  on SIGTERM, seconds within which connections are sent away before the server goes on to stop; with
                   nobody connected it does so at once. Default 2. None: SIGTERM is left alone.
    """

    def __init__(
        self,
        app: ASGIApp | None = None,
        *,
        processor: RealTimeStreamProcessor | None = None,
        redis: RedisManager | str | None = None,
        path: str | None = "/ws/{client_id}",
        sse_path: str | None = "/events/{client_id}",
        authenticate: Authenticate | None = None,
        origins: Collection[str] = (),
        history: Mapping[str, History] | None = None,
        authorize: Authorize | None = None,
        on_connect: Hook | None = None,
        on_disconnect: Hook | None = None,
        drain_spread: float | None = 2.0,
    ) -> None:
        parts = {
            "redis": redis,
            "history": history,
            "authorize": authorize,
            "on_connect": on_connect,
            "on_disconnect": on_disconnect,
        }
        if processor is not None:
            for name, part in parts.items():
                if part is not None:
                    raise ConfigError(f"{name} belongs to the processor: give it there, or give no processor")
        if isinstance(origins, str):
            raise ConfigError(f"origins must be a collection of origins, not the string {origins!r}")
        for origin in origins:
            if not ORIGIN.fullmatch(origin):
                raise ConfigError(f"origins must be like https://example.org, or *, not {origin!r}")
        if drain_spread is not None and drain_spread < 0:
            raise ConfigError(f"drain_spread must be a number of seconds or None, not {drain_spread!r}")
        self.app = app
        self.processor = processor if processor is not None else RealTimeStreamProcessor(**parts)  # type: ignore[arg-type]
        self._websocket = _template("path", path, authenticate)
        self._events = _template("sse_path", sse_path, authenticate)
        self._authenticate = authenticate
        self._sigterm = DrainOnSigterm(self.processor, drain_spread) if drain_spread is not None else None
        self._origins = frozenset(map(listed_origin, origins))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "lifespan":
            resources: list[AbstractAsyncContextManager[Any]] = [self.processor]
            if self._sigterm is not None:
                resources.append(self._sigterm)
            await run_lifespan(self.app, scope, receive, send, resources)
            return
        template = self._websocket if kind == "websocket" else self._events if kind == "http" else None
        match = template.fullmatch(path_below_mount(scope)) if template is not None else None
        if match is None:
            await self._pass_on(scope, receive, send)
            return
        node = await self.processor.started()
        open = self._open_websocket if kind == "websocket" else self._open_events
        connection = await open(node, scope, receive, send, match["client_id"] if match.groupdict() else "")
        if connection is not None:
            del match, open  # what is still in hand here is kept for as long as the connection
            await node.listen(connection, receive)

    async def drain(self, spread: float = 2.0) -> None:
        """Refuse new connections and send the present ones away; see `RealTimeStreamProcessor.drain`."""
        await self.processor.drain(spread)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.app is not None:
            await self.app(scope, receive, send)
        else:
            await Problem(404)(scope, receive, send)

    async def _open_websocket(
        self, node: Node, scope: Scope, receive: Receive, send: Send, client_id: str
    ) -> Connection | None:
        if (await receive())["type"] != "websocket.connect":
            return None

        async def accept() -> None:
            await send({"type": "websocket.accept"})

        try:
            client_id = await self._identify(scope, client_id)
            groups = await self._allowed(node, client_id, self._starts(scope))
            return await node.connect(client_id, send, groups, Encoding.WEBSOCKET, accept)
        except (Refused, RedisUnavailable) as error:
            self.processor.stats.refused += 1
            await _problem(error).refuse(scope, send)
            return None

    async def _open_events(
        self, node: Node, scope: Scope, receive: Receive, send: Send, client_id: str
    ) -> Connection | None:
        headers: Headers = [
            (b"content-type", b"text/event-stream"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),  # nginx would hold the stream back
            *self._cors(scope),
        ]
        retry = b"retry: %d\n\n" % int(1000 * node.options.retry)

        async def accept() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": retry, "more_body": True})

        if scope["method"] != "GET":
            await Problem(405, headers=[(b"allow", b"GET")])(scope, receive, send)
            return None
        try:
            client_id = await self._identify(scope, client_id)
            groups = await self._allowed(node, client_id, self._starts(scope))
            kept = sum(node.options.history(group) is not None for group in groups)
            encoding = Encoding.EVENT_STREAM_CURSOR if kept > 1 else Encoding.EVENT_STREAM
            return await node.connect(client_id, send, groups, encoding, accept)
        except (Refused, RedisUnavailable) as error:
            self.processor.stats.refused += 1
            await _problem(error)(scope, receive, send)
            return None

    async def _identify(self, scope: Scope, client_id: str) -> str:
        """Who connects, as far as this page and this person may."""
        origin = _text(header(scope["headers"], b"origin"))
        if not origin_allowed(origin, _text(header(scope["headers"], b"host")), self._origins):
            raise Refused(403, "pages of this origin may not connect")
        if self._authenticate is None:
            return client_id
        answer = self._authenticate(scope)
        identity = await answer if inspect.isawaitable(answer) else answer
        if isinstance(identity, Problem):
            raise Refused(identity.status, identity.detail, problem=identity)
        if identity is None:
            raise Refused(401, "")
        if not isinstance(identity, str):
            raise TypeError(f"authenticate must give a str, None or a Problem, not {identity!r}")
        return identity

    async def _allowed(self, node: Node, client_id: str, groups: Starts) -> Starts:
        node.admit(client_id, len(groups))  # before anybody is asked about every group that an address can hold
        for group in groups:
            try:
                checked_name(group, "group")
            except ValueError as error:
                raise Refused(400, str(error)) from None
            if not await node.allowed(client_id, group, "join"):
                raise Refused(403, f"not allowed to join group {group!r}")
        return groups

    def _starts(self, scope: Scope) -> Starts:
        cursor = _text(header(scope["headers"], b"last-event-id")) or "".join(_query(scope, "last_event_id")[-1:])
        known = cursor_positions(cursor, self.processor.options.limits.groups_per_connection)
        unknown: Start = None
        if cursor and not known:
            unknown = Position("", 0)  # a cursor that cannot be read is one that cannot be continued
        elif last := "".join(_query(scope, "last")[-1:]):
            if not (last.isascii() and last.isdigit() and len(last) < 10 and int(last)):
                raise Refused(400, "'last' is a number of messages, at least 1")
            unknown = int(last)
        return {group: known.get(group, unknown) for group in _query(scope, "group")}

    def _cors(self, scope: Scope) -> Headers:
        origin = header(scope["headers"], b"origin")
        if origin is None:
            return []
        if origin.decode("latin-1").lower() in self._origins:
            return [
                (b"access-control-allow-origin", origin),
                (b"access-control-allow-credentials", b"true"),
                (b"vary", b"Origin"),
            ]
        return [(b"access-control-allow-origin", b"*")] if "*" in self._origins else []


def _template(name: str, path: str | None, authenticate: Authenticate | None) -> re.Pattern[str] | None:
    if path is None:
        return None
    if not path.startswith("/") or path.count("{client_id}") > 1:
        raise ConfigError(f"{name} must begin with a slash and have at most one {{client_id}}, not {path!r}")
    if "{client_id}" not in path and authenticate is None:
        raise ConfigError(f"{name} must contain {{client_id}} unless authenticate tells the client's id")
    before, placeholder, after = path.partition("{client_id}")
    return re.compile(re.escape(before) + ("(?P<client_id>[^/]+)" if placeholder else "") + re.escape(after))


def _problem(error: Refused | RedisUnavailable) -> Problem:
    if not isinstance(error, Refused):
        return Problem(503, detail="try again later", headers=RETRY)
    return error.problem or Problem(
        error.status, detail=str(error), headers=RETRY if error.status in (429, 503) else ()
    )


def _query(scope: Scope, name: str) -> list[str]:
    pairs = parse_qsl(scope.get("query_string", b"").decode("latin-1"))
    return list(dict.fromkeys(value for key, value in pairs if key == name))


def _text(value: bytes | None) -> str | None:
    return value.decode("latin-1") if value is not None else None
