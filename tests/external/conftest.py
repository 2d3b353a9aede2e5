"""The busy stack under a real server, and somebody who uses it."""

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Iterator

import httpx2
import pytest
from websockets.asyncio.client import connect

from asgi_enhance.testing.live import LiveServer

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"

_names = itertools.count(1)


@pytest.fixture(scope="module")
def backends() -> Iterator[list[str]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(LiveServer("tests.metrics.busy:backend")).url for _ in range(2)]


@pytest.fixture
def busy(redis_url: str, backends: list[str]) -> Iterator[LiveServer]:
    env = {"BUSY_REDIS": redis_url, "BUSY_BACKENDS": " ".join(backends), "BUSY_NAME": f"{os.getpid()}-{next(_names)}"}
    with LiveServer("tests.metrics.busy:app", env=env) as server:
        yield server


async def _use(server: LiveServer) -> None:
    often = ["/items/1", "/items/2", "/page", "/lb/a"]
    sometimes = ["/limited", "/events", "/broken", "/unavailable", "/nowhere"]
    async with (
        httpx2.AsyncClient(base_url=server.url, headers={"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}) as client,
        connect(f"{server.ws_url}/echo") as socket,
    ):
        for number in itertools.count():
            paths = often if number % 20 else often + sometimes
            with contextlib.suppress(httpx2.HTTPError):  # the server may be on its way down or up
                await asyncio.gather(*(client.get(path) for path in paths))
            if not number % 20:
                async with connect(f"{server.ws_url}/echo"):
                    pass
            await socket.send("hello")
            await socket.recv()


@pytest.fixture
async def traffic(busy: LiveServer) -> AsyncIterator[LiveServer]:
    """The busy server while somebody uses it."""
    user = asyncio.create_task(_use(busy))
    try:
        yield busy
    finally:
        user.cancel()
        await asyncio.wait([user])
