"""How many are really admitted: several processes on one Redis, each admission stamped, every window counted.

    python -m benchmarks.ratelimit_accuracy [--quick]

Every call is stamped before and after with CLOCK_MONOTONIC, which all processes share. What is counted for an
interval is what was certainly admitted in it: calls that lie in it from beginning to end. Each cell is the most in
any window, divided by the limit, then the most in any twentieth of a window, divided by the limit.

    saturate  all workers ask without a pause
    boundary  one request, silence until shortly before the window of that request ends, then all at once
    bursts    all at once, silence, all at once, …
    clocks    saturate, and the wall clock of each process is a second ahead of the one before
    worker    saturate, and a process is killed and started again
    redis     saturate, and Redis (with an append-only file) is killed and started again
    away      saturate, and Redis is killed, and started again with nothing in it half a window later

"closed" and "local" are what `RateLimiter` does while Redis is away: nothing is admitted, or each process admits its
share by itself.
"""

import asyncio
import itertools
import multiprocessing
import os
import struct
import tempfile
import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

import redis.asyncio
from limits import RateLimitItemPerSecond
from limits.aio.storage import RedisStorage
from limits.aio.strategies import (
    FixedWindowRateLimiter,
    MovingWindowRateLimiter,
    SlidingWindowCounterRateLimiter,
)
from ratelimit.backends.slidingredis import SlidingRedisBackend
from ratelimit.rule import Rule as PeerRule
from throttled import RateLimiterType, rate_limiter
from throttled.asyncio import RedisStore, Throttled

from asgi_enhance.ratelimit import RateLimiter
from asgi_enhance.testing.servers import RedisServer
from benchmarks.harness import Table, arguments, progress, show

LIMIT, WINDOW, BURST = 200, 2, 30
PROCESSES, WORKERS = 4, 8
STAMP = struct.Struct("<qq")

PATTERNS = ("saturate", "boundary", "bursts", "clocks", "worker", "redis", "away")
QUICK = ("saturate", "boundary", "redis", "away")

Decide = Callable[[], Awaitable[bool]]


def our(**options: str) -> Callable[[str, AsyncExitStack], Awaitable[Decide]]:
    async def make(url: str, stack: AsyncExitStack) -> Decide:
        limits = {"requests": LIMIT, "window": WINDOW, "burst": BURST}
        limiter = RateLimiter(limits, redis=url, expected_workers=PROCESSES, budget=0.2, **options)  # type: ignore[arg-type]
        await stack.enter_async_context(limiter)

        async def decide() -> bool:
            return await limiter.is_allowed("everybody")

        return decide

    return make


def of_limits(
    strategy: type[FixedWindowRateLimiter | MovingWindowRateLimiter | SlidingWindowCounterRateLimiter],
) -> Callable[[str, AsyncExitStack], Awaitable[Decide]]:
    async def make(url: str, stack: AsyncExitStack) -> Decide:
        pool = redis.asyncio.ConnectionPool.from_url(url, max_connections=2 * WORKERS, socket_timeout=0.2)
        stack.push_async_callback(pool.aclose)
        storage = RedisStorage("async+redis://", implementation="redispy", connection_pool=pool)  # type: ignore[arg-type]
        limiter, item = strategy(storage), RateLimitItemPerSecond(LIMIT, WINDOW)

        async def decide() -> bool:
            return await limiter.hit(item, "everybody")

        return decide

    return make


def of_throttled(using: RateLimiterType) -> Callable[[str, AsyncExitStack], Awaitable[Decide]]:
    async def make(url: str, stack: AsyncExitStack) -> Decide:
        rate = rate_limiter.Rate(period=timedelta(seconds=WINDOW), limit=LIMIT)
        quota = rate_limiter.Quota(rate, burst=BURST)
        store = RedisStore(server=url, options={"SOCKET_TIMEOUT": 0.2})
        limiter = Throttled(using=using.value, quota=quota, store=store)

        async def decide() -> bool:
            return not (await limiter.limit("everybody")).limited

        return decide

    return make


