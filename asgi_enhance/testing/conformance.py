"""The transparency kit: is a middleware invisible to what is not its business?

`check(factory)` builds the middleware round small scripted apps, plays every situation of the ASGI contract to it, and
returns a `Finding` for each line it breaks. `assert_transparent(factory)` raises with all of them. A middleware may add
headers to a response; it may take nothing away, and delay, reorder or invent nothing.

    def test_my_middleware_is_transparent():
        asyncio.run(assert_transparent(lambda app: MyMiddleware(app, option=1)))
"""

import asyncio
import contextvars
import copy
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from asgi_enhance.asgi.types import ASGIApp, Message, Receive, Scope, Send
from asgi_enhance.testing.driver import Driver, Lifetime, Response, WebSocket, http_scope, websocket_scope

Factory = Callable[[ASGIApp], ASGIApp]

WAIT = 1.0
"""Seconds after which something that should have come at once is held to be delayed."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One broken line of the contract: the situation that was played, and what went wrong."""

    situation: str
    problem: str

    def __str__(self) -> str:
        return f"{self.situation}: {self.problem}"


async def check(factory: Factory) -> list[Finding]:
    """Play every situation to a new middleware each; what it broke, in order. Empty means transparent."""
    findings = []
    for situation in SITUATIONS:
        try:
            async with asyncio.timeout(5 * WAIT):
                await situation(factory)
        except AssertionError as error:
            findings.append(Finding(situation.__name__, str(error)))
        except TimeoutError:
            findings.append(Finding(situation.__name__, "nothing happened any more"))
        except Exception as error:
            findings.append(Finding(situation.__name__, f"{type(error).__name__}: {error}"))
    return findings


async def assert_transparent(factory: Factory) -> None:
    """AssertionError naming every broken line of the contract."""
    findings = await check(factory)
    assert not findings, "not transparent:\n" + "\n".join(f"  {finding}" for finding in findings)


# Messages are made anew each time: what a broken middleware does to one must not reach the next situation.


def _request() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


def _start() -> Message:
    headers = [(b"content-type", b"text/plain"), (b"x-twice", b"1"), (b"x-twice", b"2")]
    return {"type": "http.response.start", "status": 200, "headers": headers}


def _end() -> Message:
    return _body(b"", more=False)


