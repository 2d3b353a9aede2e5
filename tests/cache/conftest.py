"""Every store, under the same tests."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from asgi_enhance.cache import Cache, MemoryCache, RedisCache, TieredCache
from tests.cache.origin import Clock, until


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make(name: str, request: pytest.FixtureRequest, clock: Clock) -> Cache[Any]:
    if name == "memory":
        return MemoryCache(clock=clock)
    kind = TieredCache if name == "tiered" else RedisCache
    return kind(request.getfixturevalue("redis"), clock=clock)


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest, clock: Clock) -> Cache[Any]:
    return make(request.param, request, clock)


@pytest.fixture
async def cache(store: Cache[Any]) -> AsyncIterator[Cache[Any]]:
    """A started cache, for what the middleware decides: in memory, and in Redis."""
    async with store:
        yield store


@pytest.fixture(params=["memory", "redis", "tiered"])
def any_store(request: pytest.FixtureRequest, clock: Clock) -> Cache[Any]:
    return make(request.param, request, clock)


@pytest.fixture
async def any_cache(any_store: Cache[Any]) -> AsyncIterator[Cache[Any]]:
    """A started cache of every kind, for what caches promise."""
    async with any_store:
        if isinstance(any_store, TieredCache):
            await until(lambda: any_store.is_tracking)
        yield any_store
