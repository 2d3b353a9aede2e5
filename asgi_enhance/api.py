"""`EnhancedAPI`: the five capabilities as one thing, for who wants them all.

    api = EnhancedAPI(redis_url="redis://localhost:6379")
    await api.initialize(["http://10.0.0.1:8000", "http://10.0.0.2:8000"])
    response = await api.handle_request(request)

It only composes: each core is there under its own name, to be used or replaced by a layer of one's own.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from asgi_enhance.asgi.address import ClientAddress
from asgi_enhance.asgi.lifespan import Lifespan, Resource
from asgi_enhance.asgi.response import response_of
from asgi_enhance.asgi.types import ASGIApp, Receive, Scope, Send
from asgi_enhance.balance import LoadBalanceApp, LoadBalancer
from asgi_enhance.balance.headers import Forwarding
from asgi_enhance.broadcast import BroadcastRouter, RealTimeStreamProcessor
from asgi_enhance.broadcast.core import WebSocketLike
from asgi_enhance.cache import CacheMiddleware, CacheRule, MemoryCache, RedisCache
from asgi_enhance.errors import ConfigError
from asgi_enhance.metrics import MetricsCollector, MetricsMiddleware
from asgi_enhance.options import checked
from asgi_enhance.ratelimit import RateLimiter, RateLimitMiddleware, Rule
from asgi_enhance.redis import RedisManager
from asgi_enhance.settings import Settings

COUNTED = "asgi_enhance.counted"
"""Scope key: the collector that counts this request already, so that nobody counts it twice."""

WRAPPED = "asgi_enhance.wrapped"
"""Scope key: the `EnhancedAPI` whose layers this request has been through, so that none is asked twice."""


@checked
class EnhancedAPI(Resource["EnhancedAPI"]):
    """All cores, sharing one Redis, and the layers in the recommended order.

    redis_url: a URL for all cores. Default: the settings'; without one, everything works in this process.
    settings:  a `Settings`. Default: the environment's.

    Attributes: `redis` (a `RedisManager`, or None), `cache`, `rate_limiter`, `load_balancer`, `stream_processor`,
    `metrics_collector`.
    """

    def __init__(self, redis_url: str | None = None, *, settings: Settings | None = None) -> None:
        super().__init__()
        self.settings = settings or Settings.from_env()
        url = redis_url or self.settings.redis_url
        limit = {"requests": self.settings.rate_limit, "window": self.settings.rate_limit_window}
        self.redis = RedisManager(url, prefix=self.settings.prefix) if url else None
        self.cache: MemoryCache | RedisCache = (
            MemoryCache(ttl=self.settings.cache_ttl)
            if self.redis is None
            else RedisCache(redis=self.redis, ttl=self.settings.cache_ttl)
        )
        self.rate_limiter = RateLimiter({"default": limit}, redis=self.redis)
        self.load_balancer = LoadBalancer(
            self.settings.backends, forwarding=Forwarding(trusted=self.settings.trusted_proxies)
        )
        self.stream_processor = RealTimeStreamProcessor(redis=self.redis)
        self.metrics_collector = MetricsCollector(redis=self.redis)
        for name, core in self._cores().items():
            self.metrics_collector.watch(name, core.stats)
        self.metrics_collector.watch(
            "backend",
            self.load_balancer.report,
            label="backend",
            gauges=("in_flight",),
            averaged=("weight", "priority", "latency"),
        )
        started_later = self.load_balancer
        self.needs = (*(core for core in self._cores().values() if core is not started_later), self.metrics_collector)
        self._client = ClientAddress(self.settings.trusted_proxies)
        self._backends = LoadBalanceApp(balancer=self.load_balancer)
        self._gateway = self._limit(CacheMiddleware(self._backends, cache=self.cache), ())
        self._counted_gateway = MetricsMiddleware(self._gateway, collector=self.metrics_collector, path=None)

    def _cores(self) -> dict[str, Any]:
        """What counts, by the name its numbers are shown under."""
        cores = {
            "cache": self.cache,
            "ratelimit": self.rate_limiter,
            "balance": self.load_balancer,
            "broadcast": self.stream_processor,
        }
        return cores if self.redis is None else {**cores, "redis": self.redis}

    async def initialize(self, backend_urls: Iterable[str] | str = ()) -> None:
        """Start everything; `backend_urls` (one string: separated by commas) join the backends of the settings."""
        if isinstance(backend_urls, str):
            backend_urls = [url.strip() for url in backend_urls.split(",") if url.strip()]
        for url in backend_urls:
            if url.startswith("dns+"):
                raise ConfigError(f"backend_urls: {url!r} is a name to be followed: give it to the settings' backends")
            self.load_balancer.add_backend(url)
        await self.started()
        await self._balance()

    async def shutdown(self) -> None:
        """Stop everything that `initialize`, or the first use, started. Idempotent."""
        await self.aclose()

    async def handle_request(self, request: Request) -> Response:
        """A request's way through rate limit, cache and balancer, counted: the response, whose body streams.

        What `wrap` has done for the request already is not done again. If the client leaves before there is a
        response it is an empty 499, as nginx calls it, for nobody to see.
        """
        if request.scope.get(WRAPPED) is self:
            return await response_of(self._backends, request)
        counted = request.scope.get(COUNTED) is self.metrics_collector
        return await response_of(self._gateway if counted else self._counted_gateway, request)

    async def add_websocket_connection(
        self, client_id: str, websocket: WebSocketLike, groups: Iterable[str] = ()
    ) -> None:
        """Serve an accepted WebSocket until its client leaves; see `RealTimeStreamProcessor.add_connection`."""
        await self.stream_processor.add_connection(client_id, websocket, groups)

    async def broadcast_event(self, event: str, data: Any, group: str | None = None) -> None:
        """Send `{"event": …, "data": …}` to a group, or to everyone."""
        message = {"event": event, "data": data}
        if group is None:
            await self.stream_processor.broadcast_all(message)
        else:
            await self.stream_processor.broadcast_to_group(group, message)

    def get_metrics(self) -> dict[str, Any]:
        """What this process has counted; for all that share Redis, `await api.metrics_collector.get_metrics()`."""
        return self.metrics_collector.get_process_metrics()

    def wrap(
        self,
        app: ASGIApp,
        *,
        rules: Sequence[Rule] = (),
        cache_rules: Sequence[CacheRule] = (),
        websocket_path: str | None = None,
        sse_path: str | None = None,
        metrics_path: str | None = "/metrics",
        dashboard: bool = False,
    ) -> ASGIApp:
        """`app` inside metrics, rate limit, broadcaster and cache, from the outside in; starts and stops with it.

        rules:          further rate limits; the settings' limit for each client always applies.
        cache_rules:    for responses without Cache-Control.
        websocket_path: where the broadcaster takes WebSockets, e.g. `/ws/{client_id}`. Default: nowhere.
        sse_path:       where it serves event streams, likewise. Default: nowhere.
        metrics_path:   where the metrics are served; None: nowhere.
        dashboard:      serve the live page at `{metrics_path}/dashboard`. Default: False.
        """
        app = CacheMiddleware(app, cache=self.cache, rules=cache_rules)
        if websocket_path is not None or sse_path is not None:
            app = BroadcastRouter(app, processor=self.stream_processor, path=websocket_path, sse_path=sse_path)
        app = self._limit(app, rules)
        outermost = EnhancedAPIMiddleware(
            app, metrics_collector=self.metrics_collector, path=metrics_path, dashboard=dashboard
        )
        outermost.marks[WRAPPED] = self
        return Lifespan(outermost, self)

    def _limit(self, app: ASGIApp, rules: Sequence[Rule]) -> ASGIApp:
        return RateLimitMiddleware(app, rules, limiter=self.rate_limiter, client=self._client)

    async def _start(self) -> "EnhancedAPI":
        await self._balance()
        return self

    async def _stop(self, value: "EnhancedAPI") -> None:
        await self.load_balancer.aclose()

    async def _balance(self) -> None:
        """Start the balancer, unless it has nobody to balance to: who only wraps an app is not to hear of that."""
        if self.settings.backends or self.load_balancer.report():
            await self.load_balancer.started()


@checked
class EnhancedAPIMiddleware(MetricsMiddleware):
    """Counts requests into an `EnhancedAPI`'s collector, once, whoever else is asked to: another of these, as `wrap`
    puts one round the app, or `handle_request`.

    metrics_collector: `api.metrics_collector`. Default: a collector of its own.
    path:              where to serve the metrics; None serves nothing. Default: `/metrics`.
    dashboard:         serve the live page at `{path}/dashboard`. Default: False.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics_collector: MetricsCollector | None = None,
        path: str | None = "/metrics",
        dashboard: bool = False,
    ) -> None:
        super().__init__(app, collector=metrics_collector, path=path, dashboard=dashboard)
        self.marks: dict[str, Any] = {COUNTED: self.collector}
        """What goes into each scope."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if scope.get(COUNTED) is self.collector:  # by another of these, further out
                await self.app(scope, receive, send)
                return
            scope = {**scope, **self.marks}
        await super().__call__(scope, receive, send)
