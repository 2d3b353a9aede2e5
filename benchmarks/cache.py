"""What a hit costs, in memory and in Redis, beside the peers; how late a miss's bytes are; what a stream costs.

    python -m benchmarks.cache [--quick]

Every way is called in this process without a server: a fresh scope with five headers, a `receive` with an empty body, a
`send` that does nothing. The bare app answers with 1 KB in two messages; what decorates routes has FastAPI under it,
since it cannot be had without. Ways take turns; × is CPU time against the first row's. Peers run as they come.
"""

import asyncio
import sys
import tempfile
import time
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from asgi_enhance.asgi.types import ASGIApp, Message, Receive, Scope, Send
from asgi_enhance.cache import CacheMiddleware, MemoryCache, RedisCache, TieredCache
from asgi_enhance.redis import RedisManager
from asgi_enhance.testing.servers import RedisServer
from benchmarks.harness import Table, Way, arguments, compare, discard, fresh_scope, progress, receive, show

BODY = b"x" * 1024
AT_ONCE = 32


async def bare(scope: Scope, receive: Receive, send: Send) -> None:
    headers = [
        (b"content-type", b"text/plain"),
        (b"content-length", b"1024"),
        (b"cache-control", b"max-age=3600"),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})


def one_by_one(app: ASGIApp, count: int) -> Way:
    async def run() -> None:
        for _ in range(count):
            await app(fresh_scope("/page"), receive, discard)

    return run


