"""The types of ASGI, as Starlette names them, and the raw header list all layers work on."""

from collections.abc import Iterable
from typing import TypeAlias

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["ASGIApp", "Headers", "Message", "RawHeaders", "Receive", "Scope", "Send"]

Headers: TypeAlias = list[tuple[bytes, bytes]]
"""A header list of our own: names in lower case, order and duplicates kept."""

RawHeaders: TypeAlias = Iterable[tuple[bytes, bytes]]
"""A header list of somebody else's, read once and never changed."""
