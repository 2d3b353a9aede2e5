"""Apps and shorthands that the tests of this capability share."""

import re
from typing import Any

from asgi_enhance.asgi.types import Receive, Scope, Send
from asgi_enhance.testing.driver import Response


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    """200 to every request; a WebSocket is accepted and its messages are echoed until it leaves."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"hello"})
        return
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


def answers(status: int) -> Any:
    """An app that answers this status."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    return app


def limits_of(response: Response) -> dict[str, tuple[int, int]]:
    """The `RateLimit` field as {name: (remaining, seconds)}."""
    field = response.header("RateLimit") or ""
    return {name: (int(r), int(t)) for name, r, t in re.findall(r'"([^"]*)";r=(\d+);t=(\d+)', field)}
