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
