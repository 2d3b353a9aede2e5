"""One connection: written directly while it keeps up, through a bounded outbox with a writer of its own while not.

ASGI's `send` is a coroutine that usually runs to its end without waiting. So one coroutine, advanced once by hand,
sends to all who are to be sent something, and when it ends, all is written: no task, no queue. If one of the sends
waits, that socket is full: a writer task takes the coroutine over, what comes meanwhile for that connection waits in
its outbox, and a new coroutine goes on with the others. The publisher never waits.
"""

import asyncio
import types
from collections.abc import Awaitable, Callable, Generator, Iterator
from enum import Enum
from typing import TYPE_CHECKING, Any

from asgi_enhance.asgi.tasks import Tasks
from asgi_enhance.asgi.types import Message
from asgi_enhance.broadcast.log import Position
from asgi_enhance.broadcast.outbox import Outbox, OutboxFull
from asgi_enhance.broadcast.policy import Limits, SlowConsumer, TokenBucket
from asgi_enhance.broadcast.stats import Stats
from asgi_enhance.broadcast.wire import Encoding, Frame, control

if TYPE_CHECKING:
    from asgi_enhance.broadcast.hub import Group

TRY_AGAIN_LATER = 1013


class State(Enum):
    """Whether a connection can be written now."""

    FREE = "nothing is in the way"
    WRITING = "a send has begun, and nothing has happened since"
    BUSY = "the writer is at it, or messages wait for it, or it is closing"


FREE, WRITING, BUSY = State  # asked for at every delivery: names of the module are found sooner


class Shared:
    """What all connections of one processor on one loop have in common."""

    __slots__ = ("limits", "loop", "slow_consumer", "stats", "tasks")

    def __init__(self, limits: Limits, slow_consumer: SlowConsumer, stats: Stats, tasks: Tasks) -> None:
        self.limits = limits
        self.slow_consumer = slow_consumer
        self.stats = stats
        self.tasks = tasks
        self.loop = asyncio.get_running_loop()


