"""Which requests a rule is about, and what it does besides refusing."""

import asyncio
import logging
import math
from typing import Any

import pytest

from asgi_enhance.asgi.types import Receive, Scope, Send
from asgi_enhance.errors import ConfigError
from asgi_enhance.ratelimit import Ban, RateLimiter, RateLimitMiddleware, Rule, keys
from asgi_enhance.ratelimit.policy import MAX_LIMIT, Quota
from asgi_enhance.testing.driver import Driver, Response, WebSocket, http_scope, request, websocket_scope
from tests.ratelimit.apps import answers, hello, limits_of
from tests.redis.helpers import until


def limited(rule: Rule, app: Any = hello, **options: Any) -> RateLimitMiddleware:
    return RateLimitMiddleware(app, [rule], **{"default": None, **options})


@pytest.mark.parametrize(
    ("template", "paths", "others"),
    [
        ("/login", ["/login", "/login/", "/log%69n"], ["/login/x", "/LOGIN", "/xlogin", "/"]),
        ("/", ["/"], ["/x"]),
        ("/items/{id}", ["/items/1", "/items/a.b/"], ["/items", "/items/1/2"]),
        ("/items/{id}/price", ["/items/1/price"], ["/items/1", "/items//price"]),
        ("/files/{rest:path}", ["/files/a", "/files/a/b/c"], ["/file/a"]),
        ("/api/*", ["/api", "/api/", "/api/x/y"], ["/apix", "/"]),
        ("/a.b", ["/a.b"], ["/axb"]),
        ("/*", ["/", "/x/y"], []),
    ],
)
async def test_a_path_template_covers(template: str, paths: list[str], others: list[str]) -> None:
    app = limited(Rule("1000/minute", path=template))
    assert [path for path in paths if (await request(app, path)).header("ratelimit") is None] == []
    assert [path for path in others if (await request(app, path)).header("ratelimit")] == []


async def test_one_template_is_one_bucket_whatever_the_concrete_path() -> None:
    app = limited(Rule("2/minute", path="/items/{id}"))
    assert [(await request(app, f"/items/{i}")).status for i in range(3)] == [200, 200, 429]


async def test_a_rule_counts_below_a_mount() -> None:
    app = limited(Rule("1/minute", path="/login"))
    response = await request(app, "/app/login", root_path="/app")
    assert response.header("ratelimit") is not None


async def test_what_slips_past_a_rule_is_caught_by_the_default_one() -> None:
    app = limited(Rule("1/minute", path="/login"), default="4/minute")
    paths = ["/LOGIN", "//login", "/login;x", "/l%6Fgin", "/unknown", "/nowhere"]
    assert [(await request(app, path)).status for path in paths] == [200] * 4 + [429] * 2


async def test_get_includes_head_and_a_handshake() -> None:
    app = limited(Rule("1000/minute", methods="GET"))
    assert (await request(app, method="HEAD")).header("ratelimit")
    assert not (await request(app, method="POST")).header("ratelimit")
    async with WebSocket(app, websocket_scope()) as socket:
        assert (await socket.accepted()).get("headers")
        socket.leave()


@pytest.mark.parametrize(
    ("host", "ours"),
    [(b"api.example.com", True), (b"API.example.com:8443", True), (b"x.example.org", True), (b"example.org", False)],
)
async def test_hosts_are_matched_without_port_and_case(host: bytes, ours: bool) -> None:
    app = limited(Rule("1000/minute", host=("api.example.com", "*.example.org")))
    scope = http_scope(headers=())
    scope["headers"] = [(b"host", host)]
    driver = Driver(app, scope, [{"type": "http.request"}])
    assert (Response(await driver.run()).header("ratelimit") is not None) == ours


