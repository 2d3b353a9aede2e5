"""What the conformance suite is run against: `CacheMiddleware` round a reverse proxy to the suite's origin.

The proxy is the least that is one: a connection a request, fields as they come, nothing repeated, followed or
invented. The suite's origin says things no client library passes on, so it speaks HTTP itself. It is told the
origin by ORIGIN in the environment, and by INVALID_AGE what to make of an Age that cannot be read.
"""

import asyncio
import os

import httptools

from asgi_enhance.asgi.types import Headers, Receive, Scope, Send
from asgi_enhance.cache import CacheMiddleware, CacheRule, MemoryCache
from asgi_enhance.cache.policy.reuse import DIRECTIVES

HOST, _, PORT = os.environ.get("ORIGIN", "127.0.0.1:8000").rpartition(":")
NOT_FORWARDED = frozenset({b"connection", b"keep-alive", b"te", b"transfer-encoding", b"upgrade"})


class Response:
    """What the parser has found since it was last asked."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.headers: Headers = []
        self.chunks: list[bytes] = []
        self.started = self.finished = self.has_length = False

    @property
    def status(self) -> int:
        return int(self.parser.get_status_code())

    def on_message_begin(self) -> None:
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.has_length |= name.lower() == b"content-length"
        if name.lower() != b"transfer-encoding":
            self.headers.append((name.lower(), value.strip()))

    def on_headers_complete(self) -> None:
        self.started = self.status >= 200  # uvicorn has no way to pass on an interim response

    def on_body(self, body: bytes) -> None:
        self.chunks.append(body)

    def on_message_complete(self) -> None:
        self.finished = self.started


async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        raise RuntimeError("only HTTP is proxied")
    reader, writer = await asyncio.open_connection(HOST, int(PORT))
    try:
        writer.write(await _request(scope, receive))
        response = Response()
        sent = False
        while not response.finished:
            data = await reader.read(65536)
            if data:
                try:
                    response.parser.feed_data(data)
                except httptools.HttpParserError:
                    if not response.finished:  # else there was more than its length, which is cut off
                        raise
            elif response.started and not response.has_length:
                response.finished = True
            else:
                raise ConnectionError("the origin has closed the connection")
            if response.started and not sent:
                sent = True
                await send({"type": "http.response.start", "status": response.status, "headers": response.headers})
                if scope["method"] == "HEAD":
                    break
            chunks, response.chunks = response.chunks, []
            for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        writer.close()


async def _request(scope: Scope, receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    query = scope["query_string"]
    target = scope["raw_path"] + (b"?" + query if query else b"")
    lines = [scope["method"].encode() + b" " + target + b" HTTP/1.1", b"connection: close"]
    fields = [(name, value) for name, value in scope["headers"] if name not in NOT_FORWARDED]
    if body and not any(name == b"content-length" for name, _ in fields):
        fields.append((b"content-length", b"%d" % len(body)))
    lines.extend(name + b": " + value for name, value in fields)
    return b"\r\n".join([*lines, b"", body])


# The suite asks for what is off by default, or switchable: heuristics, Set-Cookie, the directives of requests, stale
# responses while the origin cannot be reached; the release also for an Age that is an error, as before RFC 9111
app = CacheMiddleware(
    proxy,
    cache=MemoryCache(),
    rules=[CacheRule("*", stale_if_error=60)],
    heuristic=0.1,
    set_cookie="store",
    cookies="ignore",
    honour=DIRECTIVES,
    invalid_age="stale" if os.environ.get("INVALID_AGE") == "stale" else "ignore",
)
