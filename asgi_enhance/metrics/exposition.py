"""Prometheus text and OpenMetrics, chosen by Accept and written in slices, so that the loop is never held for long.

Our own series are written here; the user's go through prometheus_client's encoders, in a thread, since a collector may
take its time, and one family at a time, so that one that cannot be encoded spoils nothing but itself.

- Accept is read with its q-values (RFC 9110 §12.5.1). A version that is not known is not offered, and never echoed.
- OpenMetrics 1.0 carries exemplars; 2.0 carries native histograms, taken from the sketch, beside the classic buckets.
- Nothing that fits means text 0.0.4: a scraper is better served with that than with 406.
"""

import asyncio
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest as encode_text
from prometheus_client.openmetrics.exposition import generate_latest as encode_openmetrics

from asgi_enhance.metrics.series import Exemplar, RequestSeries
from asgi_enhance.metrics.sketch import SCHEMA, Distribution
from asgi_enhance.metrics.slices import slowly
from asgi_enhance.metrics.stats import Row
from asgi_enhance.metrics.totals import Totals


class Format(Enum):
    """What can be asked for at the metrics' path; the value is its Content-Type."""

    TEXT = "text/plain; version=0.0.4; charset=utf-8"
    OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
    OPENMETRICS_2 = "application/openmetrics-text; version=2.0.0; charset=utf-8"
    JSON = "application/json"

    @property
    def open(self) -> bool:
        return self in (Format.OPENMETRICS, Format.OPENMETRICS_2)


_VERSIONS = {
    ("text/plain", ""): Format.TEXT,
    ("text/plain", "0.0.4"): Format.TEXT,
    ("text/plain", "1.0.0"): Format.TEXT,
    ("text/*", ""): Format.TEXT,
    ("*/*", ""): Format.TEXT,
    ("application/openmetrics-text", ""): Format.OPENMETRICS,
    ("application/openmetrics-text", "0.0.1"): Format.OPENMETRICS,
    ("application/openmetrics-text", "1.0.0"): Format.OPENMETRICS,
    ("application/openmetrics-text", "2.0.0"): Format.OPENMETRICS_2,
    ("application/json", ""): Format.JSON,
}


def negotiate(accept: str) -> Format:
    """The format an Accept header asks for; of equals, the one it names first."""
    best, best_quality = Format.TEXT, 0.0
    for element in accept.lower().split(",")[:64]:
        kind, *parameters = (part.strip() for part in element.split(";"))
        values = {name.strip(): value.strip().strip('"') for name, _, value in (p.partition("=") for p in parameters)}
        found = _VERSIONS.get((kind, values.get("version", "")))
        quality = _quality(values.get("q", "1"))
        if found is not None and quality > best_quality:
            best, best_quality = found, quality
    return best


def _quality(text: str) -> float:
    return float(text) if re.fullmatch(r"[01](\.[0-9]{0,3})?", text) else 0.0


async def render(totals: Totals, registry: CollectorRegistry | None, form: Format) -> tuple[list[bytes], int]:
    """The exposition in pieces, and how many families of the user's could not be written."""
    pieces: list[bytes] = []
    failures = 0
    names: set[str] = set()
    async for text in slowly(_own_families(totals, form, names)):
        pieces.append(text.encode("utf-8", "replace"))
    if registry is not None:
        foreign, failures = await asyncio.to_thread(_foreign_families, registry, form, names)
        pieces += foreign
    if form.open:
        pieces.append(b"# EOF\n")
    return pieces, failures


@dataclass(frozen=True, slots=True)
class _One:
    """A registry of one family, for prometheus_client's encoders."""

    family: Any

    def collect(self) -> Iterator[Any]:
        yield self.family


def _foreign_families(registry: CollectorRegistry, form: Format, names: set[str]) -> tuple[list[bytes], int]:
    """The user's families, and how many failed; called in a thread, for nobody knows how long they take."""
    pieces: list[bytes] = []
    failures = 0
    try:
        for family in registry.collect():
            if family.name in names or f"{family.name}_total" in names:
                continue  # two families of one name would cost the whole scrape
            try:
                pieces.append(_foreign(family, form))
            except Exception:
                failures += 1
    except Exception:  # a collector of the user's has raised: what was registered after it is not reached
        failures += 1
    return pieces, failures


