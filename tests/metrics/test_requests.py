"""What a request is counted as: status, route, bytes, outcome, and when it is over."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from asgi_enhance.asgi.types import ASGIApp, Message, Receive, Scope, Send
from asgi_enhance.metrics import MetricsCollector, MetricsMiddleware
from asgi_enhance.metrics.policy import RequestLabels
from asgi_enhance.metrics.series import FULL, RequestSeries
from asgi_enhance.testing.conformance import assert_transparent
from asgi_enhance.testing.driver import Driver, http_scope, request


def says(*messages: Message) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    return app


async def no_receive() -> Message:
    return {"type": "http.request", "body": b""}


async def no_send(message: Message) -> None:
    pass


OK: Message = {"type": "http.response.start", "status": 200, "headers": []}
END: Message = {"type": "http.response.body", "body": b"done"}


def counted(layer: MetricsMiddleware) -> dict[RequestLabels, RequestSeries]:
    layer.collector.totals()
    return layer.collector.table.requests


def only(layer: MetricsMiddleware) -> RequestSeries:
    (series,) = counted(layer).values()
    return series


async def test_every_line_of_the_contract_is_kept() -> None:
    await assert_transparent(MetricsMiddleware)


async def test_a_request_is_counted_by_method_route_and_status() -> None:
    async def item(request: Request) -> Response:
        return PlainTextResponse("made", 201)

    layer = MetricsMiddleware(Starlette(routes=[Route("/items/{item}", item, methods=["POST"])]))
    for number in range(3):
        await request(layer, f"/items/{number}", method="POST", body=b"12345")
    series = only(layer)
    assert series.labels == RequestLabels("POST", "/items/{item}", "201")
    assert series.duration.count == series.first_byte.count == 3
    assert series.sent == 3 * len(b"made")


async def test_bytes_are_those_that_passed_not_those_that_were_announced() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({**OK, "headers": [(b"content-length", b"999")]})
        await send({"type": "http.response.body", "body": b"abc", "more_body": True})
        await send({"type": "http.response.body", "body": b"de"})

    layer = MetricsMiddleware(app)
    await request(layer, method="POST", body=[b"12", b"345"], headers=[(b"content-length", b"77")])
    assert (only(layer).received, only(layer).sent) == (5, 5)


async def test_a_body_that_answers_head_is_not_sent() -> None:
    layer = MetricsMiddleware(says(OK, END))
    for method in ("HEAD", "GET"):
        await request(layer, method=method)
    assert (await layer.collector.get_metrics())["requests"]["bytes_sent"] == 4


async def test_a_file_the_server_sends_is_counted_with_its_size(tmp_path: Path) -> None:
    file = tmp_path / "page"
    file.write_bytes(b"x" * 321)
    layer = MetricsMiddleware(says(OK, {"type": "http.response.pathsend", "path": str(file)}))
    await request(layer)
    assert only(layer).sent == 321


async def test_the_duration_ends_with_the_last_body_and_not_with_the_background_task() -> None:
    done = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(OK)
        await send(END)
        await done.wait()

    layer = MetricsMiddleware(app)
    async with Driver(layer, http_scope()) as server:
        await server.next()
        await server.next()
        assert only(layer).duration.count == 1
        assert sum(layer.collector.table.active().values()) == 0
        done.set()
        await server.ended()
    assert only(layer).duration.count == 1


async def test_trailers_belong_to_the_response() -> None:
    proceed = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({**OK, "trailers": True})
        await send(END)
        await proceed.wait()
        await send({"type": "http.response.trailers", "headers": []})

    layer = MetricsMiddleware(app)
    async with Driver(layer, http_scope()) as server:
        await server.next()
        await server.next()
        assert not counted(layer)
        assert layer.collector.table.active()["GET"] == 1
        proceed.set()
        await server.ended()
    assert only(layer).labels.error == ""


async def test_an_exception_before_the_start_is_a_500_with_its_type() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise LookupError("no")

    layer = MetricsMiddleware(app)
    with pytest.raises(LookupError):
        await request(layer)
    assert only(layer).labels == RequestLabels("GET", "<unmatched>", "500", "LookupError")
    assert layer.collector.table.exceptions == {("<unmatched>", "LookupError"): 1}


async def test_an_exception_in_the_stream_keeps_the_status_that_was_sent() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(OK)
        raise LookupError("no")

    layer = MetricsMiddleware(app)
    with pytest.raises(LookupError):
        await request(layer)
    assert only(layer).labels == RequestLabels("GET", "<unmatched>", "200", "LookupError")


async def test_an_exception_that_a_framework_answered_is_counted_by_type_all_the_same() -> None:
    async def broken(request: Request) -> Response:
        raise ZeroDivisionError

    layer = MetricsMiddleware(Starlette(routes=[Route("/", broken)]))
    with pytest.raises(ZeroDivisionError):
        await request(layer)
    assert only(layer).labels == RequestLabels("GET", "/", "500", "500")
    assert layer.collector.table.exceptions == {("/", "ZeroDivisionError"): 1}


async def test_a_cancelled_request_is_no_500() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    layer = MetricsMiddleware(app)
    async with Driver(layer, http_scope()) as server:
        await asyncio.sleep(0)
        assert server.task is not None
        server.task.cancel()
    assert only(layer).labels == RequestLabels("GET", "<unmatched>", "499", "cancelled")
    assert not only(layer).labels.failed


async def test_a_client_that_left_before_the_answer_is_no_500() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()

    layer = MetricsMiddleware(app)
    await Driver(layer, http_scope(), [{"type": "http.disconnect"}]).run()
    assert only(layer).labels == RequestLabels("GET", "<unmatched>", "499", "disconnected")


async def test_a_client_that_left_in_the_stream_keeps_the_status() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(OK)
        await receive()
        await send(END)

    layer = MetricsMiddleware(app)
    await Driver(layer, http_scope(), [{"type": "http.disconnect"}]).run()
    assert only(layer).labels == RequestLabels("GET", "<unmatched>", "200", "disconnected")


async def test_an_app_that_says_nothing_or_not_all_is_told_apart() -> None:
    silent, cut = MetricsMiddleware(says()), MetricsMiddleware(says(OK))
    await Driver(silent, http_scope()).run()
    await Driver(cut, http_scope()).run()
    assert only(silent).labels == RequestLabels("GET", "<unmatched>", "500", "no_response")
    assert only(cut).labels == RequestLabels("GET", "<unmatched>", "200", "incomplete_response")


async def test_an_event_stream_has_a_family_of_its_own_and_no_share_in_the_percentiles() -> None:
    stream = {**OK, "headers": [(b"content-type", b"text/event-stream; charset=utf-8")]}
    layer = MetricsMiddleware(
        says(stream, {"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True}, END)
    )
    await request(layer)
    metrics = await layer.collector.get_metrics()
    assert only(layer).labels.stream
    assert metrics["requests"]["total"] == 1
    assert metrics["latency"]["start"]["count"] == 0


async def test_one_route_may_answer_with_a_stream_or_not() -> None:
    async def either(request: Request) -> Response:
        if "stream" not in request.query_params:
            return PlainTextResponse("plain")
        return StreamingResponse(iter(["data: 1\n\n", "data: 2\n\n"]), media_type="text/event-stream")

    for order in (("/?stream", "/", "/?stream", "/"), ("/", "/?stream", "/", "/?stream")):
        layer = MetricsMiddleware(Starlette(routes=[Route("/", either)]))
        for path in order:
            await request(layer, path)
        assert {labels.stream: one.duration.count for labels, one in counted(layer).items()} == {True: 2, False: 2}


async def test_what_is_pending_is_bounded() -> None:
    layer = MetricsMiddleware(says(OK, END))
    for _ in range(3 * FULL // 4):
        await layer(http_scope(), no_receive, no_send)
        (series,) = layer.collector.table.requests.values()
        assert len(series.pending) < FULL


async def test_a_request_whose_client_left_while_it_was_read_is_no_exception_of_the_app() -> None:
    async def reads(request: Request) -> Response:
        return PlainTextResponse(await request.body())

    layer = MetricsMiddleware(Starlette(routes=[Route("/", reads, methods=["POST"])]))
    half: Message = {"type": "http.request", "body": b"half", "more_body": True}
    with pytest.raises(ClientDisconnect):
        await Driver(layer, http_scope(method="POST"), [half, {"type": "http.disconnect"}]).run()
    assert layer.collector.table.exceptions == {}
    assert only(layer).labels.error == "disconnected"


async def test_requests_in_flight_are_counted_while_they_are() -> None:
    proceed = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await proceed.wait()
        await send(OK)
        await send(END)

    layer = MetricsMiddleware(app)
    async with Driver(layer, http_scope(method="PUT")) as one, Driver(layer, http_scope(method="PUT")) as two:
        await asyncio.sleep(0)
        assert layer.collector.table.active()["PUT"] == 2
        proceed.set()
        await one.ended()
        await two.ended()
    assert layer.collector.table.active()["PUT"] == 0


async def test_unknown_methods_share_one_label() -> None:
    layer = MetricsMiddleware(says(OK, END))
    for number in range(50):
        await request(layer, method=f"BREW{number}")
    assert only(layer).labels.method == "_OTHER"
    assert layer.collector.table.active()["_OTHER"] == 0


async def test_excluded_paths_are_passed_on_untouched() -> None:
    layer = MetricsMiddleware(says(OK, END))
    await request(layer, "/livez")
    assert not counted(layer)


async def test_a_body_without_a_start_is_for_the_server_to_refuse() -> None:
    with pytest.raises(RuntimeError, match="a body before its"):
        await request(MetricsMiddleware(says(END)))


async def test_two_layers_may_share_a_collector() -> None:
    collector = MetricsCollector()
    await request(MetricsMiddleware(says(OK, END), collector=collector))
    await request(MetricsMiddleware(says(OK, END), collector=collector))
    assert (await collector.get_metrics())["requests"]["total"] == 2


async def test_a_failure_of_the_metrics_fails_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **options: object) -> None:
        raise RuntimeError("metrics are broken")

    layer = MetricsMiddleware(says(OK, END))
    await request(layer)
    for method in ("GET", "POST"):  # the series is known, and is not
        monkeypatch.setattr(layer.collector.table, "series", broken)
        monkeypatch.setattr(layer.collector.table, "bound", BrokenMapping())
        assert (await request(layer, method=method)).body == b"done"
    assert layer.collector.errors == 2


class BrokenMapping(dict[Any, Any]):
    def get(self, key: Any, default: Any = None) -> Any:
        raise RuntimeError("metrics are broken")


async def test_mounted_below_another_app_the_metrics_are_still_served() -> None:
    layer = MetricsMiddleware(says(OK, END))
    app = Starlette(routes=[Mount("/inner", app=layer)])
    answer = await request(app, "/inner/metrics")
    assert b"http_server_request_duration_seconds" in answer.body


async def test_percentiles_and_rates_come_from_what_was_counted() -> None:
    async def fine(request: Request) -> Response:
        return JSONResponse({})

    async def broken(request: Request) -> Response:
        return Response(status_code=503)

    layer = MetricsMiddleware(Starlette(routes=[Route("/fine", fine), Route("/broken", broken)]))
    for _ in range(9):
        await request(layer, "/fine")
    await request(layer, "/broken")
    metrics = await layer.collector.get_metrics()
    assert metrics["requests"]["total"] == 10
    assert metrics["requests"]["error_rate"] == pytest.approx(0.1)
    assert metrics["requests"]["rate"]["1m"] > 0
    assert metrics["latency"]["1m"]["count"] == metrics["latency"]["start"]["count"] == 10
    assert 0 < metrics["latency"]["1m"]["p50"] <= metrics["latency"]["1m"]["p99"] < 5
    broken_endpoint, fine_endpoint = metrics["endpoints"]
    assert (broken_endpoint["route"], broken_endpoint["error_rate"]) == ("/broken", 1.0)
    assert (fine_endpoint["route"], fine_endpoint["error_rate"]) == ("/fine", 0.0)
