"""Real-time messages to clients: in groups, directly, to everyone; in this process or over all that share a Redis."""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import msgspec

from asgi_enhance.asgi.lifespan import Resource
from asgi_enhance.asgi.types import Message, Receive, Send
from asgi_enhance.broadcast.inbound import RESERVED, Handler, Processor
from asgi_enhance.broadcast.node import Authorize, Hook, Node, Options
from asgi_enhance.broadcast.policy import History, HistoryRules, Limits, checked_name, checked_policy
from asgi_enhance.broadcast.stats import Stats
from asgi_enhance.broadcast.wire import encode, unpack
from asgi_enhance.errors import ConfigError, WebSocketError
from asgi_enhance.options import checked
from asgi_enhance.redis import RedisManager


class WebSocketLike(Protocol):
    """An accepted WebSocket that speaks ASGI messages, as Starlette's and FastAPI's do."""

    async def receive(self) -> Message: ...

    async def send(self, message: Message) -> None: ...


@checked
class RealTimeStreamProcessor(Resource[Node]):
    """Takes connections, keeps them in groups, and sends messages to them; several connections of one client are one.

    redis:         a RedisManager or a URL, to reach the clients of all processes that share it. Default: this process.
    history:       which groups keep their last messages, for clients that come back: `{"news": History(), "room:*":
                   History(size=50)}`; a name or a prefix with `*`. Default: none; these deliver at most once.
    authorize:     `(client_id, group, action) -> bool`, sync or async, asked when a client wants to `join` a group, to
                   `publish` to it or to see its `presence`. Default: all but `publish` is allowed.
    on_connect:    `(client_id)`, sync or async, called after a connection has been taken.
    on_disconnect: `(client_id)`, sync or async, called after a connection has gone.
    slow_consumer: what happens to a connection whose outbox is full: `disconnect` (default, code 1013), `drop-oldest`,
                   `drop-newest`, `latest-per-key`.
    heartbeat:     seconds between comments on an idle event stream, so that proxies keep it open. Default 15.
    idle_timeout:  seconds after which a WebSocket whose client has pinged, and stopped, is closed. Default 60.
                   A client that never pings is left to the server's own WebSocket pings.
    retry:         seconds an event stream's client waits before it reconnects. Default 2.
    limits:        the bounds of everything else, see `Limits`.

    Counted in `stats`.
    """

    def __init__(
        self,
        *,
        redis: RedisManager | str | None = None,
        history: Mapping[str, History] | None = None,
        authorize: Authorize | None = None,
        on_connect: Hook | None = None,
        on_disconnect: Hook | None = None,
        slow_consumer: str = "disconnect",
        heartbeat: float = 15.0,
        idle_timeout: float = 60.0,
        retry: float = 2.0,
        limits: Limits | None = None,
    ) -> None:
        super().__init__()
        for name, seconds in (("heartbeat", heartbeat), ("idle_timeout", idle_timeout), ("retry", retry)):
            if seconds <= 0:
                raise ConfigError(f"{name} must be a positive number of seconds, not {seconds!r}")
        self.stats = Stats()
        self.options = Options(
            history=HistoryRules(history or {}),
            authorize=authorize,
            on_connect=on_connect,
            on_disconnect=on_disconnect,
            slow_consumer=checked_policy(slow_consumer),
            heartbeat=heartbeat,
            idle_timeout=idle_timeout,
            retry=retry,
            limits=limits or Limits(),
            redis=RedisManager.of(redis),
        )
        self.needs = (self.options.redis,)
        self._processors: dict[str, Processor] = {}
        self._loop: asyncio.AbstractEventLoop | None = None  # where it runs, if only one loop can reach its connections

    def __repr__(self) -> str:
        return f"<RealTimeStreamProcessor {self.stats.connections} connections, {self.stats.groups} groups>"

    # -- connections

    async def add_connection(
        self,
        client_id: str,
        websocket: WebSocketLike | tuple[Receive, Send],
        groups: Iterable[str] | None = None,
        *,
        listen: bool = True,
    ) -> None:
        """Take a WebSocket that has been accepted already, and serve it until its client has left.

        websocket: an object with ASGI's `receive()` and `send(message)`, such as Starlette's and FastAPI's, or the
                   pair `(receive, send)` itself.
        groups:    joined at once; `authorize` is not asked, since it is not the client who asks.
        listen:    False returns as soon as the connection is taken. The caller reads the socket himself then, and
                   calls `remove_connection` when the client has left; else it stays until a message cannot be sent.

        Raises WebSocketError if the socket has not been accepted, a limit is reached or the processor drains, and
        RedisUnavailable if a group with a history cannot be joined. The socket stays open and the caller's then.
        """
        if isinstance(groups, str):
            raise ConfigError(f"groups must be several names, not the string {groups!r}")
        if getattr(getattr(websocket, "application_state", None), "name", "") == "CONNECTING":  # Starlette's
            raise WebSocketError("accept the WebSocket before you add it")
        node = await self.started()
        receive, send = websocket if isinstance(websocket, tuple) else (websocket.receive, websocket.send)
        connection = await node.connect(client_id, send, dict.fromkeys(groups or ()), served=listen)
        if listen:
            await node.listen(connection, receive)

    async def remove_connection(
        self, client_id: str, websocket: WebSocketLike | tuple[Receive, Send] | None = None
    ) -> None:
        """Forget the connections that a client has in this process, or the one with this socket.

        Those that are served here are closed with code 1000; `add_connection` returns then.
        """
        node = await self.started()
        send = websocket[1] if isinstance(websocket, tuple) else websocket.send if websocket is not None else None
        for connection in node.hub.clients.get(client_id, ()):
            if send is not None and connection.send != send:
                continue
            if connection.served:
                node.hub.rounds.catch_up(connection)
                connection.close(1000, "", flush=True)
            else:
                await node.disconnect(connection)

    async def join(self, client_id: str, group: str) -> None:
        """Put all connections that a client has in this process into a group."""
        node = await self.started()
        for connection in node.hub.clients.get(client_id, ()):
            if group not in connection.groups:
                await node.enter(connection, group)

    async def leave(self, client_id: str, group: str) -> None:
        """Take all connections that a client has in this process out of a group."""
        node = await self.started()
        for connection in node.hub.clients.get(client_id, ()):
            node.exit(connection, group)

    # -- messages

    async def send_to_client(self, client_id: str, message: Any, *, key: str | None = None) -> bool:
        """Send a message to all connections of a client, wherever they are. Whether he is connected anywhere.

        key: what the message is about, for outboxes that keep the latest per key.
        """
        node = await self.started()
        self.stats.published += 1
        return await node.transport.direct(checked_name(client_id, "client_id"), _encoded(message), _checked_key(key))

    async def broadcast_to_group(
        self, group: str, message: Any, *, key: str | None = None, idempotency_key: str | None = None
    ) -> str | None:
        """Send a message to all members of a group, wherever they are.

        message:         anything msgspec encodes as JSON; `msgspec.Raw` is sent as it is, and must be JSON in UTF-8.
        key:             what the message is about, for outboxes that keep the latest per key.
        idempotency_key: a message with a key that the group's history knows is not published again.

        The message's id if the group keeps a history: it is accepted then, and everyone gets it or a reset. Raises
        RedisUnavailable if it may not have been accepted; the same call with the same idempotency key is safe. None
        if the group keeps no history: it is delivered at most once, in this process in any case. Without Redis, a
        history that would be one group more than `limits.groups` raises WebSocketError.
        """
        node = await self.started()
        return await node.publish(
            checked_name(group, "group"), _encoded(message), _checked_key(key), _checked_key(idempotency_key)
        )

    async def broadcast_all(self, message: Any, *, key: str | None = None) -> None:
        """Send a message to every connection of every process, at most once."""
        node = await self.started()
        self.stats.published += 1
        await node.transport.everyone(_encoded(message), _checked_key(key))

    def register_processor(self, type: str, handler: Handler, *, schema: Any = None) -> None:
        """Have inbound messages of a type handled by `handler(client_id, message)`, sync or async.

        Messages of one connection are handled one after the other. What the handler returns, unless None, is sent back
        to the connection. An exception is logged and answered with an error. A sync handler runs on the event loop: it
        must not block. A second handler of the same type takes the place of the first.

        schema: a msgspec Struct, dataclass or TypedDict the message is converted to; what does not fit is answered
                with an error. Default: the decoded JSON object.
        """
        if not isinstance(type, str) or type in RESERVED:
            raise ConfigError(f"type must be a string and none of {', '.join(RESERVED)}, not {type!r}")
        if not callable(handler):
            raise ConfigError(f"handler must be callable, not {handler!r}")
        self._processors[type] = Processor(handler, schema)

    async def presence(self, group: str) -> list[str]:
        """The ids of the clients that are in a group, wherever they are."""
        node = await self.started()
        return await node.transport.presence(checked_name(group, "group"))

    async def history(self, group: str) -> list[Any]:
        """The messages that a group remembers, oldest first. Empty if it keeps no history."""
        node = await self.started()
        found = await node.transport.history(checked_name(group, "group"))
        return [] if found is None else [msgspec.json.decode(unpack(entry.blob)[0]) for entry in found[1]]

    # -- life

    async def drain(self, spread: float = 2.0) -> None:
        """Refuse new connections and close the present ones (1012), each at a random moment within `spread` seconds.

        Event streams end with a `retry:` of their own within the same bounds. Returns when all have gone.
        """
        node = self.opened()
        if node is not None:
            await node.drain(spread)

    async def _start(self) -> Node:
        loop = asyncio.get_running_loop()
        if (
            self.options.redis is None
            and self._loop is not None
            and self._loop is not loop
            and not self._loop.is_closed()
        ):
            raise WebSocketError(
                "this processor runs on another event loop, whose connections cannot be reached from here without "
                "redis: call it there, as with asyncio.run_coroutine_threadsafe"
            )
        self._loop = loop
        node = Node(self.options, self._processors, self.stats)
        await node.start()
        return node

    async def _stop(self, value: Node) -> None:
        self._loop = None
        await value.stop()


def _encoded(message: Any) -> bytes:
    """A message as JSON. What msgspec.Raw brought along must at least be text, or nobody here could be sent it."""
    data = encode(message)
    data.decode()
    return data


def _checked_key(key: str | None) -> str | None:
    return None if key is None else checked_name(key, "key")
