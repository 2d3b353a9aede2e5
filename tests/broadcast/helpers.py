"""What the tests of the broadcaster share: waiting for a condition, a client that is surely registered, and one
that says nothing.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from asgi_enhance.asgi.types import ASGIApp, Message
from asgi_enhance.testing.driver import WebSocket, websocket_scope


async def until(condition: Callable[[], object], *, seconds: float = 5.0) -> None:
    """Wait for a condition, plain or awaitable, that has no event."""
    async with asyncio.timeout(seconds):
        while True:
            holds = condition()
            if await holds if inspect.isawaitable(holds) else holds:
                return
            await asyncio.sleep(0.002)


@asynccontextmanager
async def client(app: ASGIApp, path: str = "/ws/ann", **scope: Any) -> AsyncIterator[WebSocket]:
    async with WebSocket(app, websocket_scope(path, **scope)) as socket:
        await socket.accepted()
        socket.send_json({"type": "ping", "ref": "registered"})
        while await socket.receive_json() != {"type": "pong", "ref": "registered"}:
            pass
        yield socket
        if socket.task is not None and not socket.task.done():
            socket.leave()
            await socket.ended()


async def nothing() -> Message:
    """The `receive` of a client that says nothing, and stays."""
    await asyncio.Event().wait()
    raise AssertionError
