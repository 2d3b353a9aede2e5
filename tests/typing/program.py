"""A program that uses every public name as its users do: not run, but checked by `make check`, and against a wheel."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, assert_type

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from asgi_enhance import (
    Backend,
    BackendError,
    BroadcastRouter,
    CacheError,
    CacheMiddleware,
    CacheRule,
    ClientAddress,
    ConfigError,
    EnhancedAPI,
    EnhancedAPIMiddleware,
    EnhanceError,
    HealthApp,
    HealthMiddleware,
    Lifespan,
    LoadBalanceApp,
    LoadBalancer,
    LoadBalancerError,
    MemoryCache,
    MetricsCollector,
    MetricsMiddleware,
    Problem,
    RateLimiter,
    RateLimitError,
    RateLimitMiddleware,
    RealTimeStreamProcessor,
    RedisCache,
    RedisManager,
    RedisUnavailable,
    Rule,
    Settings,
    TieredCache,
    WebSocketError,
    cached,
)
from asgi_enhance.balance import Ejection, Forwarding, HealthCheck, Hedge, Limits, Retries, Sticky, Timeouts
from asgi_enhance.broadcast import History
from asgi_enhance.health import Check, Result, Status, checks
from asgi_enhance.ratelimit import Ban, Decision

settings = Settings.from_env()
api = EnhancedAPI(settings.redis_url, settings=settings)
redis = RedisManager("redis://127.0.0.1:6379", prefix="shop")
memory = MemoryCache(ttl=60)
tiered = TieredCache(redis)
shared = RedisCache(redis)
limiter = RateLimiter({"default": "100/minute", "login": {"requests": 5, "window": 60}}, redis=redis)
processor = RealTimeStreamProcessor(redis=redis, history={"room:*": History(size=10)})
collector = MetricsCollector(redis=redis)
balancer = LoadBalancer(
    [Backend("http://10.0.0.1:8000", weight=2), "http://10.0.0.2:8000"],
    timeouts=Timeouts(connect=0.5),
    limits=Limits(max_queue=10),
    retries=Retries(attempts=2),
    ejection=Ejection(consecutive=3),
    health=HealthCheck(path="/readyz"),
    hedge=Hedge(),
    sticky=Sticky(b"sixteen bytes or more"),
    forwarding=Forwarding(trusted=["10.0.0.0/8"]),
)


@cached(ttl=60, cache=memory)
async def price(article: int) -> float:
    return 3.0 * article


async def ready() -> Result:
    return Result(Status.PASS)


async def page(request: Request) -> Response:
    assert_type(await price(7), float)
    await shared.set("key", "value", ttl=300, tags=["things"])
    value: str | None = await shared.get("key", as_type=str)
    assert_type(await memory.exists("key"), bool)
    await tiered.purge(tags=[value or "things"])
    assert_type(await limiter.is_allowed("ada", endpoint_type="login"), bool)
    assert_type(await limiter.get_remaining_requests("ada", "login"), int)
    assert_type(await limiter.hit("ada"), Decision)
    await processor.broadcast_to_group("room:1", {"n": 1})
    assert_type(await processor.send_to_client("ada", "hello"), bool)
    collector.watch("cache", memory.stats)
    assert_type(await balancer.get_backend_url(), str)
    try:
        return await balancer.forward_request(request)
    except (LoadBalancerError, BackendError):
        return JSONResponse({}, 502)
    except (CacheError, RateLimitError, RedisUnavailable, WebSocketError, ConfigError) as error:
        known: EnhanceError = error
        return JSONResponse({"error": str(known)}, 500)


async def gateway(request: Request) -> Response:
    return await api.handle_request(request)


async def socket(websocket: WebSocket) -> None:
    await websocket.accept()
    await api.add_websocket_connection("ada", websocket, groups=["room:1"])


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    await api.initialize(["http://10.0.0.1:8000"])
    await api.broadcast_event("started", {}, group="room:1")
    numbers: dict[str, Any] = api.get_metrics()
    assert_type(await redis.ping(), float)
    yield
    await api.shutdown()
    del numbers


site = Starlette(
    routes=[
        Route("/page", page),
        Route("/gateway/{path:path}", gateway),
        WebSocketRoute("/ws", socket),
        Mount("/orders", LoadBalanceApp(balancer=balancer)),
        Mount("/health", HealthApp(checks=[checks.redis(redis), Check(ready, name="mine", critical=True)])),
        Mount("/gone", Problem(410)),
    ],
    middleware=[
        Middleware(EnhancedAPIMiddleware, metrics_collector=api.metrics_collector),
        Middleware(CacheMiddleware, cache=tiered, rules=[CacheRule("/page", ttl=60)]),
    ],
    lifespan=lifespan,
)
site.add_middleware(HealthMiddleware, redis=redis)
limited = RateLimitMiddleware(
    BroadcastRouter(site, processor=processor),
    [Rule("5/minute", name="login", path="/login", ban=Ban(after=10))],
    limiter=limiter,
    client=ClientAddress(hops=1),
)
app = Lifespan(MetricsMiddleware(api.wrap(limited), collector=collector), redis, balancer)
