"""Backends that are killed, restarted and rolled under constant load, as processes of their own."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack

import pytest

from asgi_enhance.asgi.types import Receive, Scope, Send
from asgi_enhance.balance import LoadBalanceApp, LoadBalancer
from asgi_enhance.testing.live import LiveServer
from tests.balance.wire import connect, get, serve


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """The backend: reads the body, waits a moment, answers."""
    while (await receive()).get("more_body"):
        pass
    await asyncio.sleep(0.003)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


class Load:
    """Clients that ask without a pause until they are told to stop, and count what they are told."""

    def __init__(self, port: int, methods: list[bytes]) -> None:
        self.statuses: Counter[int] = Counter()
        self._port = port
        self._stopping = False
        self._tasks = [asyncio.create_task(self._client(method)) for method in methods * 3]

    async def stop(self) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def _client(self, method: bytes) -> None:
        async with connect(self._port) as wire:
            while not self._stopping:
                await wire.send(get(b"/", b"Content-Length: 5", method=method, body=b"hello"))
                self.statuses[(await wire.message()).status] += 1


@pytest.fixture
def backends() -> Iterator[list[LiveServer]]:
    with ExitStack() as stack:
        options = ["--lifespan", "off", "--http", "tests.faults.one_write:OneWrite"]
        yield [stack.enter_context(LiveServer(f"{__name__}:app", options=options)) for _ in range(3)]


async def loaded(balancer: LoadBalancer, methods: list[bytes], stack: AsyncExitStack) -> Load:
    port = await stack.enter_async_context(serve(LoadBalanceApp(balancer=balancer)))
    load = Load(port, methods)
    stack.push_async_callback(load.stop)
    await asyncio.sleep(0.2)
    return load


async def test_killing_and_restarting_one_of_three_fails_no_get(backends: list[LiveServer]) -> None:
    async with LoadBalancer([server.url for server in backends]) as balancer, AsyncExitStack() as stack:
        load = await loaded(balancer, [b"GET"], stack)
        for _ in range(2):
            await asyncio.to_thread(backends[0].kill)
            await asyncio.sleep(0.3)
            await asyncio.to_thread(backends[0].start)
            await asyncio.sleep(0.3)
        await load.stop()
        assert set(load.statuses) == {200}
        assert load.statuses[200] > 300


async def test_a_rolling_restart_with_drain_fails_neither_get_nor_post(backends: list[LiveServer]) -> None:
    async with LoadBalancer([server.url for server in backends]) as balancer, AsyncExitStack() as stack:
        load = await loaded(balancer, [b"GET", b"POST"], stack)
        for server in backends:
            assert await balancer.drain(server.url)
            await asyncio.to_thread(server.stop)
            await asyncio.to_thread(server.start)
            balancer.add_backend(server.url)
            await asyncio.sleep(0.1)
        await load.stop()
        assert set(load.statuses) == {200}
        assert load.statuses[200] > 300
        assert balancer.in_flight == 0
