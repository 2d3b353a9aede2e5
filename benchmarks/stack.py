"""The whole stack in memory, round a bare ASGI app and round FastAPI, beside a stack of the usual packages.

Metrics, rate limit and cache, on the path where the cache misses (the response says no-store). The peers' stack is what
one puts together today: starlette-exporter, slowapi and fastapi-cache2. Calls are made in process, one after the other,
so that no server's and no client's time is in the figures.
"""

import asyncio
from typing import Any

from asgi_enhance import CacheMiddleware, MetricsMiddleware, RateLimitMiddleware
from asgi_enhance.asgi.types import ASGIApp, Message, Receive, Scope, Send
from asgi_enhance.testing.driver import http_scope
from benchmarks.harness import Way, arguments, compare, show

HEADERS = [
    (b"accept", b"*/*"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"user-agent", b"benchmark"),
    (b"connection", b"keep-alive"),
    (b"x-request-id", b"5f3a"),
]
PLENTY = "1000000000/minute"
BODY = b'{"hello":"world"}'


async def bare(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"17"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})


def fastapi() -> Any:
    from fastapi import FastAPI
    from starlette.responses import Response

    app = FastAPI()

    @app.get("/hello")
    async def hello() -> Response:
        return Response(BODY, media_type="application/json", headers={"cache-control": "no-store"})

    return app


def ours(app: ASGIApp) -> ASGIApp:
    return MetricsMiddleware(RateLimitMiddleware(CacheMiddleware(app), default=PLENTY))


def peers() -> Any:
    """The same three jobs round the same handler, with the packages one would combine."""
    from fastapi import FastAPI, Request
    from fastapi_cache import FastAPICache
    from fastapi_cache.backends.inmemory import InMemoryBackend
    from fastapi_cache.decorator import cache
    from slowapi import Limiter
    from slowapi.middleware import SlowAPIASGIMiddleware
    from slowapi.util import get_remote_address
    from starlette.responses import Response
    from starlette_exporter import PrometheusMiddleware

    FastAPICache.init(InMemoryBackend())
    app = FastAPI()
    app.state.limiter = Limiter(key_func=get_remote_address, default_limits=[PLENTY])

    @app.get("/hello")
    @cache(expire=0)  # type: ignore[untyped-decorator, unused-ignore]
    async def hello(request: Request, response: Response) -> dict[str, str]:
        response.headers["cache-control"] = "no-store"
        return {"hello": "world"}

    app.add_middleware(SlowAPIASGIMiddleware)
    app.add_middleware(PrometheusMiddleware)
    return app


def calling(app: ASGIApp, operations: int) -> Way:
    scope = http_scope("/hello", headers=HEADERS, extensions={})

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            assert message["status"] == 200

    async def way() -> None:
        for _ in range(operations):
            await app({**scope}, receive, send)

    return way


async def main() -> None:
    quick = arguments(__doc__ or "").quick
    operations, rounds = (200, 3) if quick else (2000, 15)
    apps = {
        "bare ASGI app": bare,
        "bare, our stack": ours(bare),
        "FastAPI": fastapi(),
        "FastAPI, our stack": ours(fastapi()),
        "FastAPI, starlette-exporter + slowapi + fastapi-cache2": peers(),
    }
    ways = {name: calling(app, operations) for name, app in apps.items()}
    table = await compare(ways, operations=operations, rounds=rounds)
    show(table.titled("one request, in process"))
    own = table.cpu_ratio("bare, our stack") - 1
    around = table.cpu_ratio("FastAPI, our stack") - table.cpu_ratio("FastAPI")
    theirs = table.cpu_ratio("FastAPI, starlette-exporter + slowapi + fastapi-cache2") - table.cpu_ratio("FastAPI")
    show(
        f"Our stack adds {own:.1f} bare calls round a bare app and {around:.1f} round FastAPI; the peers' {theirs:.1f}."
    )


if __name__ == "__main__":
    asyncio.run(main())
