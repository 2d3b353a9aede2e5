"""Every store, under the same tests."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from asgi_enhance.cache import Cache, MemoryCache, RedisCache
from tests.cache.origin import Clock

STORES = ["memory", "redis"]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, clock: Clock) -> Cache[Any]:
    """A cache that has not been started."""
    if request.param == "memory":
        return MemoryCache(clock=clock)
    return RedisCache(request.getfixturevalue("redis"), clock=clock)


@pytest.fixture
async def cache(store: Cache[Any]) -> AsyncIterator[Cache[Any]]:
    async with store:
        yield store