async def test_a_rule_can_leave_handshakes_alone() -> None:
    app = limited(Rule("1/minute", on="http"))
    for _ in range(3):
        async with WebSocket(app, websocket_scope()) as socket:
            await socket.accepted()
            socket.leave()


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_limits_may_depend_on_the_request(asynchronous: bool) -> None:
    def tier(scope: Any) -> str | None:
        plan = dict(scope["headers"]).get(b"x-plan")
        return {b"free": "1/minute", b"pro": "3/minute"}.get(plan or b"")

    async def slow_tier(scope: Any) -> str | None:
        await asyncio.sleep(0)
        return tier(scope)

    app = limited(Rule(slow_tier if asynchronous else tier, name="plan"))

    async def statuses(plan: bytes, client: str) -> list[int]:
        headers = [(b"x-plan", plan)]
        return [(await request(app, headers=headers, client=(client, 1))).status for _ in range(4)]

    assert await statuses(b"free", "192.0.2.1") == [200, 429, 429, 429]
    assert await statuses(b"pro", "192.0.2.2") == [200, 200, 200, 429]
    assert await statuses(b"staff", "192.0.2.3") == [200] * 4


@pytest.mark.parametrize("options", [{}, {"charge": lambda scope, status: 0}])
async def test_a_quota_that_two_rules_give_is_taken_from_once(options: dict[str, Any]) -> None:
    small, large = Quota(5, 60_000_000, name="plan"), Quota(9, 60_000_000, name="plan")
    rules = [Rule(lambda scope: large, cost=2, **options), Rule(lambda scope: small)]
    app = RateLimitMiddleware(hello, rules, default=None)
    responses = [await request(app) for _ in range(3)]
    assert [response.status for response in responses] == [200, 200, 429]
    assert [limits_of(response)["plan"][0] for response in responses] == [3, 1, 1]


async def test_a_cost_may_depend_on_the_request() -> None:
    app = limited(Rule("10/minute", name="x", cost=lambda scope: len(scope["path"])))
    assert limits_of(await request(app, "/123"))["x"][0] == 6
    assert (await request(app, "/1234567")).status == 429
    assert (await request(app, "/12345")).status == 200


@pytest.mark.parametrize("cost", [0, -5, float("nan"), 10**30, "3", None])
async def test_a_cost_that_is_none_refuses_the_request_and_takes_nothing(
    cost: object, caplog: pytest.LogCaptureFixture
) -> None:
    costs: list[Any] = [cost, 1]
    app = limited(Rule("10/minute", name="x", cost=lambda scope: costs.pop(0)))
    with caplog.at_level(logging.CRITICAL):
        refused = await request(app)
    assert refused.status == 429
    assert refused.header("retry-after") is None
    assert limits_of(await request(app))["x"][0] == 9


async def test_failed_logins_cost_more() -> None:
    rule = Rule("10/minute", name="login", charge=lambda scope, status: 4 if status == 401 else 0)
    app = limited(rule, answers(401))
    assert [(await request(app)).status for _ in range(3)] == [401, 401, 429]
    assert app.limiter.stats.charged == 8


async def test_successes_are_given_back() -> None:
    rule = Rule("2/minute", charge=lambda scope, status: -1 if status < 400 else 0)
    app = limited(rule)
    assert [(await request(app)).status for _ in range(6)] == [200] * 6
    assert app.limiter.stats.refunded == 6


async def test_no_more_is_given_back_than_was_taken() -> None:
    app = limited(Rule("5/minute", name="x", charge=lambda scope, status: -100 if scope["path"] == "/back" else 0))
    for path in ("/", "/", "/back"):
        await request(app, path)
    assert limits_of(await request(app))["x"][0] == 2


async def test_an_app_that_fails_is_charged_as_a_500() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise LookupError

    def charge(scope: Any, status: int) -> int:
        seen.append(status)
        return 0

    with pytest.raises(LookupError):
        await request(limited(Rule("5/minute", charge=charge), app))
    assert seen == [500]


async def test_a_websocket_is_charged_as_a_101_when_it_has_ended_and_as_a_403_if_it_was_not_accepted() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept" if scope["path"] == "/in" else "websocket.close"})
        if scope["path"] == "/in":
            await send({"type": "websocket.close"})

    def charge(scope: Any, status: int) -> int:
        seen.append(status)
        return 0

    for path in ("/in", "/out"):
        async with WebSocket(limited(Rule("5/minute", charge=charge), app), websocket_scope(path)) as socket:
            await socket.ended()
    assert seen == [101, 403]


