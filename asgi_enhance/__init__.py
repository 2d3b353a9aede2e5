"""ASGI layers for applications in production: cache, rate limit, load balance, broadcast, metrics.

Names are imported when they are first touched, so that nobody pays for a capability he does not use.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "EnhancedAPI": "api",
    "EnhancedAPIMiddleware": "api",
    "Settings": "settings",
    "ClientAddress": "asgi.address",
    "Lifespan": "asgi.lifespan",
    "Problem": "asgi.problem",
    "RedisManager": "redis",
    "CacheMiddleware": "cache",
    "CacheRule": "cache",
    "MemoryCache": "cache",
    "RedisCache": "cache",
    "TieredCache": "cache",
    "cached": "cache",
    "RateLimitMiddleware": "ratelimit",
    "RateLimiter": "ratelimit",
    "Rule": "ratelimit",
    "Backend": "balance",
    "LoadBalanceApp": "balance",
    "LoadBalancer": "balance",
    "BroadcastRouter": "broadcast",
    "RealTimeStreamProcessor": "broadcast",
    "HealthApp": "health",
    "HealthMiddleware": "health",
    "MetricsCollector": "metrics",
    "MetricsMiddleware": "metrics",
    "BackendError": "errors",
    "CacheError": "errors",
    "ConfigError": "errors",
    "EnhanceError": "errors",
    "LoadBalancerError": "errors",
    "RateLimitError": "errors",
    "RedisUnavailable": "errors",
    "WebSocketError": "errors",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
