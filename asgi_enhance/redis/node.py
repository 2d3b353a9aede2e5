"""One Redis server as one event loop sees it: its connection, its breaker, and the way back when it was away."""

import asyncio
import contextlib
import logging
import random
import re
from collections.abc import Awaitable, Callable
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from asgi_enhance.asgi.tasks import Tasks
from asgi_enhance.errors import RedisUnavailable
from asgi_enhance.redis.breaker import Backoff, Breaker
from asgi_enhance.redis.pipeline import ConnectionLost, Pipeline
from asgi_enhance.redis.stats import RedisStats
from asgi_enhance.redis.wire import pack

logger = logging.getLogger("asgi_enhance.redis")

COMPLAINTS = 60.0
"""Seconds between two log lines on the same kind of refusal."""

STEADY = 1.0
"""Seconds a connection must have stood for its end to be an idle one's: a server that hangs up on everybody at once is
not to be called again and again."""

PING = pack(("PING",))
ROLE = pack(("ROLE",))
INFO = pack(("INFO", "server"))
ASKING = pack(("ASKING",))


class Node:
    """Sends packed commands to one server over one connection, made when it is needed.

    connect:         makes a connection, or raises `RedisUnavailable`.
    label:           what log lines and errors call the server.
    connect_timeout: seconds a command may wait for a connection, or for room on it.
    command_timeout: seconds a reply may take.
    max_in_flight:   commands that may be without a reply.
    breaker:         the state machine, closed.
    backoff:         the delays between probes while it is open.
    stats:           where to count.
    tasks:           the owner of the tasks that connect and probe.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[AbstractConnection]],
        *,
        label: str,
        connect_timeout: float,
        command_timeout: float,
        max_in_flight: int,
        breaker: Breaker,
        backoff: Backoff,
        stats: RedisStats,
        tasks: Tasks,
    ) -> None:
        self.label = label
        self.breaker = breaker
        self.pipeline: Pipeline | None = None
        self._connect = connect
        self._backoff = backoff
        self._connect_timeout = connect_timeout
        self._command_timeout = command_timeout
        self._max_in_flight = max_in_flight
        self._stats = stats
        self._tasks = tasks
        self._loop = asyncio.get_running_loop()
        self._attempt: asyncio.Task[str] | None = None
        self._run: bytes | None = None  # of the server: another one after each of its starts
        self._dismissed = False  # the last connection was ended while it was idle, and there is no other yet
        self._refusal = ""
        self._complained: dict[str, float] = {}  # of which refusals, and when
        self._retired = False
        self._demoted = False  # it has refused a write: it is asked whether it still does

    async def call(self, command: bytes, *, idempotent: bool, asking: bool = False) -> Any:
        """The reply to one packed command. What may have run is sent again only if it is idempotent."""
        pipeline = self.pipeline
        if pipeline is None or pipeline.full:
            pipeline = await self._ready()
        self._stats.commands += 1
        try:
            return await _send(pipeline, command, asking)
        except ConnectionLost as lost:
            if lost.maybe_executed and not idempotent:
                raise
        pipeline = await self._ready()
        self._stats.repeated += 1
        return await _send(pipeline, command, asking)

    async def aclose(self) -> None:
        self._retired = True
        pipeline, self.pipeline = self.pipeline, None
        if pipeline is not None:
            await pipeline.aclose()

    def drop(self) -> None:
        pipeline, self.pipeline = self.pipeline, None
        if pipeline is not None:
            pipeline.drop()

    async def _ready(self) -> Pipeline:
        """The pipeline, connected and with room, within the time to connect."""
        if self.breaker.is_open:
            self._stats.refused += 1
            raise RedisUnavailable(self._refusal)
        try:
            async with asyncio.timeout(self._connect_timeout):
                while True:
                    pipeline = self.pipeline
                    if pipeline is None:
                        await self._connected()
                        continue
                    if pipeline.full:
                        await pipeline.room()
                    if self.pipeline is pipeline:
                        return pipeline
        except TimeoutError:
            what = "no connection" if self.pipeline is None else f"no room beside {self._max_in_flight} commands"
            raise RedisUnavailable(f"redis {self.label}: {what} within {self._connect_timeout:g} s") from None

    async def _connected(self) -> None:
        """Join the one attempt to connect, or begin it."""
        if self._retired:
            raise RedisUnavailable(f"redis {self.label}: the manager was closed")
        if self.breaker.is_open:  # since this caller began to wait
            raise RedisUnavailable(self._refusal)
        attempt = self._attempt or self._begin()
        await asyncio.wait((attempt,))
        reason = "the manager was closed" if attempt.cancelled() else attempt.result()
        if reason:
            raise RedisUnavailable(f"redis {self.label}: {reason}")

    def _begin(self) -> asyncio.Task[str]:
        self._attempt = self._tasks.spawn(self._try(), name=f"redis connect {self.label}")
        return self._attempt

    async def _try(self) -> str:
        """One attempt to connect; why it failed, if it did."""
        try:
            pipeline = await self._dial()
            if self._retired:
                pipeline.discard("the manager was closed")
                return "the manager was closed"
            self.pipeline = pipeline
        except RedisUnavailable as error:
            self._failed(str(error))
            return str(error)
        finally:
            self._attempt = None
        return ""

    async def _dial(self) -> Pipeline:
        run = None
        try:
            connection = await self._connect()
            self._stats.connects += 1
            pipeline = self._pipeline(connection)
            run = await _run_of(pipeline)
            if self._demoted:
                await self._ask_role(pipeline)
        except RedisUnavailable:
            self._stats.connect_failures += 1
            raise
        finally:
            if self._dismissed:  # was it a mere reconnect, or is it another server, or a new start of this one?
                self._stats.outages += run is None or run != self._run
            self._dismissed, self._run = False, run
        return pipeline

    def _pipeline(self, connection: AbstractConnection) -> Pipeline:
        return Pipeline(
            connection,
            label=self.label,
            timeout=self._command_timeout,
            max_in_flight=self._max_in_flight,
            stats=self._stats,
            on_reply=self._replied,
            on_refused=self._refused,
            on_lost=self._lost,
        )

    async def _ask_role(self, pipeline: Pipeline) -> None:
        """A replica answers reads and PINGs, so that it would be found in service, and out of it, time and again."""
        said = await _told(pipeline, ROLE)
        if said is None:  # then only a write tells
            return
        if isinstance(said, list) and said[:1] == [b"slave"]:
            pipeline.discard("not the primary")
            raise RedisUnavailable("it is a replica and takes no writes")
        self._demoted = False

    def _replied(self) -> None:
        if self.breaker.failures and self.pipeline is not None:
            self.breaker.succeeded()
            self._backoff.reset()

    def _refused(self, code: str, words: str) -> None:
        """Callers go on without Redis, as when it is away; but here somebody has to do something."""
        if code == "NOPERM" and self.pipeline is None:
            return  # that was our own question, which we can do without
        now = self._loop.time()
        if now - self._complained.get(code, -COMPLAINTS) >= COMPLAINTS:
            self._complained[code] = now
            logger.warning("redis %s refuses commands: %s %s", self.label, code, words)

    def _lost(self, pipeline: Pipeline, reason: str) -> None:
        self._demoted = self._demoted or pipeline.demoted
        if self.pipeline is not pipeline:
            return
        self.pipeline = None
        self._stats.lost += 1
        if pipeline.dismissed and self._loop.time() - pipeline.since >= STEADY:
            # Idle for too long, perhaps. Whether the server is still there we see ourselves: nobody may ask for long.
            self._dismissed = True
            if self._attempt is None:
                self._begin()
        else:
            self._stats.outages += 1
            self._failed(reason)

    def _failed(self, reason: str) -> None:
        self._refusal = f"redis {self.label} is unavailable: {reason}"
        if self.breaker.failed(self._loop.time()):
            self._stats.opened += 1
            logger.warning("%s; commands fail at once until it answers", self._refusal)
            self._tasks.spawn(self._probe(), name=f"redis probe {self.label}")

    async def _probe(self) -> None:
        """Ask until there is an answer. The connection that gave it is the next one in service."""
        while self.breaker.is_open and not self._retired:
            await asyncio.sleep(self._backoff.next(_rng))
            try:
                pipeline = await self._dial()
            except RedisUnavailable:
                continue
            try:
                with contextlib.suppress(RedisError):  # an error (PING is not permitted) is an answer
                    await pipeline.send(PING)
            except RedisUnavailable:
                continue
            except BaseException:
                pipeline.discard("the manager was closed")
                raise
            if pipeline.retired:  # by what came right behind the answer
                continue
            self.pipeline = pipeline
            was_open = self.breaker.probed(self._loop.time())
            logger.warning("redis %s is available again after %.1f s", self.label, was_open)


async def _run_of(pipeline: Pipeline) -> bytes | None:
    """What tells a server from itself after a restart; None if it does not say."""
    said = await _told(pipeline, INFO)
    found = _RUN.search(said) if isinstance(said, bytes) else None
    return found[1] if found else None


async def _told(pipeline: Pipeline, question: bytes) -> Any:
    """The answer on a new connection, which does not outlive a failure; None if it is not permitted to ask."""
    try:
        return await pipeline.send(question)
    except RedisError:
        return None
    except RedisUnavailable:
        pipeline.discard("it does not answer")
        raise
    except BaseException:
        pipeline.discard("the manager was closed")
        raise


def _send(pipeline: Pipeline, command: bytes, asking: bool) -> asyncio.Future[Any]:
    if asking:
        pipeline.send(ASKING).add_done_callback(_ignore)
    return pipeline.send(command)


def _ignore(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()


_RUN = re.compile(rb"^run_id:(\w+)", re.MULTILINE)
_rng = random.Random()
