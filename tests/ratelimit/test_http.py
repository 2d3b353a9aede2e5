"""Over real sockets: several workers, every path of a real framework, every server's way to refuse a WebSocket."""

import asyncio
import itertools
import os

import httpx2
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from asgi_enhance.ratelimit import RateLimitMiddleware
from asgi_enhance.testing.driver import request
from asgi_enhance.testing.live import LiveServer
from asgi_enhance.testing.servers import RedisServer
from tests.ratelimit.live import inner


def served(redis: RedisServer, *more: str, server: str = "uvicorn", workers: int = 1) -> LiveServer:
    env = {"LIVE_REDIS": redis.url, "LIVE_PREFIX": f"live-{os.getpid()}-{server}-{workers}"}
    options = ("--workers", str(workers)) if workers > 1 else ()
    return LiveServer("tests.ratelimit.live:app", server=server, options=(*options, *more), env=env)


async def test_two_workers_admit_exactly_the_limit_of_many_at_once(redis_server: RedisServer) -> None:
    with served(redis_server, workers=2) as server:
        async with asyncio.timeout(20):
            for i in itertools.count():  # until both workers have answered, to other clients
                async with httpx2.AsyncClient(base_url=server.url) as client:
                    other = {"x-forwarded-for": f"198.51.100.{i}"}  # uvicorn trusts its neighbour to be a proxy
                    responses = await asyncio.gather(*(client.get("/", headers=other) for _ in range(8)))
                if len({response.json()["pid"] for response in responses}) == 2:
                    break
            async with httpx2.AsyncClient(base_url=server.url, limits=httpx2.Limits(max_connections=60)) as client:
                statuses = [
                    response.status_code
                    for response in await asyncio.gather(*(client.get(f"/v1/items/{i}") for i in range(120)))
                ]
    assert statuses.count(200) == 25
    assert statuses.count(429) == 95


@pytest.mark.parametrize(("option", "told"), [("--no-proxy-headers", 1), ("--proxy-headers", 0)])
async def test_a_proxy_that_neither_the_server_nor_the_layer_trusts_is_told_of(
    redis_server: RedisServer, option: str, told: int
) -> None:
    with served(redis_server, option) as server:
        async with httpx2.AsyncClient(base_url=server.url, headers={"x-forwarded-for": "198.51.100.7"}) as client:
            for _ in range(3):
                await client.get("/")
        server.stop()
        assert server.output().count("x-forwarded-for from '127.0.0.1' is not believed") == told


@pytest.mark.parametrize("path", ["/", "/v1/items/1", "/sub/items/1", "/nowhere", "/sub/nowhere", "/docs"])
async def test_routers_mounts_and_unknown_paths_are_all_limited(path: str) -> None:
    app = RateLimitMiddleware(inner, default="1/minute")
    first, second = [await request(app, path) for _ in range(2)]
    assert first.status in (200, 404)
    assert first.header("ratelimit") is not None
    assert second.status == 429


@pytest.mark.parametrize("server", ["uvicorn", "hypercorn", "granian"])
async def test_a_handshake_is_refused_with_a_429_that_a_client_can_read(redis_server: RedisServer, server: str) -> None:
    with served(redis_server, server=server) as live:
        refused = None
        for _ in range(26):
            try:
                async with connect(f"{live.ws_url}/ws", open_timeout=10):
                    pass
            except InvalidStatus as error:
                refused = error.response
                break
    assert refused is not None
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 0
    assert b"quota-exceeded" in (refused.body or b"")
