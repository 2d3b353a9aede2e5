"""Every order of the four wrapping layers works; what an order means may differ, whether it is right may not."""

import re
from collections.abc import AsyncIterator
from itertools import permutations
from typing import Any

import pytest

from asgi_enhance.asgi.types import ASGIApp, Message
from asgi_enhance.testing.driver import Driver, Lifetime, WebSocket, http_scope, request, websocket_scope
from tests.integration.apps import everything, layers, stack

REQUEST: Message = {"type": "http.request", "body": b"", "more_body": False}


@pytest.fixture(params=list(permutations(layers())), ids=" ".join)
async def app(request: pytest.FixtureRequest, backend_url: str) -> AsyncIterator[ASGIApp]:
    inner = everything(backend_url)
    yield stack(inner, *request.param)
    await inner.state.proxy.balancer.aclose()  # no lifespan reaches a mounted app


async def test_a_stream_arrives_chunk_by_chunk(app: ASGIApp) -> None:
    async with Driver(app, http_scope("/stream"), [REQUEST]) as server:
        assert (await server.next())["status"] == 200
        assert (await server.next())["body"] == b"first"
        server.feed({"type": "http.disconnect"})


async def test_an_endless_event_stream_flows_and_ends_with_its_client(app: ASGIApp) -> None:
    async with Driver(app, http_scope("/events", asgi={"version": "3.0", "spec_version": "2.3"}), [REQUEST]) as server:
        assert (await server.next())["status"] == 200
        for _ in range(3):
            assert (await server.next())["body"] == b"data: tick\n\n"
        server.feed({"type": "http.disconnect"})
        await server.ended()


async def test_a_websocket_of_the_app_talks(app: ASGIApp) -> None:
    async with WebSocket(app, websocket_scope("/echo")) as socket:
        await socket.accepted()
        socket.send_text("hello")
        assert await socket.receive_text() == "echo hello"
        socket.leave()
        await socket.ended()


async def test_an_error_of_the_app_passes_unchanged(app: ASGIApp) -> None:
    driver = Driver(app, http_scope("/fails"), [REQUEST])
    with pytest.raises(ValueError, match="the app's own"):
        await driver.run()
    assert driver.sent[0]["status"] == 500


async def test_the_mounted_balancer_answers(app: ASGIApp) -> None:
    response = await request(app, "/lb/a%2Fb?c=%20", method="POST", body=[b"x", b"y"])
    assert (response.status, response.json()) == (200, {"path": "/a/b", "query": "c=%20"})


async def test_a_page_is_made_once(app: ASGIApp) -> None:
    first, second = await request(app, "/page"), await request(app, "/page")
    assert (first.body, second.body) == (b"page 1", b"page 1")
    assert "hit" in (second.header("cache-status") or "")
    assert second.header("age") is not None


async def test_the_limit_holds(app: ASGIApp) -> None:
    statuses = [(await request(app, "/limited")).status for _ in range(4)]
    assert statuses == [200, 200, 429, 429]


async def test_clients_of_a_group_hear_each_message(app: ASGIApp) -> None:
    async with (
        Lifetime(app),
        WebSocket(app, websocket_scope("/ws/ada?group=room")) as ada,
        WebSocket(app, websocket_scope("/ws/bob?group=room")) as bob,
    ):
        for socket in (ada, bob):
            await socket.accepted()
        await find_processor(app).broadcast_to_group("room", {"text": "hello"})
        assert await ada.receive_json() == {"text": "hello"}
        assert await bob.receive_json() == {"text": "hello"}
        for socket in (ada, bob):
            socket.leave()
            await socket.ended()


async def test_requests_are_counted_by_route(app: ASGIApp) -> None:
    await request(app, "/limited")
    scrape = (await request(app, "/metrics")).body.decode()
    assert 'http_route="/limited"' in scrape


def find_processor(app: Any) -> Any:
    """The processor of the broadcast layer, wherever it is in the stack."""
    while not hasattr(app, "processor"):
        app = app.app
    return app.processor


async def test_what_is_answered_before_it_is_routed_is_counted_by_route_as_well(backend_url: str) -> None:
    inner = everything(backend_url)
    app = stack(inner, "metrics", "limit", "broadcast", "cache")
    for path in ("/page", "/page", "/limited", "/limited", "/limited", "/nowhere"):
        await request(app, path)
    counted = re.findall(
        r'duration_seconds_count\{.*http_route="([^"]*)",http_response_status_code="(\d+)".*\} (\d+)',
        (await request(app, "/metrics")).body.decode(),
    )
    assert sorted(counted) == [
        ("/limited", "200", "2"),
        ("/limited", "429", "1"),
        ("/page", "200", "2"),
        ("<unmatched>", "404", "1"),
    ]
