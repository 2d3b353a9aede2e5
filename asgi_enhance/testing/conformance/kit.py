"""What the situations of the kit are made of: messages, apps that say them, and what must come out at the other end."""

import asyncio
from collections.abc import Callable

from asgi_enhance.asgi.types import ASGIApp, Message, Receive, Scope, Send
from asgi_enhance.testing.driver import Driver, http_scope

Factory = Callable[[ASGIApp], ASGIApp]

WAIT = 1.0
"""Seconds after which something that should have come at once is held to be delayed."""

# Messages are made anew each time: what a broken middleware does to one must not reach the next situation.


def a_request() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


def a_start() -> Message:
    headers = [(b"content-type", b"text/plain"), (b"x-twice", b"1"), (b"x-twice", b"2")]
    return {"type": "http.response.start", "status": 200, "headers": headers}


def an_end() -> Message:
    return a_body(b"", more=False)


def a_body(data: bytes, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


def says(*messages: Message) -> ASGIApp:
    """An app that reads its request and sends these very messages."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        for message in messages:
            await send(message)

    return app


def assert_same(sent: list[Message], expected: list[Message]) -> None:
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


async def plays(factory: Factory, *messages: Message) -> None:
    driver = Driver(factory(says(*messages)), http_scope(), [a_request()])
    assert_same(await driver.run(), list(messages))


async def assert_back_pressure(
    factory: Factory, scope: Scope, incoming: Message, first: Message, last: Message
) -> None:
    sent = 0
    chunk = a_body(b"x" * 65536) if scope["type"] == "http" else {"type": "websocket.send", "bytes": b"x" * 65536}

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


async def assert_raises(
    factory: Factory, error: Exception, *messages: Message, scope: Scope | None = None, incoming: Message | None = None
) -> list[Message]:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await says(*messages)(scope, receive, send)
        raise error

    driver = Driver(factory(app), scope or http_scope(), [incoming or a_request()])
    try:
        await driver.run()
    except ValueError as seen:
        raised: Exception | None = seen
    else:
        raised = None
    assert raised is not None, f"{error!r} was swallowed"
    assert raised is error, f"{error!r} became {raised!r}"
    return driver.sent
