"""Which differences of the query make no difference (No-Vary-Search, draft-ietf-httpbis-no-vary-search)?

- A value that is not exactly what the draft describes counts as none: every query is another.
- Queries are compared as they are parsed for forms (WHATWG URL 5.1): `&` alone separates, `+` is a space, percent
  escapes are decoded. `;` separates nothing, so no parameter can be hidden from the cache that the app sees.
"""

from typing import NamedTuple
from urllib.parse import unquote_to_bytes

import http_sf


class Search(NamedTuple):
    """What of a query matters."""

    key_order: bool
    """False: parameters in another order are another query."""
    ignored: frozenset[bytes] | None
    """The parameters that do not matter; None: all of them, without `kept`."""
    kept: frozenset[bytes] = frozenset()


def parse(value: bytes) -> Search | None:
    """What a No-Vary-Search field says; None if every query is another."""
    if not value:
        return None
    try:
        parsed = http_sf.parse(value, tltype="dictionary")
    except http_sf.StructuredFieldError:
        return None
    if not isinstance(parsed, dict):
        return None
    key_order = _value(parsed.get("key-order", False))
    params = _value(parsed.get("params", False))
    if not isinstance(key_order, bool):
        return None
    if isinstance(params, list):
        ignored = _strings(params)
        if ignored is None or "except" in parsed:
            return None
        return Search(key_order, ignored) if key_order or ignored else None
    if not isinstance(params, bool) or ("except" in parsed and not params):
        return None
    kept = _strings(_value(parsed["except"])) if "except" in parsed else frozenset()
    if kept is None:
        return None
    if not params:
        return Search(True, frozenset()) if key_order else None
    return Search(key_order, None, kept)


def simplified(query: bytes, search: Search) -> bytes:
    """One spelling for all queries that are the same under `search`. It is no query itself, so it is none's key."""
    pairs: list[tuple[bytes, bytes]] = []
    for part in query.split(b"&"):
        if part:
            name, _, value = part.replace(b"+", b" ").partition(b"=")
            pairs.append((unquote_to_bytes(name), unquote_to_bytes(value)))
    if search.ignored is None:
        pairs = [pair for pair in pairs if pair[0] in search.kept]
    else:
        pairs = [pair for pair in pairs if pair[0] not in search.ignored]
    if search.key_order:
        pairs.sort(key=lambda pair: pair[0])
    return b"\0" + b"".join(b"%d:%b%d:%b" % (len(name), name, len(value), value) for name, value in pairs)


def _value(member: object) -> object:
    return member[0] if isinstance(member, tuple) else member


def _strings(items: object) -> frozenset[bytes] | None:
    if not isinstance(items, list):
        return None
    names = [_value(item) for item in items]
    if not all(type(name) is str for name in names):
        return None
    return frozenset(str(name).encode() for name in names)
