"""The transport for callers waits as long as it is told."""

from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from asgi_enhance.errors import ConfigError
from asgi_enhance.ratelimit import RateLimitMiddleware
from asgi_enhance.ratelimit.backoff import RetryAfterTransport, retry_after
from tests.ratelimit.apps import hello

NOW = 1_784_894_400.0  # Fri, 24 Jul 2026 12:00:00 GMT


class Service(httpx2.AsyncBaseTransport):
    """Gives its answers in turn, and notes what it was asked."""

    def __init__(self, *answers: tuple[int, str | None]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []
        self.given: list[httpx2.Response] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request.method)
        status, later = self.answers.pop(0)
        self.given.append(httpx2.Response(status, headers={"retry-after": later} if later else {}, stream=Body()))
        return self.given[-1]


class Body(httpx2.AsyncByteStream):
    closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"body"

    async def aclose(self) -> None:
        self.closed = True


async def ask(service: Service, method: str = "GET", content: Any = None, **options: Any) -> tuple[int, list[float]]:
    """The status in the end, and the waits before it."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    transport = RetryAfterTransport(service, **{"sleep": sleep, "rng": lambda: 0.0, "clock": lambda: NOW, **options})
    async with httpx2.AsyncClient(transport=transport) as client:
        response = await client.request(method, "http://service/", content=content)
    return response.status_code, waits


async def test_it_comes_back_when_it_was_told_to() -> None:
    service = Service((429, "7"), (429, "3"), (200, None))
    assert await ask(service) == (200, [7.0, 3.0])
    assert [response.stream.closed for response in service.given[:2]] == [True, True]  # type: ignore[union-attr]


async def test_never_earlier_and_at_most_a_part_later() -> None:
    assert await ask(Service((429, "10"), (200, None)), rng=lambda: 1.0, jitter=0.2) == (200, [12.0])


async def test_a_date_is_understood() -> None:
    assert await ask(Service((503, "Fri, 24 Jul 2026 12:00:30 GMT"), (200, None))) == (200, [30.0])


async def test_without_a_time_it_backs_off_further_and_further() -> None:
    service = Service((429, None), (429, "soon"), (429, None), (200, None))
    assert await ask(service, rng=lambda: 1.0, base=0.5, cap=1.5) == (200, [0.5, 1.0, 1.5])


async def test_it_gives_up_after_so_many_attempts() -> None:
    service = Service(*[(429, "1")] * 4)
    assert await ask(service, attempts=3) == (429, [1.0, 1.0])


async def test_it_does_not_wait_longer_than_the_caller_can() -> None:
    assert await ask(Service((429, "20"), (429, "20"), (200, None)), patience=30) == (429, [20.0])


async def test_the_answer_that_is_given_up_on_can_still_be_read() -> None:
    async with httpx2.AsyncClient(transport=RetryAfterTransport(Service((429, "99")))) as client:
        assert (await client.get("http://service/")).content == b"body"


@pytest.mark.parametrize("status", [200, 404, 500, 502])
async def test_nothing_else_is_tried_again(status: int) -> None:
    assert await ask(Service((status, "1"))) == (status, [])


async def test_a_post_is_repeated_after_429_but_not_after_503() -> None:
    assert await ask(Service((429, "1"), (200, None)), "POST", b"x") == (200, [1.0])
    assert await ask(Service((503, "1")), "POST", b"x") == (503, [])


async def test_a_body_that_can_be_sent_only_once_is() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"x"

    assert await ask(Service((429, "1")), "PUT", body()) == (429, [])


async def test_it_gets_along_with_this_limiter() -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    inner = httpx2.ASGITransport(RateLimitMiddleware(hello, default="1/minute", rng=lambda: 0.0))
    transport = RetryAfterTransport(inner, sleep=sleep, attempts=2, patience=100)
    async with httpx2.AsyncClient(transport=transport) as client:
        statuses = [(await client.get("http://service/")).status_code for _ in range(2)]
    assert statuses == [200, 429]
    assert 55 <= waits[0] <= 70


@pytest.mark.parametrize("value", [None, "", "soon", "-1", "1.5", "²", "Fri, 99 Jul 2026"])
def test_what_is_not_a_retry_after_is_none(value: str | None) -> None:
    assert retry_after(value, NOW) is None


def test_a_date_in_the_past_is_now() -> None:
    assert retry_after("Fri, 24 Jul 2020 12:00:00 GMT", NOW) == 0.0


@pytest.mark.parametrize("options", [{"attempts": 0}, {"patience": -1}, {"base": float("nan")}, {"jitter": -0.1}])
def test_an_option_that_cannot_work_is_a_config_error(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        RetryAfterTransport(Service(), **options)
