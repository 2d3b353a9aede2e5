"""The apps of the integration tests: everything a stack must get along with, and a backend to balance to."""

import asyncio
from collections.abc import AsyncIterator
from os import environ
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from asgi_enhance import (
    BroadcastRouter,
    CacheMiddleware,
    LoadBalanceApp,
    MetricsMiddleware,
    RateLimitMiddleware,
    RealTimeStreamProcessor,
    RedisManager,
    Rule,
)
from asgi_enhance.asgi.types import ASGIApp


async def whole(request: Request) -> JSONResponse:
    return JSONResponse({"path": request.url.path, "query": request.url.query})


backend = Starlette(routes=[Route("/{path:path}", whole, methods=["GET", "POST"])])


def everything(backend_url: str) -> Starlette:
    """An app with a stream, a WebSocket, an error, an event stream, a page to keep, and a balancer mounted at /lb."""
    pages = 0

    async def page(request: Request) -> PlainTextResponse:
        nonlocal pages
        pages += 1
        return PlainTextResponse(f"page {pages}", headers={"cache-control": "max-age=60"})

    async def stream(request: Request) -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"first"
            await request.receive()  # goes on when the client says something, or has left
            yield b"second"

        return StreamingResponse(chunks())

    async def events(request: Request) -> StreamingResponse:
        async def ticks() -> AsyncIterator[bytes]:
            while True:
                yield b"data: tick\n\n"
                await asyncio.sleep(0.01)

        return StreamingResponse(ticks(), media_type="text/event-stream")

    async def fails(request: Request) -> PlainTextResponse:
        raise ValueError("the app's own")

    async def limited(request: Request) -> PlainTextResponse:
        return PlainTextResponse("welcome", headers={"cache-control": "no-store"})

    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(f"echo {text}")

    proxy = LoadBalanceApp([backend_url])
    app = Starlette(
        routes=[
            Route("/page", page),
            Route("/stream", stream),
            Route("/events", events),
            Route("/fails", fails),
            Route("/limited", limited),
            WebSocketRoute("/echo", echo),
            Mount("/lb", proxy),
        ]
    )
    app.state.proxy = proxy
    return app


def layers(redis: RedisManager | None = None) -> dict[str, tuple[Any, dict[str, Any]]]:
    """The four wrapping layers with options that show they are at work."""
    return {
        "metrics": (MetricsMiddleware, {"redis": redis}),
        "limit": (
            RateLimitMiddleware,
            {"rules": [Rule("2/minute", name="limited", path="/limited")], "default": None, "redis": redis},
        ),
        "broadcast": (BroadcastRouter, {"processor": RealTimeStreamProcessor(redis=redis)}),
        "cache": (CacheMiddleware, {"redis": redis}),
    }


def stack(app: ASGIApp, *order: str, redis: RedisManager | None = None) -> ASGIApp:
    """`app` with the layers round it, the first of `order` outermost."""
    made = layers(redis)
    for name in reversed(order):
        layer, options = made[name]
        app = layer(app, **options)
    return app


if "STACK_BACKEND" in environ:
    shared = RedisManager(environ["STACK_REDIS"]) if "STACK_REDIS" in environ else None
    served = stack(everything(environ["STACK_BACKEND"]), "metrics", "limit", "broadcast", "cache", redis=shared)
