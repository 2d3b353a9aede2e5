"""What clients and apps see of `RateLimitMiddleware`."""

import re
from typing import Any

import pytest

from asgi_enhance.errors import ConfigError
from asgi_enhance.ratelimit import RateLimiter, RateLimitMiddleware, Rule
from asgi_enhance.ratelimit.headers import draft10, x_ratelimit
from asgi_enhance.testing.conformance import assert_transparent
from asgi_enhance.testing.driver import Driver, Response, WebSocket, http_scope, request, websocket_scope
from tests.ratelimit.apps import answers, hello, limits_of


async def test_it_is_transparent_to_what_is_not_its_business() -> None:
    await assert_transparent(lambda app: RateLimitMiddleware(app, default="100000/minute burst 1000"))


async def test_without_options_a_client_gets_a_hundred_requests_a_minute() -> None:
    app = RateLimitMiddleware(hello)
    statuses = [(await request(app, f"/{i}")).status for i in range(101)]
    assert statuses == [200] * 100 + [429]
    assert (await request(app, client=("198.51.100.9", 1))).status == 200


async def test_every_answer_tells_the_policy_and_what_is_left() -> None:
    app = RateLimitMiddleware(hello, default="3/minute")
    response = await request(app)
    assert response.header("RateLimit-Policy") == '"default";q=3;w=60'
    assert limits_of(response)["default"][0] == 2
    assert 55 <= limits_of(response)["default"][1] <= 62
    assert response.body == b"hello"


async def test_a_refusal_says_why_and_when_to_come_back_and_is_not_stored() -> None:
    app = RateLimitMiddleware(hello, default="1/minute", rng=lambda: 0.0)
    await request(app)
    response = await request(app)
    assert response.status == 429
    assert response.header("content-type") == "application/problem+json"
    assert response.header("cache-control") == "no-store"
    problem = response.json()
    assert problem["type"] == "https://iana.org/assignments/http-problem-types#quota-exceeded"
    assert problem["violated-policies"] == ["default"]
    assert limits_of(response)["default"][0] == 0
    assert int(response.header("retry-after") or 0) == limits_of(response)["default"][1]


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
async def test_retry_after_is_spread_and_never_earlier_than_the_reset(chance: float) -> None:
    app = RateLimitMiddleware(hello, default="1/minute", retry_jitter=0.5, rng=lambda: chance)
    await request(app)
    response = await request(app)
    later = int(response.header("retry-after") or 0) / limits_of(response)["default"][1]
    assert later == pytest.approx(1 + 0.5 * chance, abs=0.03)
    assert later >= 1


async def test_a_refused_request_uses_nothing_of_any_rule() -> None:
    app = RateLimitMiddleware(hello, [Rule("1/minute", name="login", path="/login")], default="3/minute")
    await request(app, "/login")
    for _ in range(5):
        assert (await request(app, "/login")).status == 429
    assert limits_of(await request(app))["default"][0] == 1


async def test_all_rules_that_match_are_announced_and_the_one_that_refused_is_named() -> None:
    app = RateLimitMiddleware(hello, [Rule("1/second; 5/hour", name="api", path="/api/*")], default="9/minute")
    response = await request(app, "/api/x")
    assert response.header("RateLimit-Policy") == '"api-1s";q=1;w=1, "api-3600s";q=5;w=3600, "default";q=9;w=60'
    assert (await request(app, "/api/x")).json()["violated-policies"] == ["api-1s"]
    assert list(limits_of(await request(app, "/other"))) == ["default"]


async def test_the_older_fields_are_written_for_who_wants_them() -> None:
    app = RateLimitMiddleware(hello, default="5/minute", headers=(draft10, x_ratelimit))
    response = await request(app)
    assert response.header("x-ratelimit-limit") == "5"
    assert response.header("x-ratelimit-remaining") == "4"
    assert re.fullmatch(r"\d{10}", response.header("x-ratelimit-reset") or "")
    assert response.header("ratelimit") is not None


async def test_fields_can_be_left_out() -> None:
    response = await request(RateLimitMiddleware(hello, headers=()))
    assert response.header("ratelimit") is None
    assert response.status == 200


