"""The series themselves: what one set of labels has counted, and the table that finds the series of a request.

The hot path appends four numbers to a list (`RequestSeries.pending`) and no more. They are folded into sums, buckets
and sketch when the list is full, when a slot ends, or when somebody reads: in C, many at a time.
"""

from bisect import bisect_left
from contextlib import suppress
from time import time
from typing import Any

from asgi_enhance.asgi.scope import header
from asgi_enhance.asgi.types import Message, Scope
from asgi_enhance.metrics.policy import (
    CONNECTION_BUCKETS,
    DURATION_BUCKETS,
    METHODS,
    OTHER,
    RequestLabels,
    label_value,
    outcome,
    sampled_trace,
)
from asgi_enhance.metrics.route import HOOK, Routes
from asgi_enhance.metrics.sketch import Distribution
from asgi_enhance.metrics.window import Slot

FULL = 4 * 512
"""Numbers of a series that may be pending: 512 requests, folded in about a tenth of a millisecond."""

EXEMPLAR_AGE = 10.0
"""Seconds after which a bucket takes a newer exemplar."""

OVERFLOW = "<overflow>"


class RequestSeries:
    """The requests of one set of labels. `pending` holds first byte, duration, bytes in, bytes out of each in turn."""

    __slots__ = ("duration", "exemplars", "first_byte", "labels", "pending", "received", "sent")

    def __init__(self, labels: RequestLabels, buckets: tuple[float, ...]) -> None:
        self.labels = labels
        self.pending: list[float] = []
        self.duration = Distribution(CONNECTION_BUCKETS if labels.stream else buckets, sketched=not labels.stream)
        self.first_byte = Distribution(buckets)
        self.received = 0
        self.sent = 0
        self.exemplars: dict[int, Exemplar] = {}

    def exemplify(self, scope: Scope, seconds: float) -> None:
        """Keep the trace of this request as its bucket's exemplar, if it has one that was recorded."""
        place = bisect_left(self.duration.bounds, seconds)
        kept = self.exemplars.get(place)
        now = time()
        if kept is not None and now - kept.time < EXEMPLAR_AGE:
            return
        trace = sampled_trace(header(scope["headers"], b"traceparent"))
        if trace is not None:
            self.exemplars[place] = Exemplar(trace, seconds, now)

    def fold(self, slot: Slot) -> None:
        """Add up what is pending, here and in the slot of the time."""
        pending = self.pending
        if not pending:
            return
        durations = pending[1::4]
        count = len(durations)
        labels = self.labels
        received = int(sum(pending[2::4]))
        sent = 0 if labels.method == "HEAD" else int(sum(pending[3::4]))  # what an app says, its server sends no body
        self.received += received
        self.sent += sent
        slot.received += received
        slot.sent += sent
        self.first_byte.add(pending[0::4])
        indexes = self.duration.add(durations)
        pending.clear()
        seconds = 0.0 if labels.stream else sum(durations)
        slot.add((labels.method, labels.route), indexes, count, count if labels.failed else 0, seconds)


class Exemplar:
    """The trace of one observation in a bucket."""

    __slots__ = ("seconds", "time", "trace")

    def __init__(self, trace: str, seconds: float, time: float) -> None:
        self.trace = trace
        self.seconds = seconds
        self.time = time


class SocketSeries:
    """The WebSocket connections of one route."""

    __slots__ = (
        "accepted",
        "active",
        "bytes_received",
        "bytes_sent",
        "closed",
        "durations",
        "messages_received",
        "messages_sent",
        "refused",
        "route",
    )

    def __init__(self, route: str) -> None:
        self.route = route
        self.accepted = 0
        self.refused = 0
        self.active = 0
        self.messages_received = 0
        self.messages_sent = 0
        self.bytes_received = 0
        self.bytes_sent = 0
        self.closed: dict[str, int] = {}
        self.durations = Distribution(CONNECTION_BUCKETS)


