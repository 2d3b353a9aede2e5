"""Whatever clients send and apps do, the number of series is bounded, and so is the memory."""

import gc
import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from asgi_enhance.asgi.types import Message, Receive, Scope, Send
from asgi_enhance.metrics import MetricsCollector, MetricsMiddleware
from asgi_enhance.metrics.live import history
from asgi_enhance.metrics.policy import RequestLabels, label_value, outcome
from asgi_enhance.metrics.sketch import bucket_indexes
from asgi_enhance.metrics.totals import Totals
from asgi_enhance.metrics.window import SLOT, WINDOWS, Ring, Slot, Window
from asgi_enhance.testing.driver import http_scope, request


async def page(request: Request) -> Response:
    return PlainTextResponse("page")


def app() -> Starlette:
    return Starlette(routes=[Route("/items/{item}", page), Mount("/m/{tenant}", routes=[Route("/x/{y}", page)])])


async def nothing(message: Message) -> None:
    pass


async def empty() -> Message:
    return {"type": "http.request", "body": b""}


async def test_thousands_of_urls_are_a_handful_of_series_and_no_memory() -> None:
    layer = MetricsMiddleware(app(), collector=MetricsCollector(registry=None))
    rng = random.Random(5)
    scopes = [http_scope("/")]

    async def send_one(path: str, method: str) -> None:
        await layer({**scopes[0], "path": path, "method": method, "raw_path": path.encode()}, empty, nothing)

    for number in range(1_200):  # whatever is remembered has been, up to its bound
        await send_one(f"/items/{number}", "GET")
        await send_one(f"/{number}", f"M{number}")
    layer.collector.totals()
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(4_000):
            path = rng.choice(("/items/{}", "/m/{}/x/1", "/{}", "/{}/admin.php"))
            await send_one(path.format(number), "GET" if number % 2 else f"BREW{number}")
        layer.collector.totals()
        gc.collect()
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(layer.collector.table) <= 12
    assert len(layer.collector.table.bound) <= 12
    assert grown < 300_000
    await layer.collector.aclose()


async def test_past_the_cap_requests_are_counted_under_one_label_that_keeps_the_class_of_the_status() -> None:
    async def any_status(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": int(scope["path"][1:])})
        await send({"type": "http.response.body", "body": b""})

    layer = MetricsMiddleware(any_status, collector=MetricsCollector(registry=None, max_series=10))
    for status in range(200, 600):
        await request(layer, f"/{status}")
    table = layer.collector.table
    labels = [one for one in table.requests if one.route == "<overflow>"]
    assert len(table.requests) == 10 + len(labels)
    assert {one.status for one in labels} == {"2xx", "3xx", "4xx", "5xx"}
    assert table.overflows == 390
    metrics = await layer.collector.get_metrics()
    assert metrics["requests"]["total"] == 400
    assert metrics["requests"]["errors"] == 100
    assert metrics["requests"]["active"] == 0
    assert metrics["metrics"]["overflows_total"] == 390
    await layer.collector.aclose()


async def test_a_label_of_ones_own_is_capped_and_cleaned() -> None:
    async def tells(scope: Scope, receive: Receive, send: Send) -> None:
        scope["asgi_enhance.route"] = "/\ud800" + "x" * 5_000
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b""})

    layer = MetricsMiddleware(tells, collector=MetricsCollector(registry=None))
    await request(layer)
    (labels,) = layer.collector.table.requests
    assert labels.route == "/?" + "x" * 198
    text = (await request(layer, "/metrics")).body.decode()
    assert list(text_string_to_metric_families(text))
    await layer.collector.aclose()


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_is_a_label_value_that_survives_the_parser(text: str) -> None:
    from asgi_enhance.metrics.exposition import Format, write_rows
    from asgi_enhance.metrics.stats import Row

    value = label_value(text)
    written = "".join(write_rows([Row("some_name", "gauge", "Help.", (("label", value),), 1)], Format.TEXT, set()))
    (family,) = text_string_to_metric_families(written.encode().decode())
    assert family.samples[0].labels == {"label": value}


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.just(0), st.integers(100, 599)), st.sampled_from(["", "cancelled", "disconnected", "ValueError"]))
def test_every_outcome_has_its_labels_and_only_the_server_can_fail(status: int, error: str) -> None:
    label, kind = outcome(status, error)
    labels = RequestLabels("GET", "/", label, kind)
    if error in ("cancelled", "disconnected"):
        assert kind == error
        assert labels.failed == (500 <= status < 600)
    elif error or 500 <= status < 600 or not status:
        assert labels.failed
    else:
        assert not labels.failed


@given(st.lists(st.one_of(st.just(0.0), st.floats(1e-9, 1e7)), min_size=1, max_size=50))
def test_every_duration_has_a_bucket_within_bounds(values: list[float]) -> None:
    assert all(-960 <= index <= 760 for index in bucket_indexes(values))


def over(ring: Ring, seconds: int, now: float) -> Window:
    window = Window(seconds, now, ring.began)
    for slot in ring.slots:
        window.add(slot)
    return window


def test_windows_hold_what_is_theirs_and_forget() -> None:
    ring = Ring(1_000.0)
    now = 1_000.0
    for _ in range(200):
        ring.turn(now)
        ring.current.add(("GET", "/"), [10] * 20, 20, 1, 0.5)
        now += SLOT
    now -= SLOT
    assert len(ring.slots) <= max(WINDOWS.values()) // SLOT
    for seconds in WINDOWS.values():
        window = over(ring, seconds, now)
        assert window.requests == 20 * seconds / SLOT
        assert window.errors == seconds / SLOT
        assert sum(window.sketch.values()) == window.requests
    assert over(ring, 60, now + 60).requests == 0


def test_a_rate_is_over_the_time_that_has_really_passed() -> None:
    ring = Ring(1_003.0)
    ring.current.add(("GET", "/"), [10], 10, 0, 0.5)
    assert over(ring, 60, 1_005.0).seconds == 2.0
    assert over(ring, 900, 1_005.0).seconds == 2.0
    ring.turn(1_090.0)
    assert over(ring, 60, 1_095.0).seconds == pytest.approx(55.0)


def test_what_workers_that_are_gone_have_counted_makes_no_spike() -> None:
    totals = Totals(began=1_058.0)
    for number in range(100, 107):
        slot = Slot(number)
        slot.add(("GET", "/"), [10] * 100, 100, 0, 0.5)
        totals.slots.append(slot)
    window = Window(60, 1_069.0, totals.began)
    for slot in totals.slots:
        window.add(slot)
    assert window.requests / window.seconds == pytest.approx(10, rel=0.05)
    assert [round(point["rate"]) for point in history(totals, 1_070.0, 90)] == [10] * 7


def test_the_first_slot_of_the_plot_lasts_from_the_start_of_the_process() -> None:
    totals = Totals(began=1_006.0)
    for number in (100, 101):
        slot = Slot(number)
        slot.add(("GET", "/"), [10] * 20, 20, 0, 0.5)
        totals.slots.append(slot)
    assert [point["rate"] for point in history(totals, 1_020.0, 90)] == [5, 2]
