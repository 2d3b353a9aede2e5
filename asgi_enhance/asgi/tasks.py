"""Background tasks with a name, a clean context and an owner that awaits them."""

import asyncio
import contextvars
import logging
from collections.abc import Coroutine
from typing import Any

logger = logging.getLogger("asgi_enhance")


def check_cancelled() -> None:
    """Raise the cancellation of this task that a library has swallowed on its way.

    `asyncio.wait_for` does so up to Python 3.11 when what it waits for ends in the same moment, and redis-py writes
    through it. To be called where a task of one's own would go on for long, or for ever.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


class Tasks:
    """The background tasks of one owner, on one event loop.

    A task gets a fresh context: started by the first request, it must not go on as that request's user.
    It begins after `spawn` has returned, whatever task factory the loop has: its owner notes it first.
    A task that fails is logged, since nobody awaits its result.
    """

    __slots__ = ("_tasks",)

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, coroutine: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        loop = asyncio.get_running_loop()
        task = asyncio.Task(coroutine, loop=loop, name=name, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def cancel(self) -> None:
        """Cancel all tasks and wait until they have ended."""
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("background task %s failed", task.get_name(), exc_info=task.exception())