async def test_the_bill_comes_after_the_last_byte_and_once() -> None:
    order: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"1", "more_body": True})
        order.append("middle")
        await send({"type": "http.response.body", "body": b"2"})
        order.append("background")

    def charge(scope: Any, status: int) -> int:
        order.append("bill")
        return 0

    await request(limited(Rule("5/minute", charge=charge), app))
    assert order == ["middle", "bill", "background"]


async def test_a_slot_is_held_until_the_response_is_finished_and_no_longer() -> None:
    at_work = asyncio.Event()
    go_on = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"1", "more_body": True})
        if scope["path"] == "/slow":
            at_work.set()
            await go_on.wait()
        await send({"type": "http.response.body"})
        if scope["path"] == "/slow":
            await asyncio.Event().wait()  # a background task

    layer = limited(Rule(None, name="slots", concurrency=1), app)
    async with Driver(layer, http_scope("/slow")) as slow:
        await at_work.wait()
        refused = await request(layer)
        assert refused.status == 429
        assert refused.json()["violated-policies"] == ["slots"]
        assert refused.header("retry-after")
        assert (await request(layer, client=("198.51.100.1", 1))).status == 200
        go_on.set()
        for _ in range(3):  # the start and both parts of the body
            await slow.next()
        assert (await request(layer)).status == 200


async def test_a_slot_is_freed_when_the_app_fails_or_the_client_makes_it_end() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/fails":
            raise LookupError
        await asyncio.Event().wait()

    layer = limited(Rule(None, concurrency=1), app)
    with pytest.raises(LookupError):
        await request(layer, "/fails")
    async with Driver(layer, http_scope("/hangs")):
        await asyncio.sleep(0)
    assert layer._http[0].in_flight == {}


async def test_a_refused_request_holds_no_slot() -> None:
    layer = limited(Rule("1/minute", concurrency=5))
    for _ in range(3):
        await request(layer)
    assert layer._http[0].in_flight == {}


async def test_a_full_house_takes_no_quota() -> None:
    layer = limited(Rule("5/minute", name="x", concurrency=1))
    layer._http[0].in_flight["192.0.2.7"] = 1
    assert (await request(layer)).status == 429
    layer._http[0].in_flight.clear()
    assert limits_of(await request(layer))["x"][0] == 4


async def test_a_websocket_holds_its_slot_until_it_has_ended() -> None:
    layer = limited(Rule(None, concurrency=1))
    async with WebSocket(layer, websocket_scope()) as socket:
        await socket.accepted()
        async with WebSocket(layer, websocket_scope()) as second:
            assert isinstance(await second.refused(), Response)
        socket.leave()
        await socket.ended()
    async with WebSocket(layer, websocket_scope()) as third:
        await third.accepted()
        third.leave()


async def test_a_request_may_wait_a_little_instead_of_being_refused() -> None:
    layer = limited(Rule({"requests": 20, "window": 1, "burst": 1}, max_delay=0.5))
    assert [(await request(layer)).status for _ in range(3)] == [200, 200, 200]
    assert layer.limiter.stats.delayed == 2


async def test_of_many_that_wait_only_the_first_asks_again() -> None:
    layer = limited(Rule({"requests": 1000, "window": 1, "burst": 1}, max_delay=5))
    responses = await asyncio.gather(*(request(layer) for _ in range(50)))
    assert {response.status for response in responses} == {200}
    assert layer.limiter.stats.refused < 3 * 50
    assert not layer.limiter._lines


async def test_who_waits_in_line_loses_patience_as_well() -> None:
    layer = limited(Rule({"requests": 10, "window": 4, "burst": 1}, max_delay=0.6))
    responses = await asyncio.gather(*(request(layer) for _ in range(5)))
    assert sorted(response.status for response in responses) == [200, 200, 429, 429, 429]


async def test_who_leaves_the_line_lets_the_next_one_ask() -> None:
    layer = limited(Rule({"requests": 100, "window": 10, "burst": 1}, max_delay=5))
    await request(layer)
    first, second = [asyncio.create_task(request(layer)) for _ in range(2)]
    await until(lambda: layer.limiter._delayed == 2)
    first.cancel()
    assert (await second).status == 200


