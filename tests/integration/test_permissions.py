"""What the toolkit's user must be allowed to do in Redis: what the documentation says, and no more."""

import logging
import re
from pathlib import Path

import pytest

from asgi_enhance import (
    CacheMiddleware,
    LoadBalancer,
    MetricsCollector,
    RateLimiter,
    RealTimeStreamProcessor,
    RedisManager,
    TieredCache,
)
from asgi_enhance.broadcast import History
from asgi_enhance.testing.driver import request
from asgi_enhance.testing.servers import RedisServer
from tests.cache.origin import Answer, Origin

DOCUMENTED = Path(__file__).parents[2] / "docs" / "redis.md"


async def test_the_documented_permissions_are_enough_for_everything(
    private_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    found = re.search(r"ACL SETUSER app (.*)", DOCUMENTED.read_text())
    assert found is not None
    private_redis.call("ACL", "SETUSER", "app", *found[1].split())
    url = f"redis://app:secret@127.0.0.1:{private_redis.port}/0"
    with caplog.at_level(logging.WARNING, logger="asgi_enhance"):
        async with RedisManager(url, connect_timeout=2.0, command_timeout=2.0) as redis:
            async with TieredCache(redis) as cache:
                layer = CacheMiddleware(Origin(Answer("Cache-Control: max-age=60")), cache=cache)
                answers = [await request(layer, "/") for _ in range(3)]
                assert "; hit" in str(answers[-1].header("cache-status"))
                await request(layer, "/", method="POST")
                await cache.purge(tags=["a"], url="http://testserver/")
                assert await cache.get_or_compute("key", lambda: "value") == "value"
                await cache.delete("key")
                assert cache.stats.store_errors == 0
            async with RateLimiter({"default": "10/minute burst 5"}, redis=redis) as limiter:
                assert await limiter.is_allowed("ann")
                await limiter.reset("ann")
                assert limiter.stats.unavailable == 0
            async with RealTimeStreamProcessor(redis=redis, history={"room": History()}) as processor:
                await processor.broadcast_to_group("room", "hello")
                await processor.broadcast_to_group("plain", "hello")
                assert await processor.history("room") == ["hello"]
                assert await processor.presence("room") == []
            async with LoadBalancer(["http://127.0.0.1:1"], redis=redis) as balancer:
                await balancer.register("http://127.0.0.1:2")
                await balancer.deregister("http://127.0.0.1:2")
            async with MetricsCollector(redis=redis) as collector:
                await collector.get_metrics()
            assert redis.stats.errors == redis.stats.scripts_loaded  # NOSCRIPT is one
    assert caplog.messages == []
