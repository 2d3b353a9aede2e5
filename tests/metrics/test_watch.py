"""Other cores' counters: what a stats object may look like, and what becomes of it."""

from typing import Any, ClassVar

import pytest
from starlette.applications import Starlette

from asgi_enhance.errors import ConfigError
from asgi_enhance.metrics import MetricsCollector, MetricsMiddleware
from asgi_enhance.metrics.stats import Row
from asgi_enhance.testing.driver import request


class Slotted:
    __slots__ = ("_secret", "connections", "delivered")
    GAUGES = frozenset({"connections"})
    HELP: ClassVar = {"delivered": "Messages delivered."}

    def __init__(self) -> None:
        self.connections = 2
        self.delivered = 40
        self._secret = 1


def rows(collector: MetricsCollector, name: str) -> dict[str, Row]:
    return {row.name: row for row in collector.totals().rows if row.name.startswith(f"asgi_enhance_{name}_")}


def test_attributes_are_counters_unless_the_class_calls_them_gauges() -> None:
    collector = MetricsCollector()
    collector.watch("broadcast", Slotted())
    found = rows(collector, "broadcast")
    assert set(found) == {"asgi_enhance_broadcast_connections", "asgi_enhance_broadcast_delivered_total"}
    assert found["asgi_enhance_broadcast_connections"].kind == "gauge"
    assert found["asgi_enhance_broadcast_delivered_total"].kind == "counter"
    assert found["asgi_enhance_broadcast_delivered_total"].help == "Messages delivered."


def test_stats_are_read_when_asked_and_not_when_watched() -> None:
    collector, stats = MetricsCollector(), Slotted()
    collector.watch("broadcast", stats)
    stats.delivered = 41
    assert rows(collector, "broadcast")["asgi_enhance_broadcast_delivered_total"].value == 41


@pytest.mark.parametrize("stats", [{"calls": 5}, lambda: {"calls": 5}])
def test_mappings_and_callables_are_stats_too(stats: Any) -> None:
    collector = MetricsCollector()
    collector.watch("redis", stats)
    assert rows(collector, "redis")["asgi_enhance_redis_calls_total"].value == 5


def test_a_label_makes_a_row_of_each_member() -> None:
    collector = MetricsCollector()
    backends = {"http://a": {"requests": 1, "state": "up"}, "http://b": {"requests": 2, "state": "ejected"}}
    collector.watch("backend", backends, label="backend")
    found = {(row.name, row.labels): row.value for row in collector.totals().rows if "backend" in row.name}
    assert found == {
        ("asgi_enhance_backend_requests_total", (("backend", "http://a"),)): 1,
        ("asgi_enhance_backend_state", (("backend", "http://a"), ("state", "up"))): 1,
        ("asgi_enhance_backend_requests_total", (("backend", "http://b"),)): 2,
        ("asgi_enhance_backend_state", (("backend", "http://b"), ("state", "ejected"))): 1,
    }


def test_a_source_that_fails_leaves_the_others() -> None:
    def broken() -> Any:
        raise RuntimeError("gone")

    collector = MetricsCollector()
    collector.watch("broken", broken)
    collector.watch("redis", {"calls": 5})
    assert rows(collector, "redis")
    assert collector.errors > 0


async def test_a_number_that_is_not_finite_spoils_nothing() -> None:
    layer = MetricsMiddleware(Starlette())
    layer.collector.watch("pool", {"ratio": float("nan"), "wait": float("inf"), "calls": 5})
    assert "asgi_enhance_pool_calls_total 5\n" in (await request(layer, "/metrics")).body.decode()
    assert (await layer.collector.get_metrics())["pool"] == {"calls": 5}


def test_a_name_is_watched_once() -> None:
    collector, stats = MetricsCollector(), {"calls": 1}
    collector.watch("redis", stats)
    collector.watch("redis", stats)
    with pytest.raises(ConfigError, match="watched already"):
        collector.watch("redis", {})


@pytest.mark.parametrize("options", [{"buckets": ()}, {"buckets": (2, 1)}, {"buckets": (0, 1)}, {"max_series": 0}])
def test_what_cannot_work_is_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        MetricsCollector(**options)


@pytest.mark.parametrize("name", ["requests", "latency", "", "no spaces", "9lives", "a-b"])
def test_names_are_metric_names(name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        MetricsCollector().watch(name, {})
