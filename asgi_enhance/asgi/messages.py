"""The two streams of a request: what the app sends (when is it finished?) and what the client sends (who reads it?)."""

import asyncio

from asgi_enhance.asgi.types import Message, Receive

CLIENT_GONE = 499
"""nginx's status for a client that left before it was answered; metrics call it so, too."""


class ResponseTracker:
    """Watches a response go by and knows when it has started and when it is finished (contract 8).

    A response is finished at its last body message; if its start announced trailers, at the last of those; or at a
    pathsend. That is where durations stop and leases end: the app itself may return much later.
    """

    __slots__ = ("_trailers", "finished", "status")

    def __init__(self) -> None:
        self.status: int | None = None
        self.finished = False
        self._trailers = False

    @property
    def started(self) -> bool:
        return self.status is not None

    def feed(self, message: Message) -> bool:
        """Look at one message. True if the response is finished with it."""
        kind = message["type"]
        if kind in ("http.response.body", "http.response.zerocopysend", "websocket.http.response.body"):
            self.finished = not (message.get("more_body", False) or self._trailers)
        elif kind in ("http.response.start", "websocket.http.response.start"):
            self.status = message["status"]
            self._trailers = message.get("trailers", False)
        elif kind == "http.response.trailers":
            self.finished = not message.get("more_trailers", False)
        elif kind == "http.response.pathsend":
            self.finished = True
        return self.finished


class SharedReceive:
    """The one reader of `receive` (contract 7), for an app that reads and a watcher that waits for the end.

    The app calls the object as it would call `receive`; somebody else may await `disconnected()`. At most one
    message is read ahead, and the server is never asked again after the client has left: some servers hang then.
    """

    __slots__ = ("_gone", "_kept", "_lock", "_receive", "_taken")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._lock = asyncio.Lock()
        self._taken = asyncio.Event()
        self._kept: Message | None = None
        self._gone: Message | None = None

    async def __call__(self) -> Message:
        async with self._lock:
            message = self._kept
            if message is not None:
                self._kept = None
                self._taken.set()
                return message
            return await self._read()

    async def disconnected(self) -> None:
        """Return when the client has left."""
        while self._gone is None:
            async with self._lock:
                if self._kept is None and self._gone is None:
                    message = await self._read()
                    if self._gone is None:
                        self._kept = message
                        self._taken.clear()
            if self._gone is None:
                await self._taken.wait()

    async def _read(self) -> Message:
        if self._gone is None:
            message = await self._receive()
            if message["type"] not in ("http.disconnect", "websocket.disconnect"):
                return message
            self._gone = message
        return self._gone


class BodyCopy:
    """A bounded copy kept beside a body that flows past; given up, never flushed, when it grows too large."""

    __slots__ = ("_chunks", "_limit", "size")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._chunks: list[bytes] | None = []
        self.size = 0

    @property
    def given_up(self) -> bool:
        return self._chunks is None

    def add(self, chunk: bytes) -> bool:
        """Keep a chunk. False once the copy has been given up."""
        if self._chunks is None:
            return False
        self.size += len(chunk)
        if self.size > self._limit:
            self.give_up()
            return False
        if chunk:
            self._chunks.append(chunk)
        return True

    def give_up(self) -> None:
        self._chunks = None

    def body(self) -> bytes | None:
        """All that was kept, or None if the copy was given up."""
        return None if self._chunks is None else b"".join(self._chunks)
