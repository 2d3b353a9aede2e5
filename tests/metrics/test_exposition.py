"""The scrape: what is negotiated, that parsers accept it, and what is in it."""

import asyncio
import gc
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from time import thread_time
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from asgi_enhance.asgi.types import Scope
from asgi_enhance.metrics import MetricsCollector, MetricsMiddleware
from asgi_enhance.metrics.exposition import Format, negotiate, render
from asgi_enhance.metrics.policy import RequestLabels
from asgi_enhance.metrics.series import RequestSeries
from asgi_enhance.testing.driver import request

OPENMETRICS = [(b"accept", b"application/openmetrics-text; version=1.0.0")]
OPENMETRICS_2 = [(b"accept", b"application/openmetrics-text; version=2.0.0")]
TRACE = "0af7651916cd43dd8448eb211c80319c"
SAMPLED = [(b"traceparent", f"00-{TRACE}-b7ad6b7169203331-01".encode())]

PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
    "text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)


@dataclass
class Stats:
    """As another core would keep them."""

    GAUGES = frozenset({"entries"})

    hits: int = 3
    misses: int = 1
    entries: int = 7


async def hello(request: Request) -> Response:
    return PlainTextResponse('say "hello"')


def busy(**options: object) -> MetricsMiddleware:
    app = Starlette(routes=[Route("/hello/{name}", hello)])
    return MetricsMiddleware(app, collector=MetricsCollector(**options))  # type: ignore[arg-type]


def parsed_openmetrics(text: str) -> list[Metric]:
    return list(parse_openmetrics(text))  # type: ignore[no-untyped-call]


def sample(families: Iterable[Metric], name: str, **labels: str) -> float:
    found = [
        one.value
        for family in families
        for one in family.samples
        if one.name == name and labels.items() <= one.labels.items()
    ]
    assert len(found) == 1, f"{name} {labels}: {found}"
    return float(found[0])


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", Format.TEXT),
        ("*/*", Format.TEXT),
        ("text/plain;version=0.0.4", Format.TEXT),
        (PROMETHEUS_3, Format.OPENMETRICS),
        ("application/openmetrics-text", Format.OPENMETRICS),
        (
            "application/openmetrics-text;version=2.0.0,application/openmetrics-text;version=1.0.0;q=0.9",
            Format.OPENMETRICS_2,
        ),
        ("text/plain;q=0.3,application/openmetrics-text;version=1.0.0;q=0.2", Format.TEXT),
        ("application/json", Format.JSON),
        ("text/html,application/json;q=0.9,*/*;q=0.8", Format.JSON),
        ("application/openmetrics-text; version=abc", Format.TEXT),
        ("application/openmetrics-text; version=7.7.7evil", Format.TEXT),
        ("application/openmetrics-text; version=1.0.0; q=0", Format.TEXT),
        ("application/openmetrics-text; version=1.0.0; q=nan", Format.TEXT),
        ("application/x-unknown", Format.TEXT),
        (";;;=,=;q=,", Format.TEXT),
    ],
)
def test_accept_is_read_by_its_q_values_and_never_echoed(accept: str, form: Format) -> None:
    assert negotiate(accept) is form


async def test_the_text_parses_and_counts() -> None:
    layer = busy()
    for _ in range(3):
        await request(layer, "/hello/world")
    answer = await request(layer, "/metrics")
    assert answer.header("content-type") == "text/plain; version=0.0.4; charset=utf-8"
    families = list(parse_text(answer.body.decode()))
    labels = {"http_request_method": "GET", "http_route": "/hello/{name}", "http_response_status_code": "200"}
    assert sample(families, "http_server_request_duration_seconds_count", **labels) == 3
    assert sample(families, "http_server_request_duration_seconds_bucket", **labels, le="+Inf") == 3
    assert sample(families, "asgi_enhance_http_first_byte_seconds_count", **labels) == 3
    assert sample(families, "http_server_response_body_size_bytes_sum", **labels) == 33
    assert sample(families, "http_server_active_requests", http_request_method="GET") == 0


@pytest.mark.parametrize("accept", [OPENMETRICS, OPENMETRICS_2])
async def test_openmetrics_passes_the_strict_parser(accept: list[tuple[bytes, bytes]]) -> None:
    layer = busy(exemplars=True)
    layer.collector.watch("cache", Stats())
    await request(layer, "/hello/world", headers=SAMPLED)
    families = list(parsed_openmetrics((await request(layer, "/metrics", headers=accept)).body.decode()))
    assert sample(families, "asgi_enhance_cache_hits_total") == 3
    assert sample(families, "asgi_enhance_cache_entries") == 7


