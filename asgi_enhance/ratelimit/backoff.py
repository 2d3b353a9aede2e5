"""For callers of a limited service: a transport for httpx2 that waits as long as it is told, and tries again.

    client = httpx2.AsyncClient(transport=RetryAfterTransport(httpx2.AsyncHTTPTransport()))

The rules: 429 and 503 are tried again, nothing else; not before their Retry-After (RFC 9110, section 10.2.3; seconds
or a date), and a little later at random so that callers do not return together; without one, after an exponential
backoff with full jitter. 503 does not say that nothing was done, so only methods that may be repeated are. A body that
cannot be sent twice is not. When the wait would be longer than the caller has time for, he gets the answer as it is.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from email.utils import parsedate_to_datetime

import httpx2

from asgi_enhance.errors import ConfigError
from asgi_enhance.options import checked

IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})


@checked
class RetryAfterTransport(httpx2.AsyncBaseTransport):
    """Wraps a transport.

    attempts: times a request is sent at most. Default: 4.
    patience: seconds a request may spend waiting in all. Default: 60.
    base:     seconds of the first backoff without Retry-After; doubles. Default: 0.5.
    cap:      seconds of the longest backoff without Retry-After. Default: 30.
    jitter:   part of a Retry-After by which to come later at most. Default: 0.1.
    rng:      gives numbers from 0 to 1. Default: `random.random`.
    sleep:    waits so many seconds. Default: `asyncio.sleep`.
    clock:    the seconds since 1970, for dates. Default: `time.time`.
    """

    def __init__(
        self,
        transport: httpx2.AsyncBaseTransport,
        *,
        attempts: int = 4,
        patience: float = 60.0,
        base: float = 0.5,
        cap: float = 30.0,
        jitter: float = 0.1,
        rng: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if attempts < 1:
            raise ConfigError(f"attempts must be at least 1, not {attempts!r}")
        for name, value in (("patience", patience), ("base", base), ("cap", cap), ("jitter", jitter)):
            if not 0 <= value < float("inf"):
                raise ConfigError(f"{name} must be 0 or more, not {value!r}")
        self._transport = transport
        self._attempts = attempts
        self._patience = patience
        self._base = base
        self._cap = cap
        self._jitter = jitter
        self._rng = rng
        self._sleep = sleep
        self._clock = clock

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        left = self._patience
        for attempt in range(self._attempts):
            response = await self._transport.handle_async_request(request)
            if attempt == self._attempts - 1 or not self._may_repeat(request, response):
                break
            wait = self._wait(response, attempt)
            if wait > left:
                break
            left -= wait
            await response.aclose()
            await self._sleep(wait)
        return response

    async def aclose(self) -> None:
        await self._transport.aclose()

    def _may_repeat(self, request: httpx2.Request, response: httpx2.Response) -> bool:
        if not isinstance(request.stream, httpx2.ByteStream):
            return False
        return response.status_code == 429 or (response.status_code == 503 and request.method in IDEMPOTENT)

    def _wait(self, response: httpx2.Response, attempt: int) -> float:
        told = retry_after(response.headers.get("retry-after"), self._clock())
        if told is None:
            return self._rng() * min(self._cap, self._base * 2.0**attempt)
        return told * (1 + self._jitter * self._rng())


def retry_after(value: str | None, now: float) -> float | None:
    """The seconds a Retry-After asks for; None if it is missing or cannot be read."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:12])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except ValueError:
        return None
