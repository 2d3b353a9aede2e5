"""304 or not; what to ask the app; what a 304 changes (RFC 9111 4.3, RFC 9110 13).

- If-None-Match comes before If-Modified-Since (RFC 9110 13.2.2) and compares weakly (13.1.2).
- A 304 freshens the one stored response that was asked about, since its validators alone were sent (RFC 9111 4.3.4).
- A 304 replaces the stored fields it brings, except those that describe the stored body (RFC 9111 3.2).
"""

import re
from typing import Final

from asgi_enhance.asgi.types import Headers, RawHeaders
from asgi_enhance.cache.entry import Entry
from asgi_enhance.cache.policy import fields
from asgi_enhance.cache.policy.storing import CONNECTION_ONLY
from asgi_enhance.cache.request import Request

_TAG: Final = re.compile(rb'(?:W/)?"[^"]*"|[^,\s]+')

IN_304: Final = frozenset(
    {b"cache-control", b"cdn-cache-control", b"content-location", b"date", b"etag", b"expires", b"set-cookie", b"vary"}
)
"""The fields a 304 has to carry (RFC 9110 15.4.5); what describes the body would only mislead."""

_OF_THE_BODY: Final = frozenset({b"content-encoding", b"content-length", b"content-md5", b"content-range", b"etag"})
_CONDITIONS: Final = frozenset(
    {b"if-match", b"if-modified-since", b"if-none-match", b"if-range", b"if-unmodified-since", b"range"}
)


def not_modified(request: Request, entry: Entry, now: float) -> bool:
    """Whether the client has what is stored."""
    if entry.status != 200:
        return False
    tags = request.fields.get(b"if-none-match")
    if tags is not None:
        if tags.strip() == b"*":
            return True
        return entry.etag is not None and _opaque(entry.etag) in {_opaque(tag) for tag in _TAG.findall(tags)}
    since = request.fields.get(b"if-modified-since")
    if since is None:
        return False
    if since == entry.last_modified:
        return True
    limit = fields.http_date(since, now)
    modified = entry.date if entry.last_modified is None else fields.http_date(entry.last_modified, now)
    return limit is not None and modified is not None and modified <= limit


def _opaque(tag: bytes) -> bytes:
    """What weak comparison compares."""
    return tag[2:] if tag.startswith(b"W/") else tag


def headers_of_304(entry: Entry) -> Headers:
    return [(name, value) for name, value in entry.headers if name.lower() in IN_304]


def validators(entry: Entry) -> Headers:
    """What asks the app whether the entry still holds; empty if there is nothing to ask with."""
    headers: Headers = []
    if entry.etag is not None:
        headers.append((b"if-none-match", entry.etag))
    if entry.last_modified is not None:
        headers.append((b"if-modified-since", entry.last_modified))
    return headers


def asking(headers: RawHeaders, entry: Entry | None) -> Headers:
    """The request's fields with the cache's conditions in place of the client's."""
    kept = [(name, value) for name, value in headers if name not in _CONDITIONS]
    return kept + validators(entry) if entry is not None else kept


def updated(entry: Entry, headers: RawHeaders) -> Headers:
    """The stored fields, updated by those of a 304 or of a response to HEAD."""
    connection = {name.lower() for name in fields.members(fields.values(headers, b"connection"))}
    fresh = [(name.lower(), value) for name, value in headers]
    fresh = [(n, v) for n, v in fresh if n not in _OF_THE_BODY and n not in CONNECTION_ONLY and n not in connection]
    # Without a Date of its own the new answer was made now, not when the old one was
    replaced = {name for name, _ in fresh} | {b"date"}
    return [(name, value) for name, value in entry.headers if name.lower() not in replaced] + fresh


def head_agrees(entry: Entry, headers: RawHeaders) -> bool:
    """RFC 9111 4.3.5: whether a response to HEAD is about the body that is stored."""
    for name, stored in ((b"etag", entry.etag), (b"last-modified", entry.last_modified)):
        value = next(iter(fields.values(headers, name)), None)
        if value is not None and value != stored:
            return False
    length = next(iter(fields.values(headers, b"content-length")), None)
    return length is None or length.strip() == b"%d" % len(entry.body)
