"""The connection that subscriptions live on: made again whenever it breaks or falls silent."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from redis.asyncio.connection import AbstractConnection
from redis.crc import key_slot
from redis.exceptions import ClusterDownError, MovedError

from asgi_enhance.asgi.tasks import Tasks
from asgi_enhance.errors import RedisUnavailable
from asgi_enhance.redis.breaker import Backoff
from asgi_enhance.redis.stats import RedisStats
from asgi_enhance.redis.subscribe import Subscription
from asgi_enhance.redis.wire import NOTHING, Wire, pack

logger = logging.getLogger("asgi_enhance.redis")

Key = tuple[bool, bytes]  # sharded, channel

_BATCH = 512  # channels in one SUBSCRIBE
_PING = pack(("PING",))
_rng = random.Random()


class Subscriber:
    """The subscriptions on one server. One task connects, subscribes to all that is wanted, and begins again.

    connect:  makes a connection, or raises `RedisUnavailable`.
    label:    what the task is called.
    silence:  seconds without a byte before the server is asked for one, and again before the connection is dropped.
    backoff:  the delays between attempts to connect.
    stats:    where to count.
    tasks:    the owner of the task.
    on_moved: called when the server has dropped a sharded channel, because its slot moved.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[AbstractConnection]],
        *,
        label: str,
        silence: float,
        backoff: Backoff,
        stats: RedisStats,
        tasks: Tasks,
        on_moved: Callable[[], None] | None = None,
    ) -> None:
        self.label = label
        self.wanted: dict[Key, list[Subscription]] = {}
        self._connect = connect
        self._silence = silence
        self._backoff = backoff
        self._stats = stats
        self._tasks = tasks
        self._on_moved = on_moved
        self._task: asyncio.Task[None] | None = None
        self._listener: Listener | None = None

    def add(self, subscription: Subscription) -> None:
        key = (subscription.sharded, subscription.channel)
        listeners = self.wanted.setdefault(key, [])
        listeners.append(subscription)
        if self._listener is not None:
            if len(listeners) == 1:
                self._listener.subscribe([key])
            elif listeners[0].is_ready:
                subscription.confirm()
        if self._task is None:
            self._task = self._tasks.spawn(self._run(), name=f"redis subscriptions {self.label}")

    def remove(self, subscription: Subscription) -> None:
        key = (subscription.sharded, subscription.channel)
        listeners = self.wanted.get(key, [])
        if subscription in listeners:
            listeners.remove(subscription)
            if not listeners:
                del self.wanted[key]
                if self._listener is not None:
                    self._listener.unsubscribe(key)

    def holds(self, subscription: Subscription) -> bool:
        return subscription in self.wanted.get((subscription.sharded, subscription.channel), ())

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    def drop(self) -> None:
        if self._listener is not None:
            self._listener.wire.drop()

    async def _run(self) -> None:
        try:
            while self.wanted:
                if not await self._serve():
                    await asyncio.sleep(self._backoff.next(_rng))
        finally:
            self._task = None

    async def _serve(self) -> bool:
        """Connect, and stay until the connection is lost; False if it was never of use."""
        try:
            connection = await self._connect()
        except RedisUnavailable:
            return False
        listener = self._listener = Listener(connection, self, silence=self._silence)
        try:
            listener.subscribe(list(self.wanted))
            await listener.lost.wait()
        finally:
            self._listener = None
            listener.wire.abort()
            for listeners in self.wanted.values():
                for subscription in listeners:
                    subscription.unconfirm()
        self._stats.gaps += 1
        if listener.confirmed:
            self._backoff.reset()
        return listener.confirmed

    # for the listener

    def message(self, key: Key, payload: bytes) -> None:
        for subscription in tuple(self.wanted.get(key, ())):
            self._stats.messages += 1
            subscription.deliver(payload)

    def confirmed(self, key: Key) -> None:
        for subscription in tuple(self.wanted.get(key, ())):
            subscription.confirm()

    def moved(self, keys: list[Key]) -> None:
        """The server does not serve these sharded channels any more."""
        for key in keys:
            for subscription in self.wanted.pop(key, ()):
                subscription.unconfirm()
        if self._on_moved is not None:
            self._on_moved()


