"""Metrics while Redis is away: requests do not notice, a worker answers for itself, and nothing counted is lost."""

from time import perf_counter

import pytest

from asgi_enhance.asgi.types import Receive, Scope, Send
from asgi_enhance.metrics import MetricsCollector, MetricsMiddleware
from asgi_enhance.redis import RedisManager
from asgi_enhance.testing.driver import request
from asgi_enhance.testing.servers import RedisServer


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": b"hello"})


def worker(redis: RedisManager) -> MetricsMiddleware:
    return MetricsMiddleware(app, collector=MetricsCollector(redis=redis, interval=30, registry=None))


async def test_a_worker_answers_for_itself_while_redis_is_away_and_ships_later(private_redis: RedisServer) -> None:
    async with RedisManager(private_redis.url) as manager:
        layer = worker(manager)
        await request(layer)
        assert (await layer.collector.get_metrics())["requests"]["total"] == 1
        private_redis.stop()
        await request(layer)
        metrics = await layer.collector.get_metrics()
        assert metrics["requests"]["total"] == 2
        assert b"http_server_request_duration_seconds_count" in (await request(layer, "/metrics")).body
        await layer.collector.aclose()
    private_redis.start()
    async with RedisManager(private_redis.url) as manager:
        again = worker(manager)
        again.collector.table = layer.collector.table  # the same counts, on a manager that is not waiting to probe
        assert (await again.collector.get_metrics())["requests"]["total"] == 2
        assert layer.collector.errors == again.collector.errors == 0
        await again.collector.aclose()


@pytest.mark.parametrize("refusing", [("CONFIG", "SET", "maxmemory", "1"), ("ACL", "SETUSER", "default", "-evalsha")])
async def test_a_redis_that_refuses_is_away_and_no_failure_of_the_metrics(
    refusing: tuple[str, ...], private_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with RedisManager(private_redis.url) as manager:
        layer = worker(manager)
        await layer.collector.get_metrics()  # knows the script
        private_redis.call(*refusing)
        await request(layer)
        assert (await layer.collector.get_metrics())["requests"]["total"] == 1
        await layer.collector.aclose()
    assert layer.collector.errors == 0
    assert [record.name for record in caplog.records] == ["asgi_enhance.redis"]


async def test_a_silent_redis_costs_a_request_nothing(private_redis: RedisServer) -> None:
    async with RedisManager(private_redis.url) as manager:
        layer = worker(manager)
        await request(layer)
        private_redis.pause()
        try:
            began = perf_counter()
            for _ in range(50):
                assert (await request(layer)).status == 200
            assert perf_counter() - began < 0.25
        finally:
            private_redis.resume()
            await layer.collector.aclose()