async def test_the_start_of_an_app_that_reuses_its_messages_is_not_touched() -> None:
    start = {"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]}

    async def app(scope, receive, send):  # type: ignore[no-untyped-def]
        await send(start)
        await send({"type": "http.response.body"})

    await request(RateLimitMiddleware(app))
    assert start["headers"] == [(b"a", b"b")]


async def test_a_name_with_quotes_is_escaped() -> None:
    response = await request(RateLimitMiddleware(hello, default=Rule("5/minute", name='a"b\\c')))
    assert response.header("RateLimit-Policy") == '"a\\"b\\\\c";q=5;w=60'


async def test_a_websocket_handshake_is_refused_with_a_denial_response() -> None:
    app = RateLimitMiddleware(hello, default="1/minute")
    async with WebSocket(app, websocket_scope()) as socket:
        accept = await socket.accepted()
        assert (b"ratelimit-policy", b'"default";q=1;w=60') in accept["headers"]
        socket.leave()
    async with WebSocket(app, websocket_scope()) as socket:
        denial = await socket.refused()
        assert isinstance(denial, Response)
        assert denial.status == 429
        assert denial.header("retry-after") is not None


async def test_a_websocket_handshake_is_closed_where_there_is_no_denial_response() -> None:
    app = RateLimitMiddleware(hello, default="1/minute")
    for _ in range(2):
        async with WebSocket(app, websocket_scope(extensions={})) as socket:
            message = await socket.next()
            socket.leave()
    assert message["type"] == "websocket.close"


async def test_messages_of_a_websocket_are_limited_and_the_app_sees_the_servers_disconnect() -> None:
    seen = []

    async def app(scope, receive, send):  # type: ignore[no-untyped-def]
        await receive()
        await send({"type": "websocket.accept"})
        while True:
            seen.append(await receive())
            if seen[-1]["type"] == "websocket.disconnect":
                await send({"type": "websocket.send", "text": "too late"})
                return

    limited = RateLimitMiddleware(app, [Rule("2/minute", on="message")])
    async with WebSocket(limited, websocket_scope()) as socket:
        await socket.accepted()
        for i in range(4):
            socket.send_text(str(i))
        close = await socket.next()
        assert (close["type"], close["code"]) == ("websocket.close", 1008)
        socket.leave(1008)
        await socket.ended()
    assert [message.get("text") for message in seen] == ["0", "1", None]
    assert socket.sent[-1] is close


async def test_a_websocket_without_a_message_rule_gets_the_servers_own_receive() -> None:
    given = []

    async def app(scope, receive, send):  # type: ignore[no-untyped-def]
        given.append(receive)
        await receive()

    driver = WebSocket(RateLimitMiddleware(app, [Rule("2/minute", on="message", path="/other")]), websocket_scope())
    async with driver:
        await driver.ended()
    assert given == [driver.receive]


async def test_what_is_exempt_is_not_counted() -> None:
    exempt = ("/health", "OPTIONS /*", "10.0.0.0/8", lambda scope: scope["path"] == "/mine")
    app = RateLimitMiddleware(hello, default="1/minute", exempt=exempt)
    for _ in range(2):
        assert (await request(app, "/health")).header("ratelimit") is None
        assert (await request(app, "/x", method="OPTIONS")).status == 200
        assert (await request(app, client=("10.1.2.3", 1))).status == 200
        assert (await request(app, "/mine")).status == 200
    assert [(await request(app, "/healthy")).status for _ in range(2)] == [200, 429]


async def test_who_is_exempt_with_get_is_so_with_head() -> None:
    app = RateLimitMiddleware(hello, default="1/minute", exempt="get /health")
    answers = [await request(app, "/health", method=method) for method in ("GET", "HEAD", "HEAD", "POST")]
    assert [answer.header("ratelimit") is None for answer in answers] == [True, True, True, False]


async def test_an_error_of_the_app_passes() -> None:
    async def app(scope, receive, send):  # type: ignore[no-untyped-def]
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await request(RateLimitMiddleware(app))


async def test_a_limiter_of_ones_own_is_shared_with_the_layer() -> None:
    limiter = RateLimiter()
    await request(RateLimitMiddleware(hello, limiter=limiter))
    assert limiter.stats.allowed == 1


@pytest.mark.parametrize("limits", ["2/minute", {"default": "2/minute", "login": "1/minute"}])
async def test_its_default_rule_is_the_default_of_the_limiter_it_is_given(limits: Any) -> None:
    limiter = RateLimiter(limits)
    app = RateLimitMiddleware(hello, [Rule("9/minute", path="/a")], limiter=limiter)
    assert [(await request(app)).status for _ in range(3)] == [200, 200, 429]
    assert not await limiter.is_allowed("192.0.2.7", "any")  # it is one count


async def test_a_default_that_is_given_is_not_the_limiters() -> None:
    limiter = RateLimiter("2/minute")
    for default, most in (("1/minute", 1), (Rule("1/second", name="mine"), 1), (None, 5)):
        app = RateLimitMiddleware(hello, limiter=limiter, default=default)
        assert [(await request(app)).status for _ in range(5)].count(200) == most
        await limiter.reset("192.0.2.7")


async def test_a_second_reader_of_receive_never_appears() -> None:
    driver = Driver(RateLimitMiddleware(answers(200)), http_scope())
    await driver.run()
    assert driver.overlapping_reads == 0


@pytest.mark.parametrize(
    "options",
    [
        {"default": "0/minute"},
        {"exempt": "nonsense"},
        {"exempt": "10.0.0.1/99"},
        {"exempt": "OPTOINS /*"},
        {"exempt": "GET,POST /health"},
        {"exempt": "/a /b"},
        {"on_error": "ajar"},
        {"retry_jitter": -1},
        {"message_close_code": 99},
        {"ipv6_prefix": 0},
        {"rules": [Rule("1/minute", name="a"), Rule("1/minute", name="a")]},
        {"rules": [Rule("1/minute", cost=2)]},
        {"limiter": RateLimiter(), "redis": "redis://localhost"},
    ],
)
def test_a_bad_option_is_a_config_error(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        RateLimitMiddleware(hello, **options)  # type: ignore[arg-type]
