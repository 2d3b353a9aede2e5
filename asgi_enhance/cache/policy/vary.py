"""Which of the stored variants is this request's (RFC 9111 4.1)?

A variant is known by the values of the request fields its Vary names, normalised: lines are combined, white space
round commas does not count. An absent field is None, an empty one b"": they are two variants. Values stay a tuple
and are never joined, so that no value can pretend to be two.
"""

import re
from collections.abc import Iterable
from functools import lru_cache

from asgi_enhance.asgi.types import RawHeaders
from asgi_enhance.cache.policy.fields import REMEMBERED, members

VaryNames = tuple[bytes, ...]
VaryValues = tuple[bytes | None, ...]

# White space is looked at once, from where it begins: clients may send as much of it as the server takes
_QVALUE = re.compile(rb"(?:(?<![ \t])[ \t]+)?;[ \t]*[qQ][ \t]*=[ \t]*")


def names(lines: Iterable[bytes]) -> VaryNames | None:
    """The field names a Vary nominates, in lower case and sorted; None if it is `*`."""
    nominated = {name.lower() for name in members(lines)}
    return None if b"*" in nominated else tuple(sorted(nominated))


def values(vary: VaryNames, headers: RawHeaders, encodings: tuple[bytes, ...]) -> VaryValues:
    """The request's own values of the fields in `vary`."""
    if not vary:
        return ()
    lines: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        name = name.lower()
        if name in vary:
            lines.setdefault(name, []).append(value)
    return tuple(_normalised(name, lines.get(name), encodings) for name in vary)


def _normalised(name: bytes, lines: list[bytes] | None, encodings: tuple[bytes, ...]) -> bytes | None:
    if lines is None:
        return None
    if name == b"accept-encoding" and encodings and len(lines) == 1 and len(lines[0]) <= REMEMBERED:
        return _accept_encoding_line(lines[0], encodings)
    value = b",".join([part.strip() for line in lines for part in line.split(b",")])
    if name == b"accept-encoding" and encodings:
        return _accept_encoding(value, encodings)
    if name == b"accept-language":
        return _QVALUE.sub(b";q=", value.lower())
    return value


@lru_cache(1024)
def _accept_encoding_line(line: bytes, encodings: tuple[bytes, ...]) -> bytes:
    """Browsers say the same few things all day."""
    return _accept_encoding(line, encodings)


def _accept_encoding(value: bytes, encodings: tuple[bytes, ...]) -> bytes:
    """Only what tells one response from another: which codings the app can make are acceptable, in one spelling.

    Every browser spells its list in its own way; without this each would have a variant of its own. The weights of
    those that differ from 1 are kept, since an app may rank by them.
    """
    weights: dict[bytes, bytes] = {}
    for part in value.lower().split(b","):
        coding, *parameters = part.split(b";")
        weight = b"1"
        for parameter in parameters:
            key, _, number = parameter.partition(b"=")
            if key.strip() == b"q":
                weight = number.strip().rstrip(b"0").rstrip(b".") if b"." in number else number.strip()
        weights[coding.strip()] = weight or b"0"
    known = [*encodings, b"identity", b"*"]
    kept = [(coding, weights[coding]) for coding in known if coding in weights]
    return b",".join(coding if weight == b"1" else coding + b";q=" + weight for coding, weight in kept)
