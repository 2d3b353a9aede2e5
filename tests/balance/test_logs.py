"""What an operator reads: each change of a backend's state once, each request that failed, and why."""

import asyncio

import pytest
from starlette.requests import Request

from asgi_enhance.balance import Backend, Ejection, HealthCheck, LoadBalanceApp, LoadBalancer, Retries
from asgi_enhance.balance.failure import UpstreamFailure
from asgi_enhance.testing.driver import http_scope, request
from asgi_enhance.testing.live import free_port
from tests.balance.wire import OK, ScriptedBackend, Wire, ask, front, get, serve, until


async def test_a_request_that_fails_is_logged_with_its_backend_and_the_cause(
    http: str, caplog: pytest.LogCaptureFixture
) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    app = LoadBalanceApp([dead], retries=Retries(attempts=1))
    async with serve(app, http=http) as port:
        assert (await ask(port, get(b"/a%0ab"))).status == 502
    (line,) = caplog.messages
    assert line.startswith(rf"502 GET '/a\nb': {dead}: cannot connect: ")
    await app.balancer.close()


async def test_a_request_nobody_could_take_is_logged(http: str, caplog: pytest.LogCaptureFixture) -> None:
    async with serve(LoadBalanceApp([]), http=http) as port:
        assert (await ask(port, get())).status == 503
    assert "503 GET '/': no backend is available" in caplog.messages


@pytest.mark.parametrize(
    ("backends", "warned"), [([], True), ([Backend("http://a", weight=0)], True), (["http://a"], False)]
)
async def test_a_balancer_that_starts_without_a_backend_says_so(
    backends: list[Backend | str], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with LoadBalancer(backends):
        pass
    assert any("no backend" in line for line in caplog.messages) is warned


async def test_an_ejection_is_logged_once_with_its_time_and_the_last_failure(
    http: str, caplog: pytest.LogCaptureFixture
) -> None:
    busy = b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"
    async with front(busy, http, ejection=Ejection(consecutive=2, base_time=7)) as (backend, port):
        for _ in range(3):
            assert (await ask(port, get())).status == 503
        assert caplog.messages == [f"{backend.url} is ejected for 7 s: 2 failures in a row, the last: it answered 503"]
        assert backend.balancer.stats.ejections == 1
        report = backend.balancer.report()[backend.url]
        assert (report["state"], report["last_failure"]["reason"]) == ("ejected", "it answered 503")
        assert 0 <= report["last_failure"]["seconds_ago"] < 5


async def test_what_is_reported_of_a_backend_makes_no_label_of_free_text() -> None:
    balancer = LoadBalancer([f"http://127.0.0.1:{free_port()}"])
    with pytest.raises(UpstreamFailure):
        await balancer.forward_request(Request(http_scope(), asyncio.Event().wait))  # type: ignore[arg-type]
    (report,) = balancer.report().values()
    assert report["last_failure"]["reason"].startswith("cannot connect")
    assert [value for value in report.values() if isinstance(value, str)] == ["up"]
    (found,) = (await balancer.health_check()).values()
    assert found["error"]
    await balancer.close()


async def test_a_verdict_of_the_checks_is_logged_when_it_changes_with_what_they_saw(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with ScriptedBackend(b"HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n") as backend:
        check = HealthCheck("/health", interval=0.02, fast=0.01, rise=1, fall=2)
        async with LoadBalancer([backend.url], health=check) as balancer:
            await until(lambda: balancer.report()[backend.url]["state"] == "down")
            backend.answer = OK
            for wire in backend.wires:
                wire.close()
            await until(lambda: balancer.report()[backend.url]["state"] == "up")
    assert caplog.messages[:2] == [
        f"{backend.url} is down: GET /health was answered 404",
        f"{backend.url} is up again",
    ]


async def test_a_response_that_is_cut_says_whose_it_was(http: str) -> None:
    async def answer(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")

    async with ScriptedBackend(answer) as backend:
        app = LoadBalanceApp([backend.url])
        with pytest.raises(UpstreamFailure, match=backend.url) as raised:
            await request(app)
        assert raised.value.backend == backend.url
        await app.balancer.close()
