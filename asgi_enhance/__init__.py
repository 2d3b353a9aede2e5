"""ASGI layers for applications in production: cache, rate limit, load balance, broadcast, metrics.

Names are imported when they are first touched, so that nobody pays for a capability he does not use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asgi_enhance.api import EnhancedAPI as EnhancedAPI
    from asgi_enhance.api import EnhancedAPIMiddleware as EnhancedAPIMiddleware
    from asgi_enhance.asgi.address import ClientAddress as ClientAddress
    from asgi_enhance.asgi.lifespan import Lifespan as Lifespan
    from asgi_enhance.asgi.problem import Problem as Problem
    from asgi_enhance.balance import Backend as Backend
    from asgi_enhance.balance import LoadBalanceApp as LoadBalanceApp
    from asgi_enhance.balance import LoadBalancer as LoadBalancer
    from asgi_enhance.broadcast import BroadcastRouter as BroadcastRouter
    from asgi_enhance.broadcast import RealTimeStreamProcessor as RealTimeStreamProcessor
    from asgi_enhance.cache import CacheMiddleware as CacheMiddleware
    from asgi_enhance.cache import CacheRule as CacheRule
    from asgi_enhance.cache import MemoryCache as MemoryCache
    from asgi_enhance.cache import RedisCache as RedisCache
    from asgi_enhance.cache import TieredCache as TieredCache
    from asgi_enhance.cache import cached as cached
    from asgi_enhance.errors import BackendError as BackendError
    from asgi_enhance.errors import CacheError as CacheError
    from asgi_enhance.errors import ConfigError as ConfigError
    from asgi_enhance.errors import EnhanceError as EnhanceError
    from asgi_enhance.errors import LoadBalancerError as LoadBalancerError
    from asgi_enhance.errors import RateLimitError as RateLimitError
    from asgi_enhance.errors import RedisUnavailable as RedisUnavailable
    from asgi_enhance.errors import WebSocketError as WebSocketError
    from asgi_enhance.health import HealthApp as HealthApp
    from asgi_enhance.health import HealthMiddleware as HealthMiddleware
    from asgi_enhance.metrics import MetricsCollector as MetricsCollector
    from asgi_enhance.metrics import MetricsMiddleware as MetricsMiddleware
    from asgi_enhance.ratelimit import RateLimiter as RateLimiter
    from asgi_enhance.ratelimit import RateLimitMiddleware as RateLimitMiddleware
    from asgi_enhance.ratelimit import Rule as Rule
    from asgi_enhance.redis import RedisManager as RedisManager
    from asgi_enhance.settings import Settings as Settings

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
