"""One request on its way through the balancer: what is sent, where it has got to, and how it is called off.

An exchange runs in the task of its caller. Whoever else ends it (a deadline, the client leaving, its own upload) says
why with `interrupt()`; that cancels the task the way `asyncio.timeout` does, and leaving the `with` block turns the
cancellation into the reason. A cancellation from outside stays a cancellation.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from asgi_enhance.asgi.types import Headers
from asgi_enhance.balance.backend import Endpoint
from asgi_enhance.balance.body import Body
from asgi_enhance.balance.failure import ClientGone, GoingAway, Rejected, UpstreamFailure
from asgi_enhance.balance.headers import RequestHead

if TYPE_CHECKING:
    from asgi_enhance.balance.runtime import Runtime

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

    def close_idle(self) -> None: ...

    async def aclose(self) -> None: ...


class Exchange:
    """A request, its deadlines and, once there is one, its answer."""

    __slots__ = (
        "_cancelling",
        "_deadline",
        "_task",
        "answer",
        "body",
        "done",
        "endpoint",
        "head",
        "idle",
        "key",
        "limit",
        "method",
        "on_interim",
        "path",
        "patience",
        "query",
        "reason",
        "runtime",
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
        runtime: "Runtime",
        method: str,
        path: bytes,
        query: bytes,
        head: RequestHead,
        body: Body,
        key: bytes,
        sticky: str | None,
        idle: float,
        limit: float,
        *,
        websocket: bool = False,
        subprotocols: Sequence[str] = (),
    ) -> None:
        self.runtime = runtime
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
        self.patience = idle
        self._deadline: float | None = None
        self.reason: Exception | None = None
        self.endpoint: Endpoint | None = None
        self.upstream: Upstream | None = None
        self.answer: Answer | None = None
        self.upload: asyncio.Task[None] | None = None
        self.watcher: asyncio.Task[None] | None = None
        self.on_interim: Callable[[int, Headers], Awaitable[None]] | None = None
        self.sending = False  # the client is waited for, not the backend
        self.done = False

    def __enter__(self) -> Self:
        if self.reason is not None:
            raise self.reason  # called off while it was detached
        runtime = self.runtime
        task = asyncio.current_task(runtime.loop)
        assert task is not None, "an exchange runs in a task"
        self._task = task
        self._cancelling = task.cancelling()
        runtime.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if task is None:
            return  # detached
        self.finish(self.reason or error)
        if self.reason is not None and task.uncancel() <= self._cancelling and kind is not None:
            raise self.reason from None

    def twin(self) -> "Exchange":
        """The same request once more, for a second backend. It has no body left to send and no deadline of its own."""
        return Exchange(
            self.runtime,
            self.method,
            self.path,
            self.query,
            self.head,
            self.body,
            self.key,
            self.sticky,
            self.idle,
            self.limit,
        )

    def swap(self, other: "Exchange") -> None:
        """Change places with the twin: backend for backend."""
        self.endpoint, other.endpoint = other.endpoint, self.endpoint
        self.upstream, other.upstream = other.upstream, self.upstream

    def detach(self) -> None:
        """Outlive the `with` block: from here on a response owns the exchange, and enters it again to be sent."""
        self.progress()
        self._task = None

    def interrupt(self, reason: Exception) -> None:
        """End the exchange for this reason, wherever it is waiting."""
        if self.reason is not None or self.done:
            return
        self.reason = reason
        if self._task is not None:
            self._task.cancel()
        else:
            self.finish(reason)

    def progress(self) -> None:
        """Something moved: the idle time begins anew."""
        self.patience = self.idle
        self._deadline = None

    def rewind(self) -> None:
        """Begin again. The backend that failed has had its own time; the next has all of it."""
        self.body.rewind()
        self.progress()

    def wait_until(self, seconds: float) -> None:
        """Something has to happen within so many seconds."""
        self.patience = seconds
        self._deadline = None

    def overdue(self, now: float) -> bool:
        """Whether what is waited for is late. Asked at every tick; time begins with the first that finds it missing.

        So that what comes sooner, as nearly everything does, costs no look at the clock.
        """
        if self._deadline is None:
            self._deadline = min(now + self.patience, self.limit)
        return self._deadline <= now

    def lateness(self) -> Exception:
        """What to say of it."""
        if self.body.reading and self.answer is None:
            return Rejected(408, "The request did not arrive in time.")
        if self.sending:
            return ClientGone("the client does not take the response")
        if self.answer is None:
            return UpstreamFailure("the backend did not answer in time", error="http_response_timeout")
        if self.websocket:
            return GoingAway("nothing crossed the WebSocket for too long")
        return UpstreamFailure("the response did not move in time", error="connection_read_timeout")

    def let_go(self, error: BaseException | None = None) -> None:
        """Give back connection and slot. Idempotent, synchronous: the one place where either is freed."""
        if self.upload is not None:
            self.upload.cancel()
            self.upload = None
        answer = self.answer
        if answer is not None and self.upstream is not None:
            self.answer = None
            self.upstream.release(answer)
        self.runtime.ended(self, error, answer)

    def finish(self, error: BaseException | None = None) -> None:
        """The exchange is over."""
        if not self.done:
            self.done = True
            self.runtime.remove(self)
            if self.watcher is not None:
                self.watcher.cancel()
                self.watcher = None
            if self.endpoint is not None or error is not None:
                self.let_go(error)
