"""Decisions: limits, names, origins, rates, and which groups keep a history."""

import pytest

from asgi_enhance.broadcast import BroadcastRouter, History, Limits, RealTimeStreamProcessor
from asgi_enhance.broadcast.policy import HistoryRules, TokenBucket, checked_name, listed_origin, origin_allowed
from asgi_enhance.errors import ConfigError

NOBODY: frozenset[str] = frozenset()


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        (None, "a.example", True),  # not a browser
        ("https://a.example", "a.example", True),
        ("https://A.example", "a.EXAMPLE", True),
        ("https://a.example:443", "a.example", True),
        ("http://a.example:8000", "a.example:8000", True),
        ("http://a.example:8000", "a.example:9000", False),
        ("https://evil.example", "a.example", False),
        ("https://a.example.evil.example", "a.example", False),
        ("null", "a.example", False),  # a sandboxed frame
        ("https://a.example", None, False),
        ("http://[bad", "a.example", False),
    ],
)
def test_a_page_may_connect_to_its_own_host(origin: str | None, host: str | None, allowed: bool) -> None:
    assert origin_allowed(origin, host, NOBODY) is allowed


def test_listed_origins_may_connect_and_a_star_lets_all_in() -> None:
    assert origin_allowed("https://B.example", "a.example", frozenset({"https://b.example"}))
    assert not origin_allowed("http://b.example", "a.example", frozenset({"https://b.example"}))
    assert origin_allowed("https://c.example", "a.example", frozenset({"*"}))


@pytest.mark.parametrize(
    ("listed", "sent"),
    [
        ("https://b.example:443", "https://b.example"),
        ("HTTP://B.example:80", "http://b.example"),
        ("http://b.example:443", "http://b.example:443"),
        ("*", "*"),
    ],
)
def test_a_listed_origin_may_have_the_port_that_a_browser_leaves_out(listed: str, sent: str) -> None:
    assert listed_origin(listed) == sent


def test_the_exact_rule_wins_over_prefixes_and_the_first_prefix_over_later_ones() -> None:
    one, two, three = History(size=1), History(size=2), History(size=3)
    rules = HistoryRules({"room:*": one, "room:1": two, "*": three})
    assert [rules("room:1"), rules("room:2"), rules("other")] == [two, one, three]
    assert HistoryRules({"room:*": one})("rooms") is None
    with pytest.raises(ConfigError, match=r"r\*m"):
        HistoryRules({"r*m": one})


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = TokenBucket(2, now=0.0)
    assert [bucket.take(10.0, 2, 0.0) for _ in range(3)] == [0.0, 0.0, pytest.approx(0.1)]
    assert bucket.take(10.0, 2, 0.1) == pytest.approx(0.1)
    assert bucket.take(10.0, 2, 100.0) == 0.0
    assert bucket.take(10.0, 2, 100.0) == 0.0
    assert bucket.take(10.0, 2, 100.0) > 0.0  # it never holds more than its burst


@pytest.mark.parametrize("name", ["", "x" * 201, "a\nb", "a\0b", None, 7])
def test_names_are_short_and_printable(name: object) -> None:
    with pytest.raises(ValueError, match="group must be"):
        checked_name(name, "group")


def test_origins_are_taken_as_browsers_write_them() -> None:
    BroadcastRouter(origins=["*", "null", "https://A.example:8443", "http://[::1]:80", "chrome-extension://abc"])


@pytest.mark.parametrize(
    ("build", "argument"),
    [
        (lambda: Limits(outbox_bytes=0), "outbox_bytes"),
        (lambda: History(size=0), "size"),
        (lambda: History(ttl=0), "ttl"),
        (lambda: History(ttl=10, meta_ttl=9), "meta_ttl"),
        (lambda: RealTimeStreamProcessor(slow_consumer="drop"), "slow_consumer"),
        (lambda: RealTimeStreamProcessor(heartbeat=0), "heartbeat"),
        (lambda: RealTimeStreamProcessor(idle_timeout=-1), "idle_timeout"),
        (lambda: RealTimeStreamProcessor(retry=0), "retry"),
        (lambda: RealTimeStreamProcessor().register_processor("join", print), "type"),
        (lambda: RealTimeStreamProcessor().register_processor("x", None), "handler"),  # type: ignore[arg-type]
        (lambda: BroadcastRouter(path="ws/{client_id}"), "path"),
        (lambda: BroadcastRouter(path="/ws"), "path"),
        (lambda: BroadcastRouter(sse_path="/{client_id}/{client_id}"), "sse_path"),
        (lambda: BroadcastRouter(origins="https://a.example"), "origins"),
        (lambda: BroadcastRouter(origins=["a.example"]), "origins"),
        (lambda: BroadcastRouter(origins=["https://a.example/"]), "origins"),
        (lambda: BroadcastRouter(origins=["https://*.example"]), "origins"),
        (lambda: BroadcastRouter(drain_spread=-1), "drain_spread"),
        (lambda: BroadcastRouter(processor=RealTimeStreamProcessor(), history={}), "history"),
    ],
)
def test_a_bad_argument_is_named(build: object, argument: str) -> None:
    with pytest.raises(ConfigError, match=argument):
        build()  # type: ignore[operator]
