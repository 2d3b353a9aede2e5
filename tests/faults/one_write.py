"""A uvicorn that hands each answer to the kernel in one write, for backends that are killed.

uvicorn writes head and body apart. Killed between the two it leaves an answer that has begun, and that no proxy can ask
for again: a test in which none may fail would fail by its own backend, once in a few hundred kills.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class OneWrite(HttpToolsProtocol):
    """For `uvicorn --http`: what is written in one turn of the loop goes out together at its end."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(_Collecting(transport))  # type: ignore[arg-type]


class _Collecting:
    """A transport that collects."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._pieces: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._pieces:
            asyncio.get_running_loop().call_soon(self._flush)
        self._pieces.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._pieces:
            self._transport.write(b"".join(self._pieces))
            self._pieces.clear()
