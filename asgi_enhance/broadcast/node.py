"""One processor on one event loop: takes connections, lets them into groups, watches over them, lets them go."""

import asyncio
import inspect
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeAlias

from asgi_enhance.asgi.problem import Problem
from asgi_enhance.asgi.tasks import Tasks
from asgi_enhance.asgi.types import Send
from asgi_enhance.broadcast.connection import Connection, Shared
from asgi_enhance.broadcast.hub import Group, Hub
from asgi_enhance.broadcast.inbound import Inbound, Processor
from asgi_enhance.broadcast.log import Position, Start
from asgi_enhance.broadcast.policy import Action, HistoryRules, Limits, SlowConsumer, checked_name
from asgi_enhance.broadcast.remote import RedisTransport
from asgi_enhance.broadcast.stats import Stats
from asgi_enhance.broadcast.transport import LocalTransport, Transport
from asgi_enhance.broadcast.wire import Encoding, Frame
from asgi_enhance.errors import WebSocketError
from asgi_enhance.redis import RedisManager

logger = logging.getLogger("asgi_enhance.broadcast")

GOING_AWAY = 1001
SERVICE_RESTART = 1012

BREATH = 500
"""Connections looked after in one turn of the loop: some tenths of a millisecond."""

Authorize: TypeAlias = Callable[[str, str, Action], bool | Awaitable[bool]]
Hook: TypeAlias = Callable[[str], Any]


