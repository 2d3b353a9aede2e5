"""Draining comes before the server's own shutdown, which tears sockets down at once and waits for streams for ever.

Servers tell an app that they stop only after its connections are gone. So SIGTERM is taken first here: connections are
sent away, and then the signal goes on to whoever had it before. A second SIGTERM goes on to him at once.

Two may have had it: a handler of Python's (`signal.signal`, as uvicorn), and the event loop (`loop.add_signal_handler`,
as granian and hypercorn), which learns of signals by their numbers in a socket of its own, the wakeup descriptor. A
socket of ours goes in front of that one, and hands on the numbers.
"""

import asyncio
import contextlib
import os
import signal
import socket
from types import FrameType, TracebackType
from typing import Any, Self

from asgi_enhance.asgi.tasks import Tasks
from asgi_enhance.broadcast.core import RealTimeStreamProcessor

PARTING = 0.5
"""Seconds until a process is killed whose server has not asked for the signal: it may be writing the last bytes."""


class DrainOnSigterm:
    """While entered, SIGTERM drains the processor within `spread` seconds and is passed on. In the main thread only."""

    def __init__(self, processor: RealTimeStreamProcessor, spread: float) -> None:
        self._processor = processor
        self._spread = spread
        self._tasks = Tasks()
        self._before: Any = None
        self._taken = False
        self._in_front: Wakeup | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        with contextlib.suppress(ValueError):  # not the main thread: the signal is somebody else's business
            self._before = signal.signal(signal.SIGTERM, self._handle)
            (await self._processor.started()).on_arrival = self._get_in_front
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._in_front is not None:
            self._in_front.close()
        if signal.getsignal(signal.SIGTERM) == self._handle:
            signal.signal(signal.SIGTERM, self._before)

    def _get_in_front(self) -> None:
        """Called when a connection comes: before, there is nobody to send away, and a server may run startup and its
        requests each with a wakeup descriptor of its own.
        """
        if self._in_front is None:
            self._in_front = Wakeup(self._loop)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._taken:
            if self._before != signal.SIG_DFL:  # hypercorn's parent signals again those who have been before
                self._pass_on(number)
        else:
            self._taken = True
            self._loop.call_soon_threadsafe(self._begin, number)

    def _begin(self, number: int) -> None:
        self._tasks.spawn(self._drain(number), name="broadcast drain")

    async def _drain(self, number: int) -> None:
        try:
            await self._processor.drain(self._spread)
            if self._before == signal.SIG_DFL:
                await asyncio.sleep(PARTING)
        finally:
            self._pass_on(number)

    def _pass_on(self, number: int) -> None:
        if callable(self._before):
            self._before(number, None)
            if self._in_front is not None:
                self._in_front.pass_on(bytes([number]))
        elif self._before == signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


class Wakeup:
    """A socket in front of the loop's own, to which all signals but SIGTERM go on at once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ours, self._pythons = socket.socketpair()
        self._ours.setblocking(False)
        self._pythons.setblocking(False)
        self._loops = signal.set_wakeup_fd(self._pythons.fileno(), warn_on_full_buffer=False)
        loop.add_reader(self._ours, self._signalled)

    def pass_on(self, numbers: bytes) -> None:
        if self._loops >= 0:
            with contextlib.suppress(OSError):
                os.write(self._loops, numbers)

    def close(self) -> None:
        now = signal.set_wakeup_fd(-1)
        ours = now == self._pythons.fileno()
        signal.set_wakeup_fd(self._loops if ours else now, warn_on_full_buffer=False)
        self._loop.remove_reader(self._ours)
        self._ours.close()
        self._pythons.close()

    def _signalled(self) -> None:
        numbers = self._ours.recv(4096)
        self.pass_on(numbers.replace(bytes([signal.SIGTERM]), b""))  # that one comes by its handler
