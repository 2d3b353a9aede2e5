"""Which bytes of a stored 200 (RFC 9110 14)?

- A Range that cannot be read, or is of another unit, is ignored: the whole response is a right answer.
- If-Range must match strongly, or by a date that is the Last-Modified (13.1.5); if it does not, Range is ignored.
- More than MAX_RANGES, or ranges that overlap, are an attack on bandwidth more often than a need (14.2): ignored.
"""

import re
from hashlib import blake2b
from itertools import pairwise
from typing import Final

from asgi_enhance.asgi.types import Headers
from asgi_enhance.cache.entry import Entry
from asgi_enhance.cache.request import Request

MAX_RANGES: Final = 8
_SPEC: Final = re.compile(rb"(\d*)-(\d*)")

Span = tuple[int, int]
"""First byte and the one after the last."""


def spans(request: Request, entry: Entry) -> list[Span] | None:
    """The bytes asked for; an empty list if none of them exists (416); None if the whole response is the answer."""
    line = request.fields.get(b"range")
    if line is None or entry.status != 200 or request.method != "GET" or not _if_range(request, entry):
        return None
    unit, _, specs = line.partition(b"=")
    if unit.strip().lower() != b"bytes":
        return None
    return _spans(specs, len(entry.body))


def _if_range(request: Request, entry: Entry) -> bool:
    condition = request.fields.get(b"if-range")
    if condition is None:
        return True
    condition = condition.strip()
    if condition.endswith(b'"'):
        return condition.startswith(b'"') and condition == entry.etag
    return condition == entry.last_modified


def _spans(specs: bytes, length: int) -> list[Span] | None:
    found: list[Span] = []
    parts = [part.strip() for part in specs.split(b",") if part.strip()]
    for part in parts:
        match = _SPEC.fullmatch(part)
        if match is None or part == b"-" or len(part) > 40:
            return None
        first, last = match.groups()
        if not first:
            start, end = max(0, length - int(last)), length
        else:
            start, end = int(first), min(int(last) + 1, length) if last else length
            if last and int(last) < int(first):
                return None
        if start < end:
            found.append((start, end))
    if not parts or len(parts) > MAX_RANGES:
        return None
    ordered = sorted(found)
    if any(a[1] > b[0] for a, b in pairwise(ordered)):
        return None
    return found


def partial(entry: Entry, wanted: list[Span]) -> tuple[int, Headers, bytes]:
    """Status, fields and body of the answer."""
    length = len(entry.body)
    if not wanted:
        headers = [field for field in entry.headers if field[0].lower() not in _REPLACED]
        return 416, [*headers, (b"content-range", b"bytes */%d" % length), (b"content-length", b"0")], b""
    headers = [field for field in entry.headers if field[0].lower() != b"content-length"]
    if len(wanted) == 1:
        start, end = wanted[0]
        headers.append((b"content-range", b"bytes %d-%d/%d" % (start, end - 1, length)))
        body = entry.body[start:end]
    else:
        kind = next((value for name, value in headers if name.lower() == b"content-type"), None)
        boundary = blake2b(entry.body, digest_size=16).hexdigest().encode()
        body = _multipart(entry.body, wanted, kind, boundary)
        headers = [field for field in headers if field[0].lower() != b"content-type"]
        headers.append((b"content-type", b"multipart/byteranges; boundary=" + boundary))
    headers.append((b"content-length", b"%d" % len(body)))
    return 206, headers, body


def _multipart(body: bytes, wanted: list[Span], kind: bytes | None, boundary: bytes) -> bytes:
    lines: list[bytes] = []
    for start, end in wanted:
        lines.append(b"--" + boundary)
        if kind is not None:
            lines.append(b"Content-Type: " + kind)
        lines.append(b"Content-Range: bytes %d-%d/%d" % (start, end - 1, len(body)))
        lines.append(b"")
        lines.append(body[start:end])
    lines.append(b"--" + boundary + b"--")
    lines.append(b"")
    return b"\r\n".join(lines)


_REPLACED: Final = frozenset({b"content-length", b"content-type", b"content-encoding"})
