"""The stack round an app of each framework, over real sockets."""

import asyncio
import json
import signal
from collections.abc import Iterator

import httpx2
import pytest
from websockets.asyncio.client import connect

from asgi_enhance.testing.live import LiveServer
from tests.integration.frameworks import FRAMEWORKS

ROUTES = {
    "quart": "/page/<number>",
    "django": "/page/<int:number>",
    "blacksheep": "<unmatched>",
    "sanic": "<unmatched>",
}
"""What a page's route is called. BlackSheep and Sanic keep it to themselves."""


@pytest.fixture(scope="module", params=FRAMEWORKS)
def framework(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def server(framework: str, backend_url: str) -> Iterator[LiveServer]:
    env = {"STACK_BACKEND": backend_url, "FRAMEWORK": framework}
    with LiveServer("tests.integration.frameworks:served", env=env) as live:
        yield live


def test_a_page_is_a_miss_and_then_a_hit(server: LiveServer) -> None:
    first, second = (httpx2.get(f"{server.url}/page/1") for _ in range(2))
    assert "fwd=uri-miss" in first.headers["cache-status"]
    assert "hit" in second.headers["cache-status"]
    assert (first.status_code, first.text) == (second.status_code, second.text) == (200, "page")


def test_the_limit_holds(server: LiveServer) -> None:
    assert [httpx2.get(f"{server.url}/limited").status_code for _ in range(3)] == [200, 200, 429]


def test_the_balancer_answers_below_its_mount(server: LiveServer) -> None:
    answer = httpx2.post(f"{server.url}/lb/a%2Fb?c=d", content=b"body")
    assert answer.json() == {"path": "/a/b", "query": "c=d"}


async def test_websockets_of_the_app_and_of_the_broadcaster_talk(server: LiveServer) -> None:
    async with connect(f"{server.ws_url}/echo") as echo:
        await echo.send("hello")
        assert await asyncio.wait_for(echo.recv(), 5) == "echo hello"
    async with connect(f"{server.ws_url}/ws/ada") as ada:
        await ada.send(json.dumps({"type": "join", "group": "room"}))
        assert json.loads(await asyncio.wait_for(ada.recv(), 5)) == {"type": "joined", "group": "room"}


def test_requests_are_counted_by_the_frameworks_own_route(server: LiveServer, framework: str) -> None:
    httpx2.get(f"{server.url}/page/2")
    scrape = httpx2.get(f"{server.url}/metrics").text
    assert f'http_route="{ROUTES.get(framework, "/page/{number}")}"' in scrape
    assert "/page/2" not in scrape


def test_it_stops_when_it_is_asked_to(server: LiveServer) -> None:
    assert server.stop() in (0, -signal.SIGTERM)
