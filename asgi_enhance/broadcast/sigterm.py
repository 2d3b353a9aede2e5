"""Draining comes before the server's own shutdown, which tears sockets down at once and waits for streams for ever.

Servers tell an app that they stop only after its connections are gone. So SIGTERM is taken first here: connections are
sent away, and then the signal goes on to whoever had it before. A second SIGTERM goes on at once.
"""

import asyncio
import contextlib
import os
import signal
from types import FrameType, TracebackType
from typing import Any, Self

from asgi_enhance.asgi.tasks import Tasks
from asgi_enhance.broadcast.core import RealTimeStreamProcessor


class DrainOnSigterm:
    """While entered, SIGTERM drains the processor within `spread` seconds and is passed on. In the main thread only."""

    def __init__(self, processor: RealTimeStreamProcessor, spread: float) -> None:
        self._processor = processor
        self._spread = spread
        self._tasks = Tasks()
        self._before: Any = None
        self._taken = False
        self._entered = False

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._before = signal.getsignal(signal.SIGTERM)
        with contextlib.suppress(ValueError):  # not the main thread: the signal is somebody else's business
            signal.signal(signal.SIGTERM, self._handle)
            self._entered = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._entered and signal.getsignal(signal.SIGTERM) == self._handle:
            signal.signal(signal.SIGTERM, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._taken:
            self._pass_on(number)
        else:
            self._taken = True
            self._loop.call_soon_threadsafe(self._begin, number)

    def _begin(self, number: int) -> None:
        self._tasks.spawn(self._drain(number), name="broadcast drain")

    async def _drain(self, number: int) -> None:
        try:
            await self._processor.drain(self._spread)
        finally:
            self._pass_on(number)

    def _pass_on(self, number: int) -> None:
        if callable(self._before):
            self._before(number, None)
        elif self._before == signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