async def of_asgi_ratelimit(url: str, stack: AsyncExitStack) -> Decide:
    client = redis.asyncio.StrictRedis.from_url(url, socket_timeout=0.2)
    stack.push_async_callback(client.aclose)
    backend, rule = SlidingRedisBackend(client), PeerRule(second=LIMIT // WINDOW)

    async def decide() -> bool:
        return not await backend.retry_after("/", "everybody", rule)

    return decide


LIMITERS: dict[str, Callable[[str, AsyncExitStack], Awaitable[Decide]]] = {
    "RateLimiter, closed": our(on_error="closed"),
    "RateLimiter, local": our(on_error="local"),
    "limits, fixed window": of_limits(FixedWindowRateLimiter),
    "limits, moving window": of_limits(MovingWindowRateLimiter),
    "limits, sliding window": of_limits(SlidingWindowCounterRateLimiter),
    "throttled-py, GCRA": of_throttled(RateLimiterType.GCRA),
    "throttled-py, sliding window": of_throttled(RateLimiterType.SLIDING_WINDOW),
    "asgi-ratelimit, sliding": of_asgi_ratelimit,
}


def process(name: str, pattern: str, url: str, number: int, file: str, start: float, seconds: float) -> None:
    """One of the processes: its workers ask, and each admission is written down at once."""
    if pattern == "clocks":
        honest = time.time
        time.time = lambda: honest() + number
    asyncio.run(ask(name, pattern, url, number, file, start, start + seconds))


async def ask(name: str, pattern: str, url: str, number: int, file: str, start: float, end: float) -> None:
    async with AsyncExitStack() as stack:
        decide = await LIMITERS[name](url, stack)
        book = os.open(file, os.O_CREAT | os.O_APPEND | os.O_WRONLY)

        async def worker(first: bool) -> None:
            while (now := time.monotonic()) < end:
                if not turn(pattern, now - start, first):
                    await asyncio.sleep(0.002)
                    continue
                before = time.monotonic_ns()
                try:
                    admitted = await decide()
                except Exception:  # a peer without its Redis
                    admitted = False
                if admitted:
                    os.write(book, STAMP.pack(before, time.monotonic_ns()))
                await asyncio.sleep(0.001)

        await asyncio.gather(*(worker(number == i == 0) for i in range(WORKERS)))
        os.close(book)


def turn(pattern: str, passed: float, first: bool) -> bool:
    """Whether a worker asks at this time."""
    if passed < 0:
        return False
    if pattern == "boundary":
        passed %= 2.5 * WINDOW
        return (first and passed < 0.02 * WINDOW) or 0.75 * WINDOW < passed < 1.35 * WINDOW
    if pattern == "bursts":
        return passed % (WINDOW / 8) < WINDOW / 40
    return True


def run(name: str, pattern: str, seconds: float) -> tuple[float, float]:
    """The most admitted in any window and in any twentieth of one, divided by the limit."""
    context = multiprocessing.get_context("spawn")
    config = {"appendonly": "yes", "appendfsync": "always"} if pattern == "redis" else {}
    with RedisServer(config=config) as server, tempfile.TemporaryDirectory() as folder:
        files = (f"{folder}/{i}" for i in itertools.count())
        start = time.monotonic() + 2.0  # when all of them are up

        def launch(number: int) -> multiprocessing.process.BaseProcess:
            arguments = (name, pattern, server.url, number, next(files), start, seconds)
            one = context.Process(target=process, args=arguments, daemon=True)
            one.start()
            return one

        crew = [launch(number) for number in range(PROCESSES)]
        time.sleep(max(0.0, start + seconds / 2 - time.monotonic()))
        if pattern == "worker":
            crew[1].kill()
            crew[1].join()
            crew[1] = launch(1)
        elif pattern in ("redis", "away"):
            server.kill()
            time.sleep(WINDOW / 2 if pattern == "away" else 0)
            server.start()
        for one in crew:
            one.join(seconds + 30)
            one.kill()
        stamps = sorted(stamp for path in Path(folder).iterdir() for stamp in STAMP.iter_unpack(path.read_bytes()))
    return most(stamps, WINDOW) / LIMIT, most(stamps, WINDOW / 20) / LIMIT


def most(stamps: list[tuple[int, int]], seconds: float) -> int:
    """The most that lie in one interval of so many seconds from beginning to end. Sorted by their beginnings."""
    length = round(seconds * 1e9)
    ends = sorted(after for _, after in stamps)

    def inside() -> Iterator[int]:
        for i, (begin, _) in enumerate(stamps):
            ended = bisect_left(ends, begin + length)
            under_way = sum(
                1 for _, after in stamps[max(0, i - 2 * PROCESSES * WORKERS) : i] if after >= begin + length
            )
            yield ended - (i - under_way)

    return max(inside(), default=0)


def main() -> None:
    quick = arguments(__doc__ or "").quick
    patterns, seconds = (QUICK, 3.0 * WINDOW) if quick else (PATTERNS, 5.0 * WINDOW)
    show(
        f"{LIMIT} in {WINDOW} s, burst {BURST} where there is one (so at most {(BURST + LIMIT / 20) / LIMIT:.3f} in a "
        f"twentieth), {PROCESSES} processes × {WORKERS} workers."
    )
    names = list(LIMITERS)[: 3 if quick else None]
    rows: dict[str, list[float | str | None]] = {name: [] for name in names}
    for number, (name, pattern) in enumerate(itertools.product(names, patterns)):
        progress(f"{name}, {pattern}", number, len(names) * len(patterns))
        window, twentieth = run(name, pattern, seconds)
        rows[name].append(f"{window:.3f} · {twentieth:.3f}")
    show(Table("most admitted ÷ limit", dict.fromkeys(patterns, ""), rows))


if __name__ == "__main__":
    main()
