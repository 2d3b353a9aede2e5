"""Limiters on the test's own Redis, stopped when the test ends."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from asgi_enhance.ratelimit import RateLimiter
from asgi_enhance.redis import RedisManager

PATIENT = 2.0
"""Seconds for a decision, in tests that are not about a slow Redis but run on slow machines."""


@pytest.fixture
async def limiter_on(redis: RedisManager) -> AsyncIterator[Callable[..., RateLimiter]]:
    """`limiter_on("10/minute", …)`: a limiter over the shared Redis."""
    async with AsyncExitStack() as stack:

        def make(limits: Any = "100/minute burst 20", **options: Any) -> RateLimiter:
            limiter = RateLimiter(limits, **{"redis": redis, "budget": PATIENT, **options})
            stack.push_async_callback(limiter.aclose)
            return limiter

        yield make
