"""What a process has counted, as records of plain numbers: what can be shipped, added up and read back.

A record has a name (what kind of thing, and its labels) and a map of numbers that only ever grow, so that records of
several processes are merged by adding, and what is new since last time is a difference. What goes up and down (gauges)
is no record: it is reported whole, by each worker for itself, in a `Report`.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from asgi_enhance.metrics.policy import RequestLabels
from asgi_enhance.metrics.series import RequestSeries, SocketSeries
from asgi_enhance.metrics.sketch import Distribution
from asgi_enhance.metrics.stats import Row
from asgi_enhance.metrics.totals import Totals
from asgi_enhance.metrics.window import Slot

Record = dict[str, float]
Records = dict[str, Record]

_pack = msgspec.json.Encoder().encode


class Report(msgspec.Struct):
    """How one worker is just now."""

    began: float
    active: dict[str, int]
    sockets: dict[str, int]
    gauges: list[Row]


def name_of(*parts: Any) -> str:
    return _pack(parts).decode()


def request_record(series: RequestSeries) -> tuple[str, Record]:
    labels = series.labels
    record: Record = {"i": series.received, "o": series.sent}
    _put(record, "d", series.duration)
    _put(record, "f", series.first_byte)
    return name_of("request", labels.method, labels.route, labels.status, labels.error, labels.stream), record


def socket_record(series: SocketSeries) -> tuple[str, Record]:
    record: Record = {name: getattr(series, name) for name in _SOCKET_COUNTERS}
    record.update({f"c{code}": count for code, count in series.closed.items()})
    _put(record, "d", series.durations)
    return name_of("socket", series.route), record


def row_record(row: Row) -> tuple[str, Record]:
    return name_of("row", row.name, row.help, row.labels, row.source, row.field), {"v": row.value}


def exception_record(route: str, kind: str, count: int) -> tuple[str, Record]:
    return name_of("exception", route, kind), {"v": count}


def slot_records(slot: Slot) -> Iterator[tuple[str, Record]]:
    yield name_of("sketch"), {str(index): count for index, count in slot.sketch.items()}
    yield name_of("bytes"), {"i": slot.received, "o": slot.sent}
    for endpoint, (requests, errors, seconds) in list(slot.endpoints.items()):
        yield name_of("endpoint", *endpoint), {"n": requests, "e": errors, "s": seconds}


def report(totals: Totals) -> Report:
    return Report(
        totals.began,
        totals.active,
        {one.route: one.active for one in totals.sockets},
        [row for row in totals.rows if row.kind == "gauge"],
    )


def difference(new: Record, old: Mapping[str, float]) -> Record:
    """What has been added. A number that has not moved is left out, but a new one is named even if it is zero.

    One that has become smaller began again (a backend that came back, say): all of it is new.
    """
    return {
        name: number if name not in old or number < old[name] else number - old[name]
        for name, number in new.items()
        if name not in old or number != old[name]
    }


def add(sums: Records, name: str, record: Mapping[str, float]) -> None:
    known = sums.setdefault(name, {})
    for key, number in record.items():
        known[key] = known.get(key, 0) + number


def restore(totals: Totals, name: str, record: Record, buckets: tuple[float, ...]) -> None:
    """Put one record back into totals, as what it was."""
    kind, *parts = msgspec.json.decode(name)
    if kind == "request":
        labels = RequestLabels(*parts)
        series = RequestSeries(labels, buckets)
        series.received, series.sent = int(record.get("i", 0)), int(record.get("o", 0))
        _take(record, "d", series.duration)
        _take(record, "f", series.first_byte)
        totals.requests.append(series)
    elif kind == "socket":
        sockets = SocketSeries(*parts)
        for counter in _SOCKET_COUNTERS:
            setattr(sockets, counter, int(record.get(counter, 0)))
        sockets.closed = {key[1:]: int(count) for key, count in record.items() if key[0] == "c"}
        _take(record, "d", sockets.durations)
        totals.sockets.append(sockets)
    elif kind == "exception":
        totals.exceptions[parts[0], parts[1]] = int(record.get("v", 0))
    elif kind == "row":
        metric, text, labels, source, field = parts
        pairs = tuple((label, value) for label, value in labels)
        totals.rows.append(Row(metric, "counter", text, pairs, record.get("v", 0), source, field))


def restore_slot(number: int, records: Iterable[tuple[str, Record]]) -> Slot:
    slot = Slot(number)
    for name, record in records:
        kind, *parts = msgspec.json.decode(name)
        if kind == "sketch":
            slot.sketch.update({int(index): int(count) for index, count in record.items()})
        elif kind == "bytes":
            slot.received, slot.sent = record.get("i", 0), record.get("o", 0)
        elif kind == "endpoint":
            slot.endpoints[parts[0], parts[1]] = [record.get("n", 0), record.get("e", 0), record.get("s", 0.0)]
    return slot


def restore_report(totals: Totals, worker: str, found: Report) -> None:
    """Gauges of workers stand side by side; what is in flight or open adds up."""
    totals.workers += 1
    totals.began = min(totals.began, found.began)
    for method, count in found.active.items():
        totals.active[method] = totals.active.get(method, 0) + count
    by_route = {one.route: one for one in totals.sockets}
    for route, count in found.sockets.items():
        if route in by_route:
            by_route[route].active += count
    for row in found.gauges:
        labels = (*row.labels, ("worker", worker))
        totals.rows.append(Row(row.name, row.kind, row.help, labels, row.value, row.source, row.field))


_SOCKET_COUNTERS = ("accepted", "refused", "messages_received", "messages_sent", "bytes_received", "bytes_sent")


def _put(record: Record, letter: str, distribution: Distribution) -> None:
    record[letter] = distribution.total
    for place, count in enumerate(distribution.buckets):
        if count:
            record[f"{letter}b{place}"] = count
    for index, count in (distribution.sketch or {}).items():
        record[f"{letter}s{index}"] = count


def _take(record: Record, letter: str, distribution: Distribution) -> None:
    distribution.total = record.get(letter, 0.0)
    for key, number in record.items():
        if key[0] != letter or len(key) < 3:
            continue
        count = int(number)
        if key[1] == "b" and int(key[2:]) < len(distribution.buckets):
            distribution.buckets[int(key[2:])] = count
            distribution.count += count
        elif key[1] == "s" and distribution.sketch is not None:
            distribution.sketch[int(key[2:])] = count
