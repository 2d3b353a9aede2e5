"""The plain integers of other cores, turned into rows: what a stats object counts, and which of it goes up and down.

A source is an object with attributes (a dataclass, `__slots__`), a mapping, or a callable that gives one of these. Its
fields are counters unless its class names them in `GAUGES`; `HELP`, if there, maps fields to a sentence. Text is shown
as a gauge of 1 with the text as label, booleans as 0 and 1. With `label`, a source is a mapping from the label's values
to such objects: backends by name, for instance. Names that begin with an underscore are private; a number that is not
finite is left out, since one would spoil every sum it is added to.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from asgi_enhance.errors import ConfigError
from asgi_enhance.metrics.policy import label_value

PREFIX = "asgi_enhance"

MOST_ROWS = 500
"""Rows that one labelled source may show."""

_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


@dataclass(frozen=True, slots=True)
class Row:
    """One value with its name; `kind` is "counter" or "gauge". A watched one knows its source and field."""

    name: str
    kind: str
    help: str
    labels: tuple[tuple[str, str], ...]
    value: float
    source: str = ""
    field: str = ""


class Source:
    """One watched object: `name` is the middle of its metrics' names."""

    __slots__ = ("averaged", "gauges", "label", "name", "stats")

    def __init__(
        self, name: str, stats: Any, label: str | None, gauges: Iterable[str], averaged: Iterable[str]
    ) -> None:
        for argument, text in (("name", name), ("label", label)):
            if text is not None and not _NAME.fullmatch(text):
                raise ConfigError(f"{argument} must be a metric name (letters, digits, underscores), not {text!r}")
        self.name = name
        self.stats = stats
        self.label = label
        self.averaged = frozenset(averaged)
        self.gauges = self.averaged.union(gauges)

    def rows(self) -> Iterator[Row]:
        stats = _resolved(self.stats)
        if self.label is None:
            yield from self._rows_of(stats, ())
            return
        count = 0
        for key, one in _items(stats):
            for row in self._rows_of(_resolved(one), ((self.label, label_value(str(key))),)):
                count += 1
                if count > MOST_ROWS:
                    return
                yield row

    def _rows_of(self, stats: Any, labels: tuple[tuple[str, str], ...]) -> Iterator[Row]:
        helps: Mapping[str, str] = getattr(type(stats), "HELP", {})
        for field, value, gauge in _fields(stats):
            name = f"{PREFIX}_{self.name}_{field}"
            text = helps.get(field) or f"{field.replace('_', ' ')} of {self.name}.".capitalize()
            kind, number = "gauge", 1.0
            if isinstance(value, str):
                shown = (*labels, (field, label_value(value)))
            else:
                shown, number = labels, float(value)
                if not (gauge or field in self.gauges or isinstance(value, bool)):
                    kind, name = "counter", name.removesuffix("_total") + "_total"
            yield Row(name, kind, text, shown, number, self.name, field)


def as_data(rows: Iterable[Row], sources: Mapping[str, Source]) -> dict[str, dict[str, Any]]:
    """Watched rows by source and field; by label value between them for a source that has a label.

    What several workers say of a gauge is added, or averaged if its source says so; of several texts, all that were
    said stay.
    """
    found: dict[str, dict[str, Any]] = {}
    workers: Counter[tuple[str, str, str]] = Counter()
    for row in rows:
        if not row.source:
            continue
        source = sources.get(row.source)
        given = dict(row.labels)
        member = ""
        fields = found.setdefault(row.source, {})
        if source is not None and source.label is not None:
            member = given.get(source.label, "")
            fields = fields.setdefault(member, {})
        if row.field in given and row.kind == "gauge":
            said = {*str(fields.get(row.field, "")).split(" "), given[row.field]} - {""}
            fields[row.field] = " ".join(sorted(said))
            continue
        known, value = fields.get(row.field, 0), row.value
        if source is not None and row.field in source.averaged:
            workers[row.source, member, row.field] += 1
            value = (value - known) / workers[row.source, member, row.field]
        value += known
        fields[row.field] = int(value) if value == int(value) else value
    for fields in found.values():
        ratio = hit_ratio(fields)
        if ratio is not None:
            fields["hit_ratio"] = ratio
    return found


def hit_ratio(values: Mapping[str, Any]) -> float | None:
    """Hits among lookups, of stats that count both; None before the first lookup."""
    hits, misses = values.get("hits"), values.get("misses")
    if not isinstance(hits, int) or not isinstance(misses, int):
        return None
    return hits / (hits + misses) if hits + misses else None


def _resolved(stats: Any) -> Any:
    return stats() if callable(stats) else stats


def _fields(stats: Any) -> Iterator[tuple[str, Any, bool]]:
    gauges = getattr(type(stats), "GAUGES", ())
    for field, value in _items(stats):
        if (isinstance(value, str) or (isinstance(value, (int, float)) and isfinite(value))) and _NAME.fullmatch(field):
            yield field, value, field in gauges


def _items(stats: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(stats, Mapping):
        for key in list(stats):
            yield key, stats[key]
        return
    for field in _names(type(stats), stats):
        if hasattr(stats, field):
            yield field, getattr(stats, field)


def _names(kind: type, stats: Any) -> list[str]:
    names: dict[str, None] = {}
    for base in reversed(kind.__mro__):
        slots = base.__dict__.get("__slots__", ())
        names.update(dict.fromkeys((slots,) if isinstance(slots, str) else slots))
    names.update(dict.fromkeys(getattr(stats, "__dict__", ())))
    names.update(dict.fromkeys(getattr(kind, "GAUGES", ())))
    return [name for name in names if not name.startswith("_")]
