"""A backend of the tour: says its name, and how many requests it has answered."""

import json
import os
from itertools import count

from asgi_enhance.asgi.types import Receive, Scope, Send

name = os.environ.get("DEMO_NAME", "backend")
answered = count(1)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    assert scope["type"] == "http"
    body = json.dumps({"backend": name, "answered": next(answered)}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
