"""What goes wrong goes through: the app's exceptions, the server's, and cancellation."""

import asyncio
from typing import Any

from asgi_enhance.asgi.types import Receive, Scope, Send
from asgi_enhance.testing.conformance.kit import (
    Factory,
    a_body,
    a_request,
    a_start,
    assert_raises,
    assert_same,
)
from asgi_enhance.testing.driver import Driver, http_scope, websocket_scope


async def an_exception_before_the_start_passes_unchanged(factory: Factory) -> None:
    await assert_raises(factory, ValueError("the app's own"))


async def an_exception_after_the_start_passes_unchanged(factory: Factory) -> None:
    sent = await assert_raises(factory, ValueError("the app's own"), a_start(), a_body(b"half"))
    assert_same(sent, [a_start(), a_body(b"half")])


async def an_exception_of_a_websocket_or_lifespan_passes_unchanged(factory: Factory) -> None:
    await assert_raises(
        factory, ValueError("the app's own"), scope=websocket_scope(), incoming={"type": "websocket.connect"}
    )
    lifespan = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
    await assert_raises(factory, ValueError("the app's own"), scope=lifespan, incoming={"type": "lifespan.startup"})


async def a_cancellation_passes(factory: Factory) -> None:
    for scope, first in (
        (http_scope(), None),
        (http_scope(), a_start()),
        (websocket_scope(), {"type": "websocket.accept"}),
    ):
        entered = asyncio.Event()

        async def app(_: Scope, receive: Receive, send: Send, first: Any = first, entered: Any = entered) -> None:
            if first is not None:
                await send(first)
            entered.set()
            await asyncio.Event().wait()

        driver = Driver(
            factory(app), scope, [a_request() if scope["type"] == "http" else {"type": "websocket.connect"}]
        )
        task = asyncio.create_task(driver.run())
        await entered.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled(), f"CancelledError was swallowed after {driver.sent}"


async def an_error_of_send_reaches_the_app(factory: Factory) -> None:
    seen: list[BaseException] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        for message in (a_start(), a_body(b"x")):
            try:
                await send(message)
            except OSError as error:
                seen.append(error)

    gone = OSError("client gone")
    await Driver(factory(app), http_scope(), [a_request()], send_error=gone).run()
    assert seen == [gone, gone], f"send failed twice, and the app saw {seen}"


SITUATIONS = (
    an_exception_before_the_start_passes_unchanged,
    an_exception_after_the_start_passes_unchanged,
    an_exception_of_a_websocket_or_lifespan_passes_unchanged,
    a_cancellation_passes,
    an_error_of_send_reaches_the_app,
)
