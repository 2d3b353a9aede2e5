"""The body of a request on its way up: read once, counted, bounded, and kept for another try while it is small."""

from asgi_enhance.asgi.types import Message, Receive
from asgi_enhance.balance.failure import ClientGone, Rejected


class Body:
    """The request body as the server hands it over.

    Where the scope itself says that there is no body none is `expected`, and the server is asked for nothing.
    `reading` is true while the client is waited for, `ended` once it has left.

    `first` is what has arrived and may be sent with the head; `more` says whether `next()` has more. The invariant:
    the backend never gets more bytes than `length`, and never a complete message out of an incomplete one.
    """

    __slots__ = (
        "_asked",
        "_kept",
        "_pushed",
        "_receive",
        "_replay",
        "ended",
        "first",
        "length",
        "limit",
        "more",
        "reading",
        "size",
    )

    def __init__(
        self, receive: Receive, length: int | None, *, limit: int | None, replay: int, expected: bool = True
    ) -> None:
        self._receive = receive
        self._replay = replay
        self._pushed: Message | None = None
        self._kept: list[bytes] | None = []
        self.length = length
        self.limit = limit
        self.first = b""
        self.size = 0
        self.more = self._asked = expected
        self.reading = False
        self.ended = False

    async def begin(self) -> None:
        """Read the first message. For most requests it is all there is."""
        if self.length is None:
            self.reading = True
            message = await self._receive()
            self.reading = False
            if not message.get("more_body") and not message.get("body") and message["type"] != "http.disconnect":
                self.more = False  # nearly every request: there is no body
                return
            self._pushed = message
        self.first = await self._read()
        if not self.more and self.length is None and self.first:
            self.length = self.size

    async def next(self) -> bytes:
        """The next piece; `b""` only at the end."""
        while self.more:
            piece = await self._read()
            if piece:
                return piece
        return b""

    @property
    def replayable(self) -> bool:
        """All that was read so far is still here."""
        return self._kept is not None

    def rewind(self) -> None:
        """Begin again: what was read becomes `first`. Only while `replayable`."""
        assert self._kept is not None
        self.first = b"".join(self._kept)
        self._kept = [self.first]

    async def gone(self) -> bool:
        """After the end of the body: wait until the client has left. False if `receive` is not one to tell.

        A layer in front that puts back a body it has read often answers with that body for ever, at once: whoever
        waited there for the client to leave would never let go of the loop.
        """
        unread = not self._asked  # then the body's one empty message is still to come
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.ended = True
                return True
            if not unread:
                return False
            unread = message.get("more_body", False)

    async def _read(self) -> bytes:
        message, self._pushed = self._pushed, None
        if message is None:
            self.reading = True
            message = await self._receive()
            self.reading = False
        if message["type"] == "http.disconnect":
            self.ended = True
            self.more = False
            raise ClientGone("the client left before its request was complete")
        piece: bytes = message.get("body", b"")
        self.more = message.get("more_body", False)
        if piece:
            self.size += len(piece)
            if self.limit is not None and self.size > self.limit:
                raise Rejected(413, "The request body is too large.")
            if self._kept is not None:
                if self.size <= self._replay:
                    self._kept.append(piece)
                else:
                    self._kept = None
        if self.length is not None and (self.size > self.length or (not self.more and self.size < self.length)):
            raise Rejected(400, "The request body does not have the length that was announced.")
        return piece
