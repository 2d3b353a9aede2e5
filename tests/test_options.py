"""A constructor says at once, and by name, which option is not what it should be."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from asgi_enhance import (
    BroadcastRouter,
    CacheMiddleware,
    CacheRule,
    ClientAddress,
    ConfigError,
    EnhancedAPI,
    HealthApp,
    LoadBalanceApp,
    LoadBalancer,
    MemoryCache,
    MetricsCollector,
    MetricsMiddleware,
    RateLimiter,
    RateLimitMiddleware,
    RealTimeStreamProcessor,
    RedisManager,
    Rule,
)
from asgi_enhance.options import checked, fits

BACKEND = "http://127.0.0.1:1"


async def app(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("nobody is served")


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda wrong: CacheMiddleware(wrong), "app"),
        (lambda wrong: CacheMiddleware(app, rules=[wrong]), "rules"),
        (lambda wrong: CacheMiddleware(app, max_body=wrong), "max_body"),
        (lambda wrong: CacheMiddleware(app, private=wrong), "private"),
        (lambda wrong: CacheMiddleware(app, cache=wrong), "cache"),
        (lambda wrong: CacheMiddleware(app, negative_ttl={404: wrong}), "negative_ttl"),
        (lambda wrong: CacheMiddleware(app, targeted=wrong), "targeted"),
        (lambda wrong: CacheRule("/", ttl=wrong), "ttl"),
        (lambda wrong: MemoryCache(max_bytes=wrong), "max_bytes"),
        (lambda wrong: RateLimitMiddleware(app, [wrong]), "rules"),
        (lambda wrong: RateLimitMiddleware(app, client=wrong), "client"),
        (lambda wrong: RateLimitMiddleware(app, limiter=wrong), "limiter"),
        (lambda wrong: RateLimiter(expected_workers=wrong), "expected_workers"),
        (lambda wrong: Rule("1/second", concurrency=wrong), "concurrency"),
        (lambda wrong: ClientAddress(hops=wrong), "hops"),
        (lambda wrong: LoadBalanceApp(BACKEND, health=wrong), "health"),
        (lambda wrong: LoadBalancer(BACKEND, timeouts=wrong), "timeouts"),
        (lambda wrong: LoadBalancer(BACKEND, retries=wrong), "retries"),
        (lambda wrong: BroadcastRouter(processor=wrong), "processor"),
        (lambda wrong: RealTimeStreamProcessor(heartbeat=wrong), "heartbeat"),
        (lambda wrong: RealTimeStreamProcessor(history={"a": wrong}), "history"),
        (lambda wrong: MetricsMiddleware(app, collector=wrong), "collector"),
        (lambda wrong: MetricsCollector(buckets=wrong), "buckets"),
        (lambda wrong: HealthApp(checks=wrong), "checks"),
        (lambda wrong: EnhancedAPI(settings=wrong), "settings"),
        (lambda wrong: RedisManager("redis://localhost", connect_timeout=wrong), "connect_timeout"),
    ],
)
def test_a_wrong_type_is_named_when_a_thing_is_made(make: Callable[[Any], object], name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} must be "):
        make("wrong")


def test_a_secret_is_not_repeated() -> None:
    @checked
    class Keeper:
        def __init__(self, secret: bytes, redis_url: int) -> None: ...

    with pytest.raises(ConfigError, match=r"^secret must be bytes, not str$"):
        Keeper("hunter2", 1)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^redis_url must be int, not str$"):
        Keeper(b"", "redis://:hunter2@localhost")  # type: ignore[arg-type]


def test_a_sticky_secret_in_the_place_of_sticky_is_not_repeated() -> None:
    with pytest.raises(ConfigError, match=r"^sticky must be [^']*, not str$"):
        LoadBalancer([BACKEND], sticky="hunter2" * 3)  # type: ignore[arg-type]


def test_dataclasses_are_asked_as_well() -> None:
    @checked
    @dataclass(frozen=True, slots=True)
    class Point:
        x: float
        y: float = 0.0

    assert Point(1, y=2.5) == Point(1.0, 2.5)
    with pytest.raises(ConfigError, match=r"^y must be float, not bool True$"):
        Point(1, True)


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (int, [1, -1], [1.0, True, "1", None]),
        (float, [1, 1.5], [True, "1"]),
        (bool, [True], [1, "no"]),
        (str | None, ["", None], [b"", 0]),
        (Literal["a", 1], ["a", 1], ["b", True]),
        (Iterable[str], [["a"], ("a",), {"a"}, {"a": 1}, iter(["a"])], ["a", b"a", [1], {1: "a"}, 5]),
        (str | Sequence[str], ["a", ["a"]], [b"a", [b"a"]]),
        (Mapping[int, float], [{404: 1}], [{"404": 1}, {404: "1"}, 10, [404]]),
        (frozenset[int], [frozenset({1})], [{1}, frozenset({"1"})]),
        (tuple[int, str], [(1, "a")], [(1,), (1, 2), [1, "a"]]),
        (tuple[int, ...], [(), (1, 2)], [("a",)]),
        (Callable[[int], int], [abs, int], [5, "abs"]),
        (Callable[[], int] | int, [abs, 5], ["abs"]),
        (Any, [None, "x", 5], []),
        (type[int], [int], [5]),
    ],
)
def test_what_fits(hint: Any, good: list[Any], bad: list[Any]) -> None:
    assert [value for value in good if not fits(value, hint)] == []
    assert [value for value in bad if fits(value, hint)] == []
