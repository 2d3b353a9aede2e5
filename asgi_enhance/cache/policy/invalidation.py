"""What a write makes invalid (RFC 9111 4.4, RFC 9875)?

A 2xx or 3xx to a method that is not safe invalidates the target URI and, on the same origin, those named in Location
and Content-Location. Another origin's entries are not this one's to touch.
"""

from typing import Final

from asgi_enhance.asgi.types import RawHeaders
from asgi_enhance.cache.policy import fields
from asgi_enhance.cache.policy.storing import group_tag
from asgi_enhance.cache.request import Key, Request, resolved

SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "QUERY", "PROPFIND", "REPORT", "SEARCH"})
"""The safe methods of the IANA registry that an HTTP server meets; a method not known to be safe is not."""


def keys(request: Request, status: int, headers: RawHeaders) -> list[Key]:
    """The URLs whose entries a response to an unsafe request makes invalid."""
    if not 200 <= status < 400:
        return []
    found = [request.url]
    for name in (b"location", b"content-location"):
        for value in fields.values(headers, name)[:1]:
            key = resolved(request.url, value)
            if key is not None and key not in found:
                found.append(key)
    return found


def groups(request: Request, status: int, headers: RawHeaders) -> list[str]:
    """The tags of the groups it makes invalid (RFC 9875 3); none on a safe method, none cascades."""
    if request.method in SAFE or not 200 <= status < 400:
        return []
    lines = fields.values(headers, b"cache-group-invalidation")
    return [group_tag(request.origin, group) for group in fields.strings(lines)]
