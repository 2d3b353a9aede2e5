"""What `LoadBalancer.forward_request` returns: a Starlette response that streams the backend's answer."""

from contextlib import suppress
from typing import TYPE_CHECKING

from starlette.responses import Response

from asgi_enhance.asgi.types import Headers, Receive, Scope, Send
from asgi_enhance.balance.failure import ClientGone

if TYPE_CHECKING:
    from asgi_enhance.balance.exchange import Answer, Exchange


class ForwardedResponse(Response):
    """A backend's answer on its way. Sending it, or never sending it, frees the backend."""

    def __init__(self, exchange: "Exchange", answer: "Answer", headers: Headers) -> None:
        assert answer.status is not None
        self.status_code = answer.status
        self.background = None
        self.raw_headers = headers
        self.body = answer.take()
        self._exchange = exchange
        self._answer = answer
        if answer.complete:
            exchange.finish()
        else:
            exchange.detach()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._send(send)
        if self.background is not None:  # set by whoever returns it: FastAPI does
            await self.background()

    async def _send(self, send: Send) -> None:
        exchange, answer = self._exchange, self._answer
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        if exchange.done and exchange.reason is None:
            await send(start)
            await send({"type": "http.response.body", "body": self.body, "more_body": False})
            return
        with suppress(ClientGone), exchange:
            exchange.progress()
            exchange.sending = True
            await send(start)
            await stream(exchange, answer, bytes(self.body), send)


async def stream(exchange: "Exchange", answer: "Answer", body: bytes, send: Send) -> None:
    """Hand on a body as it comes, `body` first, and free the backend with its last byte.

    An empty message goes first if there is no body yet: servers may keep the head back until there is one.
    """
    while not answer.complete:
        exchange.sending = True
        await send({"type": "http.response.body", "body": body, "more_body": True})
        exchange.sending = False
        exchange.progress()
        body = await answer.read()
    body += answer.take()
    exchange.let_go()  # the backend is free for the next, however slow this client is
    exchange.sending = True
    await send({"type": "http.response.body", "body": body, "more_body": False})
