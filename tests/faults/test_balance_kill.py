"""A backend is killed and comes back under load, and no client notices."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import httpx2
import pytest

from asgi_enhance.testing.live import LiveServer

CLIENTS = 32


@pytest.fixture
def backends() -> Iterator[list[LiveServer]]:
    with ExitStack() as stack:
        options = ["--http", "tests.faults.one_write:OneWrite"]
        yield [
            stack.enter_context(LiveServer("asgi_enhance.demo.backend:app", options=options, env={"DEMO_NAME": name}))
            for name in ("one", "two", "three")
        ]


@pytest.fixture
def gateway(backends: list[LiveServer]) -> Iterator[LiveServer]:
    env = {"DEMO_BACKENDS": ",".join(backend.url for backend in backends)}
    with LiveServer("asgi_enhance.demo.gateway:app", env=env) as live:
        yield live


async def test_no_get_fails_while_one_of_three_is_killed_and_started_again(
    backends: list[LiveServer], gateway: LiveServer
) -> None:
    answers: Counter[int | str] = Counter()
    stop = asyncio.Event()

    async def ask(client: httpx2.AsyncClient) -> None:
        while not stop.is_set():
            try:
                answers[(await client.get(f"{gateway.url}/backends/")).status_code] += 1
            except httpx2.HTTPError as error:
                answers[repr(error)] += 1

    async with httpx2.AsyncClient(timeout=10) as client, asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(ask(client))
        for backend in (backends[0], backends[1]):
            await more(answers, 300)
            await asyncio.to_thread(backend.kill)
            await more(answers, 300)
            await asyncio.to_thread(backend.start)
        await more(answers, 300)
        stop.set()
    assert set(answers) == {200}, answers


async def more(answers: Counter[int | str], number: int) -> None:
    goal = answers.total() + number
    async with asyncio.timeout(30):
        while answers.total() < goal:  # noqa: ASYNC110 the answers are the clients'
            await asyncio.sleep(0.005)
