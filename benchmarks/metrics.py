"""What it costs to count a request, beside the peers; how long a scrape holds the loop; how much memory attackers get.

    python -m benchmarks.metrics [--quick]

Each way is one app behind one layer, called in this process without a server: fresh scope, a `receive` with an empty
body, a `send` that does nothing. The bare app reads its request and answers two messages; the Starlette app has ten
routes and takes the last. Ways take turns; the ratio is that of the whole call to the bare app's, peers with the
options that they come with. Goals: at most 4 times the bare app; a scrape of 1 000 series holds the loop for at most
10 ms.
"""

import asyncio
import gc
import sys
import tracemalloc
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from time import thread_time

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from asgi_enhance.asgi.types import ASGIApp, Receive, Scope, Send
from asgi_enhance.metrics import MetricsCollector, MetricsMiddleware
from asgi_enhance.metrics.exposition import Format, render
from asgi_enhance.metrics.policy import DURATION_BUCKETS, RequestLabels
from asgi_enhance.metrics.series import RequestSeries
from benchmarks.harness import Comparison, arguments, compare, discard, fresh_scope, receive, show


async def bare(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"5")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"hello"})


def ten_routes() -> Starlette:
    def page() -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            return Response(b"hello", media_type="text/plain")

        return endpoint

    return Starlette(routes=[Route(f"/route{number}/{{item}}", page()) for number in range(10)])


def peers(make: Callable[[], ASGIApp]) -> dict[str, ASGIApp]:
    """The layers that others ship, each as it comes, as far as they are installed (`make bench`)."""
    found: dict[str, ASGIApp] = {}
    if find_spec("starlette_exporter"):
        from prometheus_client import REGISTRY
        from starlette_exporter import PrometheusMiddleware

        found["starlette-exporter"] = PrometheusMiddleware(make(), prefix=f"bench{len(REGISTRY._names_to_collectors)}")
    if find_spec("prometheus_fastapi_instrumentator"):
        from prometheus_client import CollectorRegistry
        from prometheus_fastapi_instrumentator.middleware import PrometheusInstrumentatorMiddleware

        app = make()
        if isinstance(app, Starlette):  # it looks for the routes in scope["app"]
            app.add_middleware(PrometheusInstrumentatorMiddleware, registry=CollectorRegistry())
            found["prometheus-fastapi-instrumentator"] = app
    if find_spec("opentelemetry") and find_spec("opentelemetry.instrumentation.asgi"):
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader

        provider = MeterProvider(metric_readers=[InMemoryMetricReader()])
        found["opentelemetry-instrumentation-asgi"] = OpenTelemetryMiddleware(make(), meter_provider=provider)
    return found


def calls(app: ASGIApp, path: str, count: int) -> Callable[[], Awaitable[None]]:
    async def run() -> None:
        for _ in range(count):
            await app(fresh_scope(path), receive, discard)

    return run


async def overhead(title: str, make: Callable[[], ASGIApp], path: str, *, count: int, rounds: int) -> Comparison:
    ways: dict[str, ASGIApp] = {
        "bare": make(),
        "asgi_enhance": MetricsMiddleware(make(), collector=MetricsCollector(registry=None)),
        "asgi_enhance, exemplars": MetricsMiddleware(make(), collector=MetricsCollector(registry=None, exemplars=True)),
        **peers(make),
    }
    table = await compare(
        {name: calls(app, path, count) for name, app in ways.items()}, operations=count, rounds=rounds
    )
    show(table.titled(title))
    return table


async def scrape(series: int) -> float:
    """The longest time, in seconds of CPU, that a scrape kept the loop from its other tasks."""
    collector = MetricsCollector(registry=None, max_series=2 * series)
    for number in range(series):
        labels = RequestLabels("GET", f"/route/{number}/{{item}}", "200")
        one = collector.table.requests[labels] = RequestSeries(labels, DURATION_BUCKETS)
        one.pending += [0.002, 0.02 + number / 1000, 10, 2000] * 20
    longest = last = 0.0

    async def watch() -> None:
        nonlocal longest, last
        last = thread_time()
        while True:
            await asyncio.sleep(0)
            now = thread_time()
            longest, last = max(longest, now - last), now

    watcher = asyncio.create_task(watch(), name="watch")
    await asyncio.sleep(0)
    gc.collect()
    gc.disable()  # a collection of everything that lives is the process' own, not the scrape's
    last = thread_time()
    pieces, _ = await render(await collector.gather(), None, Format.TEXT)
    gc.enable()
    watcher.cancel()
    lines = b"".join(pieces).count(b"\n")
    show(f"A scrape of {series} series, {lines} lines: the loop was held for {longest * 1000:.1f} ms of CPU.")
    await collector.aclose()
    return longest


async def flood(count: int) -> None:
    """Distinct paths and methods, as scanners send them."""
    layer = MetricsMiddleware(ten_routes(), collector=MetricsCollector(registry=None))
    for number in range(100):
        await layer(fresh_scope(f"/route1/{number}"), receive, discard)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(count):
        await layer(fresh_scope(f"/{number}/path{number}", f"M{number}"), receive, discard)
    layer.collector.totals()
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    show(f"{count} distinct URLs and methods: {len(layer.collector.table)} series, {grown / 1024:.0f} kB more.")
    await layer.collector.aclose()


async def main() -> int:
    quick = arguments(__doc__ or "").quick
    count, rounds = (1000, 15) if quick else (2000, 60)
    raw = await overhead("a bare ASGI app", lambda: bare, "/", count=count, rounds=rounds)
    await overhead("Starlette, ten routes", ten_routes, "/route9/7", count=count // 4, rounds=rounds)
    longest = await scrape(1000)
    await flood(10_000 if quick else 100_000)
    ratio = raw.cpu_ratio("asgi_enhance")
    met = ratio <= 4 and longest <= 0.010
    verdict = "met" if met else "NOT met"
    show(f"Goals: {ratio:.2f} of at most 4 times the bare app, {longest * 1000:.1f} of at most 10 ms: {verdict}.")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
