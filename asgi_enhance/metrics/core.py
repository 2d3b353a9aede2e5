"""Holds all that is counted, pulls what other cores count, and adds it up for whoever asks."""

import asyncio
import logging
import os
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from time import perf_counter, time
from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from asgi_enhance.asgi.lifespan import Resource
from asgi_enhance.asgi.process import CpuMeter, Limits, LoopLag, resident_bytes
from asgi_enhance.asgi.tasks import Tasks
from asgi_enhance.asgi.types import Message, Scope
from asgi_enhance.errors import ConfigError, RedisUnavailable
from asgi_enhance.metrics.policy import DURATION_BUCKETS
from asgi_enhance.metrics.route import UNMATCHED
from asgi_enhance.metrics.series import FULL, RequestSeries, SocketSeries, Table
from asgi_enhance.metrics.share import DirectoryShare, RedisShare, Share
from asgi_enhance.metrics.slices import at_once, in_slices, slowly
from asgi_enhance.metrics.snapshot import MEMBERS, snapshot
from asgi_enhance.metrics.stats import Row, Source
from asgi_enhance.metrics.totals import Totals
from asgi_enhance.metrics.window import Ring, Slot
from asgi_enhance.options import checked

if TYPE_CHECKING:
    from asgi_enhance.redis import RedisManager

logger = logging.getLogger("asgi_enhance.metrics")


