"""Holds all that is counted, pulls what other cores count, and adds it up for whoever asks."""

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from time import perf_counter, time
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from asgi_enhance.asgi.lifespan import Resource
from asgi_enhance.asgi.process import CpuMeter, Limits, LoopLag, resident_bytes
from asgi_enhance.asgi.tasks import Tasks
from asgi_enhance.asgi.types import Message, Scope
from asgi_enhance.errors import ConfigError
from asgi_enhance.metrics.policy import DURATION_BUCKETS
from asgi_enhance.metrics.series import FULL, RequestSeries, SocketSeries, Table
from asgi_enhance.metrics.snapshot import snapshot
from asgi_enhance.metrics.stats import Row, Source
from asgi_enhance.metrics.window import Ring, Slot

logger = logging.getLogger("asgi_enhance.metrics")


@dataclass(slots=True)
class Totals:
    """Everything there is to show, of one process or of several added up."""

    began: float
    workers: int = 1
    active: dict[str, int] = field(default_factory=dict)
    requests: list[RequestSeries] = field(default_factory=list)
    sockets: list[SocketSeries] = field(default_factory=list)
    exceptions: dict[tuple[str, str], int] = field(default_factory=dict)
    slots: list[Slot] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    watched: dict[str, dict[str, Any]] = field(default_factory=dict)


