"""A gibibyte up and a gibibyte down through slow ends: the proxy's memory stays where it was."""

import asyncio
import os
from pathlib import Path

import pytest

from asgi_enhance.asgi.types import Receive, Scope, Send
from asgi_enhance.balance import LoadBalanceApp
from asgi_enhance.testing.live import LiveServer
from tests.balance.wire import ScriptedBackend, Wire, connect, get

GIBIBYTE = 1 << 30
PIECE = bytes(1 << 20)
MAY_GROW = 8 << 20
"""Bytes the proxying process may grow by: a few buffers of every layer, under a percent of what passes."""

_apps: dict[str, LoadBalanceApp] = {}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """The proxy, in a process of its own."""
    url = os.environ["TEST_BACKEND"]
    await _apps.setdefault(url, LoadBalanceApp([url]))(scope, receive, send)


def resident(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("server", ["httptools", "h11"])
async def test_a_gibibyte_in_each_direction_needs_a_few_buffers(server: str) -> None:
    received = 0

    async def answer(wire: Wire) -> None:
        nonlocal received
        head = await wire.head()
        if head.start.startswith(b"POST"):
            pauses = 0
            while received < GIBIBYTE:
                received += len(await wire.reader.read(1 << 20))
                if received >> 28 > pauses:  # a slow end: it stops reading four times on the way
                    pauses += 1
                    await asyncio.sleep(0.2)
            await wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        else:
            wire.writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % GIBIBYTE)
            for _ in range(GIBIBYTE // len(PIECE)):
                wire.writer.write(PIECE)
                await wire.writer.drain()

    async with ScriptedBackend(answer) as backend:
        options = ["--http", server, "--lifespan", "off", "--no-access-log"]
        with LiveServer(f"{__name__}:app", options=options, env={"TEST_BACKEND": backend.url}) as proxy:
            before = peak = resident(proxy.pid)

            async def watch() -> None:
                nonlocal peak
                while True:
                    peak = max(peak, resident(proxy.pid))
                    await asyncio.sleep(0.01)

            watcher = asyncio.create_task(watch())
            async with connect(proxy.port) as client:
                client.writer.write(get(b"/", b"Content-Length: %d" % GIBIBYTE, method=b"POST"))
                for _ in range(GIBIBYTE // len(PIECE)):
                    client.writer.write(PIECE)
                    await client.writer.drain()
                assert (await client.message()).status == 200
            assert received == GIBIBYTE
            uploaded = peak - before
            async with connect(proxy.port) as client:
                await client.send(get())
                await client.head()
                left, pauses = GIBIBYTE, 0
                while left:
                    left -= len(await client.read(1 << 20))
                    if (GIBIBYTE - left) >> 28 > pauses:
                        pauses += 1
                        await asyncio.sleep(0.2)
            watcher.cancel()
            growth = peak - before
            assert growth < MAY_GROW, f"it grew by {uploaded >> 20} MiB up and {growth >> 20} MiB in all"