async def test_a_route_that_streams_or_not_is_written_once() -> None:
    async def either(request: Request) -> Response:
        if "stream" not in request.query_params:
            return PlainTextResponse("plain")
        return StreamingResponse(iter(["data: 1\n\n", "data: 2\n\n"]), media_type="text/event-stream")

    layer = MetricsMiddleware(Starlette(routes=[Route("/", either)]))
    for path in ("/", "/?stream", "/?stream"):
        await request(layer, path)
    families = list(parse_text((await request(layer, "/metrics")).body.decode()))
    written = [(one.name, *one.labels.items()) for family in families for one in family.samples]
    assert len(written) == len(set(written))
    assert sample(families, "asgi_enhance_http_first_byte_seconds_count", http_route="/") == 3
    assert sample(families, "http_server_response_body_size_bytes_count", http_route="/") == 3
    assert sample(families, "http_server_response_body_size_bytes_sum", http_route="/") == 41
    assert sample(families, "http_server_request_duration_seconds_count", http_route="/") == 1


async def test_buckets_add_up_and_never_fall() -> None:
    layer = busy()
    for _ in range(20):
        await request(layer, "/hello/world")
    families = list(parse_text((await request(layer, "/metrics")).body.decode()))
    (family,) = [one for one in families if one.name == "http_server_request_duration_seconds"]
    counts = [one.value for one in family.samples if one.name.endswith("_bucket")]
    assert counts == sorted(counts)
    assert counts[-1] == 20


async def test_exemplars_carry_the_trace_under_openmetrics_alone() -> None:
    layer = busy(exemplars=True)
    await request(layer, "/hello/world", headers=SAMPLED)
    answer = await request(layer, "/metrics", headers=OPENMETRICS)
    found = [
        one.exemplar.labels
        for family in parsed_openmetrics(answer.body.decode())
        for one in family.samples
        if one.exemplar is not None
    ]
    assert found == [{"trace_id": TRACE}]
    assert TRACE not in (await request(layer, "/metrics")).body.decode()


async def test_a_bucket_keeps_its_exemplar_for_a_while() -> None:
    layer = busy(exemplars=True, buckets=(60,))
    for trace in (TRACE, TRACE[::-1]):
        await request(layer, "/hello/world", headers=[(b"traceparent", f"00-{trace}-b7ad6b7169203331-01".encode())])
    text = (await request(layer, "/metrics", headers=OPENMETRICS)).body.decode()
    assert TRACE in text
    assert TRACE[::-1] not in text


@pytest.mark.parametrize(
    "traceparent",
    [
        b"",
        b"00-zz-b7ad6b7169203331-01",
        f"00-{TRACE}-b7ad6b7169203331-00".encode(),
        b"00-" + b"0" * 32 + b"-b7ad6b7169203331-01",
    ],
)
async def test_a_trace_that_was_not_recorded_is_no_exemplar(traceparent: bytes) -> None:
    layer = busy(exemplars=True)
    await request(layer, "/hello/world", headers=[(b"traceparent", traceparent)])
    assert "trace_id" not in (await request(layer, "/metrics", headers=OPENMETRICS)).body.decode()


async def test_the_native_histogram_holds_every_request_and_only_openmetrics_2_has_it() -> None:
    layer = busy()
    for _ in range(7):
        await request(layer, "/hello/world")
    families = list(parsed_openmetrics((await request(layer, "/metrics", headers=OPENMETRICS_2)).body.decode()))
    (native,) = [one.native_histogram for family in families for one in family.samples if one.native_histogram]
    assert (native.count_value, native.schema) == (7, 5)
    counts, total = 0, 0
    for step in native.pos_deltas or ():
        counts += step
        total += counts
    assert total == 7
    for accept in ([], OPENMETRICS):
        assert "schema:" not in (await request(layer, "/metrics", headers=accept)).body.decode()


async def test_the_users_own_metrics_come_along() -> None:
    registry = CollectorRegistry()
    Counter("orders", "Orders.", ["kind"], registry=registry).labels("paid").inc(4)
    layer = busy(registry=registry)
    for accept, parse in (([], parse_text), (OPENMETRICS, parsed_openmetrics)):
        families = list(parse((await request(layer, "/metrics", headers=accept)).body.decode()))
        assert sample(families, "orders_total", kind="paid") == 4


async def test_a_metric_of_the_users_that_cannot_be_written_spoils_only_itself() -> None:
    registry = CollectorRegistry()
    Gauge("broken", "No UTF-8.", ["name"], registry=registry).labels("\ud800").set(1)
    Gauge("fine", "Fine.", registry=registry).set(2)
    layer = busy(registry=registry)
    families = list(parse_text((await request(layer, "/metrics")).body.decode()))
    assert sample(families, "fine") == 2
    assert layer.collector.errors == 1


