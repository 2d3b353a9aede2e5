"""The request target: forwarded exactly as the client wrote it, or refused. Pure.

Nothing is decoded, normalised or joined by URL rules: a `//host` stays a path, `%2F` stays `%2F`. What cannot be
forwarded untouched without letting it leave the base path (dot segments, also encoded) is a 400.
"""

import re
from urllib.parse import unquote_to_bytes

from asgi_enhance.asgi.scope import raw_path_below_mount
from asgi_enhance.asgi.types import Scope
from asgi_enhance.balance.failure import Rejected

# control characters, space, `#` (a fragment) and DEL have no place in a request target (RFC 9112, 3.2)
_ILLEGAL = re.compile(rb"[\x00-\x20#\x7f]")
_MAYBE_DOTS = re.compile(rb"(?:/|%2f|\\|%5c)(?:\.|%2e)", re.IGNORECASE)
_PLAIN = re.compile(rb"(?:/(?!\.)[A-Za-z0-9_~:@!$&'()*+,;=.-]*)+\Z")
_PAIR = re.compile(rb"(?:[^%;]|%[0-9A-Fa-f]{2})*\Z")

MAX_PAIRS = 10_000


def raw_target(scope: Scope, strip_mount: bool, max_length: int) -> tuple[bytes, bytes]:
    """Path and query for the backend, checked. Raises Rejected."""
    raw: bytes | None = scope.get("raw_path")
    if raw is not None and not scope.get("root_path") and raw == scope["path"].encode("latin-1", "replace"):
        path = raw  # nearly every request: not mounted, nothing encoded
    else:
        path = raw_path_below_mount(scope) if strip_mount or raw is None else raw.partition(b"?")[0]
    query: bytes = scope["query_string"]
    if len(path) + len(query) > max_length:
        raise Rejected(414, "The request target is too long.")
    if not query and raw is not None and _PLAIN.match(path):
        return path, query
    if raw is not None and raw[:1] != b"/":
        if raw == b"*" and scope["method"] == "OPTIONS":
            return b"*", b""
        raise Rejected(400, "The request target must be a path.")
    if _ILLEGAL.search(path) or _ILLEGAL.search(query):
        raise Rejected(400, "The request target holds characters that must be encoded.")
    if _MAYBE_DOTS.search(path):
        _refuse_dot_segments(path)
    return path, query


def strict_query(query: bytes) -> bytes:
    """The query without the pairs that parsers disagree on: those with `;` or a broken percent-encoding."""
    pairs = query.split(b"&")
    if len(pairs) > MAX_PAIRS:
        raise Rejected(400, "The query has too many parameters.")
    return b"&".join(pair for pair in pairs if _PAIR.match(pair))


def _refuse_dot_segments(path: bytes) -> None:
    for segment in re.split(rb"[/\\]", unquote_to_bytes(path)):
        if segment.partition(b";")[0] in (b".", b".."):
            raise Rejected(400, "The path must not hold dot segments.")
