"""The same stack over real sockets, under each server."""

import asyncio
import json
import signal
from collections.abc import Iterator

import httpx2
import pytest
from websockets.asyncio.client import connect

from asgi_enhance.testing.live import SERVERS, LiveServer


@pytest.fixture(scope="module", params=[*SERVERS, "daphne"])
def server(request: pytest.FixtureRequest, backend_url: str) -> Iterator[LiveServer]:
    env = {"STACK_BACKEND": backend_url}
    with LiveServer("tests.integration.apps:served", server=request.param, env=env) as live:
        yield live


def test_a_page_is_a_miss_and_then_a_hit(server: LiveServer) -> None:
    first, second = httpx2.get(f"{server.url}/page"), httpx2.get(f"{server.url}/page")
    assert "fwd=" in first.headers["cache-status"]
    assert "hit" in second.headers["cache-status"]
    assert second.text == first.text == "page 1"
    assert int(second.headers["age"]) >= 0


def test_the_limit_holds_and_says_when_to_come_back(server: LiveServer) -> None:
    answers = [httpx2.get(f"{server.url}/limited") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert int(answers[-1].headers["retry-after"]) >= 1
    assert answers[-1].headers["content-type"] == "application/problem+json"
    assert "r=0" in answers[-1].headers["ratelimit"]


def test_the_mounted_balancer_keeps_the_path_as_it_was_written(server: LiveServer) -> None:
    answer = httpx2.post(f"{server.url}/lb/a%2Fb?c=%20", content=b"x" * 100_000)
    assert answer.json() == {"path": "/a/b", "query": "c=%20"}


def test_an_event_stream_flows(server: LiveServer) -> None:
    with httpx2.stream("GET", f"{server.url}/events") as response:
        lines = response.iter_lines()
        assert [next(lines) for _ in range(3)] == ["data: tick", "", "data: tick"]


def test_an_error_of_the_app_is_the_apps(server: LiveServer) -> None:
    assert httpx2.get(f"{server.url}/fails").status_code == 500


async def test_websockets_of_the_app_and_of_the_broadcaster_talk(server: LiveServer) -> None:
    async with connect(f"{server.ws_url}/echo") as echo:
        await echo.send("hello")
        assert await echo.recv() == "echo hello"
    async with connect(f"{server.ws_url}/ws/ada") as ada, connect(f"{server.ws_url}/ws/bob") as bob:
        for socket in (ada, bob):
            await socket.send(json.dumps({"type": "join", "group": "room"}))
            joined = json.loads(await asyncio.wait_for(socket.recv(), 5))
            assert joined == {"type": "joined", "group": "room"}
        await ada.send(json.dumps({"type": "presence", "group": "room"}))
        presence = json.loads(await asyncio.wait_for(ada.recv(), 5))
        assert sorted(presence["clients"]) == ["ada", "bob"]


def test_everything_was_counted_by_route(server: LiveServer) -> None:
    httpx2.get(f"{server.url}/page")
    scrape = httpx2.get(f"{server.url}/metrics").text
    assert 'http_route="/page"' in scrape


def test_the_server_stops_when_it_is_asked_to(server: LiveServer) -> None:
    assert server.stop() in (0, -signal.SIGTERM)