class Connection:
    """One WebSocket or event stream of a client.

    client_id: whose connection it is.
    groups:    the groups it is in.
    positions: where an event stream with several histories stands in each of them.
    closing:   it takes no more messages.
    send:      ASGI's.
    served:    its socket is read here, or will be once it is taken.
    state:     whether it can be written now.
    """

    __slots__ = (
        "_outbox",
        "_released",
        "_shared",
        "_stuck_since",
        "_writer",
        "bucket",
        "client_id",
        "closing",
        "encoding",
        "groups",
        "inbox",
        "last_seen",
        "lost",
        "positions",
        "reader",
        "send",
        "served",
        "state",
        "worker",
    )

    def __init__(
        self, client_id: str, send: Callable[[Message], Awaitable[None]], encoding: Encoding, shared: Shared
    ) -> None:
        self.client_id = client_id
        self.encoding = encoding
        self.groups: dict[str, Group] = {}
        self.positions: dict[str, Position] | None = None
        self.closing = False
        self.lost: set[str] | None = None  # groups with a history of which messages were dropped
        self.last_seen: float | None = None  # when the last message came, once the client has promised to ping
        self.bucket: TokenBucket | None = None
        self.reader: asyncio.Task[Any] | None = None  # the task that runs our receive loop
        self.inbox: asyncio.Queue[Any] | None = None  # messages that wait for their handler, once there was one
        self.worker: asyncio.Task[Any] | None = None  # the task that runs the handlers
        self.send = send
        self.served = True
        self.state = FREE
        self._shared = shared
        self._outbox: Outbox | None = None
        self._writer: asyncio.Task[None] | None = None
        self._stuck_since = 0.0
        self._released = False

    def __repr__(self) -> str:
        state = "closing" if self.closing else f"{self.queued} queued" if self.busy else "open"
        return f"<Connection {self.client_id!r} {self.encoding.value} {len(self.groups)} groups {state}>"

    @property
    def queued(self) -> int:
        return len(self._outbox) if self._outbox is not None else 0

    @property
    def busy(self) -> bool:
        """Whether a message is on its way to the socket."""
        return self.state is not FREE

    @property
    def released(self) -> bool:
        """Whether its end does not wait for the client any more."""
        return self._released

    def deliver(self, frame: Frame, *, bounded: bool = True) -> None:
        """Write a frame now if nothing is in the way, else queue it. Never waits, never raises."""
        if self.state is FREE:
            FanOut(iter(((self, frame),))).run()
        else:
            self.queue(frame, bounded)

    async def flushed(self) -> None:
        """Return when nothing waits in the outbox, or when nothing of it will be sent any more."""
        if self._writer is not None and not self.closing:
            await asyncio.wait({self._writer})

    def stuck(self, now: float) -> bool:
        """Whether its socket has taken nothing for too long."""
        return self._writer is not None and now - self._stuck_since > self._shared.limits.send_seconds

    def close(self, code: int, reason: str, *, flush: bool = False, last: Message | None = None) -> None:
        """Say goodbye, for a bounded time, and let the connection go. `flush`: after what waits in the outbox."""
        if self.closing:
            return
        self._take_no_more()
        if not flush:
            self._discard()
        self._shared.tasks.spawn(self._close(code, reason, last), name=f"broadcast close {self.client_id}")

    def release(self) -> None:
        """Do not wait for the client any more: end the receive loop. Only needed where no disconnect will come."""
        self._take_no_more()
        # cancelled twice the reader would take the second for somebody else's
        reader = self.reader if not self._released else None
        self._released = True
        self._discard()
        current = asyncio.current_task()
        if self._writer is not None and self._writer is not current:
            # not before it has begun: the `send` that it goes on with would be forgotten, and not hear that it is over
            self._shared.loop.call_soon(self._writer.cancel)
        if reader is not None and reader is not current:
            reader.cancel()

    async def ended(self) -> None:
        """The receive loop has ended: leave no task behind."""
        self.release()
        if self._writer is not None:
            await asyncio.wait({self._writer})

    # -- for the fan-out

    def queue(self, frame: Frame, bounded: bool = True) -> None:
        """Have a frame wait for the writer, as far as the policy lets it."""
        if self.closing:
            return
        self.state = BUSY
        shared = self._shared
        limits = shared.limits
        outbox = self._outbox
        if outbox is None:
            outbox = self._outbox = Outbox(shared.slow_consumer, limits.outbox_messages, limits.outbox_bytes)
        before = outbox.size
        try:
            if shared.stats.outbox_bytes + frame.size > limits.all_outboxes_bytes:
                raise OutboxFull
            dropped = outbox.push(frame, bounded=bounded)
        except OutboxFull:
            shared.stats.slow_disconnects += 1
            self.close(TRY_AGAIN_LATER, "slow consumer")
            return
        shared.stats.queued += 1
        shared.stats.outbox_bytes += outbox.size - before
        for each in dropped:
            shared.stats.dropped += 1
            if each.group is not None:
                self.lost = self.lost or set()
                self.lost.add(each.group)

    def write_on(self, begun: Awaitable[None] | None = None) -> None:
        """Have a writer finish what has begun, and then write what waits, unless one is at it already."""
        if self._writer is None and (begun is not None or self._outbox is not None):
            self.state = BUSY
            self._stuck_since = self._shared.loop.time()
            self._writer = self._shared.tasks.spawn(self._write(begun), name=f"broadcast writer {self.client_id}")

    def broken(self) -> None:
        """The client is gone, and `send` noticed before `receive` did."""
        if not self._released:
            self._shared.stats.send_errors += 1
            self.release()

    # -- the writer

    async def _write(self, begun: Awaitable[None] | None) -> None:
        try:
            if begun is not None:
                await begun
            while (frame := self._next()) is not None:
                self._stuck_since = self._shared.loop.time()
                await self.send(frame.message)
        except (Exception, asyncio.CancelledError):
            self.broken()
        else:
            self._outbox = None
            if not self.closing:
                self.state = FREE
        finally:
            self._writer = None

    def _next(self) -> Frame | None:
        if self.lost:
            # said before anything else, so that what follows is known to follow a loss
            return control(self.encoding, "reset", group=self.lost.pop())
        if not self._outbox:
            return None
        frame = self._outbox.pop()
        self._shared.stats.outbox_bytes -= frame.size
        return frame

    def _discard(self) -> None:
        self.lost = None
        if self._outbox is not None:
            self._shared.stats.outbox_bytes -= self._outbox.size
            self._outbox = None

    def _take_no_more(self) -> None:
        self.closing = True
        self.state = BUSY

    async def _close(self, code: int, reason: str, last: Message | None) -> None:
        message: Message = {"type": "websocket.close", "code": code, "reason": reason}
        if self.encoding is not Encoding.WEBSOCKET:
            message = last or {"type": "http.response.body", "body": b"", "more_body": False}
        try:
            async with asyncio.timeout(self._shared.limits.close_seconds):
                if self._writer is not None:
                    await asyncio.wait({self._writer})
                await self.send(message)
        except Exception:  # the client is gone, or reads nothing: there is nobody to say goodbye to
            self._shared.stats.send_errors += 1
        finally:
            self.release()


class FanOut:
    """Frames on their way to their connections, each of them at once or into an outbox."""

    __slots__ = ("_connection", "_due")

    def __init__(self, due: Iterator[tuple[Connection, Frame]]) -> None:
        self._due = due
        self._connection: Connection | None = None  # the one that is being written

    def run(self) -> None:
        """Never waits, never raises."""
        while True:
            writing = self._write()
            try:
                waits_for = writing.send(None)
            except StopIteration:
                return
            assert self._connection is not None
            self._connection.write_on(_resume(writing, waits_for))

    async def _write(self) -> None:
        for connection, frame in self._due:
            if connection.state is not FREE:
                connection.queue(frame)
                continue
            self._connection = connection
            connection.state = WRITING  # a `send` that publishes in its turn must not overtake itself
            send = connection.send  # called right there it would be looked up as a method is, which takes longer
            try:
                await send(frame.message)
            except (Exception, asyncio.CancelledError):  # the publisher is not cancelled in here: nothing waits
                connection.broken()
            if connection.state is WRITING:
                connection.state = FREE
            else:
                connection.write_on()


@types.coroutine
def _resume(sending: Any, waits_for: Any) -> Generator[Any, Any, None]:
    """Go on with a coroutine that was advanced by hand and gave `waits_for`. It hears of errors and cancellation."""
    try:
        yield waits_for
    except BaseException as error:
        thrown = error
    else:
        yield from sending
        return
    try:
        waits_for = sending.throw(thrown)
    except StopIteration:
        return
    yield from _resume(sending, waits_for)