@checked
class MetricsCollector(Resource[Tasks]):
    """Counts requests and connections, and reads the counters of other cores when it is asked.

    redis:      a RedisManager or URL through which workers add up what they count. Default: each for itself, unless
                PROMETHEUS_MULTIPROC_DIR names a directory to do so.
    interval:   seconds between two shipments to the other workers. Default: 5.
    registry:   a prometheus_client registry with the user's own metrics, exported along. Default: its global one.
    max_series: series of this process' requests and WebSockets; more are counted under `<overflow>`. Default: 1000.
    buckets:    upper bounds of the classic duration buckets, seconds, rising. Default: OpenTelemetry's advice.
    exemplars:  keep the trace id of W3C `traceparent` for one request a bucket. Default: False.
    """

    def __init__(
        self,
        *,
        redis: "RedisManager | str | None" = None,
        interval: float = 5.0,
        registry: CollectorRegistry | None = REGISTRY,
        max_series: int = 1000,
        buckets: Iterable[float] = DURATION_BUCKETS,
        exemplars: bool = False,
    ) -> None:
        super().__init__()
        if not interval > 0:
            raise ConfigError(f"interval must be a positive number of seconds, not {interval!r}")
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
        self._interval = interval
        self._redis = _manager(redis)
        self.needs = (self._redis,)
        self._ping = 0.0
        self._share = _share(self._redis, interval, repr(bounds))

    def watch(
        self,
        name: str,
        stats: Any,
        *,
        label: str | None = None,
        gauges: Iterable[str] = (),
        averaged: Iterable[str] = (),
    ) -> None:
        """Export what another core counts as `asgi_enhance_{name}_{field}`; see `asgi_enhance.metrics.stats`.

        stats:  an object with numbers as attributes, a mapping, or a callable that gives one of these.
        label:  the stats are a mapping from this label's values to such objects.
        gauges: fields that go up and down, like those the object's class names in `GAUGES`; the others only go up.
        averaged: gauges of which several workers' values make no sum (a latency, a weight) but a mean.
        """
        if name in MEMBERS:
            raise ConfigError(f"name: {name!r} is a member of every snapshot")
        known = self._sources.get(name)
        if known is not None and known.stats is not stats:
            raise ConfigError(f"name: {name!r} is watched already")
        self._sources[name] = Source(name, stats, label, gauges, averaged)

    async def get_metrics(self, *, scope: str = "all") -> dict[str, Any]:
        """All metrics as plain data: rates, percentiles by window, endpoints, watched stats, saturation.

        `scope` is "all" for all workers that share, or "process" for this one.
        """
        return await self.snapshot(await self.gather(scope))

    def get_process_metrics(self) -> dict[str, Any]:
        """The same of this process alone, at once: for code that cannot wait."""
        return at_once(self._snapshot(self.totals()))

    async def snapshot(self, totals: Totals) -> dict[str, Any]:
        """Totals as plain data."""
        return await in_slices(self._snapshot(totals))

    def _snapshot(self, totals: Totals) -> Generator[None, None, dict[str, Any]]:
        return snapshot(totals, time(), self._sources)

    async def gather(self, scope: str = "all") -> Totals:
        """What all workers have counted; what this one has, if it stands alone or cannot reach the others."""
        await self._fold(self._ring.current)
        local = self.totals()
        if self._share is None or scope == "process":
            return local
        try:
            totals = await self._share.gather(local, self.table.buckets)
        except (RedisUnavailable, OSError):
            return local
        except Exception:
            self.failed()
            return local
        for series in totals.requests:  # traces are not shipped: whoever answers shows his own
            mine = self.table.requests.get(series.labels)
            if mine is not None:
                series.exemplars = mine.exemplars
        return totals

    def totals(self) -> Totals:
        """What this process has counted, up to now."""
        self.table.fold(self._ring.current)
        self._begin_slot()
        return Totals(
            began=self.began,
            workers=1,
            active=self.table.active(),
            requests=list(self.table.requests.values()),
            sockets=list(self.table.sockets.values()),
            exceptions=self.table.exceptions,
            slots=list(self._ring.slots),
            rows=[*self._watched_rows(), *self._own_rows()],
        )

    @property
    def registry(self) -> CollectorRegistry | None:
        """Where the user's own metrics are read from."""
        return self._registry

    # What the layer calls.

    async def turn(self) -> None:
        """A slot of the time has ended, or nothing has begun yet."""
        try:
            slot = self._ring.current
            self._begin_slot()
            await self.started()
            await self._fold(slot)
        except Exception:
            self.failed()

    def fold(self, series: RequestSeries) -> None:
        series.fold(self._ring.current)

    def socket(self, scope: Scope, app: Any = None) -> SocketSeries:
        """The series of a WebSocket's route."""
        try:
            return self.table.socket(scope, app)
        except Exception:
            self.failed()
            return SocketSeries(UNMATCHED)  # counted nowhere, but the connection goes on

    def raised(self, scope: Scope, error: BaseException, app: Any = None) -> None:
        """The app raised, before or after its response."""
        try:
            self.table.exception(scope, error, app)
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
        app: Any = None,
    ) -> None:
        """One request that has ended: first byte, duration, bytes in and out; `head` is its http.response.start."""
        try:
            series = self.table.series(scope, method, head, error, streamed=streamed, app=app)
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
            logger.exception("the metrics failed; further failures are only counted")

    # The inside.

    async def _start(self) -> Tasks:
        self._limits = Limits()
        tasks = Tasks()
        tasks.spawn(self.lag.run(), name="asgi_enhance.metrics.lag")
        if self._share is not None:
            tasks.spawn(self._ship(self._share), name="asgi_enhance.metrics.ship")
        return tasks

    async def _stop(self, value: Tasks) -> None:
        await value.cancel()
        try:
            if self._share is not None:
                await self._share.leave(self.totals())
        except Exception:  # what could not be shipped is lost, and nobody is kept from stopping by it
            self.failed()

    async def _ship(self, share: Share) -> None:
        while True:
            try:
                await self._fold(self._ring.current)
                await share.ship(self.totals())
                if self._redis is not None:
                    self._ping = await self._redis.ping()
            except (RedisUnavailable, OSError):
                pass  # the differences grow until there is somebody to take them
            except Exception:
                self.failed()
            await asyncio.sleep(self._interval)

    def _begin_slot(self) -> None:
        self.cpu.cores()
        self.turn_at = perf_counter() + self._ring.turn(time())

    async def _fold(self, slot: Slot) -> None:
        """Add up what is pending, with turns for other tasks in between."""
        async for series in slowly(list(self.table.requests.values())):
            series.fold(slot)

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
        if self._redis is not None:
            state = "available" if self._redis.available else "unavailable"
            name, text = "asgi_enhance_redis_state", "Whether the breaker lets commands through."
            yield Row(name, "gauge", text, (("state", state),), 1, "redis", "state")
            yield _own("redis_ping_seconds", "gauge", "Round trip of the last PING.", self._ping)


def _manager(redis: "RedisManager | str | None") -> "RedisManager | None":
    if redis is None:
        return None
    from asgi_enhance.redis import RedisManager

    return RedisManager.of(redis)


def _share(redis: "RedisManager | None", interval: float, fingerprint: str) -> Share | None:
    if redis is not None:
        return RedisShare(redis, interval=interval, fingerprint=fingerprint)
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return DirectoryShare(Path(directory), fingerprint=fingerprint) if directory else None


def _own(name: str, kind: str, text: str, value: float) -> Row:
    return Row(f"asgi_enhance_{name}", kind, text, (), float(value))


def _readable(registry: CollectorRegistry | None) -> CollectorRegistry | None:
    """Under prometheus_client's multiprocess mode a registry only knows its own process: its directory knows all."""
    if registry is None or "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return registry
    merged = CollectorRegistry()
    MultiProcessCollector(merged)  # type: ignore[no-untyped-call]
    return merged
