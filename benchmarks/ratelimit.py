"""What a decision costs: over Redis beside `limits` and throttled-py, in memory beside the bare app.

    python -m benchmarks.ratelimit [--quick]

Over Redis, 64 tasks of one process decide without a pause, all for one identity or for a thousand in turn. `limits` and
throttled-py get the same Redis, redis-py, and a pool that can serve all tasks; they only say yes or no, where ours also
gives everything for the header fields. The limits are so high that all is admitted; refused clients are measured apart.

In memory, the layer is called as a server would call it, with the decision taken and the header fields written. The
bare app is one that reads its request and answers it with two messages. The pause is the most CPU time a single request
took while tables grew, were swept and were full.
"""

import asyncio
import gc
import itertools
import time
from collections.abc import Awaitable, Callable

import redis.asyncio
from limits import parse
from limits.aio.storage import RedisStorage
from limits.aio.strategies import (
    FixedWindowRateLimiter,
    MovingWindowRateLimiter,
    SlidingWindowCounterRateLimiter,
)
from throttled.asyncio import RedisStore, Throttled, per_hour

from asgi_enhance.asgi.types import ASGIApp, Receive, Scope, Send
from asgi_enhance.ratelimit import RateLimiter, RateLimitMiddleware
from asgi_enhance.testing.driver import http_scope
from asgi_enhance.testing.servers import RedisServer
from benchmarks.harness import Way, arguments, compare, discard, receive, show

AT_ONCE = 64
PER_HOUR = 1_000_000_000
LIVE_KEYS = 100_000