def _body(data: bytes, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


def _says(*messages: Message) -> ASGIApp:
    """An app that reads its request and sends these very messages."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        for message in messages:
            await send(message)

    return app


def _same(sent: list[Message], expected: list[Message]) -> None:
    """The messages arrived as they were said; headers may have company."""
    kinds, wanted = [m["type"] for m in sent], [m["type"] for m in expected]
    assert kinds == wanted, f"{wanted} became {kinds}"
    for message, model in zip(sent, expected, strict=True):
        for key, value in model.items():
            if key == "headers" and model["type"] == "http.response.start":
                kept = [pair for pair in map(tuple, message.get("headers", ())) if pair in value]
                assert kept == value, f"headers {value} became {message.get('headers')}"
            elif key == "more_body":
                assert message.get(key, False) == value, f"more_body={value} became {message.get(key)}"
            else:
                assert message.get(key) == value, f"{model['type']}: {key}={value!r} became {message.get(key)!r}"


async def _plays(factory: Factory, *messages: Message) -> None:
    driver = Driver(factory(_says(*messages)), http_scope(), [_request()])
    _same(await driver.run(), list(messages))


# The situations. Each is named after what is expected.


async def a_plain_response_arrives_whole(factory: Factory) -> None:
    await _plays(factory, _start(), _body(b"one"), _body(b"two"), _end())


async def a_start_without_headers_is_a_start(factory: Factory) -> None:
    await _plays(factory, {"type": "http.response.start", "status": 204}, _end())


async def an_unknown_scope_type_passes_with_the_very_same_objects(factory: Factory) -> None:
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend((scope, receive, send))

    driver = Driver(app, {"type": "something.else"})
    receive, send = driver.receive, driver.send
    await factory(app)(driver.scope, receive, send)
    assert seen, "the app was not called"
    assert seen[0] is driver.scope, "the scope is another object"
    assert seen[1] is receive, "receive is another object"
    assert seen[2] is send, "send is another object"


async def lifespan_reaches_the_app(factory: Factory) -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "lifespan"
        for phase in ("startup", "shutdown"):
            message = await receive()
            seen.append(message["type"])
            scope["state"][phase] = True
            await send({"type": f"lifespan.{phase}.complete"})

    async with Lifetime(factory(app)) as life:
        assert life.state.get("startup"), "what the app put into state is lost"
    assert seen == ["lifespan.startup", "lifespan.shutdown"], f"the app saw {seen}"


async def a_failing_start_up_is_reported(factory: Factory) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    driver = Driver(factory(app), {"type": "lifespan", "asgi": {"version": "3.0"}}, [{"type": "lifespan.startup"}])
    sent = await driver.run()
    assert [m["type"] for m in sent] == ["lifespan.startup.failed"], f"the server was told {sent}"


async def the_scope_is_not_changed_in_place(factory: Factory) -> None:
    for scope, incoming in ((http_scope("/a?b=c"), _request()), (websocket_scope(), {"type": "websocket.connect"})):
        before = {key: copy.deepcopy(value) for key, value in scope.items()}
        app = _says(_start(), _end()) if scope["type"] == "http" else _says({"type": "websocket.close", "code": 1000})
        await Driver(factory(app), scope, [incoming]).run()
        assert scope == before, f"changed: {[key for key in scope if scope[key] != before.get(key)]}"


async def messages_are_not_changed_in_place(factory: Factory) -> None:
    start, body, incoming = _start(), _end(), _request()
    wrapped = factory(_says(start, body))
    for _ in range(3):
        await Driver(wrapped, http_scope(), [incoming]).run()
    assert incoming == _request(), f"the server's own message became {incoming}"
    assert start == _start(), f"the app's own start message became {start}"
    assert body == _end(), f"the app's own body message became {body}"


async def every_message_goes_out_at_once(factory: Factory) -> None:
    go = asyncio.Event()
    messages: list[Message] = [
        {"type": "http.response.early_hint", "links": [b"</a.css>; rel=preload"]},
        _start(),
        _body(b"first"),
    ]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        for message in messages:
            await send(message)
            await go.wait()
            go.clear()
        await send(_end())

    async with Driver(factory(app), http_scope(), [_request()]) as server:
        for message in messages:
            try:
                async with asyncio.timeout(WAIT):
                    await server.next()
            except TimeoutError:
                raise AssertionError(f"{message['type']} is held back until more comes") from None
            go.set()
        await server.next()
        await server.ended()


async def early_hints_come_before_the_start(factory: Factory) -> None:
    await _plays(factory, {"type": "http.response.early_hint", "links": [b"</a.css>; rel=preload"]}, _start(), _end())


async def debug_comes_before_the_start(factory: Factory) -> None:
    await _plays(factory, {"type": "http.response.debug", "info": {"template": "a"}}, _start(), _end())


async def push_passes(factory: Factory) -> None:
    push: Message = {"type": "http.response.push", "path": "/a.css", "headers": []}
    await _plays(factory, _start(), push, _end())


async def unknown_messages_and_keys_pass(factory: Factory) -> None:
    await _plays(
        factory,
        {"type": "somebody.elses", "a": 1},
        {**_start(), "c": 3},
        {"type": "http.response.new", "b": 2},
        {**_body(b"x"), "d": 4},
        _end(),
    )


async def unknown_messages_reach_the_app(factory: Factory) -> None:
    seen: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend((await receive(), await receive()))
        await send(_start())
        await send(_end())

    new: list[Message] = [{"type": "http.new", "a": 1}, {**_request(), "b": 2}]
    await Driver(factory(app), http_scope(), copy.deepcopy(new)).run()
    assert seen == new, f"{new} became {seen}"


async def trailers_come_after_the_last_body(factory: Factory) -> None:
    trailers: Message = {"type": "http.response.trailers", "headers": [(b"digest", b"x")], "more_trailers": False}
    await _plays(factory, {**_start(), "trailers": True}, _body(b"x"), _end(), trailers)


async def _unless_withdrawn(factory: Factory, extension: str, *messages: Message) -> None:
    """An extension passes, or is taken out of the scope that the app sees (contract 4)."""
    plain = [_start(), _body(b"plain"), _end()]
    offered: list[bool] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        offered.append(extension in (scope.get("extensions") or {}))
        await receive()
        for message in messages if offered[-1] else plain:
            await send(message)

    sent = await Driver(factory(app), http_scope(), [_request()]).run()
    _same(sent, list(messages) if offered[-1] else plain)


async def pathsend_passes_or_is_not_offered(factory: Factory) -> None:
    await _unless_withdrawn(
        factory, "http.response.pathsend", _start(), {"type": "http.response.pathsend", "path": "/tmp/x"}
    )


async def zerocopysend_passes_or_is_not_offered(factory: Factory) -> None:
    part: Message = {"type": "http.response.zerocopysend", "file": 0, "more_body": True}
    await _unless_withdrawn(
        factory, "http.response.zerocopysend", _start(), part, _body(b"mixed"), {**part, "more_body": False}
    )


async def state_and_tls_reach_the_app(factory: Factory) -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        await _says(_start(), _end())(scope, receive, send)

    state = {"database": object()}
    scope = http_scope(state=state, extensions={"tls": {"tls_version": 0x304}})
    await Driver(factory(app), scope, [_request()]).run()
    assert seen[0]["state"] is state, "state is another object"
    assert seen[0]["extensions"].get("tls") == {"tls_version": 0x304}, "the tls extension is lost"


async def the_request_reaches_the_app_as_it_came(factory: Factory) -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        await _says(_start(), _end())(scope, receive, send)

    lines = [(b"accept", b"a"), (b"x-twice", b"1"), (b"x-twice", b"2")]
    scope = http_scope("/A%2Fb?c=%20", headers=lines, client=("192.0.2.9", 1), root_path="/A", somebody="else's")
    scope["extensions"]["somebody.elses"] = {"a": 1}
    await Driver(factory(app), scope, [_request()]).run()
    lost = [key for key in scope if key not in ("extensions", "headers") and seen[0].get(key) != scope[key]]
    assert not lost, f"the scope lost or changed {lost}"
    assert [pair for pair in seen[0]["headers"] if pair in lines] == lines, f"{lines} became {seen[0]['headers']}"
    assert "somebody.elses" in seen[0]["extensions"], "an extension of somebody else's is lost"


async def a_scope_with_only_what_must_be_there_is_enough(factory: Factory) -> None:
    full = http_scope()
    scope = {key: full[key] for key in ("type", "asgi", "http_version", "method", "path", "query_string", "headers")}
    _same(await Driver(factory(_says(_start(), _end())), scope, [_request()]).run(), [_start(), _end()])
    _same(
        await Driver(
            factory(_says(_start(), _end())), {**scope, "extensions": None, "client": None}, [_request()]
        ).run(),
        [_start(), _end()],
    )


async def the_body_streams_in_order_to_the_app(factory: Factory) -> None:
    seen: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        more = True
        while more:
            message = await receive()
            seen.append(message["body"])
            more = message["more_body"]
            await send(_start() if len(seen) == 1 else _body(seen[-1]))
        await send(_end())

    async with Driver(factory(app), http_scope(method="POST")) as server:
        for index, part in enumerate((b"a", b"b", b"c")):
            server.feed({"type": "http.request", "body": part, "more_body": index < 2})
            await server.next()
        await server.next()
        await server.ended()
    assert seen == [b"a", b"b", b"c"], f"the app read {seen}"


async def an_upload_is_read_no_faster_than_the_app_reads(factory: Factory) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        for _ in range(50):  # every chance to run ahead
            await asyncio.sleep(0)
        ahead.append(taken)
        await send(_start())
        await send(_end())

    ahead: list[int] = []
    taken = 0

    async def receive() -> Message:
        nonlocal taken
        await asyncio.sleep(0)
        taken += 1
        return {"type": "http.request", "body": b"x", "more_body": True}

    driver = Driver(factory(app), http_scope(method="POST"))
    await driver.app(driver.scope, receive, driver.send)
    assert ahead[0] < 10, f"the app had read one chunk, and {ahead[0]} were taken from the server"


async def nobody_reads_on_when_the_app_has_returned(factory: Factory) -> None:
    driver = Driver(factory(_says(_start(), _end())), http_scope(), [_request()])
    await driver.run()
    assert not driver.waiting_readers, "receive is still being called"


async def a_client_that_leaves_is_seen_by_the_app(factory: Factory) -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(_start())
        seen.append((await receive())["type"])

    async with Driver(factory(app), http_scope(), [_request()]) as server:
        await server.next()
        server.feed({"type": "http.disconnect"})
        await server.ended()
    assert seen == ["http.disconnect"], f"the app saw {seen}"
    assert not server.reads_after_disconnect, "receive was called after http.disconnect"
    assert not server.overlapping_reads, "two callers waited in receive at once"


async def no_disconnect_is_invented(factory: Factory) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(_start())
        await send(_end())
        async with asyncio.timeout(WAIT / 10):
            seen.append(await receive())

    seen: list[Message] = []
    try:
        await Driver(factory(app), http_scope(), [_request()]).run()
    except TimeoutError:
        return
    raise AssertionError(f"after the response the app was told {seen}; the client was still there")


async def back_pressure_reaches_the_app(factory: Factory) -> None:
    await _back_pressure(factory, http_scope(), _request(), _start(), _end())


async def _back_pressure(factory: Factory, scope: Scope, incoming: Message, first: Message, last: Message) -> None:
    sent = 0
    chunk = _body(b"x" * 65536) if scope["type"] == "http" else {"type": "websocket.send", "bytes": b"x" * 65536}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        await receive()
        await send(first)
        for _ in range(100):
            await send(chunk)
            sent += 1
        await send(last)

    async with Driver(factory(app), scope, [incoming], capacity=2) as server:
        await server.next()
        for _ in range(50):  # every chance to run ahead
            await asyncio.sleep(0)
        ahead = sent
        for _ in range(101):
            await server.next()
        await server.ended()
    assert ahead < 10, f"with nobody reading, the app could send {ahead} chunks"


async def an_exception_before_the_start_passes_unchanged(factory: Factory) -> None:
    await _raises(factory, ValueError("the app's own"))


async def an_exception_after_the_start_passes_unchanged(factory: Factory) -> None:
    sent = await _raises(factory, ValueError("the app's own"), _start(), _body(b"half"))
    _same(sent, [_start(), _body(b"half")])


async def an_exception_of_a_websocket_or_lifespan_passes_unchanged(factory: Factory) -> None:
    await _raises(factory, ValueError("the app's own"), scope=websocket_scope(), incoming={"type": "websocket.connect"})
    lifespan = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
    await _raises(factory, ValueError("the app's own"), scope=lifespan, incoming={"type": "lifespan.startup"})


async def a_cancellation_passes(factory: Factory) -> None:
    for scope, first in (
        (http_scope(), None),
        (http_scope(), _start()),
        (websocket_scope(), {"type": "websocket.accept"}),
    ):
        entered = asyncio.Event()

        async def app(_: Scope, receive: Receive, send: Send, first: Any = first, entered: Any = entered) -> None:
            if first is not None:
                await send(first)
            entered.set()
            await asyncio.Event().wait()

        driver = Driver(factory(app), scope, [_request() if scope["type"] == "http" else {"type": "websocket.connect"}])
        task = asyncio.create_task(driver.run())
        await entered.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled(), f"CancelledError was swallowed after {driver.sent}"


async def _raises(
    factory: Factory, error: Exception, *messages: Message, scope: Scope | None = None, incoming: Message | None = None
) -> list[Message]:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await _says(*messages)(scope, receive, send)
        raise error

    driver = Driver(factory(app), scope or http_scope(), [incoming or _request()])
    try:
        await driver.run()
    except ValueError as seen:
        raised: Exception | None = seen
    else:
        raised = None
    assert raised is not None, f"{error!r} was swallowed"
    assert raised is error, f"{error!r} became {raised!r}"
    return driver.sent


async def an_error_of_send_reaches_the_app(factory: Factory) -> None:
    seen: list[BaseException] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        for message in (_start(), _body(b"x")):
            try:
                await send(message)
            except OSError as error:
                seen.append(error)

    gone = OSError("client gone")
    await Driver(factory(app), http_scope(), [_request()], send_error=gone).run()
    assert seen == [gone, gone], f"send failed twice, and the app saw {seen}"


async def the_app_runs_in_the_callers_task_and_context(factory: Factory) -> None:
    seen: list[Any] = []
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend((asyncio.current_task(), user.get(None)))
        end = (_start(), _end()) if scope["type"] == "http" else ({"type": "websocket.close"},)
        await _says(*end)(scope, receive, send)

    user.set("alice")
    await Driver(factory(app), http_scope(), [_request()]).run()
    await Driver(factory(app), websocket_scope(), [{"type": "websocket.connect"}]).run()
    here = asyncio.current_task()
    assert seen == [here, "alice", here, "alice"], f"task and context variable were {seen}"


async def concurrent_requests_do_not_mix(factory: Factory) -> None:
    arrived: list[str] = []
    all_here = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({**_start(), "headers": [(b"x-path", scope["path"].encode())]})
        arrived.append(scope["path"])
        if len(arrived) == 5:
            all_here.set()
        await all_here.wait()
        await send(_body(scope["path"].encode(), more=False))

    wrapped = factory(app)
    drivers = [Driver(wrapped, http_scope(f"/{name}"), [_request()]) for name in range(5)]
    for number, messages in enumerate(await asyncio.gather(*(driver.run() for driver in drivers))):
        answer = Response(messages)
        assert (answer.header("x-path"), answer.body) == (f"/{number}", f"/{number}".encode()), "answers are mixed up"


async def work_after_the_response_goes_on(factory: Factory) -> None:
    worked = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await _says(_start(), _end())(scope, receive, send)
        await asyncio.sleep(0)
        worked.set()

    async with Driver(factory(app), http_scope(), [_request()]) as server:
        while (await server.next())["type"] != "http.response.body":
            pass
        await server.ended()
    assert worked.is_set(), "what the app does after its response was cut off"


async def a_websocket_conversation_passes(factory: Factory) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept", "subprotocol": "chat", "headers": [(b"x-a", b"1")]})
        while (message := await receive())["type"] == "websocket.receive":
            await send({**message, "type": "websocket.send"})
        seen.append(message)

    seen: list[Message] = []
    async with WebSocket(factory(app), websocket_scope(subprotocols=["chat"])) as socket:
        accept = await socket.accepted()
        assert accept.get("subprotocol") == "chat", "the subprotocol is lost"
        assert (b"x-a", b"1") in [tuple(pair) for pair in accept.get("headers", ())], "a header of accept is lost"
        for message in ({"text": "hello"}, {"text": ""}, {"bytes": b"\x00\xff"}):
            socket.feed({"type": "websocket.receive", **message})
            _same([await socket.next()], [{"type": "websocket.send", **message}])
        socket.leave(4001)
        await socket.ended()
    assert [m.get("code") for m in seen] == [4001], f"the app saw the end as {seen}"


async def a_websocket_is_closed_in_the_apps_own_words(factory: Factory) -> None:
    close: Message = {"type": "websocket.close", "code": 4002, "reason": "enough"}
    for words in ([{"type": "websocket.accept"}, close], [close]):
        driver = Driver(factory(_says(*words)), websocket_scope(), [{"type": "websocket.connect"}])
        _same(await driver.run(), words)


async def back_pressure_of_a_websocket_reaches_the_app(factory: Factory) -> None:
    await _back_pressure(
        factory,
        websocket_scope(),
        {"type": "websocket.connect"},
        {"type": "websocket.accept"},
        {"type": "websocket.close"},
    )


async def a_websocket_is_refused_in_the_apps_own_words(factory: Factory) -> None:
    denial: list[Message] = [
        {"type": "websocket.http.response.start", "status": 401, "headers": [(b"x-a", b"1")]},
        {"type": "websocket.http.response.body", "body": b"no", "more_body": False},
    ]
    async with WebSocket(factory(_says(*denial)), websocket_scope()) as socket:
        answer = await socket.refused()
        await socket.ended()
    assert isinstance(answer, Response)
    assert (answer.status, answer.body) == (401, b"no"), f"401 became {answer.status} {answer.body!r}"


SITUATIONS: tuple[Callable[[Factory], Awaitable[None]], ...] = (
    a_plain_response_arrives_whole,
    a_start_without_headers_is_a_start,
    an_unknown_scope_type_passes_with_the_very_same_objects,
    lifespan_reaches_the_app,
    a_failing_start_up_is_reported,
    the_scope_is_not_changed_in_place,
    messages_are_not_changed_in_place,
    every_message_goes_out_at_once,
    early_hints_come_before_the_start,
    debug_comes_before_the_start,
    push_passes,
    unknown_messages_and_keys_pass,
    unknown_messages_reach_the_app,
    trailers_come_after_the_last_body,
    pathsend_passes_or_is_not_offered,
    zerocopysend_passes_or_is_not_offered,
    state_and_tls_reach_the_app,
    the_request_reaches_the_app_as_it_came,
    a_scope_with_only_what_must_be_there_is_enough,
    the_body_streams_in_order_to_the_app,
    an_upload_is_read_no_faster_than_the_app_reads,
    nobody_reads_on_when_the_app_has_returned,
    a_client_that_leaves_is_seen_by_the_app,
    no_disconnect_is_invented,
    back_pressure_reaches_the_app,
    an_exception_before_the_start_passes_unchanged,
    an_exception_after_the_start_passes_unchanged,
    an_exception_of_a_websocket_or_lifespan_passes_unchanged,
    a_cancellation_passes,
    an_error_of_send_reaches_the_app,
    the_app_runs_in_the_callers_task_and_context,
    concurrent_requests_do_not_mix,
    work_after_the_response_goes_on,
    a_websocket_conversation_passes,
    a_websocket_is_refused_in_the_apps_own_words,
    a_websocket_is_closed_in_the_apps_own_words,
    back_pressure_of_a_websocket_reaches_the_app,
)
