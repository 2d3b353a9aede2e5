"""The live page without a browser: off unless asked for, closed to strangers, and a stream that ends."""

import asyncio
import base64
import hashlib
import json
import re
from typing import Any

import pytest
from starlette.applications import Starlette

from asgi_enhance.asgi.allow import from_networks
from asgi_enhance.errors import ConfigError
from asgi_enhance.metrics import MetricsCollector, MetricsMiddleware, live
from asgi_enhance.metrics.totals import Totals
from asgi_enhance.testing.driver import Driver, http_scope, request

PAGE, EVENTS = "/metrics/dashboard", "/metrics/dashboard/events"


def layer(**options: Any) -> MetricsMiddleware:
    collector = MetricsCollector(registry=None)
    return MetricsMiddleware(Starlette(), collector=collector, dashboard=True, **options)


async def event(server: Driver) -> dict[str, Any]:
    body = (await server.next())["body"]
    found: dict[str, Any] = json.loads(re.sub(rb"^retry: \d+\n", b"", body).removeprefix(b"data: "))
    return found


async def test_it_is_off_unless_asked_for() -> None:
    assert (await request(MetricsMiddleware(Starlette()), PAGE)).status == 404


async def test_the_page_loads_nothing_and_runs_only_what_its_policy_names() -> None:
    answer = await request(layer(), PAGE)
    page = answer.body.decode()
    policy = answer.header("content-security-policy") or ""
    assert answer.header("content-type") == "text/html; charset=utf-8"
    assert not re.search(r"(src|href)\s*=|url\(|@import|style=\"|onclick|https?://", page)
    assert "default-src 'none'" in policy
    for tag in ("script", "style"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


@pytest.mark.parametrize("path", [PAGE, EVENTS])
async def test_strangers_see_neither_the_page_nor_the_stream(path: str) -> None:
    assert (await request(layer(allow=from_networks("10.0.0.0/8")), path)).status == 403
    assert (await request(layer(), path, method="POST")).status == 405


async def test_a_snapshot_comes_at_once_and_another_one_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "INTERVAL", 0.01)
    monkeypatch.setattr(live, "SETTLED", 0.0)
    app = layer()
    await request(app, "/nowhere")
    async with Driver(app, http_scope(EVENTS), [{"type": "http.request", "body": b""}]) as server:
        assert (await server.next())["headers"][0] == (b"content-type", b"text/event-stream")
        first = await event(server)
        assert first["requests"]["total"] == 1
        assert first["history"][-1]["p50"] > 0
        await request(app, "/nowhere")
        while (await event(server))["requests"]["total"] == 1:
            pass
        server.feed({"type": "http.disconnect"})
        await server.ended()


async def test_a_stream_ends_by_itself_so_that_a_server_can_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "LONGEST", 0.0)
    async with Driver(layer(), http_scope(EVENTS)) as server:
        await server.next()
        assert (await server.next())["body"].startswith(b"retry: ")
        assert not (await server.next())["more_body"]
        await server.ended()


async def test_head_is_told_of_the_stream_and_holds_none() -> None:
    answer = await request(layer(), EVENTS, method="HEAD")
    assert (answer.status, answer.header("content-type"), answer.body) == (200, "text/event-stream", b"")


async def test_only_so_many_may_watch_and_who_leaves_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MOST", 1)
    app = layer()
    async with Driver(app, http_scope(EVENTS)) as server:
        assert (await server.next())["status"] == 200
        assert (await request(app, EVENTS)).status == 503
        server.feed({"type": "http.disconnect"})
        await server.ended()
    async with Driver(app, http_scope(EVENTS)) as server:
        assert (await server.next())["status"] == 200
        server.feed({"type": "http.disconnect"})
        await server.ended()


async def test_all_who_watch_share_a_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    collector = MetricsCollector(registry=None)
    gather = collector.gather

    async def counted() -> Totals:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        return await gather()

    monkeypatch.setattr(collector, "gather", counted)
    async with collector:
        page = live.LivePage(collector)
        assert len(set(await asyncio.gather(*(page._snapshot() for _ in range(8))))) == 1
    assert asked == 1


def test_a_dashboard_needs_a_path() -> None:
    with pytest.raises(ConfigError, match="path"):
        MetricsMiddleware(Starlette(), path=None, dashboard=True)
