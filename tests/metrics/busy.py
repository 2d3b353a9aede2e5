"""A stack with everything to measure: cache, limit, balancer with backends, broadcaster, errors, streams."""

import asyncio
import os
from collections.abc import AsyncIterator
from random import Random

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from asgi_enhance.asgi.types import ASGIApp
from asgi_enhance.balance import LoadBalanceApp
from asgi_enhance.broadcast import BroadcastRouter, RealTimeStreamProcessor
from asgi_enhance.cache import CacheMiddleware
from asgi_enhance.metrics import MetricsCollector, MetricsMiddleware
from asgi_enhance.ratelimit import RateLimiter, RateLimitMiddleware, Rule
from asgi_enhance.redis import RedisManager

_rng = Random(7)


async def item(request: Request) -> Response:
    await asyncio.sleep(_rng.lognormvariate(-5.5, 0.7))
    return PlainTextResponse("item")


async def page(request: Request) -> Response:
    return PlainTextResponse("page", headers={"cache-control": "max-age=60"})


async def limited(request: Request) -> Response:
    return PlainTextResponse("welcome", headers={"cache-control": "no-store"})


async def broken(request: Request) -> Response:
    raise LookupError("always")


async def unavailable(request: Request) -> Response:
    return Response(status_code=503)


async def events(request: Request) -> Response:
    async def ticks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"data: tick\n\n"

    return StreamingResponse(ticks(), media_type="text/event-stream")


async def echo(socket: WebSocket) -> None:
    await socket.accept()
    async for text in socket.iter_text():
        await socket.send_text(text)


def busy(redis: RedisManager, backends: list[str]) -> tuple[ASGIApp, MetricsCollector]:
    proxy = LoadBalanceApp(backends)
    limiter = RateLimiter(redis=redis)
    processor = RealTimeStreamProcessor(redis=redis)
    collector = MetricsCollector(redis=redis, exemplars=True, interval=1)
    inner = Starlette(
        routes=[
            Route("/items/{item}", item),
            Route("/page", page),
            Route("/limited", limited),
            Route("/broken", broken),
            Route("/unavailable", unavailable),
            Route("/events", events),
            WebSocketRoute("/echo", echo),
            Mount("/lb", proxy),
        ],
        lifespan=proxy.balancer.lifespan,
    )
    cached = CacheMiddleware(inner)
    rules = [Rule("5/minute", name="limited", path="/limited")]
    app: ASGIApp = BroadcastRouter(cached, processor=processor)
    app = RateLimitMiddleware(app, rules=rules, default=None, limiter=limiter)

    collector.watch("cache", cached.stats)
    collector.watch("ratelimit", limiter.stats)
    collector.watch("balance", proxy.balancer.stats)
    gauges = ("weight", "priority", "in_flight", "latency")
    collector.watch("backend", proxy.balancer.report, label="backend", gauges=gauges)
    collector.watch("broadcast", processor.stats)
    collector.watch("redis", redis.stats)
    return MetricsMiddleware(app, collector=collector, dashboard=True), collector


backend = Starlette(routes=[Route("/{path:path}", lambda request: PlainTextResponse("from a backend"))])

if "BUSY_REDIS" in os.environ:
    manager = RedisManager(os.environ["BUSY_REDIS"], prefix=f"busy-{os.environ['BUSY_NAME']}")
    app = busy(manager, os.environ["BUSY_BACKENDS"].split())[0]
