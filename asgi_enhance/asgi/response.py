"""An ASGI app's answer as a Starlette `Response`, for handlers that return responses; its body still streams."""

import asyncio
import weakref

from starlette.requests import Request
from starlette.responses import Response

from asgi_enhance.asgi.messages import CLIENT_GONE
from asgi_enhance.asgi.types import ASGIApp, Message, Receive, Scope, Send
from asgi_enhance.errors import EnhanceError


async def response_of(app: ASGIApp, request: Request) -> Response:
    """Call `app` with the request; its response as soon as it has started.

    Status and headers are there to be read and changed; the body passes as the app makes it once the response is
    sent. The app's exception is raised here before the start, and by the response after it. A response that is
    never sent cancels the app when it is collected. An app that says nothing to a client that has left is taken to
    have said 499: nobody has failed.
    """
    exchange = _Exchange(app, request.scope, receive_of(request))
    task = asyncio.create_task(exchange.run(), name=f"response to {request.method} {request.scope['path']}")
    try:
        start = await exchange.started
    except BaseException:
        task.cancel()
        await asyncio.wait([task])
        raise
    return _AppResponse(exchange, task, start) if start is not None else Response(status_code=CLIENT_GONE)


class _Exchange:
    """One call of the app, held at its start until somebody takes the rest."""

    def __init__(self, app: ASGIApp, scope: Scope, receive: Receive) -> None:
        self._app = app
        self._scope = scope
        self._receive = receive
        self._gone = False
        self._send: asyncio.Future[Send] = asyncio.get_running_loop().create_future()
        self._before: list[Message] = []  # early hints and the like
        self.started: asyncio.Future[Message | None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        try:
            await self._app(self._scope, self.receive, self.send)
        except Exception as error:
            if self.started.done():
                raise
            self.started.set_exception(error)
        else:
            if not self.started.done() and self._gone:
                self.started.set_result(None)
            elif not self.started.done():
                self.started.set_exception(RuntimeError("the app returned without a response"))
        finally:
            self.started.cancel()  # if nothing has come of it, nobody may go on waiting

    async def receive(self) -> Message:
        message = await self._receive()
        self._gone = message["type"] == "http.disconnect"
        return message

    async def send(self, message: Message) -> None:
        if self.started.done():
            await (await self._send)(message)
        elif message["type"] == "http.response.start":
            self.started.set_result(message)
            await self._send
        else:
            self._before.append(message)

    async def go_on(self, send: Send, start: Message) -> None:
        for message in (*self._before, start):
            await send(message)
        self._send.set_result(send)


class _AppResponse(Response):
    def __init__(self, exchange: _Exchange, task: asyncio.Task[None], start: Message) -> None:
        self.status_code = start["status"]
        self.background = None
        self.raw_headers = list(start.get("headers", ()))
        self._start = start
        self._exchange = exchange
        self._task = task
        weakref.finalize(self, task.cancel)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {**self._start, "status": self.status_code, "headers": self.raw_headers}
        try:
            await self._exchange.go_on(send, start)
            await self._task
        finally:
            if not self._task.done():
                self._task.cancel()
                await asyncio.wait([self._task])
        if self.background is not None:
            await self.background()


def receive_of(request: Request) -> Receive:
    """The request's `receive`, with the body put back if the handler has read it already.

    Raises EnhanceError if he has read it as a stream or a form: then it is gone, and nothing more would come.
    """
    body: bytes | None = getattr(request, "_body", None)
    if body is None:
        if getattr(request, "_stream_consumed", False):
            raise EnhanceError("the body was read as a stream and cannot be sent on: read it by `await request.body()`")
        return request.receive
    message: Message | None = {"type": "http.request", "body": body, "more_body": False}

    async def receive() -> Message:
        nonlocal message
        if message is not None:
            first, message = message, None
            return first
        return await request.receive()

    return receive
