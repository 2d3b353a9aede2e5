"""The programs that users of the facade and of the cores write, run as they are written."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx2
import pytest
from starlette.requests import Request
from websockets.asyncio.client import connect

from asgi_enhance import LoadBalancer, RateLimiter, RealTimeStreamProcessor, RedisCache
from asgi_enhance.asgi.types import Message
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


async def until(holds: Callable[[], bool]) -> None:
    """Let everything else run until something holds."""
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110 there is no event to wait for
            await asyncio.sleep(0)


class Socket:
    """An accepted WebSocket, as a framework gives it."""

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[Message] = asyncio.Queue()
        self.outbox: asyncio.Queue[Message] = asyncio.Queue()

    async def receive(self) -> Message:
        return await self.inbox.get()

    async def send(self, message: Message) -> None:
        self.outbox.put_nowait(message)

    async def heard(self) -> object:
        message = await asyncio.wait_for(self.outbox.get(), 5)
        return json.loads(str(message["text"]))


async def test_the_stream_processor_works_alone() -> None:
    processor = RealTimeStreamProcessor()
    updates: asyncio.Queue[object] = asyncio.Queue()

    async def handler(client_id: str, message: object) -> None:
        updates.put_nowait((client_id, message))

    processor.register_processor("update", handler)
    socket = Socket()
    serving = asyncio.create_task(processor.add_connection("ada", socket, groups=["project:123"]))
    await until(lambda: processor.stats.connections == 1)
    await processor.send_to_client("ada", {"n": 1})
    await processor.broadcast_to_group("project:123", {"n": 2})
    await processor.broadcast_all({"n": 3})
    assert [await socket.heard() for _ in range(3)] == [{"n": 1}, {"n": 2}, {"n": 3}]
    socket.inbox.put_nowait({"type": "websocket.receive", "text": '{"type": "update", "x": 1}'})
    assert await asyncio.wait_for(updates.get(), 5) == ("ada", {"type": "update", "x": 1})
    await processor.remove_connection("ada")
    await asyncio.wait_for(serving, 5)
    await processor.aclose()
