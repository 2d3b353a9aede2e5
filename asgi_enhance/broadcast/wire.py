"""What goes over the wire: JSON frames, the same for WebSocket and Server-Sent Events.

From the client (WebSocket only; each is one JSON object):

    {"type": "join", "group": G}                   enter a group; with "since": ID also get what was missed, with
                                                   "last": N its last N messages
    {"type": "leave", "group": G}
    {"type": "publish", "group": G, "data": …}     if `authorize` lets it; once for each "idempotency_key"
    {"type": "presence", "group": G}
    {"type": "ping"}                               a client that has pinged once must go on within the idle timeout
    anything else                                  goes to the handler registered for its type

From the server:

    any JSON value                                 a message of the application, exactly as it was given
    {"type": "message", "group": G, "id": ID, "data": …}    the same, from a group that keeps a history
    {"type": "joined", "group": G, "id": ID}       what follows continues after ID; without "id" there is no history
    {"type": "reset", "group": G, "id": ID}        messages before ID may be lost; what follows continues after ID
    {"type": "left", "group": G}
    {"type": "published", "group": G, "id": ID}
    {"type": "presence", "group": G, "clients": [C, …]}
    {"type": "pong"}
    {"type": "error", "code": CODE, "detail": TEXT}         never the end of the connection

A reply repeats the "ref" of the request it answers, a string or a number, if there was one. An ID is `epoch:offset`.
As an event stream each frame is the `data` of one event, and the event's `id` is a cursor over all groups with a
history: `group=epoch:offset&group=epoch:offset`, percent-encoded as a query string.
"""

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any
from urllib.parse import parse_qsl, quote

import msgspec

from asgi_enhance.asgi.types import Message
from asgi_enhance.broadcast.log import Position

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder().decode

LINE_ENDS_AS_SPACES = bytes.maketrans(b"\r\n", b"  ")


class Encoding(Enum):
    """How a connection takes its frames. Connections of the same encoding share the very same ASGI message."""

    WEBSOCKET = "websocket"
    EVENT_STREAM = "event stream"
    EVENT_STREAM_CURSOR = "event stream with several positions"  # its ids are its own, so it shares nothing


class Frame:
    """One ASGI message ready to be sent, and what an outbox must know of it."""

    __slots__ = ("group", "key", "message", "size")

    def __init__(self, message: Message, size: int, key: str | None = None, group: str | None = None) -> None:
        self.message = message
        self.size = size
        self.key = key
        self.group = group


class Publication:
    """One message of the application on its way to many connections; each encoding is made once.

    data:     the message as JSON.
    key:      what it is about, for outboxes that keep the latest per key.
    group:    the group it came by, and
    position: its place there, if that group keeps a history.
    """

    __slots__ = ("_body", "_frames", "group", "key", "position")

    def __init__(
        self, data: bytes, key: str | None = None, group: str | None = None, position: Position | None = None
    ) -> None:
        self.key = key
        self.group = group if position is not None else None
        self.position = position
        if position is not None:
            data = b'{"type":"message","group":%b,"id":"%b","data":%b}' % (encode(group), str(position).encode(), data)
        self._body = data
        self._frames: dict[Encoding, Frame] = {}

    def frame(self, encoding: Encoding) -> Frame:
        frame = self._frames.get(encoding)
        if frame is None:
            cursor = None
            if self.position is not None and self.group is not None:
                cursor = cursor_text({self.group: self.position})
            frame = self._frames[encoding] = self._frame(encoding, cursor)
        return frame

    def frame_at(self, positions: Mapping[str, Position]) -> Frame:
        """The frame for an event stream that stands at `positions` in its several groups."""
        return self._frame(Encoding.EVENT_STREAM_CURSOR, cursor_text(positions))

    def _frame(self, encoding: Encoding, cursor: str | None) -> Frame:
        message = asgi_message(encoding, self._body, cursor)
        return Frame(message, len(self._body), self.key, self.group)


def control(encoding: Encoding, type: str, /, cursor: str | None = None, **members: Any) -> Frame:
    """A frame of the protocol itself; members that are None are left out."""
    body = encode({"type": type} | {name: value for name, value in members.items() if value is not None})
    return Frame(asgi_message(encoding, body, cursor), len(body))


def asgi_message(encoding: Encoding, body: bytes, cursor: str | None = None) -> Message:
    if encoding is Encoding.WEBSOCKET:
        return {"type": "websocket.send", "text": body.decode()}
    body = body.translate(
        LINE_ENDS_AS_SPACES
    )  # between tokens, where JSON may have them: one `data:` line holds it all
    event = b"data: %b\n\n" % body if cursor is None else b"id: %b\ndata: %b\n\n" % (cursor.encode(), body)
    return {"type": "http.response.body", "body": event, "more_body": True}


def cursor_text(positions: Mapping[str, Position]) -> str:
    return "&".join(f"{quote(group, safe='')}={position}" for group, position in positions.items())


def cursor_positions(text: str, limit: int) -> dict[str, Position]:
    """The positions a returning client names; one that cannot be read is one that cannot be continued."""
    try:
        pairs: Iterable[tuple[str, str]] = parse_qsl(text, max_num_fields=limit)
    except ValueError:
        return {}
    return {group: Position.parse(position) or Position("", 0) for group, position in pairs}


def pack(data: bytes, key: str | None) -> bytes:
    """A message and its key as one blob for the log and the channel. JSON holds no NUL byte, keys may not."""
    return (key or "").encode() + b"\0" + data


def unpack(blob: bytes) -> tuple[bytes, str | None]:
    key, _, data = blob.partition(b"\0")
    return data, key.decode() or None
