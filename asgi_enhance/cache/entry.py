"""A stored response, and how it is written down: a version byte, a msgpack head, the body as it is."""

import struct
from typing import Final

import msgspec

from asgi_enhance.asgi.types import Headers
from asgi_enhance.cache.policy.vary import VaryNames, VaryValues

VERSION: Final = 2
_FRAME: Final = struct.Struct(">BII")  # version, length of the head, length of the body

Fields = tuple[tuple[bytes, bytes], ...]


class Entry(msgspec.Struct, array_like=True):
    """A stored response with all that the hit path asks, decided when it was stored.

    `born` is the moment at which its age would have been zero, so that its age is `now - born` at any time.
    """

    status: int
    headers: Fields
    born: float
    lifetime: float
    fresh_until: float
    """`born + lifetime`, or 0 if it must be validated before every use."""
    received: float
    date: float
    kept_until: float
    stale_while_revalidate: float = 0.0
    stale_if_error: float = 0.0
    must_revalidate: bool = False
    no_cache: bool = False
    etag: bytes | None = None
    last_modified: bytes | None = None
    vary: VaryNames = ()
    vary_values: VaryValues = ()
    tags: tuple[str, ...] = ()
    render_time: float = 0.0
    no_vary_search: bytes = b""
    epoch: int = 0
    """The number of purges that had happened when its response was asked for."""
    purged: bool = False
    """A soft purge has taken its freshness."""
    body: bytes = b""

    def age(self, now: float) -> int:
        return max(0, int(now - self.born))

    def fill(self, body: bytes) -> None:
        """Give it its body, and with that a length, however the body came."""
        self.body = body
        if self.status != 204 and not any(name.lower() == b"content-length" for name, _ in self.headers):
            self.headers = (*self.headers, (b"content-length", b"%d" % len(body)))

    def shown(self, headers: Headers) -> "Entry":
        """The same response as one client gets it, with fields that are not kept, or not for the others."""
        return msgspec.structs.replace(self, headers=tuple([field for field in headers if field[0].lower() != b"age"]))

    def for_once(self, headers: Headers, now: float) -> "Entry":
        """The same response with other fields, for one client: what it has become may not be kept."""
        once = self.shown(headers)
        once.born, once.lifetime, once.fresh_until, once.kept_until = now, 0.0, 0.0, now
        return once

    @property
    def size(self) -> int:
        size = 512 + len(self.body)
        for name, value in self.headers:
            size += 96 + len(name) + len(value)
        for told_apart_by in self.vary_values:
            size += len(told_apart_by or b"")
        for tag in self.tags:
            size += 64 + len(tag)
        return size


def encode(entry: Entry) -> bytes:
    """Without the values it was told apart by: among them may be credentials, and whoever finds it has them himself."""
    head = _encoder.encode(msgspec.structs.replace(entry, body=b"", vary_values=()))
    return b"".join((_FRAME.pack(VERSION, len(head), len(entry.body)), head, entry.body))


def decode(frame: bytes, vary_values: VaryValues) -> Entry | None:
    """The entry as it was found by these values, or None if the frame is not one that this version wrote, whole."""
    try:
        version, head, body = _FRAME.unpack_from(frame)
        if version != VERSION or len(frame) != _FRAME.size + head + body:
            return None
        entry = _decoder.decode(memoryview(frame)[_FRAME.size : _FRAME.size + head])
    except (struct.error, msgspec.DecodeError):
        return None
    entry.body = frame[_FRAME.size + head :]
    entry.vary_values = vary_values
    return entry


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Entry)
