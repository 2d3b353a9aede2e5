"""A connection that was idle and is closed is no outage for the limiter; a Redis that is another one afterwards is."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from asgi_enhance.ratelimit import RateLimiter
from asgi_enhance.redis import RedisManager, node
from asgi_enhance.testing.servers import RedisServer
from tests.redis.helpers import patient, until


@pytest.fixture(autouse=True)
def steady_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "STEADY", 0.0)


class Proxy:
    """Stands between clients and a Redis, and can be pointed at another one."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self._clients: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}/0"
        finally:
            listener.close()
            self.hang_up()
            await asyncio.gather(*self._tasks)

    def hang_up(self) -> None:
        for client in self._clients:
            client.close()
        self._clients.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.append(writer)
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        for pair in ((reader, inner_writer), (inner_reader, writer)):
            self._tasks.add(asyncio.create_task(_pump(*pair)))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
    writer.close()


@asynccontextmanager
async def two_limiters(url: str) -> AsyncIterator[tuple[tuple[RedisManager, RateLimiter], ...]]:
    """Two processes' worth of limiters of 40 a minute, each with a connection that stands."""
    async with AsyncExitStack() as stack:
        crew = []
        for _ in range(2):
            redis = patient(url)
            limiter = RateLimiter("40/minute", redis=redis, expected_workers=2, budget=5.0, deny_keys=0)
            await stack.enter_async_context(limiter)
            assert not (await limiter.hit("warm")).degraded
            crew.append((redis, limiter))
        yield tuple(crew)


async def test_an_idle_connection_that_redis_closes_leaves_the_whole_limit(private_redis: RedisServer) -> None:
    async with two_limiters(private_redis.url) as ((redis, limiter), _):
        for _ in range(25):  # more than a share
            assert await limiter.is_allowed("a")
        private_redis.call("CLIENT", "KILL", "TYPE", "normal")
        await until(lambda: redis.stats.lost)
        decisions = [await limiter.hit("a") for _ in range(16)]
    assert [decision.allowed for decision in decisions] == [True] * 15 + [False]
    assert not any(decision.degraded for decision in decisions)


@pytest.mark.parametrize("looked", [False, True], ids=["at once", "after it has looked itself"])
async def test_a_redis_that_comes_back_empty_in_the_same_moment_lets_nobody_beyond_the_limit(
    private_redis: RedisServer, looked: bool
) -> None:
    proxy = Proxy(private_redis)
    with RedisServer() as another:
        async with proxy.running() as url, two_limiters(url) as crew:
            admitted = 0
            for _ in range(8):
                for _, limiter in crew:
                    admitted += await limiter.is_allowed("a")
            proxy.server = another
            proxy.hang_up()
            for redis, _ in crew:
                await until(lambda redis=redis: redis.stats.outages if looked else redis.stats.lost)  # type: ignore[misc]
            for _, limiter in crew:
                admitted += sum(await asyncio.gather(*(limiter.is_allowed("a") for _ in range(30))))
            for _ in range(30):
                for _, limiter in crew:
                    admitted += await limiter.is_allowed("a")
    # What is asked while the new connection is made is admitted alone, and the Redis behind that has counted it, too.
    assert 38 <= admitted <= 40
