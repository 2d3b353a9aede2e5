"""A request for what was not for sharing a moment ago (hit-for-miss): straight to the app, and nearly always no more.

Most of what a cache passes on is dynamic and says `no-store` every time. Such an answer only gets its Cache-Status; any
other makes a `Call` of this, as all other requests are, which may keep it.
"""

import time
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from asgi_enhance.asgi.types import Message, Receive, Scope, Send
from asgi_enhance.cache.call import Call, copyable
from asgi_enhance.cache.core import Fetch
from asgi_enhance.cache.policy import status
from asgi_enhance.cache.policy.fields import is_no_store
from asgi_enhance.cache.request import Key

if TYPE_CHECKING:
    from asgi_enhance.cache.layer import CacheMiddleware


class Passing:
    """Such a request, a plain GET that no rule is about."""

    __slots__ = ("_call", "_fetch", "_layer", "_receive", "_received_body", "_requested", "_scope", "_send", "_timer")

    def __init__(self, layer: "CacheMiddleware", scope: Scope, receive: Receive, send: Send, url: Key) -> None:
        self._layer = layer
        self._scope = scope
        self._receive = receive
        self._send = send
        self._fetch: Fetch = layer.cache.fetch(url)
        self._requested, self._timer = layer.cache.clock(), time.perf_counter()
        self._received_body = False
        self._call: Call | None = None

    async def run(self) -> None:
        layer, scope = self._layer, self._scope
        layer.stats.misses += 1
        await layer.app(copyable(scope) if scope.get("extensions") else scope, self._watch, self._on_message)

    async def _watch(self) -> Message:
        message = await self._receive()
        if message.get("body"):
            self._received_body = True
            if self._call is not None:
                self._call.has_body()
        return message

    def _on_message(self, message: Message) -> Awaitable[None]:
        if self._call is not None:
            return self._call.on_message(message)
        if message["type"] != "http.response.start":
            return self._send(message)
        layer, headers = self._layer, list(message.get("headers", ()))
        message = {**message, "headers": headers}
        if not is_no_store(headers, layer.options.governing):
            request = layer.request(self._scope, self._fetch.key)
            self._call = call = Call(layer, self._scope, self._receive, self._send, request)
            call.begin(self._fetch, self._requested, self._timer)
            if self._received_body:
                call.has_body()
            return call.on_message(message)
        layer.stats.refused += 1
        if layer.cache_status:
            told = status.forwarded(layer.cache_name, "uri-miss", message["status"], False, None, "no-store")
            headers.append((b"cache-status", told))
        return self._send(message)
