"""Several processes, one Redis."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack

import httpx2
import pytest

from asgi_enhance.redis import RedisManager
from asgi_enhance.testing.live import LiveServer

PROCESSES, CLIENTS = 4, 50


@pytest.fixture
def urls(redis: RedisManager, redis_url: str) -> Iterator[list[str]]:
    environment = {"TEST_REDIS_URL": redis_url, "TEST_PREFIX": redis.prefix}
    with ExitStack() as stack:
        servers = [
            stack.enter_context(LiveServer("tests.cache.processes:app", env=environment)) for _ in range(PROCESSES)
        ]
        yield [server.url for server in servers]


async def test_four_processes_with_fifty_cold_misses_each_make_one_call(urls: list[str], redis: RedisManager) -> None:
    limits = httpx2.Limits(max_connections=PROCESSES * CLIENTS)
    async with httpx2.AsyncClient(limits=limits, timeout=30, headers={"host": "site.test"}) as client:
        answers = await asyncio.gather(*(client.get(f"{url}/") for url in urls for _ in range(CLIENTS)))
        assert {(answer.status_code, answer.content) for answer in answers} == {(200, b"1")}
        assert await redis.execute("GET", redis.key("calls")) == b"1"

        # What is not for sharing is not waited for: told by one process, known to all
        await client.get(f"{urls[0]}/private")
        answers = await asyncio.gather(*(client.get(f"{url}/private") for url in urls))
        assert len({answer.content for answer in answers}) == PROCESSES
        await client.post(f"{urls[0]}/")
        answers = [await client.get(f"{url}/") for url in urls]
        assert len({answer.content for answer in answers}) == 1, "a write in one process is seen by all"
        assert answers[0].content != b"1"
