"""The whole stack on real traffic while its Redis goes away and comes back: nobody waits long, nothing fails."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from time import perf_counter

import httpx2
import pytest

from asgi_enhance.testing.live import LiveServer
from asgi_enhance.testing.servers import RedisServer

BOUND = 1.0
"""Seconds that a request may take at the moment of an outage: a time-out of each layer on its way, and no more."""

OUTAGES: dict[str, tuple[Callable[[RedisServer], None], Callable[[RedisServer], object]]] = {
    "stopped": (RedisServer.stop, RedisServer.start),
    "paused": (RedisServer.pause, RedisServer.resume),
    "killed": (RedisServer.kill, RedisServer.start),
}


@pytest.fixture
def stack(private_redis: RedisServer, backend_url: str) -> Iterator[LiveServer]:
    env = {"STACK_BACKEND": backend_url, "STACK_REDIS": private_redis.url}
    with LiveServer("tests.integration.apps:served", env=env) as live:
        yield live


@asynccontextmanager
async def traffic(url: str) -> AsyncIterator[list[tuple[int, float, str]]]:
    """Six clients asking all the time; status, seconds and Cache-Status of every answer."""
    answers: list[tuple[int, float, str]] = []
    stop = asyncio.Event()

    async def ask(client: httpx2.AsyncClient, path: str) -> None:
        while not stop.is_set():
            began = perf_counter()
            response = await client.get(url + path)
            answers.append((response.status_code, perf_counter() - began, response.headers.get("cache-status", "")))

    async with httpx2.AsyncClient(timeout=10) as client, asyncio.TaskGroup() as group:
        for path in ("/page", "/limited", "/lb/x") * 2:
            group.create_task(ask(client, path))
        try:
            yield answers
        finally:
            stop.set()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 it is another process that makes it hold
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("outage", OUTAGES)
async def test_the_stack_serves_through_an_outage_of_redis(
    outage: str, stack: LiveServer, private_redis: RedisServer
) -> None:
    break_it, mend_it = OUTAGES[outage]
    async with traffic(stack.url) as answers:
        await until(lambda: len(answers) > 60)
        await asyncio.to_thread(break_it, private_redis)
        await until(lambda: "is unavailable" in stack.output())
        away = len(answers)
        await until(lambda: len(answers) > away + 60)
        await asyncio.to_thread(mend_it, private_redis)
        await until(lambda: "is available again" in stack.output())
        back = len(answers)
        await until(lambda: len(answers) > back + 60)
    assert {status for status, _, _ in answers} <= {200, 429}
    assert max(seconds for _, seconds, _ in answers) < BOUND
    assert any("hit" in cache for _, _, cache in answers[back:])
    lines = [line for line in stack.output().splitlines() if "redis" in line]
    assert len(lines) == 2, lines


def test_the_stack_starts_without_its_redis(backend_url: str) -> None:
    env = {"STACK_BACKEND": backend_url, "STACK_REDIS": "redis://127.0.0.1:1"}
    with LiveServer("tests.integration.apps:served", env=env) as stack:
        assert httpx2.get(f"{stack.url}/page").text == "page 1"
        statuses = [httpx2.get(f"{stack.url}/limited").status_code for _ in range(3)]
        assert statuses == [200, 200, 429]
