"""The types of ASGI, as Starlette names them, and the raw header list all layers work on."""

from collections.abc import Iterable
from typing import TypeAlias

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["HOP_BY_HOP", "ASGIApp", "Headers", "Message", "RawHeaders", "Receive", "Scope", "Send"]

Headers: TypeAlias = list[tuple[bytes, bytes]]
"""A header list of our own: names in lower case, order and duplicates kept."""

RawHeaders: TypeAlias = Iterable[tuple[bytes, bytes]]
"""A header list of somebody else's, read once and never changed."""

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Fields that belong to one connection and not to the message (RFC 9110 7.6.1), named in Connection or not."""
