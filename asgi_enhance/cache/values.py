"""Values beside responses: str, bytes, or whatever msgspec encodes. Never pickle: what is read back is only data."""

import struct
from typing import Any, Final

import msgspec

from asgi_enhance.errors import CacheError

VERSION: Final = 2
_FRAME: Final = struct.Struct(">BII")  # version, length of the head, length of the data


class Value(msgspec.Struct, array_like=True):
    """A value as it is kept: encoded, so that nobody changes what another one reads."""

    kind: str
    """"s" for str, "b" for bytes, "m" for msgpack."""
    kept_until: float
    tags: tuple[str, ...] = ()
    render_time: float = 0.0
    epoch: int = 0
    data: bytes = b""

    @property
    def size(self) -> int:
        return len(self.data) + 256

    def load(self, as_type: Any = Any) -> Any:
        try:
            if self.kind == "m":
                return msgspec.msgpack.decode(self.data, type=as_type)
            value = self.data if self.kind == "b" else self.data.decode()
            if as_type is Any or type(value) is as_type:
                return value
            return msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=as_type)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CacheError(f"the stored value is not a {as_type}: {error}") from error


def dump(value: Any) -> tuple[str, bytes]:
    """The kind and the bytes of a value. CacheError if it is nothing msgspec can encode."""
    if isinstance(value, bytes):
        return "b", value
    if isinstance(value, str):
        return "s", value.encode()
    try:
        return "m", msgspec.msgpack.encode(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise CacheError(f"a {type(value).__name__} cannot be cached: {error}") from error


def encode(value: Value) -> bytes:
    head = _encoder.encode(msgspec.structs.replace(value, data=b""))
    return b"".join((_FRAME.pack(VERSION, len(head), len(value.data)), head, value.data))


def decode(frame: bytes) -> Value | None:
    """The value, or None if the frame is not one that this version wrote, whole."""
    try:
        version, head, data = _FRAME.unpack_from(frame)
        if version != VERSION or len(frame) != _FRAME.size + head + data:
            return None
        value = _decoder.decode(memoryview(frame)[_FRAME.size : _FRAME.size + head])
    except (struct.error, msgspec.DecodeError):
        return None
    value.data = frame[_FRAME.size + head :]
    return value


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Value)
