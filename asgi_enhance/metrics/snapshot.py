"""The metrics as plain data, for JSON, the dashboard and the user's own code."""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from asgi_enhance.metrics.policy import CANCELLED, DISCONNECTED
from asgi_enhance.metrics.series import RequestSeries
from asgi_enhance.metrics.sketch import quantiles
from asgi_enhance.metrics.stats import hit_ratio
from asgi_enhance.metrics.window import WINDOWS, Window, window

if TYPE_CHECKING:
    from asgi_enhance.metrics.core import Totals

RANKS = {"p50": 0.50, "p95": 0.95, "p99": 0.99}


def snapshot(totals: "Totals", now: float) -> dict[str, Any]:
    """Everything in `totals` at `now` (wall-clock seconds), in rates, ratios and percentiles."""
    windows = {name: window(totals.slots, seconds, now, totals.began) for name, seconds in WINDOWS.items()}
    values = {row.name.removeprefix("asgi_enhance_"): row.value for row in totals.rows if not row.labels}
    return {
        "time": now,
        "uptime_seconds": now - totals.began,
        "workers": totals.workers,
        "requests": _requests(totals, windows),
        "latency": _latency(totals, windows),
        "endpoints": _endpoints(totals, windows),
        "exceptions": [
            {"route": route, "type": kind, "count": count} for (route, kind), count in sorted(totals.exceptions.items())
        ],
        "websockets": _sockets(totals),
        "saturation": _saturation(values, windows),
        "metrics": {
            name: int(values.get(f"metrics_{name}", 0)) for name in ("series", "overflows_total", "errors_total")
        },
        **{name: _with_ratio(stats) for name, stats in totals.watched.items()},
    }


def _requests(totals: "Totals", windows: Mapping[str, Window]) -> dict[str, Any]:
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


def _latency(totals: "Totals", windows: Mapping[str, Window]) -> dict[str, Any]:
    start: Counter[int] = Counter()
    for series in totals.requests:
        if series.duration.sketch is not None:
            start.update(series.duration.sketch)
    return {**{name: _percentiles(one.sketch) for name, one in windows.items()}, "start": _percentiles(start)}


def _percentiles(sketch: Mapping[int, int]) -> dict[str, Any]:
    answers = quantiles(sketch, list(RANKS.values()))
    return {"count": sum(sketch.values()), **dict(zip(RANKS, answers, strict=True))}


def _endpoints(totals: "Totals", windows: Mapping[str, Window]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, str], list[RequestSeries]] = {}
    for series in totals.requests:
        groups.setdefault((series.labels.method, series.labels.route), []).append(series)
    return [_endpoint(key, group, windows) for key, group in sorted(groups.items())]


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


def _sockets(totals: "Totals") -> dict[str, Any]:
    fields = ("active", "accepted", "refused", "messages_received", "messages_sent", "bytes_received", "bytes_sent")
    routes = [
        {"route": one.route, **{name: getattr(one, name) for name in fields}, "closed": dict(one.closed)}
        for one in totals.sockets
    ]
    return {**{name: sum(getattr(one, name) for one in totals.sockets) for name in fields}, "routes": routes}


def _saturation(values: Mapping[str, float], windows: Mapping[str, Window]) -> dict[str, Any]:
    """What is in use of what there is. `concurrency` is Little's law: requests in the house, on average."""
    cpu, cpu_limit = values.get("process_cpu_cores", 0.0), values.get("process_cpu_limit_cores", 0.0)
    memory, memory_limit = values.get("process_memory_bytes", 0.0), values.get("process_memory_limit_bytes", 0.0)
    return {
        "cpu_cores": cpu,
        "cpu_limit_cores": cpu_limit,
        "cpu_utilization": cpu / cpu_limit if cpu_limit else 0.0,
        "memory_bytes": memory,
        "memory_limit_bytes": memory_limit,
        "memory_utilization": memory / memory_limit if memory_limit else 0.0,
        "event_loop_lag_seconds": values.get("event_loop_lag_seconds", 0.0),
        "concurrency": {
            name: sum(counts[2] for counts in one.endpoints.values()) / one.seconds for name, one in windows.items()
        },
    }


def _with_ratio(stats: dict[str, Any]) -> dict[str, Any]:
    ratio = hit_ratio(stats)
    return stats if ratio is None else {**stats, "hit_ratio": ratio}
