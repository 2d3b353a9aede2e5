"""What the app sends arrives: whole, in order, at once, whatever kind of message it is."""

import asyncio

from asgi_enhance.asgi.types import Message, Receive, Scope, Send
from asgi_enhance.testing.conformance import kit
from asgi_enhance.testing.conformance.kit import (
    Factory,
    a_body,
    a_request,
    a_start,
    an_end,
    assert_back_pressure,
    assert_same,
    plays,
    says,
)
from asgi_enhance.testing.driver import Driver, http_scope


async def a_plain_response_arrives_whole(factory: Factory) -> None:
    await plays(factory, a_start(), a_body(b"one"), a_body(b"two"), an_end())


async def a_start_without_headers_is_a_start(factory: Factory) -> None:
    await plays(factory, {"type": "http.response.start", "status": 204}, an_end())


async def messages_are_not_changed_in_place(factory: Factory) -> None:
    start, body, incoming = a_start(), an_end(), a_request()
    wrapped = factory(says(start, body))
    for _ in range(3):
        await Driver(wrapped, http_scope(), [incoming]).run()
    assert incoming == a_request(), f"the server's own message became {incoming}"
    assert start == a_start(), f"the app's own start message became {start}"
    assert body == an_end(), f"the app's own body message became {body}"


async def every_message_goes_out_at_once(factory: Factory) -> None:
    go = asyncio.Event()
    messages: list[Message] = [
        {"type": "http.response.early_hint", "links": [b"</a.css>; rel=preload"]},
        a_start(),
        a_body(b"first"),
    ]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        for message in messages:
            await send(message)
            await go.wait()
            go.clear()
        await send(an_end())

    async with Driver(factory(app), http_scope(), [a_request()]) as server:
        for message in messages:
            try:
                async with asyncio.timeout(kit.WAIT):
                    await server.next()
            except TimeoutError:
                raise AssertionError(f"{message['type']} is held back until more comes") from None
            go.set()
        await server.next()
        await server.ended()


async def early_hints_come_before_the_start(factory: Factory) -> None:
    await plays(factory, {"type": "http.response.early_hint", "links": [b"</a.css>; rel=preload"]}, a_start(), an_end())


async def debug_comes_before_the_start(factory: Factory) -> None:
    await plays(factory, {"type": "http.response.debug", "info": {"template": "a"}}, a_start(), an_end())


async def push_passes(factory: Factory) -> None:
    push: Message = {"type": "http.response.push", "path": "/a.css", "headers": []}
    await plays(factory, a_start(), push, an_end())


async def unknown_messages_and_keys_pass(factory: Factory) -> None:
    await plays(
        factory,
        {"type": "somebody.elses", "a": 1},
        {**a_start(), "c": 3},
        {"type": "http.response.new", "b": 2},
        {**a_body(b"x"), "d": 4},
        an_end(),
    )


async def trailers_come_after_the_last_body(factory: Factory) -> None:
    trailers: Message = {"type": "http.response.trailers", "headers": [(b"digest", b"x")], "more_trailers": False}
    await plays(factory, {**a_start(), "trailers": True}, a_body(b"x"), an_end(), trailers)


async def _unless_withdrawn(factory: Factory, extension: str, *messages: Message) -> None:
    """An extension passes, or is taken out of the scope that the app sees (contract 4)."""
    plain = [a_start(), a_body(b"plain"), an_end()]
    offered: list[bool] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        offered.append(extension in (scope.get("extensions") or {}))
        await receive()
        for message in messages if offered[-1] else plain:
            await send(message)

    sent = await Driver(factory(app), http_scope(), [a_request()]).run()
    assert_same(sent, list(messages) if offered[-1] else plain)


async def pathsend_passes_or_is_not_offered(factory: Factory) -> None:
    await _unless_withdrawn(
        factory, "http.response.pathsend", a_start(), {"type": "http.response.pathsend", "path": "/tmp/x"}
    )


async def zerocopysend_passes_or_is_not_offered(factory: Factory) -> None:
    part: Message = {"type": "http.response.zerocopysend", "file": 0, "more_body": True}
    await _unless_withdrawn(
        factory, "http.response.zerocopysend", a_start(), part, a_body(b"mixed"), {**part, "more_body": False}
    )


async def back_pressure_reaches_the_app(factory: Factory) -> None:
    await assert_back_pressure(factory, http_scope(), a_request(), a_start(), an_end())


async def work_after_the_response_goes_on(factory: Factory) -> None:
    worked = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await says(a_start(), an_end())(scope, receive, send)
        await asyncio.sleep(0)
        worked.set()

    async with Driver(factory(app), http_scope(), [a_request()]) as server:
        while (await server.next())["type"] != "http.response.body":
            pass
        await server.ended()
    assert worked.is_set(), "what the app does after its response was cut off"


SITUATIONS = (
    a_plain_response_arrives_whole,
    a_start_without_headers_is_a_start,
    messages_are_not_changed_in_place,
    every_message_goes_out_at_once,
    early_hints_come_before_the_start,
    debug_comes_before_the_start,
    push_passes,
    unknown_messages_and_keys_pass,
    trailers_come_after_the_last_body,
    pathsend_passes_or_is_not_offered,
    zerocopysend_passes_or_is_not_offered,
    back_pressure_reaches_the_app,
    work_after_the_response_goes_on,
)
