"""What a stored response answers to a request: all of it, a part, or that the client has it already."""

from asgi_enhance.asgi.types import Headers
from asgi_enhance.cache.entry import Entry
from asgi_enhance.cache.policy import conditional, ranges
from asgi_enhance.cache.request import Request


def answer(request: Request, entry: Entry, now: float) -> tuple[int, Headers, bytes]:
    """Status, fields and body. A precondition comes before a range (RFC 9110 13.2.2)."""
    if conditional.not_modified(request, entry, now):
        return 304, conditional.headers_of_304(entry), b""
    wanted = ranges.spans(request, entry)
    if wanted is not None:
        return ranges.partial(entry, wanted)
    return entry.status, list(entry.headers), b"" if request.method == "HEAD" else entry.body