class Refused(WebSocketError):
    """A connection is not taken: the HTTP status that says why, a detail fit for the client, or a whole problem."""

    def __init__(self, status: int, detail: str, *, problem: Problem | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.problem = problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the processor was given, checked."""

    history: HistoryRules
    authorize: Authorize | None
    on_connect: Hook | None
    on_disconnect: Hook | None
    slow_consumer: SlowConsumer
    heartbeat: float
    idle_timeout: float
    retry: float
    limits: Limits
    redis: RedisManager | None


class Node:
    """The connections of a processor on the running loop, and what serves them."""

    def __init__(self, options: Options, processors: Mapping[str, Processor], stats: Stats) -> None:
        self.options = options
        self.draining = False
        self.on_arrival: Callable[[], None] = lambda: None  # a connection is about to be taken
        self._tasks = Tasks()
        self._stats = stats
        self._limits = options.limits
        self.hub = Hub(Shared(options.limits, options.slow_consumer, stats, self._tasks))
        self.transport: Transport
        if options.redis is None:
            self.transport = LocalTransport(self.hub, options.history)
        else:
            self.transport = RedisTransport(self.hub, options.history, options.redis, self._tasks)
        self.listen = Inbound(self.hub, processors, self).listen
        self._pending: Counter[str] = Counter()  # connections that are being taken, by client
        self._all_pending = 0
        self._emptied = asyncio.Event()
        self._comment = Frame({"type": "http.response.body", "body": b":\n\n", "more_body": True}, 3)

    async def start(self) -> None:
        await self.transport.start()
        self._tasks.spawn(self._watch(), name="broadcast watch")

    async def stop(self) -> None:
        await self.drain(0.0)
        await self._tasks.cancel()
        await self.transport.stop()

    # -- connections

    def admit(self, client_id: str, groups: int) -> None:
        """Refuse a connection that is beyond the limits. Nothing is held for one that is not."""
        limits = self._limits
        try:
            checked_name(client_id, "client_id")
        except ValueError as error:
            raise Refused(400, str(error)) from None
        if self.draining:
            raise Refused(503, "the server is going away")
        if len(self.hub.connections) + self._all_pending >= limits.connections:
            raise Refused(503, "too many connections")
        if len(self.hub.clients.get(client_id, ())) + self._pending[client_id] >= limits.connections_per_client:
            raise Refused(429, "too many connections of this client")
        if groups > limits.groups_per_connection:
            raise Refused(400, f"a connection may be in {limits.groups_per_connection} groups")

    async def connect(
        self,
        client_id: str,
        send: Send,
        groups: Mapping[str, Start],
        encoding: Encoding = Encoding.WEBSOCKET,
        accept: Callable[[], Awaitable[None]] | None = None,
        *,
        served: bool = True,
    ) -> Connection:
        """Take a connection; `listen` serves it, unless the caller reads the socket himself (not `served`).

        groups: to be joined, each with where its client begins.
        accept: awaited when nothing can refuse the connection any more.

        Raises Refused, or RedisUnavailable, before `accept` is called.
        """
        self.admit(client_id, len(groups))
        self.on_arrival()
        self._pending[client_id] += 1
        self._all_pending += 1
        try:
            attached = await self._prepare(client_id, groups, accept)
        finally:
            self._all_pending -= 1
            self._pending[client_id] -= 1
            if not self._pending[client_id]:
                del self._pending[client_id]
        connection = Connection(client_id, send, encoding, self.hub.shared)
        connection.served = served
        if encoding is Encoding.EVENT_STREAM_CURSOR:
            connection.positions = {name: at for name, at in groups.items() if isinstance(at, Position)}
        self.hub.add(connection)
        self._emptied.clear()
        self._stats.connected += 1
        for group in attached:
            self._let_in(connection, group, groups[group.name])
        if self.draining:
            self._dismiss(connection)
        try:
            await self._call(self.options.on_connect, client_id)
        except BaseException:  # cancelled
            await self.disconnect(connection)
            raise
        return connection

    async def disconnect(self, connection: Connection) -> None:
        """Forget a connection and everything that was held for it."""
        while connection.groups:  # one by one: a `send` of what it is given before it leaves may have it join another
            self._let_out(connection, next(iter(connection.groups.values())))
        known = self.hub.remove(connection)
        if known:
            self.transport.detach_client(connection.client_id)
        if not self.hub.connections:
            self._emptied.set()
        await connection.ended()
        if known:
            await self._call(self.options.on_disconnect, connection.client_id)

    async def _prepare(
        self, client_id: str, groups: Mapping[str, Start], accept: Callable[[], Awaitable[None]] | None
    ) -> list[Group]:
        """Everything a connection needs before it can be told that it is taken; undone if it is not."""
        with ExitStack() as undo:
            await self.transport.attach_client(client_id)
            undo.callback(self.transport.detach_client, client_id)
            attached = []
            for name, since in groups.items():
                group = await self._attach(name, since)
                undo.callback(self._detach, group)
                attached.append(group)
            if accept is not None:
                await accept()
            undo.pop_all()
        return attached

    # -- groups and their messages

    async def allowed(self, client_id: str, group: str, action: Action) -> bool:
        if self.options.authorize is None:
            return action != "publish"
        answer = self.options.authorize(client_id, group, action)
        return bool(await answer if inspect.isawaitable(answer) else answer)

    async def enter(
        self,
        connection: Connection,
        name: str,
        since: Start = None,
        *,
        asked: bool = False,
        ref: object = None,
    ) -> None:
        """Let a connection into a group; one that is in it already is given what it missed since `since`."""
        if name not in connection.groups and len(connection.groups) >= self._limits.groups_per_connection:
            raise ValueError(f"a connection may be in {self._limits.groups_per_connection} groups")
        group = await self._attach(name, since)
        if connection.closing or connection not in self.hub.connections:
            self._detach(group)
            return
        if name in connection.groups:
            self._let_out(connection, group)
        self._let_in(connection, group, since, asked=asked, ref=ref)

    def exit(self, connection: Connection, name: str) -> None:
        group = connection.groups.get(name)
        if group is not None:
            self._let_out(connection, group)

    async def publish(self, group: str, data: bytes, key: str | None, idempotency_key: str | None) -> str | None:
        """Send a message to a group; its id if the group keeps a history."""
        if idempotency_key is not None and self.options.history(group) is None:
            raise ValueError(f"an idempotency key needs a history, and group {group!r} keeps none")
        self._stats.published += 1
        position = await self.transport.publish(group, data, key, idempotency_key)
        return str(position) if position is not None else None

    async def presence(self, group: str) -> list[str]:
        return await self.transport.presence(group)

    async def _attach(self, name: str, since: Start) -> Group:
        checked_name(name, "group")
        if name not in self.hub.groups and len(self.hub.groups) >= self._limits.groups:
            raise Refused(503, "too many groups")
        group = self.hub.group(name)
        group.users += 1
        try:
            await self.transport.attach(group, since)
        except BaseException:
            self._detach(group)
            raise
        return group

    def _detach(self, group: Group) -> None:
        group.users -= 1
        if group.users == 0:
            self.transport.detach(group)

    def _let_in(
        self,
        connection: Connection,
        group: Group,
        since: Start,
        *,
        asked: bool = False,
        ref: object = None,
    ) -> None:
        if self.hub.enter(connection, group, since, asked=asked, ref=ref):
            self.transport.entered(group, connection.client_id)
        else:
            self._detach(group)

    def _let_out(self, connection: Connection, group: Group) -> None:
        if self.hub.leave(connection, group):
            self.transport.left(group, connection.client_id)
            self._detach(group)

    # -- life

    async def drain(self, spread: float) -> None:
        """Refuse new connections and send the present ones away within `spread` seconds; return when they have gone."""
        self.draining = True
        loop = self.hub.shared.loop
        for connection in tuple(self.hub.connections):
            loop.call_later(random.uniform(0, spread), self._dismiss, connection)
        if self.hub.connections:
            try:
                async with asyncio.timeout(spread + 2 * self._limits.close_seconds):
                    await self._emptied.wait()
            except TimeoutError:
                logger.warning("%d connections have not gone while draining", len(self.hub.connections))

    def _dismiss(self, connection: Connection) -> None:
        self.hub.rounds.catch_up(connection)
        retry = b"retry: %d\n\n" % (1000 * self.options.retry * random.uniform(0.5, 1.5))
        last = {"type": "http.response.body", "body": retry, "more_body": False}
        connection.close(SERVICE_RESTART, "service restart", flush=True, last=last)

    async def _watch(self) -> None:
        """Once a second: who is stuck, who has fallen silent, which streams need a heartbeat, which groups are over."""
        loop = self.hub.shared.loop
        pause = min(1.0, self.options.heartbeat / 2, self.options.idle_timeout / 4, self._limits.send_seconds / 4)
        beat = loop.time() + self.options.heartbeat
        while True:
            await asyncio.sleep(pause)
            now = loop.time()
            beats = now >= beat
            if beats:
                beat = now + self.options.heartbeat
            for number, connection in enumerate(tuple(self.hub.connections), 1):
                self._look_after(connection, now, beats)
                if number % BREATH == 0:
                    await asyncio.sleep(0)
            self.transport.sweep(now)

    def _look_after(self, connection: Connection, now: float, beats: bool) -> None:
        if connection.released and connection.reader is None:
            # its socket is read by somebody else, who may not come back to say that it is over
            self._tasks.spawn(self.disconnect(connection), name=f"broadcast forget {connection.client_id}")
        if connection.closing:
            return
        if connection.stuck(now):
            self._stats.slow_disconnects += 1
            connection.close(GOING_AWAY, "not reading")
        elif connection.last_seen is not None and now - connection.last_seen > self.options.idle_timeout:
            self._stats.idle_disconnects += 1
            connection.close(GOING_AWAY, "idle")
        elif beats and connection.encoding is not Encoding.WEBSOCKET and not connection.busy:
            connection.deliver(self._comment)

    async def _call(self, hook: Hook | None, client_id: str) -> None:
        if hook is None:
            return
        try:
            answer = hook(client_id)
            if inspect.isawaitable(answer):
                await answer
        except Exception:
            logger.exception("a hook of the connection of client %r failed", client_id)
