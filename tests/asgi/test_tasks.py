"""Background tasks: what their owner may rely on."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from asgi_enhance.asgi.tasks import Tasks


def at_once(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any) -> Any:
    """As `asyncio.eager_task_factory` of Python 3.12: a task that need not wait has ended when it is made."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        done = loop.create_future()
        done.set_result(end.value)
        return done
    raise AssertionError("it waits")


async def test_a_task_begins_when_its_owner_has_noted_it_even_where_tasks_begin_at_once() -> None:
    worker: list[object] = []

    async def work() -> None:
        worker.clear()

    loop = asyncio.get_running_loop()
    loop.set_task_factory(at_once)  # type: ignore[arg-type]
    try:
        task = Tasks().spawn(work(), name="work")
    finally:
        loop.set_task_factory(None)
    worker.append(task)
    await asyncio.wait([task])
    assert worker == []
