"""A deadline for many short calls with one timer among them: `asyncio.timeout` sets and cancels one for each.

All calls have the same budget, so the first to begin is the first to expire, and a queue is all it takes.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")


class _Call:
    __slots__ = ("cancelling", "deadline", "expired", "task")

    def __init__(self, task: asyncio.Task[Any], deadline: float) -> None:
        self.task: asyncio.Task[Any] | None = task  # None when the call has ended
        self.deadline = deadline
        self.cancelling = task.cancelling()
        self.expired = False


class Budget:
    """So many seconds for each call, on the running event loop."""

    __slots__ = ("_calls", "_loop", "_timer", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._calls: deque[_Call] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def spend(self, call: Awaitable[T]) -> T:
        """The result of the call. TimeoutError when the budget is used up; the call is cancelled then."""
        task = asyncio.current_task(self._loop)
        assert task is not None
        entry = _Call(task, self._loop.time() + self.seconds)
        self._calls.append(entry)
        if self._timer is None:
            self._timer = self._loop.call_at(entry.deadline, self._check)
        try:
            return await call
        except asyncio.CancelledError:
            if entry.expired and task.uncancel() <= entry.cancelling:
                raise TimeoutError from None
            raise
        finally:
            entry.task = None
            if self._calls and self._calls[-1] is entry:  # always so, if nobody had to wait
                self._calls.pop()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _check(self) -> None:
        now, calls = self._loop.time(), self._calls
        while calls and (calls[0].task is None or calls[0].deadline <= now):
            entry = calls.popleft()
            if entry.task is not None:
                entry.expired = True
                entry.task.cancel()
        self._timer = self._loop.call_at(calls[0].deadline, self._check) if calls else None
