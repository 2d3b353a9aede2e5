"""One HTTP/1.1 connection to a backend: bytes and llhttp's callbacks, one exchange at a time.

The rules:

- A connection is reused only after a response that is complete, framed by its own length or chunks, not marked
  `close`, and to a request that was sent whole. Anything the backend sends while no request is open ends it. What it
  sends after a response without a body (to HEAD, 204, 304) once the next request is on its way is taken for its answer:
  HTTP/1.1 has no other way to tell. `silent()` keeps that to what arrives in the time the request itself needs.
- What arrives is kept until it is read, and reading from the socket pauses above `HIGH_WATER` kept bytes.
- Fields are bounded: all that comes before the body by `max_head`, and so is what comes between two pieces of it or
  after the last, where trailers are.
- `abort()` and `fail()` are synchronous: there is no point at which a cancelled caller could leave a socket behind.
"""

import asyncio
import select
from asyncio.trsock import TransportSocket
from contextlib import suppress
from typing import Any, Protocol

import httptools

from asgi_enhance.asgi.types import Headers
from asgi_enhance.balance.failure import UpstreamFailure

HIGH_WATER = 65_536


class Owner(Protocol):
    """The pool, as a connection knows it."""

    def lost(self, connection: "Connection") -> None: ...


class Connection(asyncio.Protocol):
    """A connection and the response it is reading."""

    __slots__ = (
        "_awaiting",
        "_chunks",
        "_drained",
        "_fields",
        "_headless",
        "_loop",
        "_max_head",
        "_owner",
        "_parser",
        "_reading_paused",
        "_seen",
        "_size",
        "_spent",
        "_transport",
        "busy",
        "closed",
        "complete",
        "error",
        "headers",
        "idle_since",
        "interim",
        "keep_alive",
        "reused",
        "sent_whole",
        "status",
        "trailers",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, owner: Owner, *, max_head: int) -> None:
        self._loop = loop
        self._owner = owner
        self._max_head = max_head
        self._transport: Any = None
        self._parser = httptools.HttpResponseParser(self)
        self._awaiting: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._chunks: list[bytes] = []
        self._fields: Headers = []
        self._reading_paused = False
        self._headless = False
        self._spent = False  # the parser has been left in the middle of a message
        self._seen = 0
        self._size = 0
        self.idle_since = 0.0
        self.busy = False
        self.closed = True  # also while the backend's end is already here and its transport still closing
        self.reused = False
        self.error: UpstreamFailure | None = None
        self.status: int | None = None
        self.headers: Headers = []
        self.trailers: Headers = []
        self.interim: list[tuple[int, Headers]] = []
        self.complete = False
        self.keep_alive = False
        self.sent_whole = False

    # What the pool and the exchange call

    @property
    def bodiless(self) -> bool:
        """Whether the last response had no body whatever its fields say: a wrong one may still be on its way."""
        return self._headless or self.status in (204, 304)

    def silent(self) -> bool:
        """Whether nothing has come, not even an end, that the loop has not read yet."""
        socket = self._transport.get_extra_info("socket").fileno()
        if not hasattr(select, "poll"):  # Windows, whose select() takes any number
            return not select.select([socket], [], [], 0)[0]
        poll = select.poll()
        poll.register(socket, select.POLLIN)
        return not poll.poll(0)

    def begin(self, data: bytes, *, to_head: bool, whole: bool) -> None:
        """Send the beginning of a request (or all of it, if `whole`) and expect its response."""
        if self._spent:
            self._parser = httptools.HttpResponseParser(self)
            self._spent = False
        self.status = None
        self.complete = self.keep_alive = False
        self._fields = []
        self.trailers = []
        self._seen = 0
        self._headless = to_head
        self.sent_whole = whole
        self.busy = True
        if self._transport is None:  # lost between the pool and here
            self._break("the backend closed the connection")
        else:
            self._transport.write(data)

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    async def drain(self, seconds: float) -> None:
        """Wait until the backend takes more. Returns at once when the connection is gone: the reader tells why."""
        if self._drained is not None:
            try:
                async with asyncio.timeout(seconds):
                    await asyncio.shield(self._drained)
            except TimeoutError:
                text = "the backend does not take the request"
                raise UpstreamFailure(text, error="connection_write_timeout") from None

    def progress(self) -> asyncio.Future[None]:
        """To be awaited until something arrives: an interim response, the head, body, the end, an error."""
        if self.error is not None:
            raise self.error
        self._awaiting = self._loop.create_future()
        return self._awaiting

    async def read(self) -> bytes:
        """Body that has arrived, or the next to arrive; `b""` at the end. Raises when the body was cut short."""
        while not self._chunks:
            if self.complete:
                return b""
            await self.progress()
        return self.take()

    def take(self) -> bytes:
        """Body that has arrived, without waiting."""
        chunks = self._chunks
        if not chunks:
            return b""
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        self._chunks = []
        self._size = 0
        if self._reading_paused:
            self._reading_paused = False
            if self._transport is not None:
                self._transport.resume_reading()
        return data

    def release(self, now: float) -> bool:
        """The exchange is over. True if the connection may serve another one; otherwise it is closed."""
        self.busy = False
        if self.complete and self.keep_alive and self.sent_whole and not self._chunks and not self.closed:
            self.idle_since = now
            self.reused = True
            return True
        self.abort()
        return False

    def abort(self) -> None:
        """Close at once. Idempotent. Whoever still reads is told."""
        if self.busy and not self.complete and self.error is None:
            self.error = UpstreamFailure("the exchange was called off", error="connection_terminated")
        self._cut()
        self._chunks = []
        self._wake()

    def fail(self, error: UpstreamFailure) -> None:
        """End the exchange with an error and close."""
        if self.error is None:
            self.error = error
        self._cut()
        self._wake()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self.closed = False

    def data_received(self, data: bytes) -> None:
        if not self.busy:
            self.abort()  # nobody asked
            self._owner.lost(self)
            return
        waiting = self.status is None
        size = self._size
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._spent = True
            self.keep_alive = False
            if not self.complete:
                self.fail(UpstreamFailure(f"the backend's response is not HTTP/1.1: {error}", error=_PROTOCOL_ERROR))
                return
        if waiting:
            self._seen += len(data)
            if self._seen - self._size > self._max_head and (self.status is None or self._head_too_large()):
                self.status, self.complete = None, False
                text = f"the backend's response head is larger than {self._max_head} bytes"
                self.fail(UpstreamFailure(text, error="http_response_header_section_size"))
                return
            if self.status is not None:
                self._seen = 0
        elif self._size != size:
            self._seen = 0
        elif not self.complete:
            self._seen += len(data)
            if self._seen > self._max_head:
                text = f"the backend's trailers are larger than {self._max_head} bytes"
                self.fail(UpstreamFailure(text, error="http_response_trailer_section_size"))
                return
        if self._size > HIGH_WATER and not self._reading_paused and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()
        waiter = self._awaiting
        if waiter is not None and not waiter.done() and (self.status is not None or self.interim):
            waiter.set_result(None)

    def eof_received(self) -> None:
        self.closed = True  # the transport closes itself and connection_lost follows

    def connection_lost(self, exc: Exception | None) -> None:
        transport, self._transport = self._transport, None
        self.closed = True
        if not self.busy:
            self._owner.lost(self)
        elif not self.complete:
            if exc is not None and transport is not None:
                self._salvage(transport)
            if self.complete:
                self._wake()
            elif exc is None and self.status is not None and self._ends_with_connection():
                self.complete = True
                self._wake()
            else:
                self._break("the backend closed the connection before the response was complete")
        self.keep_alive = False
        self.resume_writing()

    def pause_writing(self) -> None:
        if self._drained is None:
            self._drained = self._loop.create_future()

    def resume_writing(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)

    # llhttp

    def on_message_begin(self) -> None:
        if self.complete:
            self.keep_alive = False
            raise ValueError("the backend sent a second response")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        fields, self._fields = self._fields, []
        if status < 200:
            if status < 100:
                raise ValueError(f"a status of {status}")
            if status == 101:
                raise ValueError("a switch of protocols nobody asked for")
            self.interim.append((status, fields))
            return
        self.status = status
        self.headers = fields
        self._fields = self.trailers
        if self._headless:
            # llhttp does not know that this answers a HEAD and would wait for the body
            self.keep_alive = self._parser.should_keep_alive()
            self._spent = self.complete = True

    def on_body(self, chunk: bytes) -> None:
        if self._headless:
            self.keep_alive = False
            return
        if self.status is None:
            raise ValueError("an interim response with a body")
        self._chunks.append(chunk)
        self._size += len(chunk)

    def on_message_complete(self) -> None:
        if self.status is not None and not self._headless:
            self.complete = True
            self.keep_alive = self._parser.should_keep_alive()

    # Inside

    def _salvage(self, transport: Any) -> None:
        """Read what a backend has sent before it reset the connection and the loop has not read.

        Who refuses a large upload answers and closes. asyncio, still writing, meets the reset first and reads no more;
        uvloop does not, and closes its socket before it says so.
        """
        end = transport.get_extra_info("socket")
        if not isinstance(end, TransportSocket) or transport.get_extra_info("sslcontext") is not None:
            return
        with suppress(OSError), end.dup() as own:
            while self._size <= HIGH_WATER and not self.complete and (data := own.recv(HIGH_WATER)):
                self.data_received(data)

    def _cut(self) -> None:
        transport, self._transport = self._transport, None
        self.closed = True
        if transport is not None:
            transport.abort()

    def _break(self, text: str) -> None:
        untouched = self.status is None and self._seen == 0
        self.fail(UpstreamFailure(text, error="connection_terminated", stale=untouched and self.reused))

    def _head_too_large(self) -> bool:
        """Asked when head and first body came together, and the framing of that body may be what is large."""
        sections = (self.headers, *(fields for _, fields in self.interim))
        return sum(len(name) + len(value) + 4 for fields in sections for name, value in fields) > self._max_head

    def _ends_with_connection(self) -> bool:
        return not any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers)

    def _wake(self) -> None:
        waiter = self._awaiting
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


_PROTOCOL_ERROR = "http_protocol_error"
