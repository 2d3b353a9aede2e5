"""The gateway of the tour: a Starlette app with the whole stack round it and the balancer mounted inside.

It is also how one would write it: a manager (or none), the cores that one's own code wants to use, the layers in order.
"""

import asyncio
import os
from itertools import count

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from asgi_enhance import (
    BroadcastRouter,
    CacheMiddleware,
    LoadBalanceApp,
    MetricsCollector,
    MetricsMiddleware,
    RateLimiter,
    RateLimitMiddleware,
    RealTimeStreamProcessor,
    RedisManager,
    Rule,
)

url = os.environ.get("DEMO_REDIS")
redis = RedisManager(url, prefix=os.environ["DEMO_PREFIX"]) if url else None
processor = RealTimeStreamProcessor(redis=redis)
limiter = RateLimiter(redis=redis)
proxy = LoadBalanceApp(os.environ["DEMO_BACKENDS"], algorithm="round-robin")
collector = MetricsCollector(redis=redis)
collector.watch("ratelimit", limiter.stats)
collector.watch("balance", proxy.balancer.stats)
collector.watch("broadcast", processor.stats)
if redis is not None:
    collector.watch("redis", redis.stats)

written = count(1)


async def report(request: Request) -> JSONResponse:
    """Something that takes a while to make, and may be kept for a minute."""
    await asyncio.sleep(0.1)
    headers = {"cache-control": "public, max-age=60"}
    return JSONResponse({"report": next(written), "by": os.environ.get("DEMO_NAME")}, headers=headers)


async def limited(request: Request) -> JSONResponse:
    return JSONResponse({"welcome": True}, headers={"cache-control": "no-store"})


async def say(request: Request) -> JSONResponse:
    await processor.broadcast_to_group("room", await request.json())
    return JSONResponse({"said": True})


async def stats(request: Request) -> JSONResponse:
    return JSONResponse(await collector.get_metrics())


app = Starlette(
    routes=[
        Route("/report", report),
        Route("/limited", limited),
        Route("/say", say, methods=["POST"]),
        Route("/stats", stats),
        Mount("/backends", proxy),
    ],
    middleware=[
        Middleware(MetricsMiddleware, collector=collector, dashboard=True),
        Middleware(
            RateLimitMiddleware,
            rules=[Rule("5/minute", name="limited", path="/limited")],
            default=None,
            limiter=limiter,
        ),
        Middleware(BroadcastRouter, processor=processor),
        Middleware(CacheMiddleware, redis=redis),
    ],
)