class Listener(asyncio.Protocol):
    """One connection in subscribed mode."""

    def __init__(self, connection: AbstractConnection, owner: Subscriber, *, silence: float) -> None:
        self.lost = asyncio.Event()
        self.confirmed = False  # any channel
        self._owner = owner
        self._silence = silence
        self._due: dict[Key, int] = {}  # answers to (un)subscribe still to come
        self._loop = asyncio.get_running_loop()
        self._asked = False
        self._last = self._loop.time()
        self._timer = self._loop.call_later(silence, self._watch)
        self.wire = Wire(connection, self)

    def subscribe(self, keys: list[Key]) -> None:
        plain = [channel for sharded, channel in keys if not sharded]
        for start in range(0, len(plain), _BATCH):
            self._write(b"SUBSCRIBE", *plain[start : start + _BATCH])
        for sharded, channel in keys:
            if sharded:
                self._write(b"SSUBSCRIBE", channel)  # of one slot at a time, on a cluster
        for key in keys:
            self._due[key] = self._due.get(key, 0) + 1

    def unsubscribe(self, key: Key) -> None:
        sharded, channel = key
        self._write(b"SUNSUBSCRIBE" if sharded else b"UNSUBSCRIBE", channel)
        self._due[key] = self._due.get(key, 0) + 1

    def data_received(self, data: bytes) -> None:
        self._last = self._loop.time()
        self._asked = False
        gets = self.wire.gets
        try:
            self.wire.feed(data)
            while (reply := gets()) is not NOTHING:
                if isinstance(reply, list) and len(reply) > 2:
                    self._take(*reply)
                elif isinstance(reply, Exception):
                    self._refused(reply)
        except Exception as error:
            logger.error("redis %s sent what is not a message: %r", self._owner.label, error)
            self.wire.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._timer.cancel()
        self.wire.lost()
        self.lost.set()

    def _take(self, kind: bytes, channel: bytes, value: bytes) -> None:
        if kind == b"message":
            self._owner.message((False, channel), value)
        elif kind == b"smessage":
            self._owner.message((True, channel), value)
        elif kind in (b"subscribe", b"ssubscribe"):
            key = (kind == b"ssubscribe", channel)
            self.confirmed = True
            if self._answered(key):
                self._owner.confirmed(key)
        elif kind in (b"unsubscribe", b"sunsubscribe"):
            key = (kind == b"sunsubscribe", channel)
            if key in self._due:
                self._answered(key)
            else:
                self._owner.moved([key])

    def _refused(self, error: Exception) -> None:
        if isinstance(error, MovedError | ClusterDownError):  # which does not say what slot is not served
            slot = error.slot_id if isinstance(error, MovedError) else None
            keys = [key for key in self._due if key[0] and slot in (None, key_slot(key[1]))]
            for key in keys:
                del self._due[key]
            self._owner.moved(keys)
        else:
            logger.error("redis %s refused a subscription: %s", self._owner.label, error)

    def _answered(self, key: Key) -> bool:
        """True if this was the last answer due for it."""
        due = self._due.get(key, 1) - 1
        if due:
            self._due[key] = due
            return False
        self._due.pop(key, None)
        return True

    def _watch(self) -> None:
        silent = self._loop.time() - self._last
        if silent < self._silence:
            self._timer = self._loop.call_later(self._silence - silent, self._watch)
        elif self._asked:
            self.wire.abort()
        else:
            self._asked = True
            self.wire.write(_PING)
            self._timer = self._loop.call_later(self._silence, self._watch)

    def _write(self, *command: bytes) -> None:
        if self.wire.write is not None:
            self.wire.write(pack(command))
