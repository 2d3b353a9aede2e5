"""A backend behind any `httpx2` or `httpx` `AsyncBaseTransport`: HTTP/2, UNIX sockets, in-process ASGI apps, your own.

The transport is called directly, without a client: no cookies, redirects, environment proxies or invented fields. The
target and the field lines go out as the client sent them.
"""

import asyncio
from collections.abc import AsyncIterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

from asgi_enhance.asgi.tasks import Tasks
from asgi_enhance.asgi.types import Headers
from asgi_enhance.balance.backend import Backend
from asgi_enhance.balance.failure import ClientGone, Rejected, UpstreamFailure
from asgi_enhance.balance.options import Timeouts
from asgi_enhance.errors import ConfigError

if TYPE_CHECKING:
    from asgi_enhance.balance.exchange import Answer, Exchange


class TransportAnswer:
    """A response of a transport."""

    __slots__ = ("_iterator", "_next", "_response", "complete", "headers", "status", "trailers")

    def __init__(self, response: Any) -> None:
        self._response = response
        self._iterator: AsyncIterator[bytes] = response.stream.__aiter__()
        self.status: int | None = response.status_code
        self.headers: Headers = [(name.lower(), value) for name, value in response.headers.raw]
        self.trailers: Headers = []
        self.complete = False

    def take(self) -> bytes:
        return b""

    async def read(self) -> bytes:
        while not self.complete:
            try:
                piece = await anext(self._iterator)
            except StopAsyncIteration:
                self.complete = True
            except Exception as error:
                raise UpstreamFailure(f"the response broke off: {error}", error="connection_terminated") from error
            else:
                if piece:
                    return piece
        return b""

    async def aclose(self) -> None:
        await self._response.stream.aclose()


class TransportUpstream:
    """One backend by one transport."""

    def __init__(self, backend: Backend, tasks: Tasks, *, timeouts: Timeouts, rewrite_host: bool) -> None:
        self._backend = backend
        self._transport = backend.transport
        self._tasks = tasks
        self._timeouts = timeouts
        self._host = backend.host.encode() if backend.host else backend.authority if rewrite_host else None
        self._library = library_of(backend.transport)

    async def open(self, exchange: "Exchange", *, fresh: bool = False) -> TransportAnswer:
        library = self._library
        request = self._request(exchange)
        exchange.wait_until(self._timeouts.first_byte)
        try:
            response = await self._transport.handle_async_request(request)
        except (library.ConnectError, library.ConnectTimeout, library.PoolTimeout) as error:
            timed_out = isinstance(error, library.TimeoutException)
            kind = "connection_timeout" if timed_out else "connection_refused"
            raise UpstreamFailure(f"cannot connect: {error}", error=kind, unsent=not exchange.body.reading) from error
        except library.TimeoutException as error:
            raise UpstreamFailure(f"no answer in time: {error}", error="http_response_timeout") from error
        except (Rejected, ClientGone):
            raise
        except Exception as error:
            raise UpstreamFailure(f"the backend failed: {error}", error="connection_terminated") from error
        return TransportAnswer(response)

    def release(self, answer: "Answer") -> None:
        assert isinstance(answer, TransportAnswer)
        self._tasks.spawn(answer.aclose(), name="balance-close-response")

    def close_idle(self) -> None:
        """The transport keeps its own connections."""

    async def aclose(self) -> None:
        """The transport is its owner's to close."""

    def _request(self, exchange: "Exchange") -> Any:
        backend, body, head = self._backend, exchange.body, exchange.head
        target = backend.target(exchange.path, exchange.query)
        fields = [(b"host", self._host or head.host or backend.authority), *head.fields]
        if head.trailers:
            fields.append((b"te", b"trailers"))  # and no Connection, which HTTP/2 must not have
        content: bytes | AsyncIterator[bytes] | None = None
        if body.more:
            content = _pieces(exchange)
            if body.length is not None:
                fields.append((b"content-length", b"%d" % body.length))
            else:
                fields.append((b"transfer-encoding", b"chunked"))
        elif body.first or head.has_body:
            content = body.first
            fields.append((b"content-length", b"%d" % len(body.first)))
        url = self._library.URL(scheme=backend.scheme, host=backend.hostname, port=backend.port, raw_path=target)
        extensions = {"target": target, "timeout": {"connect": self._timeouts.connect, "pool": self._timeouts.connect}}
        return self._library.Request(exchange.method, url, headers=fields, content=content, extensions=extensions)


async def get(backend: Backend, target: bytes, host: bytes, *, max_body: int) -> int:
    """Ask the backend for `target`, for a check: the status, once no more than `max_body` bytes of body are read."""
    library = library_of(backend.transport)
    url = library.URL(scheme=backend.scheme, host=backend.hostname, port=backend.port, raw_path=target)
    request = library.Request("GET", url, headers=[(b"host", host)], extensions={"target": target})
    answer = TransportAnswer(await backend.transport.handle_async_request(request))
    try:
        size = 0
        while size <= max_body and (piece := await answer.read()):
            size += len(piece)
    finally:
        await answer.aclose()
    assert answer.status is not None
    return answer.status


async def _pieces(exchange: "Exchange") -> AsyncIterator[bytes]:
    body = exchange.body
    if body.first:
        yield body.first
    try:
        while piece := await body.next():
            exchange.progress()
            yield piece
    except (ClientGone, Rejected) as error:
        exchange.interrupt(error)
        await asyncio.sleep(0)  # where the interrupt arrives
        raise


def library_of(transport: Any) -> Any:
    """The module a transport belongs to, `httpx2` or `httpx`: requests and errors must be of its own kind."""
    for kind in type(transport).__mro__:
        if kind.__name__ == "AsyncBaseTransport":
            return import_module(kind.__module__.partition(".")[0])
    raise ConfigError(f"transport must be an httpx2 or httpx AsyncBaseTransport, not {transport!r}")
