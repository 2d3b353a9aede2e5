"""The programs that users of the facade and of the cores write, run as they are written."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack

import httpx2
import pytest
from starlette.requests import Request
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from asgi_enhance import LoadBalancer, RateLimiter, RedisCache
from asgi_enhance.cache import generate_cache_key
from asgi_enhance.errors import ConfigError
from asgi_enhance.testing.driver import Driver, http_scope
from asgi_enhance.testing.live import LiveServer
from asgi_enhance.testing.servers import RedisServer


@pytest.fixture(scope="module", params=["memory", "redis"])
def program(request: pytest.FixtureRequest, backend_url: str) -> Iterator[LiveServer]:
    env = {"PROGRAM_BACKEND": backend_url, "API_RATE_LIMIT_DEFAULT": "50"}
    with ExitStack() as stack:
        if request.param == "redis":
            env["PROGRAM_REDIS"] = stack.enter_context(RedisServer()).url
        yield stack.enter_context(LiveServer("tests.api.programs:app", env=env))


def test_a_fastapi_app_answers_through_the_facade(program: LiveServer) -> None:
    answer = httpx2.post(f"{program.url}/some/path?a=b", content=b"body")
    assert answer.json() == {"path": "/some/path", "query": "a=b"}
    assert "ratelimit" in answer.headers
    assert "cache-status" in answer.headers


def test_the_facade_limits_a_client_and_counts_each_request_once(program: LiveServer) -> None:
    before = httpx2.get(f"{program.url}/_stats").json()["requests"]["total"]
    statuses = [httpx2.get(f"{program.url}/x").status_code for _ in range(60)]
    after = httpx2.get(f"{program.url}/_stats").json()["requests"]["total"]
    assert 200 in statuses
    assert statuses[-1] == 429
    assert after - before == 61


async def test_the_facade_broadcasts_to_websockets(program: LiveServer) -> None:
    async with connect(f"{program.ws_url}/ws/ada") as ada, connect(f"{program.ws_url}/ws/bob") as bob:
        for socket in (ada, bob):
            await socket.send('{"type": "ping"}')
            assert json.loads(await asyncio.wait_for(socket.recv(), 5)) == {"type": "pong"}
        async with httpx2.AsyncClient() as client:
            (await client.post(f"{program.url}/_events", json={"n": 1})).raise_for_status()
        for socket in (ada, bob):
            heard = json.loads(await asyncio.wait_for(socket.recv(), 5))
            assert heard == {"event": "news", "data": {"n": 1}}


async def test_the_balancer_works_alone(backend_url: str) -> None:
    lb = LoadBalancer([backend_url])
    assert await lb.get_backend_url() == backend_url
    client = Driver(lambda *_: None, http_scope("/x?y=z"), [{"type": "http.request", "body": b""}])  # type: ignore[arg-type]
    response = await lb.forward_request(Request(client.scope, client.receive))
    assert response.status_code == 200
    await response(client.scope, client.receive, client.send)
    assert json.loads(client.sent[-1].get("body", b"") or client.sent[-2]["body"]) == {"path": "/x", "query": "y=z"}
    health = await lb.health_check()
    assert list(health) == [backend_url]
    await lb.close()


async def test_the_cache_works_alone(redis_url: str) -> None:
    cache = RedisCache(redis_url=redis_url)
    await cache.connect()
    await cache.set("key", "value", ttl=300)
    assert await cache.get("key") == "value"
    assert await cache.exists("key")
    await cache.delete("key")
    assert not await cache.exists("key")
    request = Request(http_scope("/a?b"))
    assert cache.generate_cache_key(request) == generate_cache_key(request)
    assert cache.generate_cache_key(request) != cache.generate_cache_key(Request(http_scope("/a?c")))
    cache.ttl = 300
    cache.max_connections = 10
    assert cache.max_connections == 10
    for limit in (0, -1, True, "10"):
        with pytest.raises(ConfigError, match="max_connections"):
            cache.max_connections = limit  # type: ignore[assignment]
    await cache.disconnect()


async def test_the_limiter_works_alone(redis_url: str) -> None:
    limiter = RateLimiter(redis_url=redis_url)
    await limiter.connect()
    limiter.limits = {"default": {"requests": 100, "window": 60}, "api": {"requests": 3, "window": 60}}
    assert await limiter.is_allowed("client", endpoint_type="api")
    assert await limiter.get_remaining_requests("client", endpoint_type="api") == 2
    assert [await limiter.is_allowed("client", endpoint_type="api") for _ in range(3)] == [True, True, False]
    assert await limiter.is_allowed("client", endpoint_type="other")
    await limiter.disconnect()


@pytest.fixture(scope="module")
def parts(backend_url: str) -> Iterator[LiveServer]:
    with (
        RedisServer() as redis,
        LiveServer("tests.api.parts:app", env={"PROGRAM_BACKEND": backend_url, "PROGRAM_REDIS": redis.url}) as live,
    ):
        yield live


def test_each_core_works_on_its_own_behind_a_server(parts: LiveServer, backend_url: str) -> None:
    answers = [httpx2.get(f"{parts.url}/cached?page=1").json() for _ in range(2)]
    assert answers == [{"value": "value", "new": True}, {"value": "value", "new": False}]
    allowed = [httpx2.get(f"{parts.url}/limited/ada").json() for _ in range(4)]
    assert [one["allowed"] for one in allowed] == [True, True, True, False]
    assert [one["left"] for one in allowed] == [2, 1, 0, 0]
    backends = httpx2.get(f"{parts.url}/backends").json()
    assert backends["next"] == backend_url
    assert backends["health"][backend_url]["healthy"]


def test_a_body_that_was_read_before_is_forwarded_and_one_that_is_gone_is_an_error(parts: LiveServer) -> None:
    for how in ("not", "whole"):
        assert httpx2.post(f"{parts.url}/read/{how}", content=b"body").json() == {"path": f"/read/{how}", "query": ""}
    assert httpx2.post(f"{parts.url}/read/streamed", content=b"body").status_code == 500


async def test_the_stream_processor_serves_websockets_of_a_framework(parts: LiveServer) -> None:
    async with (
        asyncio.timeout(20),
        connect(f"{parts.ws_url}/ws/ada") as ada,
        connect(f"{parts.ws_url}/ws/bob") as bob,
        httpx2.AsyncClient(base_url=parts.url) as client,
    ):
        for name, socket in (("ada", ada), ("bob", bob)):
            await socket.send(json.dumps({"type": "update", "n": name}))
            assert json.loads(await socket.recv()) == {"seen": name}
        await client.post("/events/group", json={"to": "the group"})
        await client.post("/events/all", json={"to": "all"})
        assert [json.loads(await ada.recv()) for _ in range(2)] == [{"to": "the group"}, {"to": "all"}]
        assert json.loads(await bob.recv()) == {"to": "all"}
        await client.delete("/clients/bob")
        with pytest.raises(ConnectionClosed):
            await bob.recv()
