"""GET with 1, 32 and 256 awaiters at once: redis-py, redis-py's pipeline, and the manager.

    python -m benchmarks.redis_manager [--quick]

redis-py is used as its documentation shows, with a pool that can serve all awaiters. Its pipeline is one
`execute()` for all GETs of a turn: what a program that knows all its commands beforehand could do. `direct` is the
floor: the same commands written and parsed by hiredis on a bare asyncio protocol, without futures or deadlines.

The last line is what a command costs its caller while Redis is away and the breaker is open.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress

import hiredis
import redis.asyncio

from asgi_enhance.errors import RedisUnavailable
from asgi_enhance.redis import RedisManager
from asgi_enhance.testing.servers import RedisServer
from benchmarks.harness import Table, Way, arguments, compare, show

VALUE = b"x" * 100


class Direct(asyncio.Protocol):
    """The least that can be done: write a batch, count its replies."""

    def __init__(self) -> None:
        self.reader = hiredis.Reader(notEnoughData=self)
        self.left = 0
        self.done: asyncio.Future[None] | None = None
        self.transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.reader.feed(data)
        while self.reader.gets() is not self:
            self.left -= 1
        if not self.left and self.done is not None:
            self.done.set_result(None)

    async def get(self, keys: list[str]) -> None:
        assert self.transport is not None
        self.left, self.done = len(keys), asyncio.get_running_loop().create_future()
        self.transport.write(b"".join([hiredis.pack_command(("GET", key)) for key in keys]))  # type: ignore[arg-type]
        await self.done


def spread(get: Callable[[str], object], *, awaiters: int, each: int) -> Way:
    """`awaiters` tasks that do `each` GETs one after the other."""

    async def awaiter(number: int) -> None:
        key = f"key:{number}"
        for _ in range(each):
            assert await get(key) == VALUE  # type: ignore[misc]

    async def way() -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(awaiters):
                group.create_task(awaiter(number))

    return way


async def measure(url: str, awaiters: int, *, operations: int, rounds: int) -> Table:
    each = max(1, operations // awaiters)
    pool = redis.asyncio.ConnectionPool.from_url(url, max_connections=awaiters + 1)
    client = redis.asyncio.Redis.from_pool(pool)
    keys = [f"key:{number}" for number in range(awaiters)]
    await client.mset(dict.fromkeys(keys, VALUE))

    async def pipeline() -> None:
        for _ in range(each):
            pipe = client.pipeline(transaction=False)
            for key in keys:
                pipe.get(key)
            assert await pipe.execute() == [VALUE] * awaiters

    loop = asyncio.get_running_loop()
    host, port = url.removeprefix("redis://").removesuffix("/0").split(":")
    transport, protocol = await loop.create_connection(Direct, host, int(port))

    async def direct() -> None:
        for _ in range(each):
            await protocol.get(keys)

    async with RedisManager(url) as manager:
        ways: dict[str, Way] = {
            "redis-py": spread(client.get, awaiters=awaiters, each=each),
            "redis-py's pipeline": pipeline,
            "RedisManager": spread(lambda key: manager.execute("GET", key), awaiters=awaiters, each=each),
            "direct": direct,
        }
        table = await compare(ways, operations=awaiters * each, rounds=rounds)
    transport.close()
    await client.aclose()
    await pool.aclose()
    return table.titled(f"GET, {awaiters} at once")


async def refuse(operations: int) -> float:
    """CPU seconds a command that the open breaker refuses."""
    async with RedisManager("redis://127.0.0.1:1/0", probe_delay=60.0, max_probe_delay=60.0) as manager:
        while manager.available:
            with suppress(RedisUnavailable):
                await manager.ping()
        begun = time.process_time()
        for _ in range(operations):
            with suppress(RedisUnavailable):
                await manager.execute("GET", "key")
        return (time.process_time() - begun) / operations


def main() -> None:
    quick = arguments(__doc__ or "").quick
    with RedisServer() as server:
        show(f"{server.engine} {server.version}, its own process.")
        for awaiters in (1, 32, 256):
            work = measure(server.url, awaiters, operations=800 if quick else 8000, rounds=3 if quick else 9)
            show(asyncio.run(work))
    logging.disable()
    show(f"Refused by the open breaker: {asyncio.run(refuse(20_000)) * 1e6:.1f} µs a command.")


if __name__ == "__main__":
    main()
