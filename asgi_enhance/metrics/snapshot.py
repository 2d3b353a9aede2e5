"""The metrics as plain data, for JSON, the dashboard and the user's own code."""

from collections import Counter
from collections.abc import Generator, Mapping
from typing import Any

from asgi_enhance.metrics.policy import CANCELLED, DISCONNECTED
from asgi_enhance.metrics.series import RequestSeries
from asgi_enhance.metrics.sketch import quantiles
from asgi_enhance.metrics.stats import Source, as_data
from asgi_enhance.metrics.totals import Totals
from asgi_enhance.metrics.window import WINDOWS, Window

RANKS = {"p50": 0.50, "p95": 0.95, "p99": 0.99}


MEMBERS = frozenset(
    {
        "time",
        "uptime_seconds",
        "workers",
        "requests",
        "latency",
        "endpoints",
        "exceptions",
        "websockets",
        "saturation",
        "metrics",
        "history",
    }
)
"""Names that are taken in a snapshot, so that nothing that is watched may have them."""


def snapshot(totals: Totals, now: float, sources: Mapping[str, Source]) -> Generator[None, None, dict[str, Any]]:
    """Everything in `totals` at `now` (wall-clock seconds), in rates, ratios and percentiles; in steps.

    `sources` are what is watched, by name.
    """
    windows = {name: Window(seconds, now, totals.began) for name, seconds in WINDOWS.items()}
    for slot in totals.slots:
        for window in windows.values():
            window.add(slot)
        yield
    latency = yield from _latency(totals, windows)
    endpoints = yield from _endpoints(totals, windows)
    return {
        "time": now,
        "uptime_seconds": now - totals.began,
        "workers": totals.workers,
        "requests": _requests(totals, windows),
        "latency": latency,
        "endpoints": endpoints,
        "exceptions": [
            {"route": route, "type": kind, "count": count} for (route, kind), count in sorted(totals.exceptions.items())
        ],
        "websockets": _sockets(totals),
        "saturation": _saturation(totals, windows),
        "metrics": {name: int(sum(_own(totals, f"metrics_{name}").values())) for name in _HEALTH},
        **as_data(totals.rows, sources),
    }


def _requests(totals: Totals, windows: Mapping[str, Window]) -> dict[str, Any]:
    series = totals.requests
    count = sum(one.duration.count for one in series)
    errors = sum(one.duration.count for one in series if one.labels.failed)
    return {
        "total": count,
        "active": sum(totals.active.values()),
        "errors": errors,
        "error_rate": errors / count if count else 0.0,
        "disconnected": sum(one.duration.count for one in series if one.labels.error == DISCONNECTED),
        "cancelled": sum(one.duration.count for one in series if one.labels.error == CANCELLED),
        "bytes_received": sum(one.received for one in series),
        "bytes_sent": sum(one.sent for one in series),
        "rate": {name: one.requests / one.seconds for name, one in windows.items()},
        "errors_by_window": {name: one.errors / one.requests if one.requests else 0.0 for name, one in windows.items()},
        "bytes_received_rate": {name: one.received / one.seconds for name, one in windows.items()},
        "bytes_sent_rate": {name: one.sent / one.seconds for name, one in windows.items()},
    }


def _latency(totals: Totals, windows: Mapping[str, Window]) -> Generator[None, None, dict[str, Any]]:
    start: Counter[int] = Counter()
    for series in totals.requests:
        if series.duration.sketch is not None:
            start.update(series.duration.sketch)
            yield
    return {**{name: _percentiles(one.sketch) for name, one in windows.items()}, "start": _percentiles(start)}


def _percentiles(sketch: Mapping[int, int]) -> dict[str, Any]:
    answers = quantiles(sketch, list(RANKS.values()))
    return {"count": sum(sketch.values()), **dict(zip(RANKS, answers, strict=True))}


def _endpoints(totals: Totals, windows: Mapping[str, Window]) -> Generator[None, None, list[dict[str, Any]]]:
    groups: dict[tuple[str, str], list[RequestSeries]] = {}
    for series in totals.requests:
        groups.setdefault((series.labels.method, series.labels.route), []).append(series)
    found = []
    for key, group in sorted(groups.items()):
        found.append(_endpoint(key, group, windows))
        yield
    return found


def _endpoint(key: tuple[str, str], group: list[RequestSeries], windows: Mapping[str, Window]) -> dict[str, Any]:
    sketch: Counter[int] = Counter()
    statuses: Counter[str] = Counter()
    errors = 0
    for series in group:
        count = series.duration.count
        statuses[series.labels.status] += count
        errors += count if series.labels.failed else 0
        if series.duration.sketch is not None:
            sketch.update(series.duration.sketch)
    total = sum(statuses.values())
    recent = {name: one.endpoints.get(key, (0, 0, 0.0)) for name, one in windows.items()}
    return {
        "method": key[0],
        "route": key[1],
        "requests": total,
        "errors": errors,
        "error_rate": errors / total if total else 0.0,
        "statuses": dict(sorted(statuses.items())),
        "rate": {name: counts[0] / windows[name].seconds for name, counts in recent.items()},
        "errors_by_window": {name: counts[1] / counts[0] if counts[0] else 0.0 for name, counts in recent.items()},
        "latency": _percentiles(sketch),
    }


def _sockets(totals: Totals) -> dict[str, Any]:
    fields = ("active", "accepted", "refused", "messages_received", "messages_sent", "bytes_received", "bytes_sent")
    routes = [
        {"route": one.route, **{name: getattr(one, name) for name in fields}, "closed": dict(one.closed)}
        for one in totals.sockets
    ]
    return {**{name: sum(getattr(one, name) for one in totals.sockets) for name in fields}, "routes": routes}


_HEALTH = ("series", "overflows_total", "errors_total")


def _own(totals: Totals, name: str) -> dict[str, float]:
    """One of our own values by worker."""
    rows = (row for row in totals.rows if row.name == f"asgi_enhance_{name}")
    return {dict(row.labels).get("worker", ""): row.value for row in rows}


def _of_hosts(by_worker: Mapping[str, float]) -> float:
    """A limit is shared by the workers of a host (a container), and adds up over hosts."""
    hosts: dict[str, float] = {}
    for worker, value in by_worker.items():
        host = worker.partition(":")[0]
        hosts[host] = max(value, hosts.get(host, 0.0))
    return sum(hosts.values())


def _saturation(totals: Totals, windows: Mapping[str, Window]) -> dict[str, Any]:
    """What is in use of what there is. `concurrency` is Little's law: requests in the house, on average."""
    cpu, cpu_limit = sum(_own(totals, "process_cpu_cores").values()), _of_hosts(_own(totals, "process_cpu_limit_cores"))
    memory = sum(_own(totals, "process_memory_bytes").values())
    memory_limit = _of_hosts(_own(totals, "process_memory_limit_bytes"))
    return {
        "cpu_cores": cpu,
        "cpu_limit_cores": cpu_limit,
        "cpu_utilization": cpu / cpu_limit if cpu_limit else 0.0,
        "memory_bytes": memory,
        "memory_limit_bytes": memory_limit,
        "memory_utilization": memory / memory_limit if memory_limit else 0.0,
        "event_loop_lag_seconds": max(_own(totals, "event_loop_lag_seconds").values(), default=0.0),
        "concurrency": {
            name: sum(counts[2] for counts in one.endpoints.values()) / one.seconds for name, one in windows.items()
        },
    }