async def test_a_rule_that_has_no_time_to_wait_for_is_not_waited_for() -> None:
    rule = Rule({"requests": 20, "window": 1, "burst": 1}, max_delay=0.5)
    layer = limited(rule, default="2/minute")
    assert [(await request(layer)).status for _ in range(3)] == [200, 200, 429]
    assert layer.limiter.stats.delayed == 1


async def test_who_only_has_to_wait_is_not_banned_for_it() -> None:
    layer = limited(Rule({"requests": 20, "window": 1, "burst": 1}, max_delay=0.5, ban=Ban(after=1)))
    assert [(await request(layer)).status for _ in range(3)] == [200, 200, 200]


async def test_who_is_refused_after_all_has_been_refused_once() -> None:
    layer = limited(Rule("1/minute", max_delay=0.5, ban=Ban(after=2)))
    answers = [(await request(layer)).body for _ in range(4)]
    assert [b"abnormal-usage" in answer for answer in answers] == [False, False, True, True]


@pytest.mark.parametrize("units", [None, 0.5, math.nan, math.inf, MAX_LIMIT + 1])
async def test_a_charge_that_is_none_charges_nothing_and_hurts_nobody(
    units: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rules = [
        Rule("9/minute", name="odd", charge=lambda scope, status: units),
        Rule("9/minute", name="even", charge=lambda scope, status: 2),
    ]
    layer = RateLimitMiddleware(hello, rules, default=None)
    await request(layer)
    left = {name: room for name, (room, _) in limits_of(await request(layer)).items()}
    assert left == {"odd": 7, "even": 5}
    assert "'odd': charge must be a whole number" in caplog.text


async def test_a_charge_that_fails_does_not_fail_the_app(caplog: pytest.LogCaptureFixture) -> None:
    def charge(scope: Scope, status: int) -> int:
        raise LookupError("mine")

    rules = [Rule("9/minute", name="odd", charge=charge), Rule("9/minute", name="even", charge=lambda scope, status: 2)]
    layer = RateLimitMiddleware(hello, rules, default=None)
    await request(layer)
    assert {name: room for name, (room, _) in limits_of(await request(layer)).items()} == {"odd": 7, "even": 5}
    assert "'odd': charge failed" in caplog.text


async def test_a_shadow_rule_refuses_nobody_and_counts(caplog: pytest.LogCaptureFixture) -> None:
    layer = limited(Rule("1/minute", name="soon", shadow=True))
    with caplog.at_level(logging.INFO, "asgi_enhance.ratelimit"):
        responses = [await request(layer) for _ in range(3)]
    assert [response.status for response in responses] == [200, 200, 200]
    assert responses[0].header("ratelimit") is None
    assert layer.limiter.stats.shadowed == 2
    assert "soon" in caplog.text


async def test_a_shadow_rule_says_when_its_slots_would_have_been_too_few(caplog: pytest.LogCaptureFixture) -> None:
    inside, go = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        inside.set()
        await go.wait()
        await hello(scope, receive, send)

    layer = limited(Rule(None, name="few", concurrency=1, shadow=True), app=app)
    with caplog.at_level(logging.INFO, "asgi_enhance.ratelimit"):
        first = asyncio.create_task(request(layer))
        await inside.wait()
        assert layer.limiter.stats.shadowed == 0
        go.set()
        assert (await request(layer)).status == (await first).status == 200
    assert layer.limiter.stats.shadowed == 1
    assert "few" in caplog.text


async def test_who_is_refused_too_often_is_banned_and_others_are_not() -> None:
    layer = limited(Rule("1/minute", name="x", ban=Ban(after=2, within=60, seconds=600)), rng=lambda: 0.0)
    kinds = []
    for _ in range(4):
        response = await request(layer)
        kinds.append(response.json()["type"].partition("#")[2] if response.status == 429 else "ok")
    assert kinds == ["ok", "quota-exceeded", "abnormal-usage-detected", "abnormal-usage-detected"]
    assert 595 <= int((await request(layer)).header("retry-after") or 0) <= 620
    assert (await request(layer, client=("198.51.100.1", 1))).status == 200


async def test_a_ban_does_not_grow_while_it_lasts() -> None:
    layer = limited(Rule("1/minute", ban=Ban(after=1)), rng=lambda: 0.0)
    waits = [int((await request(layer)).header("retry-after") or 0) for _ in range(30)][1:]
    assert max(waits) - min(waits) <= 1


async def test_a_ban_that_ends_before_the_window_does_not_promise_what_the_window_refuses() -> None:
    layer = limited(Rule("1/minute", ban=Ban(after=1, seconds=5)), rng=lambda: 0.0)
    await request(layer)
    for response in (await request(layer), await request(layer)):
        assert response.json()["violated-policies"] == ["rule-1-ban"]
        ((_, reset),) = limits_of(response).values()
        assert int(response.header("retry-after") or 0) >= reset >= 59


async def test_messages_may_wait_instead_of_ending_the_connection() -> None:
    layer = limited(Rule({"requests": 20, "window": 1, "burst": 1}, on="message", max_delay=0.5))
    async with WebSocket(layer, websocket_scope()) as socket:
        await socket.accepted()
        for i in range(3):
            socket.send_text(str(i))
        assert [await socket.receive_text() for _ in range(3)] == ["0", "1", "2"]
        socket.leave()


async def test_a_message_that_was_being_delayed_when_the_app_closed_is_nobodys() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        waiting = asyncio.ensure_future(receive())
        await until(lambda: layer.limiter._delayed == 1)
        waiting.cancel()
        await send({"type": "websocket.close", "code": 4000})
        assert (await receive())["type"] == "websocket.disconnect"

    layer = limited(Rule({"requests": 20, "window": 4, "burst": 1}, on="message", max_delay=5), app=app)
    async with WebSocket(layer, websocket_scope()) as socket:
        await socket.accepted()
        socket.send_text("1")
        socket.send_text("2")
        socket.leave()
        await socket.ended()


async def test_a_message_too_many_after_the_app_has_closed_is_nobodys() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        await send({"type": "websocket.close", "code": 4000})
        while (await receive())["type"] != "websocket.disconnect":
            pass

    async with WebSocket(limited(Rule("1/minute", on="message"), app=app), websocket_scope()) as socket:
        await socket.accepted()
        for i in range(3):
            socket.send_text(str(i))
        assert (await socket.next())["code"] == 4000
        socket.leave()
        await socket.ended()


async def test_a_message_is_not_lost_when_the_app_gives_up_waiting_for_its_decision() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while True:
            try:
                async with asyncio.timeout(0.02):
                    message = await receive()
            except TimeoutError:
                continue
            if message["type"] == "websocket.disconnect":
                return
            await send({"type": "websocket.send", "text": message["text"]})

    layer = limited(Rule({"requests": 20, "window": 4, "burst": 1}, on="message", max_delay=5), app=app)
    async with WebSocket(layer, websocket_scope()) as socket:
        await socket.accepted()
        socket.send_text("1")
        socket.send_text("2")
        assert [await socket.receive_text() for _ in range(2)] == ["1", "2"]
        socket.leave()


async def test_rules_whose_quotas_would_share_a_count_are_a_config_error() -> None:
    twice = Quota(5, 60_000_000, name="mine")
    with pytest.raises(ConfigError, match="differ in name or window"):
        RateLimitMiddleware(hello, [Rule(twice, path="/a"), Rule(twice, path="/b")])


async def test_quotas_of_a_rule_and_of_the_default_do_not_share_a_count() -> None:
    layer = limited(Rule(Quota(1, 60_000_000), name="login", path="/login"), default=Quota(9, 60_000_000))
    await request(layer, "/other")
    left = {name: room for name, (room, _) in limits_of(await request(layer, "/login")).items()}
    assert left == {"login": 0, "default": 7}


async def test_a_shadow_rule_about_messages_closes_nothing() -> None:
    layer = limited(Rule("1/minute", on="message", shadow=True))
    async with WebSocket(layer, websocket_scope()) as socket:
        await socket.accepted()
        for i in range(3):
            socket.send_text(str(i))
        assert [await socket.receive_text() for _ in range(3)] == ["0", "1", "2"]
        socket.leave()
    assert layer.limiter.stats.shadowed == 2


async def test_messages_of_all_connections_of_a_client_count_together() -> None:
    layer = limited(Rule("3/minute", on="message"))
    closed = []
    for _ in range(2):
        async with WebSocket(layer, websocket_scope()) as socket:
            await socket.accepted()
            socket.send_text("1")
            socket.send_text("2")
            kinds = [(await socket.next())["type"] for _ in range(2)]
            closed.append("websocket.close" in kinds)
            socket.leave()
    assert closed == [False, True]


@pytest.mark.parametrize(
    "arguments",
    [
        {"limits": None},
        {"limits": "5/fortnight"},
        {"on": "smtp"},
        {"key": "cookie"},
        {"key": "header:"},
        {"key": ()},
        {"cost": 0},
        {"cost": -1},
        {"cost": 1.5},
        {"cost": MAX_LIMIT + 1},
        {"path": "login"},
        {"path": "/a/{b"},
        {"path": "/*/b"},
        {"concurrency": 0},
        {"max_delay": -1},
        {"max_delay": float("inf")},
        {"on_error": "ajar"},
        {"on": "message", "concurrency": 1},
        {"on": "message", "charge": lambda scope, status: 0},
    ],
)
def test_a_rule_that_cannot_work_is_a_config_error(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Rule(**{"limits": "5/minute", **arguments})


@pytest.mark.parametrize("arguments", [{"after": 0}, {"after": 1, "within": 0}, {"after": 1, "seconds": 1.5}])
def test_a_ban_that_cannot_work_is_a_config_error(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Ban(**arguments)


@pytest.mark.parametrize("rule", [Rule("5/minute", ban=Ban(after=1)), Rule("5/minute", charge=lambda scope, status: 0)])
def test_bans_and_charges_need_the_strategy_that_knows_them(rule: Rule) -> None:
    with pytest.raises(ConfigError, match="strategy"):
        limited(rule, limiter=RateLimiter("5/minute", strategy="fixed-window"))


@pytest.mark.parametrize(
    "options",
    [
        {"methods": "POST,PUT"},
        {"methods": ["GET", "PSOT"]},
        {"methods": []},
        {"path": []},
        {"host": "example.com:8000"},
        {"host": "http://example.com"},
        {"host": "*"},
        {"key": "header: x-api-key"},
    ],
    ids=str,
)
def test_a_rule_that_could_never_work_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"Rule: {next(iter(options))} "):
        Rule("1/minute", **options)


def test_a_charge_cannot_be_waited_for() -> None:
    async def late(scope: Scope, status: int) -> int:
        return 1

    with pytest.raises(ConfigError, match="charge must not be async"):
        Rule("1/minute", charge=late)  # type: ignore[arg-type]


def test_a_second_rate_is_no_name() -> None:
    with pytest.raises(TypeError):
        Rule("10/second", "100/minute")  # type: ignore[call-arg]


@pytest.mark.parametrize("options", [{"path": "/x"}, {"methods": "GET"}, {"host": "example.com"}], ids=str)
def test_the_default_rule_is_for_every_request(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="default must apply to every request"):
        RateLimitMiddleware(hello, default=Rule("1/minute", **options))


async def test_a_rule_by_user_says_once_that_nobody_authenticates(caplog: pytest.LogCaptureFixture) -> None:
    layer = RateLimitMiddleware(hello, [Rule("1/minute", key="user")])
    keys._say_that_nobody_authenticates.cache_clear()
    for _ in range(3):
        await request(layer)
    assert caplog.text.count('the scope has no "user"') == 1
    keys._say_that_nobody_authenticates.cache_clear()
    await request(layer, user=None)
    assert caplog.text.count('the scope has no "user"') == 1


async def test_a_cost_that_cannot_be_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    half: Any = 0.5
    layer = RateLimitMiddleware(hello, [Rule("10/minute", cost=lambda scope: half)])
    assert [(await request(layer)).status for _ in range(3)] == [429] * 3
    assert caplog.text.count("such requests are refused") == 1
