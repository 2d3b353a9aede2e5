"""What a manager has on one event loop: the connections to its servers, and redis-py's client."""

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import redis.asyncio
from redis.asyncio.connection import AbstractConnection

from asgi_enhance.asgi.tasks import Tasks
from asgi_enhance.redis.address import Address
from asgi_enhance.redis.breaker import Breaker
from asgi_enhance.redis.dial import Dialer
from asgi_enhance.redis.node import Node
from asgi_enhance.redis.stats import RedisStats
from asgi_enhance.redis.subscribe import Subscription
from asgi_enhance.redis.subscriber import Subscriber

Connect = Callable[[], Awaitable[AbstractConnection]]


@dataclass(frozen=True, slots=True)
class Plan:
    """A manager's settings, and how nodes and subscribers are made from them."""

    address: Address
    dialer: Dialer
    stats: RedisStats
    connect_timeout: float
    command_timeout: float
    max_in_flight: int
    breaker_threshold: int
    probe_delay: float
    max_probe_delay: float
    silence: float
    client_timeout: float

    def node(self, connect: Connect, label: str, tasks: Tasks) -> Node:
        return Node(
            connect,
            label=label,
            patience=self.connect_timeout,
            timeout=self.command_timeout,
            max_in_flight=self.max_in_flight,
            breaker=self._breaker(),
            stats=self.stats,
            tasks=tasks,
        )

    def subscriber(
        self, connect: Connect, label: str, tasks: Tasks, on_moved: Callable[[list[Subscription]], None] | None = None
    ) -> Subscriber:
        return Subscriber(
            connect,
            label=label,
            silence=self.silence,
            breaker=self._breaker(),
            stats=self.stats,
            tasks=tasks,
            on_moved=on_moved,
        )

    def _breaker(self) -> Breaker:
        return Breaker(threshold=self.breaker_threshold, first_delay=self.probe_delay, last_delay=self.max_probe_delay)


class Session:
    """One server (itself, or the primary that the Sentinels name): a node, and a connection for subscriptions."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._tasks = Tasks()
        connect = plan.dialer.connect
        self._node = plan.node(connect, plan.dialer.label, self._tasks)
        self._subscriber = plan.subscriber(connect, plan.dialer.label, self._tasks)
        self._client: redis.asyncio.Redis | None = None

    @property
    def available(self) -> bool:
        return not self._node.breaker.is_open

    def call(self, command: tuple[Any, ...], packed: bytes, idempotent: bool) -> Awaitable[Any]:
        return self._node.call(packed, idempotent=idempotent)

    def subscribe(self, subscription: Subscription) -> None:
        self._subscriber.add(subscription)

    def unsubscribe(self, subscription: Subscription) -> None:
        self._subscriber.remove(subscription)

    def spawn(self, coroutine: Any, *, name: str) -> None:
        self._tasks.spawn(coroutine, name=name)

    @property
    def client(self) -> redis.asyncio.Redis:
        if self._client is None:
            self._client = self._make_client()
        return self._client

    async def aclose(self) -> None:
        await self._tasks.cancel()
        await self._node.aclose()
        if self._client is not None:
            with contextlib.suppress(redis.RedisError, OSError):
                await self._client.aclose()

    def drop(self) -> None:
        self._node.drop()
        self._subscriber.drop()

    def _make_client(self) -> redis.asyncio.Redis:
        pool = redis.asyncio.ConnectionPool(**self._plan.dialer.client_options(self._plan.client_timeout))
        return redis.asyncio.Redis.from_pool(pool)
