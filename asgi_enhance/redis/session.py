"""What a manager has on one event loop: the connections to its server, and redis-py's client."""

import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

import redis.asyncio
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.sentinel import SentinelConnectionPool

from asgi_enhance.asgi.tasks import Tasks
from asgi_enhance.redis.breaker import Backoff, Breaker
from asgi_enhance.redis.node import Node
from asgi_enhance.redis.stats import RedisStats
from asgi_enhance.redis.subscribe import Subscription
from asgi_enhance.redis.subscriber import Subscriber

Client = redis.asyncio.Redis | redis.asyncio.RedisCluster
Connect = Callable[[], Awaitable[AbstractConnection]]


@dataclass(frozen=True, slots=True)
class Plan:
    """A manager's settings, and how nodes and subscribers are made from them."""

    stats: RedisStats
    connect_timeout: float
    command_timeout: float
    max_in_flight: int
    breaker_threshold: int
    probe_delay: float
    max_probe_delay: float
    silence: float
    client_timeout: float

    @property
    def patience(self) -> float:
        """The longest a command takes when nothing is sent twice."""
        return self.connect_timeout + self.command_timeout

    def node(self, connect: Connect, label: str, tasks: Tasks) -> Node:
        return Node(
            connect,
            label=label,
            connect_timeout=self.connect_timeout,
            command_timeout=self.command_timeout,
            max_in_flight=self.max_in_flight,
            breaker=Breaker(self.breaker_threshold),
            backoff=Backoff(self.probe_delay, self.max_probe_delay),
            stats=self.stats,
            tasks=tasks,
        )

    def subscriber(
        self, connect: Connect, label: str, tasks: Tasks, on_moved: Callable[[], None] | None = None
    ) -> Subscriber:
        return Subscriber(
            connect,
            label=label,
            silence=self.silence,
            backoff=Backoff(self.probe_delay, self.max_probe_delay),
            stats=self.stats,
            tasks=tasks,
            on_moved=on_moved,
        )


class Session(Protocol):
    """What the manager asks of the loop's session; commands and subscriptions find their server in it."""

    @property
    def available(self) -> bool: ...
    @property
    def client(self) -> Client: ...
    def call(self, command: tuple[Any, ...], packed: bytes, idempotent: bool) -> Awaitable[Any]: ...
    def subscribe(self, subscription: Subscription) -> None: ...
    def unsubscribe(self, subscription: Subscription) -> None: ...
    def spawn(self, coroutine: Coroutine[Any, Any, Any], *, name: str) -> None: ...
    async def aclose(self) -> None: ...
    def drop(self) -> None: ...


class Server(Protocol):
    """Where a single session connects: a `Dialer` or a `SentinelDialer`."""

    @property
    def label(self) -> str: ...
    async def connect(self) -> AbstractConnection: ...
    def client(self, timeout: float) -> redis.asyncio.Redis: ...


class SingleSession:
    """One server: a connection for commands, and one for subscriptions."""

    def __init__(self, plan: Plan, server: Server) -> None:
        self._plan = plan
        self._server = server
        self._tasks = Tasks()
        self._node = plan.node(server.connect, server.label, self._tasks)
        self._subscriber = plan.subscriber(server.connect, server.label, self._tasks)
        self._client: redis.asyncio.Redis | None = None

    @property
    def available(self) -> bool:
        return not self._node.breaker.is_open

    @property
    def client(self) -> Client:
        if self._client is None:
            self._client = self._server.client(self._plan.client_timeout)
        return self._client

    def call(self, command: tuple[Any, ...], packed: bytes, idempotent: bool) -> Awaitable[Any]:
        return self._node.call(packed, idempotent=idempotent)

    def subscribe(self, subscription: Subscription) -> None:
        self._subscriber.add(subscription)

    def unsubscribe(self, subscription: Subscription) -> None:
        self._subscriber.remove(subscription)

    def spawn(self, coroutine: Coroutine[Any, Any, Any], *, name: str) -> None:
        self._tasks.spawn(coroutine, name=name)

    async def aclose(self) -> None:
        await self._tasks.cancel()
        await self._node.aclose()
        if self._client is not None:
            await close_client(self._client)

    def drop(self) -> None:
        self._node.drop()
        self._subscriber.drop()


async def close_client(client: Client) -> None:
    with contextlib.suppress(redis.RedisError, OSError):
        await client.aclose()
        if isinstance(client, redis.asyncio.Redis) and isinstance(client.connection_pool, SentinelConnectionPool):
            await client.connection_pool.sentinel_manager.aclose()
