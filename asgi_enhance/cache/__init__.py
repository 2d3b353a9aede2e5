"""A shared HTTP cache (RFC 9111) as a layer, and the caches under it, which keep values for your own code as well."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from asgi_enhance.cache.core import Cache
from asgi_enhance.cache.decorator import cached
from asgi_enhance.cache.layer import CacheMiddleware
from asgi_enhance.cache.memory import MemoryCache
from asgi_enhance.cache.request import generate_cache_key
from asgi_enhance.cache.rules import CacheRule
from asgi_enhance.cache.stats import CacheStats

if TYPE_CHECKING:
    from asgi_enhance.cache.redis import RedisCache
    from asgi_enhance.cache.tiered import TieredCache

__all__ = [
    "Cache",
    "CacheMiddleware",
    "CacheRule",
    "CacheStats",
    "MemoryCache",
    "RedisCache",
    "TieredCache",
    "cached",
    "generate_cache_key",
]

_LATER = {"RedisCache": "redis", "TieredCache": "tiered"}
"""What needs redis-py, which takes a while to import."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
