"""Why a request could not be served: each failure knows its status, its RFC 9209 name and if it is safe to retry."""

from starlette.requests import ClientDisconnect

from asgi_enhance.asgi.problem import Problem
from asgi_enhance.asgi.types import Headers
from asgi_enhance.errors import BackendError, LoadBalancerError

_GATEWAY_TIMEOUTS = frozenset(
    {"connection_timeout", "connection_read_timeout", "connection_write_timeout", "http_response_timeout"}
)


class UpstreamFailure(BackendError):
    """One attempt at one backend failed.

    error:  the `Proxy-Status` error type of RFC 9209, section 2.3.
    unsent: no byte of the request was handed to a connection, so that any method may be tried elsewhere.
    stale:  a kept-alive connection was closed before it answered a byte: the backend's idle timer, not a fault.
    backend: the name of the backend, once it is known. For logs: no client is told.
    """

    def __init__(self, message: str, *, error: str, unsent: bool = False, stale: bool = False) -> None:
        super().__init__(message)
        self.error = error
        self.unsent = unsent
        self.stale = stale
        self.backend = ""

    def __str__(self) -> str:
        text = super().__str__()
        return f"{self.backend}: {text}" if self.backend else text

    @property
    def blameless(self) -> bool:
        """Nothing the backend did: its idle timer closed the connection, or ours ended a stream that was quiet."""
        return self.stale or self.error == "connection_read_timeout"

    @property
    def status(self) -> int:
        return 504 if self.error in _GATEWAY_TIMEOUTS else 502


class Unavailable(LoadBalancerError):
    """No backend can take the request now: none is available, or all are busy and the queue is full or too slow."""

    status = 503

    def __init__(self, message: str, *, error: str = "destination_unavailable", retry_after: int = 1) -> None:
        super().__init__(message)
        self.error = error
        self.retry_after = retry_after


class Rejected(LoadBalancerError):
    """The request is not one to forward; no backend has seen more of it than one well-formed beginning."""

    def __init__(self, status: int, detail: str, *, error: str = "http_request_error") -> None:
        super().__init__(detail)
        self.status = status
        self.error = error


class ClientGone(LoadBalancerError, ClientDisconnect):
    """The client has left; there is nobody to answer and no backend to blame. What Starlette calls it, too."""


class GoingAway(LoadBalancerError):
    """A WebSocket ends by nobody's fault: its backend is being taken out, the balancer is, or nothing crosses it."""


def problem(error: Rejected | Unavailable | UpstreamFailure, proxy_status: str | None = None) -> Problem:
    """The problem response for a failure. It names no backend and quotes no exception of the inside."""
    headers: Headers = []
    status = error.status
    detail = str(error) if isinstance(error, Rejected) else ""
    if isinstance(error, Unavailable):
        headers.append((b"retry-after", b"%d" % error.retry_after))
    if proxy_status:
        headers.append((b"proxy-status", f"{proxy_status}; error={error.error}".encode("latin-1")))
    if status == 405:
        headers.append((b"allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"))
    return Problem(status, detail=detail, headers=tuple(headers))
