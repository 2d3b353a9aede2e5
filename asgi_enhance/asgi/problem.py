"""Problem responses (RFC 9457), for HTTP and for a WebSocket that is refused before it is accepted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import msgspec

from asgi_enhance.asgi.types import Headers, Receive, Scope, Send


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem response that is itself an ASGI app: `await Problem(503)(scope, receive, send)`.

    status:     the HTTP status, 400 to 599.
    title:      a short summary; default: the status' own phrase.
    type:       a URI for the kind of problem; `about:blank` means the status says it all.
    detail:     what happened to this request, for a human. Nothing of the inside belongs here.
    extensions: further members of the JSON object.
    headers:    sent along, after Content-Type and Content-Length.
    close_code: for a WebSocket whose server cannot send a denial response. Servers make 403 of it.
    """

    status: int
    title: str = ""
    type: str = "about:blank"
    detail: str = ""
    extensions: Mapping[str, Any] = field(default_factory=dict)
    headers: Sequence[tuple[bytes, bytes]] = ()
    close_code: int = 1008

    @property
    def phrase(self) -> str:
        if self.title:
            return self.title
        try:
            return HTTPStatus(self.status).phrase
        except ValueError:
            return HTTPStatus(self.status // 100 * 100).phrase  # what nobody knows is the first of its class (RFC 9110)

    def body(self) -> bytes:
        members: dict[str, Any] = {"type": self.type, "title": self.phrase, "status": self.status}
        if self.detail:
            members["detail"] = self.detail
        return msgspec.json.encode({**members, **self.extensions})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._respond("http.response", send, empty=scope["method"] == "HEAD")
        elif scope["type"] == "websocket":
            message = await receive()
            if message["type"] == "websocket.connect":
                await self.refuse(scope, send)

    async def refuse(self, scope: Scope, send: Send) -> None:
        """Refuse a WebSocket whose `websocket.connect` has been received already."""
        if "websocket.http.response" in (scope.get("extensions") or {}):
            await self._respond("websocket.http.response", send)
        else:
            await send({"type": "websocket.close", "code": self.close_code, "reason": self.phrase})

    async def _respond(self, prefix: str, send: Send, *, empty: bool = False) -> None:
        body = self.body()
        headers: Headers = [
            (b"content-type", b"application/problem+json"),
            (b"content-length", b"%d" % len(body)),
            *self.headers,
        ]
        await send({"type": f"{prefix}.start", "status": self.status, "headers": headers})
        await send({"type": f"{prefix}.body", "body": b"" if empty else body, "more_body": False})
