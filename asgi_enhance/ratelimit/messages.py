"""Limits the messages of one WebSocket connection. One too many, and the connection is closed."""

from collections.abc import Mapping

from asgi_enhance.asgi.types import Message, Receive, Send
from asgi_enhance.ratelimit.core import RateLimiter
from asgi_enhance.ratelimit.decision import Demand


class LimitedMessages:
    """Stands between the server and the app: `receive` and `send` are the app's.

    After the connection has been closed, here or by the app, the server's own `websocket.disconnect` is what the app
    receives next; what is sent until then is dropped, since a server takes nothing after a close.
    """

    __slots__ = ("_close_code", "_closed", "_delays", "_held", "_limiter", "_receive", "_send", "_wanted", "_watched")

    def __init__(
        self,
        limiter: RateLimiter,
        wanted: tuple[Demand, ...],
        watched: tuple[Demand, ...],
        delays: Mapping[str, float],
        close_code: int,
        receive: Receive,
        send: Send,
    ) -> None:
        self._limiter = limiter
        self._wanted = wanted
        self._watched = watched
        self._delays = delays
        self._close_code = close_code
        self._receive = receive
        self._send = send
        self._closed = False
        self._held: Message | None = None  # received, and not decided yet

    async def receive(self) -> Message:
        while True:
            message = self._held or await self._receive()
            if message["type"] != "websocket.receive":
                return message
            if self._closed:
                self._held = None
                continue
            self._held = message  # an app that gives up waiting for it finds it here
            allowed = not self._wanted or (await self._limiter.acquire(self._wanted, delays=self._delays)).allowed
            if allowed and self._watched:
                await self._limiter.watch(self._watched)
            self._held = None
            if allowed:
                return message
            if self._closed:  # by the app, meanwhile
                continue
            self._closed = True
            await self._send({"type": "websocket.close", "code": self._close_code, "reason": "too many messages"})

    async def send(self, message: Message) -> None:
        if not self._closed:
            self._closed = message["type"] == "websocket.close"
            await self._send(message)