class Table:
    """All series of the process, at most `limit` of them; what comes after that goes to a few overflow series.

    `bound` is the hot path: it maps what a scope shows at once (see `shown`), the method and the status to the series.
    Only keys that no client can invent are ever put into it.
    """

    def __init__(self, *, limit: int, buckets: tuple[float, ...] = DURATION_BUCKETS) -> None:
        self.bound: dict[tuple[Any, str, int], RequestSeries] = {}
        self.started = dict.fromkeys(METHODS, 0)
        self.requests: dict[RequestLabels, RequestSeries] = {}
        self.sockets: dict[str, SocketSeries] = {}
        self.exceptions: dict[tuple[str, str], int] = {}
        self.overflows = 0
        self.routes = Routes()
        self._limit = limit
        self.buckets = buckets

    def __len__(self) -> int:
        return len(self.requests) + len(self.sockets) + len(self.exceptions)

    def series(
        self,
        scope: Scope,
        method: str,
        head: Message | None,
        error: str = "",
        *,
        streamed: bool = False,
        app: Any = None,
    ) -> RequestSeries:
        """The series of a request that has been through the app; `head` is its http.response.start."""
        status = head["status"] if head else 0
        stream = streamed and head is not None and is_event_stream(head)
        route, exact = self.routes.name(scope, app)
        status_label, error_label = outcome(status, error)
        labels = RequestLabels(method, label_value(route), status_label, label_value(error_label), stream)
        series = self.requests.get(labels)
        if series is None:
            if len(self) >= self._limit:
                return self._overflow(labels)
            series = self.requests[labels] = RequestSeries(labels, self.buckets)
        if exact and status and not error and not streamed and len(self.bound) < self._limit:
            with suppress(TypeError):  # an endpoint that cannot be hashed takes this way every time
                self.bound[shown(scope), method, status] = series
        return series

    def socket(self, scope: Scope, app: Any = None) -> SocketSeries:
        """The series of a WebSocket that has been through the app's routing."""
        route = label_value(self.routes.name(scope, app)[0])
        series = self.sockets.get(route)
        if series is None:
            if len(self) >= self._limit:
                self.overflows += 1
                route = OVERFLOW
            series = self.sockets.setdefault(route, SocketSeries(route))
        return series

    def exception(self, scope: Scope, error: BaseException, app: Any = None) -> None:
        key = (label_value(self.routes.name(scope, app)[0]), label_value(type(error).__name__))
        if key not in self.exceptions and len(self) >= self._limit:
            self.overflows += 1
            key = (OVERFLOW, OTHER)
        self.exceptions[key] = self.exceptions.get(key, 0) + 1

    def active(self) -> dict[str, int]:
        """Requests in flight by method: those that have started less those that were counted at their end."""
        active = dict(self.started)
        for series in self.requests.values():
            active[series.labels.method] -= series.duration.count + len(series.pending) // 4
        return active

    def fold(self, slot: Slot) -> None:
        for series in self.requests.values():
            if series.pending:
                series.fold(slot)

    def _overflow(self, labels: RequestLabels) -> RequestSeries:
        """Method and class of status are kept, so that error rates stay true; there are at most 132 such series."""
        self.overflows += 1
        status = labels.status[:1] + "xx" if labels.status[:1] in "12345" else OTHER
        spilled = RequestLabels(labels.method, OVERFLOW, status, "", labels.stream)
        return self.requests.setdefault(spilled, RequestSeries(spilled, self.buckets))


def is_event_stream(head: Message) -> bool:
    kind = header(head.get("headers") or (), b"content-type")
    return kind is not None and kind.lstrip().lower().startswith(b"text/event-stream")


def shown(scope: Scope) -> Any:
    """What the scope shows of the route at once: its endpoint, its template, or nothing."""
    return scope.get("endpoint") or scope.get("path_template") or scope.get(HOOK)