def together(app: ASGIApp, count: int) -> Way:
    async def run() -> None:
        for _ in range(count // AT_ONCE):
            await asyncio.gather(*(app(fresh_scope("/page"), receive, discard) for _ in range(AT_ONCE)))

    return run


@asynccontextmanager
async def peers_in_memory(directory: str) -> AsyncIterator[dict[str, ASGIApp]]:
    """What others ship, where they are installed (`make bench`); hishel has no memory, but a file."""
    found: dict[str, ASGIApp] = {}
    if find_spec("hishel"):
        from hishel import AsyncSqliteStorage, CacheOptions
        from hishel.asgi import ASGICacheMiddleware

        storage = AsyncSqliteStorage(database_path=str(Path(directory) / "hishel.db"))
        found["hishel (sqlite file)"] = ASGICacheMiddleware(bare, storage=storage, rfc=CacheOptions(shared=True))
    if find_spec("fastapi_cache"):
        from fastapi import FastAPI
        from fastapi_cache import FastAPICache
        from fastapi_cache.backends.inmemory import InMemoryBackend
        from fastapi_cache.decorator import cache

        FastAPICache.init(InMemoryBackend())
        app = FastAPI()
        app.get("/page")(cache(expire=3600)(_page))
        found["fastapi-cache2 (route)"] = app
    if find_spec("cashews"):
        from cashews import Cache
        from fastapi import FastAPI

        store = Cache()
        store.setup("mem://")
        app = FastAPI()
        app.get("/page")(store(ttl="1h")(_page))
        found["cashews (route)"] = app
    yield found


async def _page() -> str:
    return BODY.decode()


@asynccontextmanager
async def peers_in_redis(url: str) -> AsyncIterator[dict[str, ASGIApp]]:
    found: dict[str, ASGIApp] = {}
    async with AsyncExitStack() as stack:
        if find_spec("redis_fastapi"):
            import os

            from fastapi import Depends, FastAPI

            os.environ["REDIS_URL"] = url
            from redis_fastapi import FastAPIRedis, cache

            app = FastAPI()
            FastAPIRedis(app).lifespan().caching()
            app.get("/page", dependencies=[Depends(cache(ttl=3600))])(_page)
            await stack.enter_async_context(app.router.lifespan_context(app))
            found["fastapi-redis-sdk (route)"] = app
        if find_spec("cashews"):
            from cashews import Cache
            from fastapi import FastAPI

            store = Cache()
            store.setup(url)
            await store.init()
            stack.push_async_callback(store.close)
            app = FastAPI()
            app.get("/page")(store(ttl="1h")(_page))
            found["cashews (route)"] = app
        yield found


async def memory_hits(count: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        async with peers_in_memory(directory) as peers:
            ours = CacheMiddleware(bare, cache=MemoryCache())
            ways: dict[str, ASGIApp] = {"bare app": bare, "asgi_enhance": ours, **peers}
            for app in ways.values():
                await app(fresh_scope("/page"), receive, discard)
            table = await compare(
                {name: one_by_one(app, count) for name, app in ways.items()}, operations=count, rounds=rounds
            )
            show(table.titled("1 KB hit in memory, one at a time"))


async def redis_hits(url: str, count: int, rounds: int) -> None:
    import redis.asyncio

    client = redis.asyncio.Redis.from_url(url)
    await client.set("page", BODY)

    async def get(scope: Scope, receive: Receive, send: Send) -> None:
        await client.get("page")

    async with (
        RedisCache(RedisManager(url)) as cache,
        TieredCache(RedisManager(url, prefix="tiered")) as tiered,
        peers_in_redis(url) as peers,
    ):
        ways: dict[str, ASGIApp] = {
            "redis-py GET alone": get,
            "asgi_enhance, RedisCache": CacheMiddleware(bare, cache=cache),
            "asgi_enhance, TieredCache": CacheMiddleware(bare, cache=tiered),
            **peers,
        }
        for app in ways.values():
            for _ in range(3):
                await app(fresh_scope("/page"), receive, discard)
        table = await compare(
            {name: together(app, count) for name, app in ways.items()}, operations=count, rounds=rounds
        )
        show(table.titled(f"1 KB hit in Redis, {AT_ONCE} at once"))
    await client.aclose()


async def first_byte(url: str, rounds: int) -> None:
    """How late the app is asked on a miss, and its bytes reach the client, when it goes on making the response."""
    marks: dict[str, float] = {}

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        marks["app asked"] = time.perf_counter()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"max-age=60")]})
        await send({"type": "http.response.body", "body": BODY, "more_body": True})
        await asyncio.sleep(0.01)
        marks["last sent"] = time.perf_counter()
        await send({"type": "http.response.body", "body": BODY})

    async def send(message: Message) -> None:
        what = "start" if message["type"] == "http.response.start" else "body" if message.get("more_body") else "last"
        marks[what] = time.perf_counter()

    async with RedisCache(RedisManager(url, prefix="first")) as cache:
        ways: dict[str, ASGIApp] = {
            "bare app": slow,
            "MemoryCache": CacheMiddleware(slow),
            "RedisCache": CacheMiddleware(slow, cache=cache),
            "RedisCache, collapse=False": CacheMiddleware(slow, cache=cache, namespace="alone", collapse=False),
        }
        columns = ("app asked", "its first byte passed on", "its last byte passed on")
        found: dict[str, list[tuple[float, ...]]] = {name: [] for name in ways}
        for number in range(rounds + 1):
            for name, app in ways.items():
                begun = time.perf_counter()
                await app(fresh_scope(f"/{number}"), receive, send)
                first = marks["body"] - marks["app asked"]
                found[name].append((marks["app asked"] - begun, first, marks["last"] - marks["last sent"]))
            progress("misses", number + 1, rounds + 1)
    rows: dict[str, list[float | str | None]] = {
        name: [median(times) * 1e6 for times in zip(*rounds[1:], strict=True)] for name, rounds in found.items()
    }
    show(Table("a miss: µs until", dict.fromkeys(columns, ".0f"), rows))


async def stream(size: int) -> None:
    """Memory while a large response streams through a cache that gives up its copy."""
    chunk = bytearray(65536)  # each message gets bytes of its own

    async def large(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"max-age=60")]})
        for _ in range(size // len(chunk)):
            await send({"type": "http.response.body", "body": bytes(chunk), "more_body": True})
        await send({"type": "http.response.body"})

    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    await CacheMiddleware(large)(fresh_scope("/page"), receive, discard)
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    show(f"Peak memory while {size >> 20} MiB stream through: {peak / (1 << 20):.1f} MiB above idle.")


async def main() -> None:
    quick = arguments("The cost of a cache hit, beside the peers.").quick
    await memory_hits(200 if quick else 1000, 3 if quick else 11)
    with RedisServer() as server:
        await redis_hits(server.url, 320 if quick else 1600, 3 if quick else 11)
        await first_byte(server.url, 20 if quick else 100)
    await stream((64 if quick else 1024) << 20)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