class MetricsCollector(Resource[Tasks]):
    """Counts requests and connections, and reads the counters of other cores when it is asked.

    registry:   a prometheus_client registry with the user's own metrics, exported along. Default: its global one.
    max_series: series of this process' requests and WebSockets; more are counted under `<overflow>`. Default: 1000.
    buckets:    upper bounds of the classic duration buckets, seconds, rising. Default: OpenTelemetry's advice.
    exemplars:  keep the trace id of W3C `traceparent` for one request a bucket. Default: False.
    """

    def __init__(
        self,
        *,
        registry: CollectorRegistry | None = REGISTRY,
        max_series: int = 1000,
        buckets: Iterable[float] = DURATION_BUCKETS,
        exemplars: bool = False,
    ) -> None:
        super().__init__()
        bounds = tuple(float(bound) for bound in buckets)
        if not bounds or list(bounds) != sorted(set(bounds)) or bounds[0] <= 0:
            raise ConfigError(f"buckets must be positive seconds in rising order, not {bounds!r}")
        if max_series < 1:
            raise ConfigError(f"max_series must be at least 1, not {max_series!r}")
        self.table = Table(limit=max_series, buckets=bounds)
        self.exemplars = exemplars
        self.turn_at = 0.0
        """When (perf_counter) the slot of the time ends, and pending numbers have to be folded into it."""
        self.errors = 0
        """Failures of the metrics themselves; requests went on."""
        self.began = time()
        self.cpu = CpuMeter()
        self.lag = LoopLag()
        self._limits: Limits | None = None
        self._ring = Ring(self.began)
        self._sources: dict[str, Source] = {}
        self._registry = _readable(registry)

    def watch(self, name: str, stats: Any, *, label: str | None = None) -> None:
        """Export what another core counts as `asgi_enhance_{name}_{field}`; see `asgi_enhance.metrics.stats`.

        stats: an object with numbers as attributes, a mapping, or a callable that gives one of these. Attributes named
               in its class' `GAUGES` go up and down; the others only up.
        label: the stats are a mapping from this label's values to such objects.
        """
        known = self._sources.get(name)
        if known is not None and known.stats is not stats:
            raise ConfigError(f"name: {name!r} is watched already")
        self._sources[name] = Source(name, stats, label)

    async def get_metrics(self) -> dict[str, Any]:
        """All metrics as plain data: rates, percentiles by window, endpoints, watched stats, saturation."""
        return snapshot(self.totals(), time())

    def totals(self) -> Totals:
        """What this process has counted, up to now."""
        self._turn()
        return Totals(
            began=self.began,
            active=self.table.active(),
            requests=list(self.table.requests.values()),
            sockets=list(self.table.sockets.values()),
            exceptions=self.table.exceptions,
            slots=list(self._ring.slots),
            rows=[*self._watched_rows(), *self._own_rows()],
            watched=self._watched(),
        )

    @property
    def registry(self) -> CollectorRegistry | None:
        """Where the user's own metrics are read from."""
        return self._registry

    # What the layer calls.

    async def turn(self) -> None:
        """A slot of the time has ended, or nothing has begun yet."""
        self._turn()
        try:
            await self.started()
        except Exception:
            self.failed()

    def fold(self, series: RequestSeries) -> None:
        series.fold(self._ring.current)

    def socket(self, scope: Scope) -> SocketSeries:
        return self.table.socket(scope)

    def raised(self, scope: Scope, error: BaseException) -> None:
        """The app raised, before or after its response."""
        try:
            self.table.exception(scope, error)
        except Exception:
            self.failed()

    def count(
        self,
        scope: Scope,
        method: str,
        head: Message | None,
        error: str,
        numbers: tuple[float, ...],
        *,
        streamed: bool = False,
    ) -> None:
        """One request that has ended: first byte, duration, bytes in and out; `head` is its http.response.start."""
        try:
            series = self.table.series(scope, method, head, error, streamed=streamed)
            series.pending += numbers
            if len(series.pending) >= FULL:
                self.fold(series)
            if self.exemplars:
                series.exemplify(scope, numbers[1])
        except Exception:
            self.failed()

    def failed(self) -> None:
        """Something of our own went wrong, in an `except` clause: the request goes on."""
        self.errors += 1
        if self.errors == 1:
            logger.exception("metrics failed to count a request; further failures are only counted")

    # The inside.

    async def _start(self) -> Tasks:
        self._limits = Limits()
        tasks = Tasks()
        tasks.spawn(self.lag.run(), name="asgi_enhance.metrics.lag")
        return tasks

    async def _stop(self, value: Tasks) -> None:
        await value.cancel()

    def _turn(self) -> None:
        self.table.fold(self._ring.current)
        self.cpu.cores()
        self.turn_at = perf_counter() + self._ring.turn(time())

    def _watched(self) -> dict[str, dict[str, Any]]:
        found = {}
        for source in self._sources.values():
            try:
                found[source.name] = source.read()
            except Exception:
                self.failed()
        return found

    def _watched_rows(self) -> Iterator[Row]:
        for source in self._sources.values():
            try:
                yield from [*source.rows()]
            except Exception:
                self.failed()

    def _own_rows(self) -> Iterator[Row]:
        table = self.table
        yield _own("metrics_series", "gauge", "Series of requests and WebSockets held.", len(table))
        yield _own("metrics_overflows_total", "counter", "Observations past the cap on series.", table.overflows)
        yield _own("metrics_errors_total", "counter", "Failures of the metrics themselves.", self.errors)
        limits = self._limits = self._limits or Limits()
        yield _own("process_cpu_cores", "gauge", "Cores in use, mean of some seconds.", self.cpu.cores())
        yield _own("process_cpu_limit_cores", "gauge", "Cores that may be used.", limits.cpu_cores)
        yield _own("process_memory_bytes", "gauge", "Resident memory.", resident_bytes())
        yield _own("process_memory_limit_bytes", "gauge", "Memory that may be used.", limits.memory_bytes)
        yield _own("event_loop_lag_seconds", "gauge", "Worst lag of the loop in 10 s.", self.lag.worst)


def _own(name: str, kind: str, text: str, value: float) -> Row:
    return Row(f"asgi_enhance_{name}", kind, text, (), float(value))


def _readable(registry: CollectorRegistry | None) -> CollectorRegistry | None:
    """Under prometheus_client's multiprocess mode a registry only knows its own process: its directory knows all."""
    if registry is None or "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return registry
    merged = CollectorRegistry()
    MultiProcessCollector(merged)  # type: ignore[no-untyped-call]
    return merged