async def test_a_collector_of_the_users_that_raises_costs_no_scrape() -> None:
    registry = CollectorRegistry()
    Gauge("fine", "Fine.", registry=registry).set(2)

    class Unreachable(Collector):
        def collect(self) -> Iterable[Metric]:
            raise ConnectionError

        def describe(self) -> Iterable[Metric]:
            return [Metric("unreachable", "What it would have been.", "gauge")]

    registry.register(Unreachable())
    layer = busy(registry=registry)
    families = list(parse_text((await request(layer, "/metrics")).body.decode()))
    assert sample(families, "fine") == 2
    assert sample(families, "asgi_enhance_metrics_overflows_total") == 0
    assert layer.collector.errors == 1


async def test_a_collector_of_the_users_that_takes_its_time_does_not_hold_the_loop() -> None:
    asked, answer, turned = threading.Event(), threading.Event(), False

    class Slow(Collector):
        def collect(self) -> Iterable[Metric]:
            asked.set()
            assert answer.wait(5)
            assert turned
            return [GaugeMetricFamily("slow", "Slow.", 1)]

        def describe(self) -> Iterable[Metric]:
            return []

    registry = CollectorRegistry()
    registry.register(Slow())
    scrape = asyncio.create_task(request(busy(registry=registry), "/metrics"))
    try:
        assert await asyncio.to_thread(asked.wait, 5)
        turned = True
    finally:
        answer.set()
    assert sample(parse_text((await scrape).body.decode()), "slow") == 1


async def test_a_name_of_ours_in_the_users_registry_is_not_written_twice() -> None:
    registry = CollectorRegistry()
    Gauge("http_server_active_requests", "Somebody else's.", registry=registry)
    body = (await request(busy(registry=registry), "/metrics")).body.decode()
    assert body.count("# TYPE http_server_active_requests ") == 1


async def test_json_is_served_to_who_asks_for_it() -> None:
    layer = busy()
    layer.collector.watch("cache", Stats())
    await request(layer, "/hello/world")
    answer = (await request(layer, "/metrics", headers=[(b"accept", b"application/json")])).json()
    assert answer["requests"]["total"] == 1
    assert answer["cache"] == {"hits": 3, "misses": 1, "entries": 7, "hit_ratio": 0.75}


@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("HEAD", 200), ("POST", 405), ("DELETE", 405)])
async def test_only_reading_is_allowed(method: str, status: int) -> None:
    answer = await request(busy(), "/metrics", method=method)
    assert answer.status == status
    assert bool(answer.body) == (method != "HEAD")


async def test_a_flood_of_scrapes_is_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    written = 0

    async def counted(*args: Any) -> tuple[list[bytes], int]:
        nonlocal written
        written += 1
        return await render(*args)

    monkeypatch.setattr("asgi_enhance.metrics.endpoint.render", counted)
    layer = busy()
    answers = await asyncio.gather(*(request(layer, "/metrics") for _ in range(20)))
    assert written == 1
    assert len({answer.body for answer in answers}) == 1
    await request(layer, "/metrics")
    assert written == 2


async def test_a_predicate_decides_who_may_read() -> None:
    def is_local(scope: Scope) -> bool:
        return bool(scope["client"][0] == "127.0.0.1")

    layer = MetricsMiddleware(Starlette(), allow=is_local)
    assert (await request(layer, "/metrics")).status == 403
    assert (await request(layer, "/metrics", client=("127.0.0.1", 1))).status == 200


async def test_a_thousand_series_never_hold_the_loop_for_long() -> None:
    collector = MetricsCollector(registry=None, max_series=2000)
    for number in range(1000):
        labels = RequestLabels("GET", f"/route/{number}", "200")
        series = collector.table.requests[labels] = RequestSeries(labels, (0.1, *range(1, 14)))
        series.pending += (0.1, 0.2, 0, 3) * 50
    worst, last, running = 0.0, thread_time(), True

    async def watch() -> None:
        nonlocal worst, last
        while running:
            now = thread_time()
            worst, last = max(worst, now - last), now
            await asyncio.sleep(0)

    collector.totals()
    gc.disable()  # what other tests have left would be gone through in the middle of this one
    try:
        last = thread_time()
        watcher = asyncio.create_task(watch())
        await asyncio.sleep(0)
        pieces, _ = await render(collector.totals(), None, Format.TEXT)
        running = False
        await watcher
    finally:
        gc.enable()
    assert b"".join(pieces).count(b"\n") > 30_000
    assert worst < 0.02, f"the loop was held for {worst:.3f} s of CPU"  # benchmarks/metrics.py holds it to 10 ms