def _foreign(family: Any, form: Format) -> bytes:
    if not form.open:
        return encode_text(_One(family))
    version = "2.0.0" if form is Format.OPENMETRICS_2 else "1.0.0"
    text: bytes = encode_openmetrics(_One(family), version=version)  # type: ignore[no-untyped-call]
    return text.removesuffix(b"# EOF\n")


def _own_families(totals: Totals, form: Format, names: set[str]) -> Iterator[str]:
    requests = [series for series in totals.requests if not series.labels.stream]
    streams = [series for series in totals.requests if series.labels.stream]
    joined = _joined(requests, streams)
    yield from _histograms(
        "http_server_request_duration_seconds",
        "Duration of HTTP requests, from their arrival to the last byte of the response.",
        [(series, series.duration) for series in requests],
        form,
        names,
    )
    yield from _histograms(
        "asgi_enhance_http_first_byte_seconds",
        "Time from a request's arrival to the head of its response.",
        [(series, series.first_byte) for series in joined],
        form,
        names,
    )
    yield from _histograms(
        "asgi_enhance_http_stream_duration_seconds",
        "Duration of event streams, which are not in http_server_request_duration_seconds.",
        [(series, series.duration) for series in streams],
        form,
        names,
    )
    for name, attribute, text in (
        ("http_server_request_body_size_bytes", "received", "Bytes of request bodies as they were read."),
        ("http_server_response_body_size_bytes", "sent", "Bytes of response bodies as they were sent."),
    ):
        yield _head(name, "summary", text, names)
        for series in joined:
            labels = _text(series.labels.as_labels().items())
            yield (
                f"{name}_count{{{labels}}} {series.first_byte.count}\n"
                f"{name}_sum{{{labels}}} {getattr(series, attribute)}\n"
            )
    yield from _sockets(totals, form, names)
    yield from write_rows([*_plain_rows(totals), *totals.rows], form, names)


def _joined(requests: list[RequestSeries], streams: list[RequestSeries]) -> list[RequestSeries]:
    """All series, for the families that do not keep streams apart: there a route that gives both has one line."""
    found = {series.labels: series for series in requests}
    for stream in streams:
        labels = replace(stream.labels, stream=False)
        plain = found.get(labels)
        if plain is None:
            found[labels] = stream
            continue
        both = found[labels] = RequestSeries(labels, plain.first_byte.bounds)
        both.first_byte = plain.first_byte + stream.first_byte
        both.received = plain.received + stream.received
        both.sent = plain.sent + stream.sent
    return list(found.values())


def _plain_rows(totals: Totals) -> Iterator[Row]:
    for method, count in totals.active.items():
        yield Row(
            "http_server_active_requests",
            "gauge",
            "HTTP requests that are being served.",
            (("http_request_method", method),),
            count,
        )
    for (route, kind), count in totals.exceptions.items():
        yield Row(
            "asgi_enhance_http_exceptions_total",
            "counter",
            "Exceptions that left the app, before or after its response.",
            (("http_route", route), ("exception_type", kind)),
            count,
        )


def _sockets(totals: Totals, form: Format, names: set[str]) -> Iterator[str]:
    prefix = "asgi_enhance_websocket"
    name = f"{prefix}_connection_duration_seconds"
    yield _head(name, "histogram", "Duration of WebSocket connections, from accept to the end.", names)
    for series in totals.sockets:
        yield _histogram(name, _text([("http_route", series.route)]), series.durations, {}, form)
    rows: list[Row] = []
    for series in totals.sockets:
        route = ("http_route", series.route)
        rows.append(Row(f"{prefix}_active_connections", "gauge", "Open WebSockets.", (route,), series.active))
        for outcome in ("accepted", "refused"):
            labels = (route, ("outcome", outcome))
            text = "WebSocket handshakes by what became of them."
            rows.append(Row(f"{prefix}_handshakes_total", "counter", text, labels, getattr(series, outcome)))
        for direction in ("received", "sent"):
            labels = (route, ("direction", direction))
            messages, size = getattr(series, f"messages_{direction}"), getattr(series, f"bytes_{direction}")
            rows.append(Row(f"{prefix}_messages_total", "counter", "WebSocket messages.", labels, messages))
            rows.append(Row(f"{prefix}_message_bytes_total", "counter", "Bytes of WebSocket messages.", labels, size))
        for code, count in series.closed.items():
            labels = (route, ("websocket_close_code", code))
            rows.append(Row(f"{prefix}_closes_total", "counter", "Ended WebSockets by close code.", labels, count))
    yield from write_rows(rows, form, names)


