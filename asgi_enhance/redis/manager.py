"""`RedisManager`: the one Redis of an application, shared by all its layers."""

import asyncio
import os
import weakref
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

from asgi_enhance.asgi.lifespan import Resource
from asgi_enhance.errors import ConfigError, RedisUnavailable
from asgi_enhance.options import checked
from asgi_enhance.redis import commands
from asgi_enhance.redis.script import Script
from asgi_enhance.redis.stats import RedisStats
from asgi_enhance.redis.subscribe import Subscription

if TYPE_CHECKING:
    import redis.asyncio

    from asgi_enhance.redis.session import Session

Argument = str | bytes | int | float

_URL = "REDIS_URL"
_by_url: "weakref.WeakValueDictionary[str, RedisManager]" = weakref.WeakValueDictionary()


@checked
class RedisManager(Resource["Session"]):
    """Batched commands, scripts and subscriptions on one Redis, Valkey, Sentinel or Cluster.

    url:               `redis://`, `rediss://`, `unix://`, `redis+sentinel://host,host/service/db`,
                       `redis+cluster://host,host`. Default: the environment's REDIS_URL; without one, `ConfigError`.
    prefix:            what every key begins with. Default "asgi_enhance".
    connect_timeout:   seconds to connect and authenticate, and the longest a command waits for a connection or for
                       room on it. Default 0.25.
    command_timeout:   seconds from writing a command to its reply; then the connection is discarded. Default 0.25.
    max_in_flight:     commands without a reply, per server, before callers wait. Default 1024.
    breaker_threshold: failures in a row (to connect, or of a connection) that open the breaker. Default 3.
    probe_delay:       seconds before the first probe of an open breaker; doubles. Default 0.1.
    max_probe_delay:   seconds between probes at most. Default 2.
    silence:           seconds without a byte before a subscription's connection is asked for one, and again before it
                       is made anew. Default 2.
    client_timeout:    seconds a command of `.client` may take, blocking ones too. Default 5.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        prefix: str = "asgi_enhance",
        connect_timeout: float = 0.25,
        command_timeout: float = 0.25,
        max_in_flight: int = 1024,
        breaker_threshold: int = 3,
        probe_delay: float = 0.1,
        max_probe_delay: float = 2.0,
        silence: float = 2.0,
        client_timeout: float = 5.0,
    ) -> None:
        super().__init__()
        if url is None and not (url := os.environ.get(_URL)):
            raise ConfigError(f"url: give a Redis URL, or set {_URL}")
        if not prefix:
            raise ConfigError("prefix: must not be empty")
        for name, value in {
            "connect_timeout": connect_timeout,
            "command_timeout": command_timeout,
            "max_in_flight": max_in_flight,
            "breaker_threshold": breaker_threshold,
            "probe_delay": probe_delay,
            "max_probe_delay": max_probe_delay,
            "silence": silence,
            "client_timeout": client_timeout,
        }.items():
            if not value > 0:
                raise ConfigError(f"{name}: must be positive, not {value!r}")

        from asgi_enhance.redis.address import Address
        from asgi_enhance.redis.cluster import ClusterSession
        from asgi_enhance.redis.dial import Dialer, dialer_for
        from asgi_enhance.redis.session import Plan, SingleSession
        from asgi_enhance.redis.wire import pack

        address = Address.parse(url)
        self.prefix = prefix
        self.clustered = address.kind == "cluster"  # keys of one command or script must then share a slot
        self._label = address.label
        self.stats = RedisStats()
        plan = Plan(
            stats=self.stats,
            connect_timeout=connect_timeout,
            command_timeout=command_timeout,
            max_in_flight=max_in_flight,
            breaker_threshold=breaker_threshold,
            probe_delay=probe_delay,
            max_probe_delay=max_probe_delay,
            silence=silence,
            client_timeout=client_timeout,
        )
        self._patience = plan.patience
        dialer = dialer_for(address, timeout=connect_timeout)
        self._make_session: Callable[[], Session] = partial(SingleSession, plan, dialer)
        if address.kind == "cluster":
            assert isinstance(dialer, Dialer)
            self._make_session = partial(ClusterSession, plan, address, dialer)
        self._sessions: dict[asyncio.AbstractEventLoop, Session] = {}
        self._pack = pack
        self._known: set[object] = set()  # names of commands as callers spell them, found to be good

    @classmethod
    def of(cls, redis: "RedisManager | str | None") -> "RedisManager | None":
        """The manager itself; for a URL, the one that `of` made for it before, or a new one; None for None."""
        if redis is None or isinstance(redis, RedisManager):
            return redis
        if not isinstance(redis, str):
            raise ConfigError(f"redis must be a RedisManager or a URL, not {type(redis).__name__}")
        manager = _by_url.get(redis)
        if manager is None:
            manager = _by_url[redis] = cls(redis)
        return manager

    def __repr__(self) -> str:
        return f"<RedisManager {self._label} {'available' if self.available else 'unavailable'}>"

    async def execute(self, name: str | bytes, *arguments: Argument, idempotent: bool = False) -> Any:
        """Run one command and give its reply as it came: bytes, ints, lists.

        `RedisUnavailable` when Redis is away or too slow; redis-py's `ResponseError` when it says no. A command that
        may have run is sent again only if `idempotent`.
        """
        command = (name, *arguments)
        if name not in self._known:
            self._judge(command)
        try:
            packed = self._pack(command)
        except TypeError:
            command = tuple(map(_plain, command))
            packed = self._pack(command)
        session = self.opened() or self._session()
        try:
            return await session.call(command, packed, idempotent)
        except RedisUnavailable:
            self.stats.unavailable += 1
            raise

    def script(self, text: str) -> Script:
        """A Lua script to call: `await script(keys=[…], args=[…])`."""
        return Script(self, text)

    def subscribe(
        self,
        channel: str | bytes,
        on_message: Callable[[bytes], None],
        on_gap: Callable[[], None] | None = None,
        *,
        sharded: bool = False,
    ) -> Subscription:
        """Listen on a channel from now until `close()`, through reconnects.

        `on_message(payload)` and `on_gap()` are called by the reader and must not block; `on_gap` is called after every
        reconnect: messages may have been missed. `sharded` uses SSUBSCRIBE (publish with SPUBLISH).
        """
        session = self.opened() or self._session()
        name = channel.encode() if isinstance(channel, str) else channel
        subscription = Subscription(
            name, on_message, on_gap, sharded=sharded, patience=self._patience, release=session.unsubscribe
        )
        session.subscribe(subscription)
        return subscription

    async def ping(self) -> float:
        """The seconds a PING takes now."""
        begun = perf_counter()  # uvloop's own clock stands still between two turns, and counts milliseconds
        await self.execute("PING", idempotent=True)
        return perf_counter() - begun

    @property
    def available(self) -> bool:
        """Whether commands are sent (the breaker is closed) on the running event loop; without one, on all."""
        try:
            session = self.opened()
        except RuntimeError:
            return all(session.available for session in self._sessions.values())
        return session is None or session.available

    @property
    def client(self) -> "redis.asyncio.Redis | redis.asyncio.RedisCluster":
        """redis-py's own client for this event loop: for blocking commands, transactions, pipelines and the rest.

        Its deadlines are `connect_timeout` and `client_timeout`, and it repeats nothing.
        """
        return (self.opened() or self._session()).client

    def key(self, *parts: str) -> str:
        """`{prefix}:part:part`."""
        return ":".join((self.prefix, *parts))

    async def aclose(self) -> None:
        if asyncio.get_running_loop() in self._sessions:
            await self.started()  # of a use a moment ago nobody has entered the session yet
        await super().aclose()

    async def _start(self) -> "Session":
        return self._session()

    async def _stop(self, value: "Session") -> None:
        self._sessions.pop(asyncio.get_running_loop(), None)
        await value.aclose()

    def _drop(self, value: "Session") -> None:
        value.drop()

    def _session(self) -> "Session":
        """The running loop's session, made now; entered, as the first use of a resource is, by a task of its own."""
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None:
            for closed in [other for other in self._sessions if other.is_closed()]:
                del self._sessions[closed]  # what is in it is dropped as the resource's
            session = self._sessions[loop] = self._make_session()
            session.spawn(self.started(), name="redis start")
        return session

    def _judge(self, command: tuple[Argument, ...]) -> None:
        if commands.check(command) and len(self._known) < 1000:
            self._known.add(command[0])


def _plain(argument: Any) -> Argument:
    """hiredis packs no other kinds of bytes."""
    if isinstance(argument, bytearray | memoryview):
        return bytes(argument)
    if isinstance(argument, str | bytes | int | float) and not isinstance(argument, bool):
        return argument
    raise TypeError(f"an argument must be bytes, str, int or float, not {type(argument).__name__}")