def spread(decide: Callable[[str], Awaitable[object]], keys: int, operations: int) -> Way:
    """`AT_ONCE` tasks that decide one after the other for `keys` identities in turn."""

    async def way() -> None:
        names = itertools.cycle([f"client {i}" for i in range(keys)])

        async def task() -> None:
            for _ in range(operations // AT_ONCE):
                await decide(next(names))

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(task())

    return way


async def over_redis(url: str, *, operations: int, rounds: int) -> None:
    pool = redis.asyncio.ConnectionPool.from_url(url, max_connections=2 * AT_ONCE)
    storage = RedisStorage("async+redis://", implementation="redispy", connection_pool=pool)  # type: ignore[arg-type]
    rate = parse(f"{PER_HOUR}/hour")
    thousand = parse("100000/hour")  # a moving window keeps an entry for each
    fixed, moving, sliding = (
        strategy(storage)
        for strategy in (FixedWindowRateLimiter, MovingWindowRateLimiter, SlidingWindowCounterRateLimiter)
    )
    throttled = Throttled(
        using="gcra",
        quota=per_hour(PER_HOUR),
        store=RedisStore(server=url, options={"MAX_CONNECTIONS": 2 * AT_ONCE}),
    )
    window = RateLimiter(f"{PER_HOUR}/hour", redis=url, budget=5.0)
    burst = RateLimiter(f"{PER_HOUR}/hour burst {PER_HOUR // 2}", redis=url, budget=5.0)
    async with window, burst:
        for keys in (1, 1000):
            ways: dict[str, Way] = {
                "limits, fixed window": spread(lambda key: fixed.hit(rate, key), keys, operations),
                "limits, sliding window": spread(lambda key: sliding.hit(rate, key), keys, operations),
                "limits, moving window": spread(lambda key: moving.hit(thousand, key), keys, operations),
                "throttled-py, GCRA": spread(throttled.limit, keys, operations),
                "RateLimiter, window": spread(window.hit, keys, operations),
                "RateLimiter, window and burst": spread(burst.hit, keys, operations),
            }
            table = await compare(ways, operations=operations // AT_ONCE * AT_ONCE, rounds=rounds)
            show(table.titled(f"{AT_ONCE} at once, {keys} identit{'y' if keys == 1 else 'ies'}"))
        for strategy, limiter in (("window", window), ("window and burst", burst)):
            assert limiter.stats.unavailable == 0, f"{strategy}: {limiter.stats}"
    await pool.aclose()
    async with RateLimiter("1/hour", redis=url, budget=5.0) as refusing:
        for _ in range(2):
            await refusing.hit("refused")
        before, begun = refusing.stats.calls, time.perf_counter()
        await spread(lambda key: refusing.hit("refused"), 1, operations)()
        rate_of_refusals = operations / (time.perf_counter() - begun)
        show(
            f"A refused client, {AT_ONCE} at once: {rate_of_refusals:,.0f} decisions/s, "
            f"{refusing.stats.calls - before} calls to Redis in {operations}."
        )


async def bare(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


def client(number: int) -> tuple[str, int]:
    return (f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 1)


def served(app: ASGIApp, clients: list[tuple[str, int]], operations: int) -> Way:
    """Requests of these clients in turn. A server has the scope at hand when it calls; so has this."""

    async def way() -> None:
        scope = http_scope()
        for scope["client"] in itertools.islice(itertools.cycle(clients), operations):
            await app(scope, receive, discard)

    return way


async def in_memory(*, operations: int, rounds: int) -> None:
    rate = f"{PER_HOUR}/hour"
    layers = {
        "window": RateLimitMiddleware(bare, default=rate),
        "window and burst": RateLimitMiddleware(bare, default=f"{rate} burst {PER_HOUR // 2}"),
        "window, without fields": RateLimitMiddleware(bare, default=rate, headers=()),
        "two windows": RateLimitMiddleware(bare, default=f"{rate}; {PER_HOUR}/day"),
    }
    full = RateLimitMiddleware(bare, default=rate, limiter=RateLimiter(max_keys=2 * LIVE_KEYS))
    await served(full, [client(i) for i in range(LIVE_KEYS)], LIVE_KEYS)()
    one, many = [client(0)], [client(i) for i in range(0, LIVE_KEYS, LIVE_KEYS // 2000)]
    for title, clients in (("one client", one), (f"{len(many):,} clients in turn", many)):
        ways = {"the bare app": served(bare, clients, operations)}
        ways |= {f"the layer, {name}": served(layer, clients, operations) for name, layer in layers.items()}
        ways[f"the layer, window, {full.limiter.live_keys:,} live identities"] = served(full, clients, operations)
        table = await compare(ways, operations=operations, rounds=rounds)
        show(table.titled(f"in memory, {title}"))


async def longest_pause(seconds: float) -> None:
    """New identities come in all the time, into a table that is full, while others recover: what a single request
    waits. A collection of the garbage is part of it."""
    layer = RateLimitMiddleware(bare, default={"requests": 100, "window": seconds}, limiter=RateLimiter())
    scopes = [http_scope(client=client(i)) for i in range(3 * LIVE_KEYS)]
    gc.collect()
    gc.freeze()  # what the benchmark itself holds is not the limiter's
    pauses = []
    busy = 0
    for scope in scopes:
        begun = time.thread_time_ns()
        await layer(scope, receive, discard)
        pauses.append(time.thread_time_ns() - begun)
        busy = max(busy, layer.limiter.live_keys)
    gc.unfreeze()
    pauses.sort()
    show(
        f"{len(scopes):,} new identities, up to {busy:,} live: median {pauses[len(pauses) // 2] / 1000:.1f} µs, "
        f"99.99 % within {pauses[-len(pauses) // 10_000] / 1e6:.2f} ms, longest {pauses[-1] / 1e6:.2f} ms."
    )


def main() -> None:
    quick = arguments(__doc__ or "").quick
    with RedisServer() as server:
        show(f"{server.engine} {server.version}, its own process.")
        asyncio.run(over_redis(server.url, operations=1_280 if quick else 6_400, rounds=3 if quick else 9))
    asyncio.run(in_memory(operations=2_000 if quick else 20_000, rounds=3 if quick else 15))
    asyncio.run(longest_pause(1.0 if quick else 6.0))


if __name__ == "__main__":
    main()
