"""The transport of a connection that redis-py made, with a protocol and a parser of our own on it.

redis-py keeps connecting: TCP, UNIX, TLS, authentication, RESP version, database. But it reads one reply at a time
through three coroutines and a stream, which costs several times what the reply itself does; so once the connection
stands, its transport gets our protocol, and hiredis parses what comes.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection, DefaultParser

NOTHING = object()  # what `gets()` gives when no whole reply is left
Push = hiredis.PushNotification

# Its own type says a tuple of one.
pack: Callable[[tuple[str | bytes | int | float, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]


class Wire:
    """Writes bytes, parses replies (`feed`, then `gets` until `NOTHING`), and ends the connection."""

    __slots__ = ("_lost", "_transport", "_writer", "feed", "gets", "write")

    def __init__(self, connection: AbstractConnection, protocol: asyncio.Protocol) -> None:
        # Private to redis-py, and the only such names here: there is no public way to a connection's transport. Our
        # reference keeps the writer from being collected, which would close the transport; redis-py is left
        # without, so that it counts the connection as closed and does not close it either.
        self._writer: asyncio.StreamWriter | None = connection._writer
        connection._reader = connection._writer = None
        assert self._writer is not None
        self._transport: asyncio.WriteTransport | None = self._writer.transport
        self._transport.set_protocol(protocol)
        self._lost = asyncio.Event()
        reader = hiredis.Reader(replyError=DefaultParser.parse_error, notEnoughData=NOTHING)
        self.feed = reader.feed
        self.gets = reader.gets
        self.write: Any = self._transport.write

    def abort(self) -> None:
        """Close it at once; what is not written yet is lost."""
        if self._transport is not None:
            self._transport.abort()

    def lost(self) -> None:
        """The transport has told its protocol that the connection is gone."""
        self._transport = self._writer = self.write = None
        self._lost.set()

    async def closed(self) -> None:
        await self._lost.wait()

    def drop(self) -> None:
        """Let go of it after its loop was closed: the socket closes when its transport is collected."""
        self._transport = self._writer = self.write = None
