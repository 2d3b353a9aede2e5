"""The dashboard and the alert rules of docs/grafana name only series that a busy stack really shows."""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from asgi_enhance.redis import RedisManager
from asgi_enhance.testing.driver import Lifetime, WebSocket, request, websocket_scope
from asgi_enhance.testing.live import LiveServer
from tests.metrics.busy import busy

GRAFANA = Path(__file__).parents[2] / "docs" / "grafana"
NAME = re.compile(r"\b((?:asgi_enhance|http_server)_[a-z0-9_]+)")


def expressions() -> dict[str, str]:
    """All queries by where they stand."""
    panels = json.loads((GRAFANA / "dashboard.json").read_text())["panels"]
    found = {
        f"panel {panel['title']}, {target['refId']}": target["expr"]
        for panel in panels
        for target in panel.get("targets", ())
    }
    rules = (GRAFANA / "alerts.yml").read_text()
    found["alert rules"] = "\n".join(
        line for line in rules.splitlines() if not line.lstrip().startswith(("#", "- name"))
    )
    return found


@pytest.fixture(scope="module")
def backends() -> Iterator[list[str]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(LiveServer("tests.metrics.busy:backend")).url for _ in range(2)]


async def scrape(redis: RedisManager, backends: list[str]) -> dict[str, set[str]]:
    """Names of a live scrape, each with its labels, after some traffic of every kind."""
    app, _ = busy(redis, backends)
    async with Lifetime(app):
        for path in ("/items/1", "/page", "/page", "/lb/x", "/events", "/unavailable", *["/limited"] * 7):
            await request(app, path)
        with contextlib.suppress(LookupError):
            await request(app, "/broken")
        async with WebSocket(app, websocket_scope("/echo")) as socket:
            await socket.accepted()
            socket.leave()
            await socket.ended()
        text = (await request(app, "/metrics")).body.decode()
    shown: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            shown.setdefault(sample.name, set()).update(sample.labels)
    return shown


async def test_every_query_names_series_and_labels_that_exist(redis: RedisManager, backends: list[str]) -> None:
    shown = await scrape(redis, backends)
    for place, expression in expressions().items():
        names = NAME.findall(expression.replace("job:http_server", ""))
        assert names, f"{place} asks for nothing"
        for name in names:
            assert name in shown, f"{place} asks for {name}, which nobody shows"
        labels = {label for name in names for label in shown[name]} | {"job", "instance", "worker"}
        for group in re.findall(r"by \(([^)]*)\)", expression):
            assert {label.strip() for label in group.split(",")} <= labels, f"{place}: by ({group})"
        for label in re.findall(r"[{,]([a-z_]+)=[~]?\"", expression):
            assert label in labels, f"{place}: {label}"


def test_every_panel_has_a_place_of_its_own() -> None:
    panels: list[dict[str, Any]] = json.loads((GRAFANA / "dashboard.json").read_text())["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)
