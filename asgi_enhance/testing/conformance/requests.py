"""What the client sends, and who it is, reaches the app; and it is the app that is called, in the caller's own task."""

import asyncio
import contextvars
import copy
from typing import Any

from asgi_enhance.asgi.types import Message, Receive, Scope, Send
from asgi_enhance.testing.conformance import kit
from asgi_enhance.testing.conformance.kit import (
    Factory,
    a_body,
    a_request,
    a_start,
    an_end,
    assert_same,
    says,
)
from asgi_enhance.testing.driver import Driver, Response, http_scope, websocket_scope


async def the_scope_is_not_changed_in_place(factory: Factory) -> None:
    for scope, incoming in ((http_scope("/a?b=c"), a_request()), (websocket_scope(), {"type": "websocket.connect"})):
        before = {key: copy.deepcopy(value) for key, value in scope.items()}
        app = says(a_start(), an_end()) if scope["type"] == "http" else says({"type": "websocket.close", "code": 1000})
        await Driver(factory(app), scope, [incoming]).run()
        assert scope == before, f"changed: {[key for key in scope if scope[key] != before.get(key)]}"


async def unknown_messages_reach_the_app(factory: Factory) -> None:
    seen: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend((await receive(), await receive()))
        await send(a_start())
        await send(an_end())

    new: list[Message] = [{"type": "http.new", "a": 1}, {**a_request(), "b": 2}]
    await Driver(factory(app), http_scope(), copy.deepcopy(new)).run()
    assert seen == new, f"{new} became {seen}"


async def state_and_tls_reach_the_app(factory: Factory) -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        await says(a_start(), an_end())(scope, receive, send)

    state = {"database": object()}
    scope = http_scope(state=state, extensions={"tls": {"tls_version": 0x304}})
    await Driver(factory(app), scope, [a_request()]).run()
    assert seen[0]["state"] is state, "state is another object"
    assert seen[0]["extensions"].get("tls") == {"tls_version": 0x304}, "the tls extension is lost"


async def the_request_reaches_the_app_as_it_came(factory: Factory) -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        await says(a_start(), an_end())(scope, receive, send)

    lines = [(b"accept", b"a"), (b"x-twice", b"1"), (b"x-twice", b"2")]
    scope = http_scope("/A%2Fb?c=%20", headers=lines, client=("192.0.2.9", 1), root_path="/A", somebody="else's")
    scope["extensions"]["somebody.elses"] = {"a": 1}
    await Driver(factory(app), scope, [a_request()]).run()
    lost = [key for key in scope if key not in ("extensions", "headers") and seen[0].get(key) != scope[key]]
    assert not lost, f"the scope lost or changed {lost}"
    assert [pair for pair in seen[0]["headers"] if pair in lines] == lines, f"{lines} became {seen[0]['headers']}"
    assert "somebody.elses" in seen[0]["extensions"], "an extension of somebody else's is lost"


async def a_scope_with_only_what_must_be_there_is_enough(factory: Factory) -> None:
    full = http_scope()
    scope = {key: full[key] for key in ("type", "asgi", "http_version", "method", "path", "query_string", "headers")}
    assert_same(await Driver(factory(says(a_start(), an_end())), scope, [a_request()]).run(), [a_start(), an_end()])
    assert_same(
        await Driver(
            factory(says(a_start(), an_end())), {**scope, "extensions": None, "client": None}, [a_request()]
        ).run(),
        [a_start(), an_end()],
    )


async def the_body_streams_in_order_to_the_app(factory: Factory) -> None:
    seen: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        more = True
        while more:
            message = await receive()
            seen.append(message["body"])
            more = message["more_body"]
            await send(a_start() if len(seen) == 1 else a_body(seen[-1]))
        await send(an_end())

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
        await send(a_start())
        await send(an_end())

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
    driver = Driver(factory(says(a_start(), an_end())), http_scope(), [a_request()])
    await driver.run()
    assert not driver.waiting_readers, "receive is still being called"


async def a_client_that_leaves_is_seen_by_the_app(factory: Factory) -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(a_start())
        seen.append((await receive())["type"])

    async with Driver(factory(app), http_scope(), [a_request()]) as server:
        await server.next()
        server.feed({"type": "http.disconnect"})
        await server.ended()
    assert seen == ["http.disconnect"], f"the app saw {seen}"
    assert not server.reads_after_disconnect, "receive was called after http.disconnect"
    assert not server.overlapping_reads, "two callers waited in receive at once"


async def no_disconnect_is_invented(factory: Factory) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(a_start())
        await send(an_end())
        async with asyncio.timeout(kit.WAIT / 10):
            seen.append(await receive())

    seen: list[Message] = []
    try:
        await Driver(factory(app), http_scope(), [a_request()]).run()
    except TimeoutError:
        return
    raise AssertionError(f"after the response the app was told {seen}; the client was still there")


async def the_app_runs_in_the_callers_task_and_context(factory: Factory) -> None:
    seen: list[Any] = []
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend((asyncio.current_task(), user.get(None)))
        end = (a_start(), an_end()) if scope["type"] == "http" else ({"type": "websocket.close"},)
        await says(*end)(scope, receive, send)

    user.set("alice")
    await Driver(factory(app), http_scope(), [a_request()]).run()
    await Driver(factory(app), websocket_scope(), [{"type": "websocket.connect"}]).run()
    here = asyncio.current_task()
    assert seen == [here, "alice", here, "alice"], f"task and context variable were {seen}"


async def concurrent_requests_do_not_mix(factory: Factory) -> None:
    arrived: list[str] = []
    all_here = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({**a_start(), "headers": [(b"x-path", scope["path"].encode())]})
        arrived.append(scope["path"])
        if len(arrived) == 5:
            all_here.set()
        await all_here.wait()
        await send(a_body(scope["path"].encode(), more=False))

    wrapped = factory(app)
    drivers = [Driver(wrapped, http_scope(f"/{name}"), [a_request()]) for name in range(5)]
    for number, messages in enumerate(await asyncio.gather(*(driver.run() for driver in drivers))):
        answer = Response(messages)
        assert (answer.header("x-path"), answer.body) == (f"/{number}", f"/{number}".encode()), "answers are mixed up"


SITUATIONS = (
    the_scope_is_not_changed_in_place,
    unknown_messages_reach_the_app,
    state_and_tls_reach_the_app,
    the_request_reaches_the_app_as_it_came,
    a_scope_with_only_what_must_be_there_is_enough,
    the_body_streams_in_order_to_the_app,
    an_upload_is_read_no_faster_than_the_app_reads,
    nobody_reads_on_when_the_app_has_returned,
    a_client_that_leaves_is_seen_by_the_app,
    no_disconnect_is_invented,
    the_app_runs_in_the_callers_task_and_context,
    concurrent_requests_do_not_mix,
)
