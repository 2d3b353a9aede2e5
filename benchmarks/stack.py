"""The whole stack in memory, round a bare app, round FastAPI and as a gateway, beside a stack of the usual packages.

    python -m benchmarks.stack [--quick]

Metrics, rate limit and cache, on the path where the cache misses: the response says no-store, and the peers' cache
forgets. The peers' stack is what one puts together today: starlette-exporter, slowapi and fastapi-cache2, and httpx
where a backend is asked. Calls are made in this process, one after the other, so that no server's and no client's time
is in the figures; the backend of the gateways is a process of its own. Goals: at most 15 times the bare ASGI call, and
a tenth of what the peers' stack adds.
"""

import asyncio
import sys
from typing import Any

from asgi_enhance import CacheMiddleware, LoadBalanceApp, MetricsMiddleware, RateLimitMiddleware
from asgi_enhance.asgi.types import ASGIApp, Message, Receive, Scope, Send
from asgi_enhance.testing.live import LiveServer
from benchmarks.harness import Way, arguments, compare, fresh_scope, receive, show

PLENTY = "1000000000/minute"
BODY = b'{"hello":"world"}'
PEERS = "starlette-exporter + slowapi + fastapi-cache2"


async def bare(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"17"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})


def ours(app: ASGIApp) -> ASGIApp:
    return MetricsMiddleware(RateLimitMiddleware(CacheMiddleware(app), default=PLENTY))


def fastapi() -> Any:
    from fastapi import FastAPI
    from starlette.responses import Response

    app = FastAPI()

    @app.get("/hello")
    async def hello(response: Response) -> dict[str, str]:
        response.headers["cache-control"] = "no-store"
        return {"hello": "world"}

    return app


def peers(backend: str | None = None) -> Any:
    """The same three jobs with the packages one would combine, round the same handler or one that asks a backend."""
    from fastapi import FastAPI, Request
    from fastapi_cache import FastAPICache
    from fastapi_cache.backends.inmemory import InMemoryBackend
    from fastapi_cache.decorator import cache
    from httpx import AsyncClient
    from slowapi import Limiter
    from slowapi.middleware import SlowAPIASGIMiddleware
    from slowapi.util import get_remote_address
    from starlette_exporter import PrometheusMiddleware

    class Forgetful(InMemoryBackend):  # type: ignore[misc, unused-ignore]
        async def get_with_ttl(self, key: str) -> tuple[int, bytes | None]:
            await super().get_with_ttl(key)
            return 0, None

    FastAPICache.init(Forgetful(), expire=60)
    app = FastAPI()
    app.state.limiter = Limiter(key_func=get_remote_address, default_limits=[PLENTY])
    client = AsyncClient()

    @app.get("/hello")
    @cache()  # type: ignore[untyped-decorator, unused-ignore]
    async def hello(request: Request) -> dict[str, str]:
        if backend is None:
            return {"hello": "world"}
        answer: dict[str, str] = (await client.get(f"{backend}/hello")).json()
        return answer

    app.add_middleware(SlowAPIASGIMiddleware)
    app.add_middleware(PrometheusMiddleware, prefix="gateway" if backend else "app")
    return app


def calling(app: ASGIApp, operations: int) -> Way:
    scope = fresh_scope("/hello")  # a server has it at hand when it calls

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            assert message["status"] == 200
            assert (b"x-fastapi-cache", b"HIT") not in message["headers"]

    async def way() -> None:
        for _ in range(operations):
            await app({**scope}, receive, send)

    return way


async def layers(operations: int, rounds: int) -> bool:
    apps = {
        "bare ASGI app": bare,
        "bare, our stack": ours(bare),
        "FastAPI": fastapi(),
        "FastAPI, our stack": ours(fastapi()),
        f"FastAPI, {PEERS}": peers(),
    }
    ways = {name: calling(app, operations) for name, app in apps.items()}
    table = await compare(ways, operations=operations, rounds=rounds)
    show(table.titled("one request, in process"))
    whole, plain = table.cpu_ratio("bare, our stack"), table.cpu_ratio("FastAPI")
    around, theirs = (table.cpu_ratio(f"FastAPI, {stack}") - plain for stack in ("our stack", PEERS))
    met = whole <= 15 and around <= theirs / 10
    verdict = "met" if met else "NOT met"
    show(
        f"Round FastAPI our stack adds {around:.1f} bare calls, the peers' {theirs:.1f}. Goals: {whole:.1f} of at most "
        f"15 times the bare app, {around / theirs:.2f} of at most 0.1 of the peers' stack: {verdict}."
    )
    return met


async def gateways(operations: int, rounds: int) -> None:
    options = ["--loop", "uvloop", "--http", "httptools", "--no-access-log"]
    with LiveServer("benchmarks.stack:bare", options=options) as backend:
        gateway = LoadBalanceApp([backend.url])
        async with gateway.balancer:
            ways = {
                "our stack, LoadBalanceApp": calling(ours(gateway), operations),
                f"FastAPI, {PEERS} + httpx": calling(peers(backend.url), operations),
            }
            table = await compare(ways, operations=operations, rounds=rounds)
    show(table.titled("one request through to a backend"))


async def main() -> int:
    quick = arguments(__doc__ or "").quick
    met = await layers(*((200, 3) if quick else (2000, 15)))
    await gateways(*((50, 3) if quick else (300, 9)))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
