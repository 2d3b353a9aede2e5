"""One request on its way through the balancer: what is sent, where it has got to, and how it is called off.

An exchange runs in the task of its caller. Whoever else ends it (a deadline, the client leaving, its own upload) says
why with `interrupt()`; that cancels the task the way `asyncio.timeout` does, and leaving the `with` block turns the
cancellation into the reason. A cancellation from outside stays a cancellation.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Protocol, Self

from asgi_enhance.asgi.types import Headers
from asgi_enhance.balance.backend import Endpoint
from asgi_enhance.balance.body import Body
from asgi_enhance.balance.failure import ClientGone, Rejected, UpstreamFailure
from asgi_enhance.balance.headers import RequestHead

IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"})
"""RFC 9110, 9.2.2: may be sent again when nobody knows whether the first got through."""


class Answer(Protocol):
    """A response whose head has arrived."""

    status: int | None
    headers: Headers
    trailers: Headers
    complete: bool

    def take(self) -> bytes: ...

    async def read(self) -> bytes: ...


class Upstream(Protocol):
    """The way to one backend."""

    async def open(self, exchange: "Exchange", *, fresh: bool) -> Answer:
        """Send the request and wait for the head of the response. Raises UpstreamFailure."""

    def release(self, answer: Answer) -> None:
        """The exchange is over, at whatever point. Synchronous, so that nothing can cancel it."""

    async def aclose(self) -> None: ...


class Sweep(Protocol):
    """Who looks after deadlines and clients that leave (`core.Runtime`)."""

    def add(self, exchange: "Exchange") -> None: ...

    def remove(self, exchange: "Exchange") -> None: ...


class Exchange:
    """A request, its deadlines and, once there is one, its answer."""

    __slots__ = (
        "_cancelling",
        "_loop",
        "_sweep",
        "_task",
        "answer",
        "body",
        "deadline",
        "done",
        "endpoint",
        "head",
        "idle",
        "key",
        "limit",
        "method",
        "on_end",
        "on_interim",
        "path",
        "query",
        "reason",
        "sending",
        "sticky",
        "subprotocols",
        "upload",
        "upstream",
        "watcher",
        "websocket",
    )

    def __init__(
        self,
        sweep: Sweep,
        *,
        method: str,
        path: bytes,
        query: bytes,
        head: RequestHead,
        body: Body,
        key: bytes = b"",
        sticky: str | None = None,
        idle: float,
        limit: float,
        websocket: bool = False,
        subprotocols: Sequence[str] = (),
    ) -> None:
        self._sweep = sweep
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self.method = method
        self.path = path
        self.query = query
        self.head = head
        self.body = body
        self.key = key
        self.sticky = sticky
        self.websocket = websocket
        self.subprotocols = subprotocols
        self.idle = idle
        self.limit = limit
        self.deadline = limit
        self.reason: Exception | None = None
        self.endpoint: Endpoint | None = None
        self.upstream: Upstream | None = None
        self.answer: Answer | None = None
        self.upload: asyncio.Task[None] | None = None
        self.watcher: asyncio.Task[None] | None = None
        self.on_interim: Callable[[int, Headers], Awaitable[None]] | None = None
        self.on_end: Callable[[Exchange, BaseException | None], None] | None = None
        self.sending = False  # the client is waited for, not the backend
        self.done = False

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None, "an exchange runs in a task"
        self._task = task
        self._cancelling = task.cancelling()
        self.progress()
        self._sweep.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish(self.reason or error)
        if self.reason is not None:
            assert self._task is not None
            if self._task.uncancel() <= self._cancelling and kind is not None:
                raise self.reason from None

    def interrupt(self, reason: Exception) -> None:
        """End the exchange for this reason, wherever it is waiting."""
        if self.reason is None and not self.done and self._task is not None:
            self.reason = reason
            self._task.cancel()

    def progress(self) -> None:
        """Something moved: the idle time begins anew."""
        self.deadline = min(self._loop.time() + self.idle, self.limit)

    def wait_until(self, seconds: float) -> None:
        """Something has to happen within so many seconds."""
        self.deadline = min(self._loop.time() + seconds, self.limit)

    def overdue(self) -> Exception:
        """What to say when the deadline has passed."""
        if self.body.reading and self.answer is None:
            return Rejected(408, "The request did not arrive in time.")
        if self.sending:
            return ClientGone("the client does not take the response")
        if self.answer is None:
            return UpstreamFailure("the backend did not answer in time", error="http_response_timeout")
        return UpstreamFailure("the response did not move in time", error="connection_read_timeout")

    def let_go(self, error: BaseException | None = None) -> None:
        """Give back connection and slot. Idempotent, synchronous: the one place where either is freed."""
        upload, self.upload = self.upload, None
        if upload is not None:
            upload.cancel()
        answer, self.answer = self.answer, None
        if answer is not None and self.upstream is not None:
            self.upstream.release(answer)
        if self.on_end is not None and self.endpoint is not None:
            self.on_end(self, error)
            self.endpoint = None

    def finish(self, error: BaseException | None = None) -> None:
        """The exchange is over."""
        if not self.done:
            self.done = True
            self._sweep.remove(self)
            watcher, self.watcher = self.watcher, None
            if watcher is not None:
                watcher.cancel()
            self.let_go(error)
