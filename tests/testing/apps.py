"""Apps that the tests hand to real servers."""

import os

from asgi_enhance.asgi.types import Receive, Scope, Send


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        for phase in ("startup", "shutdown"):
            await receive()
            print(f"{phase} of hello", flush=True)
            await send({"type": f"lifespan.{phase}.complete"})
        return
    assert scope["type"] == "http"
    greeting = os.environ.get("GREETING", "hello").encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(greeting))]})
    await send({"type": "http.response.body", "body": greeting})


def broken() -> None:
    raise ValueError


async def halves(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers the first half of a body with `first`, and the rest of it, whenever that comes, with `second`.

    Any other request publishes to the clients of the `EnhancedAPI` round it.
    """
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
    if scope["method"] == "GET":
        await scope["asgi_enhance.api"].broadcast_event("news", scope["path"])
    else:
        await receive()
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        while (await receive())["more_body"]:
            pass
    await send({"type": "http.response.body", "body": b"second"})


async def failing(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def unstarted(scope: Scope, receive: Receive, send: Send) -> None:
    """Cannot start."""
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database"})
