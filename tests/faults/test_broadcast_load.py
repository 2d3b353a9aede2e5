"""Many clients on a real server: 3 000 that come and vanish, and one among 1 000 that stops reading."""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import quantiles
from time import monotonic
from typing import Any

import httpx2
import pytest

from asgi_enhance.testing.live import LiveServer
from asgi_enhance.testing.servers import RedisServer
from tests.broadcast.helpers import until

HANDSHAKE = (
    "GET /ws/{name}?{query} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
CLOSE = bytes((0x88, 0x80, 0, 0, 0, 0))  # a masked, empty close frame


class Reader(asyncio.Protocol):
    """A client that reads what time each message was sent, and cheaply, so that a thousand fit into one test."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.open = asyncio.get_running_loop().create_future()
        self.latencies: list[float] = []
        self._rest = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(HANDSHAKE.format(name=self.name, query="group=g").encode())

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        if not self.open.done():
            head, end, data = data.partition(b"\r\n\r\n")
            if not end:
                self._rest = head
                return
            self.open.set_result(head.split()[1] == b"101")
        now = monotonic()
        while len(data) > 4:
            size = 4 + int.from_bytes(data[2:4]) if data[1] == 126 else 2 + data[1]
            if len(data) < size:
                break
            stamp = data.find(b'"t":', 0, size)
            if stamp >= 0:
                self.latencies.append(now - float(data[stamp + 4 : data.index(b",", stamp)]))
            data = data[size:]
        self._rest = data

    def connection_lost(self, error: Exception | None) -> None:
        if not self.open.done():
            self.open.set_result(False)


async def stats(http: httpx2.AsyncClient) -> dict[str, int]:
    found: dict[str, int] = (await http.get("/stats")).json()
    return found


@asynccontextmanager
async def live(**env: str) -> AsyncIterator[tuple[LiveServer, httpx2.AsyncClient]]:
    with LiveServer("tests.broadcast.app:app", env=env) as server:
        async with httpx2.AsyncClient(base_url=server.url, timeout=20) as http:
            yield server, http


async def come_and_go(server: LiveServer, count: int) -> None:
    """Connect; then, in turn, close properly, hang up, or reset the connection."""
    loop = asyncio.get_running_loop()
    for start in range(0, count, 50):
        readers = []
        for number in range(start, start + 50):
            _, reader = await loop.create_connection(lambda n=number: Reader(f"c{n}"), "127.0.0.1", server.port)  # type: ignore[misc]
            readers.append(reader)
        assert all(await asyncio.gather(*(reader.open for reader in readers)))
        for number, reader in enumerate(readers):
            if number % 3 == 0:
                reader.transport.write(CLOSE)
            elif number % 3 == 1:
                raw = reader.transport.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            reader.transport.close()


async def test_after_3000_come_and_vanish_nothing_is_left() -> None:
    with RedisServer() as redis:
        async with live(REDIS_URL=redis.url) as (server, http):
            await come_and_go(server, 600)  # what is allocated once, is
            await until(lambda: gone(http), seconds=15)
            before = await stats(http)
            await come_and_go(server, 3000)
            await until(lambda: gone(http), seconds=15)
            await until(lambda: only_everyone_is_left(redis), seconds=15)
            after = await stats(http)
            assert after["connected"] - before["connected"] == 3000
            assert after["tasks"] <= before["tasks"]
            assert after["files"] <= before["files"]
            assert after["memory"] < before["memory"] * 1.05
            await until(lambda: redis.call("KEYS", "*") == [])


async def gone(http: httpx2.AsyncClient) -> bool:
    found = await stats(http)
    return found["connections"] == 0 and found["groups"] == 0 and found["outbox_bytes"] == 0


async def only_everyone_is_left(redis: RedisServer) -> bool:
    return len(redis.call("PUBSUB", "SHARDCHANNELS", "*")) == 1


@pytest.mark.parametrize("policy", ["disconnect", "drop-oldest", "drop-newest", "latest-per-key"])
async def test_one_that_stops_reading_among_1000_costs_the_others_nothing(policy: str) -> None:
    async with live(SLOW_CONSUMER=policy) as (server, http):
        loop = asyncio.get_running_loop()
        readers = []
        for number in range(999):
            _, reader = await loop.create_connection(lambda n=number: Reader(f"c{n}"), "127.0.0.1", server.port)  # type: ignore[misc]
            readers.append(reader)
        assert all(await asyncio.gather(*(reader.open for reader in readers)))
        without = await paced(http, readers)
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with raw:
            raw.connect(("127.0.0.1", server.port))
            raw.sendall(HANDSHAKE.format(name="slow", query="group=g").encode())
            await until(lambda: connected(http, 1000))
            raw.setblocking(False)
            # fill its socket, its buffers and its outbox; the others keep reading
            before = (await stats(http))["memory"]
            for _ in range(120):
                await http.post("/send/slow", content=json.dumps("x" * 60_000))
            found = await stats(http)
            assert found["outbox_bytes"] <= 1 << 20
            if policy == "disconnect":
                assert found["slow_disconnects"] == 1
                assert found["outbox_bytes"] == 0
            else:
                assert found["dropped"] > 0
                assert found["connections"] == 1000
            assert found["memory"] - before < 12 << 20  # the outbox, the transport's buffer, what malloc keeps
            with_slow = await paced(http, readers)
        for reader in readers:
            reader.transport.abort()
    # within noise: on a shared machine a factor, not a percentage
    assert with_slow < 3 * without + 0.02, f"p99 {without:.4f} s became {with_slow:.4f} s"


async def connected(http: httpx2.AsyncClient, count: int) -> bool:
    return (await stats(http))["connections"] == count


async def paced(http: httpx2.AsyncClient, readers: list[Reader]) -> float:
    """The p99 of 16 messages, in seconds."""
    for reader in readers:
        reader.latencies.clear()
    for n in range(16):
        await http.post("/publish/g", content=f'{{"t":{monotonic():.6f},"pad":"{"x" * 40}"}}')
        await until(lambda n=n: all(len(reader.latencies) > n for reader in readers))  # type: ignore[misc]
    return quantiles([latency for reader in readers for latency in reader.latencies], n=100)[98]
