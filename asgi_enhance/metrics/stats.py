"""The plain integers of other cores, turned into rows: what a stats object counts, and which of it goes up and down.

A source is an object with attributes (a dataclass, `__slots__`), a mapping, or a callable that gives one of these. Its
fields are counters unless its class names them in `GAUGES`; `HELP`, if there, maps fields to a sentence. Text is shown
as a gauge of 1 with the text as label, booleans as 0 and 1. With `label`, a source is a mapping from the label's values
to such objects: backends by name, for instance. Names that begin with an underscore are private.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from asgi_enhance.errors import ConfigError
from asgi_enhance.metrics.policy import label_value

PREFIX = "asgi_enhance"

MOST_ROWS = 500
"""Rows that one labelled source may show."""

_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


@dataclass(frozen=True, slots=True)
class Row:
    """One value with its name; `kind` is "counter" or "gauge"."""

    name: str
    kind: str
    help: str
    labels: tuple[tuple[str, str], ...]
    value: float


class Source:
    """One watched object: `name` is the middle of its metrics' names."""

    __slots__ = ("label", "name", "stats")

    def __init__(self, name: str, stats: Any, label: str | None) -> None:
        for argument, text in (("name", name), ("label", label)):
            if text is not None and not _NAME.fullmatch(text):
                raise ConfigError(f"{argument} must be a metric name (letters, digits, underscores), not {text!r}")
        self.name = name
        self.stats = stats
        self.label = label

    def read(self) -> dict[str, Any]:
        """The values as they are, for JSON: by field, or by label value and field."""
        stats = _resolved(self.stats)
        if self.label is None:
            return {field: value for field, value, _ in _fields(stats)}
        return {
            label_value(str(key)): {field: value for field, value, _ in _fields(_resolved(one))}
            for key, one in _items(stats)
        }

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
            if isinstance(value, str):
                yield Row(name, "gauge", text, (*labels, (field, label_value(value))), 1)
            elif gauge or isinstance(value, bool):
                yield Row(name, "gauge", text, labels, float(value))
            else:
                yield Row(name.removesuffix("_total") + "_total", "counter", text, labels, float(value))


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
        if isinstance(value, (int, float, str)) and _NAME.fullmatch(field):
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
