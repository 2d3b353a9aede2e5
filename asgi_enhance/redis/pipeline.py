"""One connection that all commands of an event loop share: one write for all commands of a loop turn, up to `BATCH`.

Redis answers in the order it was asked, so the futures of the commands wait in a queue and each reply belongs to
its head. A caller that is cancelled leaves its (cancelled) future in the queue: its reply is taken and thrown away, and
nobody gets a neighbour's. There is one timer, set for the oldest write that is not answered.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AskError, ClusterDownError, ConnectionError, ReadOnlyError, TryAgainError

from asgi_enhance.errors import RedisUnavailable
from asgi_enhance.redis.stats import RedisStats
from asgi_enhance.redis.wire import NOTHING, Push, Wire

# Loops differ in whether a timer that is due runs before or after the sockets that are ready. This long after the
# deadline both have read what came while the program was busy with something else.
_GRACE = 0.002

# Errors that say the server is not in service; the command has not run. redis-py's ConnectionError stands for LOADING,
# too many clients and the like.
_OUT_OF_SERVICE = (ConnectionError, ClusterDownError, ReadOnlyError)
# MOVED is an ASK to redis-py.
_REDIRECTION = (AskError, TryAgainError)
# The server answers, and says no to all commands of a kind until somebody sets it right.
_REFUSALS = frozenset({"NOAUTH", "NOPERM", "OOM", "MISCONF", "NOREPLICAS"})

# What a server that wants a password first says to a long command, which it does not even read.
_UNREAD = "Protocol error: unauthenticated"


BATCH = 32
"""So many commands go out before the turn ends: the server works on them while the program makes the others."""


def refusal(error: Exception) -> str:
    """The code of an error that says no to more than one command, until somebody sets it right; else nothing."""
    code: str | None = getattr(error, "status_code", None)
    if code in _REFUSALS:
        return code or ""
    return "NOAUTH" if str(error).startswith(_UNREAD) else ""


class ConnectionLost(RedisUnavailable):
    """The connection broke under the command; unlike a time-out, that says nothing against trying another."""


class Pipeline(asyncio.Protocol):
    """Takes packed commands, gives futures of their replies.

    connection:    a connection of redis-py that stands; it is taken over.
    label:         what errors call the server.
    timeout:       seconds from a write to its last reply; when they pass, the connection is discarded.
    max_in_flight: commands that may wait for replies before `full`.
    stats:         where to count.
    on_reply:      called after each batch of replies.
    on_refused:    called with the code and the words of an error that says no to more than this one command.
    on_lost:       called once with the reason when the connection is of no more use.
    """

    def __init__(
        self,
        connection: AbstractConnection,
        *,
        label: str,
        timeout: float,
        max_in_flight: int,
        stats: RedisStats,
        on_reply: Callable[[], None],
        on_refused: Callable[[str, str], None],
        on_lost: Callable[["Pipeline", str], None],
    ) -> None:
        self.full = False
        self._label = label
        self._timeout = timeout
        self._max_in_flight = max_in_flight
        self._stats = stats
        self._on_reply = on_reply
        self._on_refused = on_refused
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._wire = Wire(connection, self)
        self._closed = False
        self.retired = False  # takes no more commands
        self.demoted = False  # the server takes no writes
        self.dismissed = False  # ended by the server while no reply was due
        self.since = self._loop.time()
        self._waiting: deque[asyncio.Future[Any]] = deque()  # one for each command not answered, oldest first
        self._unsent: list[bytes] = []  # the commands of this turn of the loop: the tail of `_waiting`
        self._written = 0  # commands written, ever
        self._marks: deque[tuple[int, float]] = deque()  # after each write: (`_written`, when that must be answered)
        self._timer: asyncio.TimerHandle | None = None
        self._expired = False
        self._paused = False  # the transport's buffer is full
        self._callers: deque[asyncio.Future[None]] = deque()  # waiting while it is `full`, first come first served
        self._granted = 0  # of these, woken and not yet back

    def send(self, command: bytes) -> asyncio.Future[Any]:
        """Queue one packed command for the write at the end of this loop turn, or of the batch."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting.append(future)
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(command)
        if len(self._unsent) >= BATCH:
            self._flush()
        if len(self._waiting) + self._granted >= self._max_in_flight:
            self.full = True
        return future

    async def room(self) -> None:
        """Wait for one's turn to send one command, at once; or until the connection is lost."""
        caller: asyncio.Future[None] = self._loop.create_future()
        self._callers.append(caller)
        try:
            await caller
        except asyncio.CancelledError:
            if not caller.cancelled():  # woken and cancelled in the same turn: the place goes to the next
                self._granted -= 1
                self._admit()
            raise
        self._granted -= 1

    def discard(self, reason: str) -> None:
        """Drop the connection; every command on it fails, and those that were written may have run."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._wire.abort()
        unsent = len(self._unsent)
        error = RedisUnavailable if self._expired else ConnectionLost
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(
                    error(f"redis {self._label}: {reason}", maybe_executed=len(self._waiting) >= unsent)
                )
        self._unsent.clear()
        self._retire(reason)
        self._paused = False
        self._admit()

    async def aclose(self) -> None:
        """Wait for the replies still due, then close the connection."""
        if self._waiting and not self._closed:
            await asyncio.wait(list(self._waiting), timeout=self._timeout)
        self.discard("the manager was closed")
        await self._wire.closed()

    def drop(self) -> None:
        """Its loop was closed."""
        self._closed = True
        self._wire.drop()

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        waiting = self._waiting
        gets = self._wire.gets
        try:
            self._wire.feed(data)
            while (reply := gets()) is not NOTHING:
                if type(reply) is Push:
                    continue
                future = waiting.popleft()
                if isinstance(reply, Exception):
                    self._error(future, reply)
                elif not future.done():
                    future.set_result(reply)
        except Exception as error:
            self.discard(f"what came is not an answer: {error!r}")
        if self._closed:
            return
        if self.retired and not waiting:
            self.discard("not in service")
            return
        if self.full:
            self._admit()
        self._on_reply()

    def eof_received(self) -> None:
        # At once, and not when the transport has closed: what would be written until then can still go elsewhere.
        self._ended(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._wire.lost()
        self._ended(error)

    def pause_writing(self) -> None:
        self.full = self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._admit()

    # inside

    def _ended(self, error: Exception | None) -> None:
        self.dismissed = not self._closed and len(self._waiting) == len(self._unsent)
        self.discard("the connection was closed" + (f": {error}" if error else ""))

    def _error(self, future: asyncio.Future[Any], reply: Exception) -> None:
        self._stats.errors += not isinstance(reply, _REDIRECTION)
        error = reply
        if isinstance(reply, _OUT_OF_SERVICE):
            reason = f"not in service: {getattr(reply, 'status_code', None) or ''} {reply}"
            error = RedisUnavailable(f"redis {self._label}: {reason}")
            self.demoted = self.demoted or isinstance(reply, ReadOnlyError)
            if not isinstance(reply, ClusterDownError):  # which is about a slot, not about the server
                self._retire(reason)
        code = refusal(reply)
        if code:
            self._on_refused(code, str(reply))
        if not future.done():
            future.set_exception(error)

    def _retire(self, reason: str) -> None:
        """Take no more commands; the replies still due may come."""
        if not self.retired:
            self.retired = True
            self._on_lost(self, reason)

    def _flush(self) -> None:
        commands = self._unsent
        if not commands:
            return  # the connection was discarded in between
        self._stats.writes += 1
        self._written += len(commands)
        data = b"".join(commands) if len(commands) > 1 else commands[0]
        commands.clear()
        due = self._loop.time() + self._timeout
        self._marks.append((self._written, due))
        if self._timer is None:
            self._timer = self._loop.call_at(due, self._check)
        self._wire.write(data)

    def _check(self) -> None:
        self._timer = None
        answered = self._written - (len(self._waiting) - len(self._unsent))
        marks = self._marks
        while marks and marks[0][0] <= answered:
            marks.popleft()
            self._expired = False
        if not marks:
            return
        due = marks[0][1]
        if due > self._loop.time():
            self._timer = self._loop.call_at(due, self._check)
        elif not self._expired:
            self._expired = True
            self._timer = self._loop.call_later(_GRACE, self._check)
        else:
            self.discard(f"no answer within {self._timeout:g} s")

    def _admit(self) -> None:
        """Wake the callers there is room for; of a lost connection, all, to look for another."""
        if self._paused:
            return
        room = len(self._callers) if self._closed else self._max_in_flight - len(self._waiting) - self._granted
        while self._callers and room > 0:
            caller = self._callers.popleft()
            if not caller.done():
                caller.set_result(None)
                self._granted += 1
                room -= 1
        self.full = room <= 0