def write_rows(rows: Iterable[Row], form: Format, names: set[str]) -> Iterator[str]:
    """Rows as families: those of one name together, as the formats demand. A name that was written stays written."""
    families: dict[str, list[Row]] = {}
    for row in rows:
        families.setdefault(row.name, []).append(row)
    for name, family in families.items():
        if name in names:
            continue
        first = family[0]
        base = name.removesuffix("_total") if form.open and first.kind == "counter" else name
        yield _head(base, first.kind, first.help, names)
        names.add(name)
        yield "".join(f"{name}{_braced(_text(row.labels))} {_number(row.value)}\n" for row in family)


def _histograms(
    name: str, text: str, members: list[tuple[RequestSeries, Distribution]], form: Format, names: set[str]
) -> Iterator[str]:
    yield _head(name, "histogram", text, names)
    for series, distribution in members:
        exemplars = series.exemplars if distribution is series.duration else {}
        yield _histogram(name, _text(series.labels.as_labels().items()), distribution, exemplars, form)


def _histogram(name: str, labels: str, distribution: Distribution, exemplars: dict[int, Exemplar], form: Format) -> str:
    lines: list[str] = []
    if form is Format.OPENMETRICS_2 and distribution.sketch is not None:
        lines.append(f"{name}{{{labels}}} {_native(distribution)}\n")
    below = 0
    buckets = distribution.buckets
    for place, bound in enumerate((*distribution.bounds, "+Inf")):
        below += buckets[place]
        exemplar = exemplars.get(place) if form.open else None
        tail = (
            f' # {{trace_id="{exemplar.trace}"}} {exemplar.seconds!r} {exemplar.time:.3f}'
            if exemplar is not None
            else ""
        )
        lines.append(f'{name}_bucket{{{labels},le="{bound}"}} {below}{tail}\n')
    lines.append(f"{name}_count{{{labels}}} {below}\n{name}_sum{{{labels}}} {distribution.total!r}\n")
    return "".join(lines)


def _native(distribution: Distribution) -> str:
    """The sketch as a native histogram: runs of buckets, and the steps from one count to the next."""
    assert distribution.sketch is not None
    spans: list[list[int]] = []
    steps: list[int] = []
    end = before = total = 0
    for index, count in sorted(distribution.sketch.items()):
        if spans and index == end:
            spans[-1][1] += 1
        else:
            spans.append([index - end, 1])
        end = index + 1
        steps.append(count - before)
        before = count
        total += count
    text = f"count:{total},sum:{distribution.total!r},schema:{SCHEMA},zero_threshold:0,zero_count:0"
    if spans:
        text += f",positive_spans:[{','.join(f'{gap}:{length}' for gap, length in spans)}]"
        text += f",positive_deltas:[{','.join(map(str, steps))}]"
    return f"{{{text}}}"


def _head(name: str, kind: str, text: str, names: set[str]) -> str:
    names.add(name)
    escaped = text.replace("\\", "\\\\").replace("\n", "\\n")
    return f"# HELP {name} {escaped}\n# TYPE {name} {kind}\n"


def _text(labels: Iterable[tuple[str, str]]) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels)


def _braced(labels: str) -> str:
    return f"{{{labels}}}" if labels else ""


def _escaped(value: str) -> str:
    if "\\" in value or '"' in value or "\n" in value:
        return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return value


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
