"""WebSockets, lifespan, and scopes that nobody knows yet."""

from typing import Any

from asgi_enhance.asgi.types import Message, Receive, Scope, Send
from asgi_enhance.testing.conformance.kit import Factory, assert_back_pressure, assert_same, says
from asgi_enhance.testing.driver import Driver, Lifetime, Response, WebSocket, websocket_scope


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
            assert_same([await socket.next()], [{"type": "websocket.send", **message}])
        socket.leave(4001)
        await socket.ended()
    assert [m.get("code") for m in seen] == [4001], f"the app saw the end as {seen}"


async def a_websocket_is_closed_in_the_apps_own_words(factory: Factory) -> None:
    close: Message = {"type": "websocket.close", "code": 4002, "reason": "enough"}
    for words in ([{"type": "websocket.accept"}, close], [close]):
        driver = Driver(factory(says(*words)), websocket_scope(), [{"type": "websocket.connect"}])
        assert_same(await driver.run(), words)


async def back_pressure_of_a_websocket_reaches_the_app(factory: Factory) -> None:
    await assert_back_pressure(
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
    async with WebSocket(factory(says(*denial)), websocket_scope()) as socket:
        answer = await socket.refused()
        await socket.ended()
    assert isinstance(answer, Response)
    assert (answer.status, answer.body) == (401, b"no"), f"401 became {answer.status} {answer.body!r}"


SITUATIONS = (
    an_unknown_scope_type_passes_with_the_very_same_objects,
    lifespan_reaches_the_app,
    a_failing_start_up_is_reported,
    a_websocket_conversation_passes,
    a_websocket_is_closed_in_the_apps_own_words,
    back_pressure_of_a_websocket_reaches_the_app,
    a_websocket_is_refused_in_the_apps_own_words,
)
