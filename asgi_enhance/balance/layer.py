"""`LoadBalanceApp`: the balancer as a complete ASGI app, run alone or mounted in another."""

import logging
from collections.abc import Container, Iterable
from functools import partial
from typing import Unpack

from asgi_enhance.asgi.lifespan import run_lifespan
from asgi_enhance.asgi.scope import header
from asgi_enhance.asgi.types import Headers, Message, Receive, Scope, Send
from asgi_enhance.balance.backend import Backend
from asgi_enhance.balance.core import LoadBalancer, Options
from asgi_enhance.balance.exchange import Exchange
from asgi_enhance.balance.failure import ClientGone, Rejected, Unavailable, UpstreamFailure, problem
from asgi_enhance.balance.headers import NOT_FORWARDED, TOKEN
from asgi_enhance.balance.response import stream
from asgi_enhance.balance.websocket import proxy_websocket
from asgi_enhance.errors import ConfigError
from asgi_enhance.options import checked

logger = logging.getLogger("asgi_enhance.balance")

_SPECIAL = frozenset({"CONNECT", "OPTIONS", "TRACE"})
_NOT_IN_TRAILERS = NOT_FORWARDED | {b"content-length", b"content-encoding", b"content-type", b"host", b"set-cookie"}


@checked
class LoadBalanceApp:
    """A reverse proxy for HTTP and WebSocket over several backends.

    backends:     URLs or `Backend`s, or one comma-separated string. Default: the environment's, see `LoadBalancer`.
    balancer:     a `LoadBalancer` to share with code of your own, instead of `backends` and options.
    proxy_status: name of this proxy in a `Proxy-Status` field on its own errors (RFC 9209). Default: none is sent.
    options:      everything else is an option of `LoadBalancer`.
    """

    def __init__(
        self,
        backends: Iterable[Backend | str] | str | None = None,
        *,
        balancer: LoadBalancer | None = None,
        proxy_status: str | None = None,
        **options: Unpack[Options],
    ) -> None:
        if balancer is not None and (backends or options):
            raise ConfigError("balancer excludes backends and options: they are the balancer's own")
        if proxy_status is not None and not TOKEN.match(proxy_status.encode("latin-1", "replace")):
            raise ConfigError(f"proxy_status must be a token, not {proxy_status!r}")
        self.balancer = balancer or LoadBalancer(backends, **options)
        self._proxy_status = proxy_status

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        balancer = self.balancer
        kind = scope["type"]
        if kind == "websocket":
            await proxy_websocket(balancer, scope, receive, send, self._proxy_status)
            return
        if kind == "lifespan":
            await run_lifespan(None, scope, receive, send, (balancer,))
            return
        if kind != "http":
            raise ValueError(f"unknown scope type {kind!r}")
        runtime = balancer.opened() or await balancer.started()
        extensions = scope.get("extensions")
        translator = balancer.translator
        balancer.stats.requests += 1
        started = False
        try:
            exchange = translator.request(scope, receive, runtime)
            if scope["method"] in _SPECIAL and _answered_here(exchange):
                await _max_forwards_reached(scope, receive, send)
                return
            with exchange:
                if extensions and "http.response.early_hint" in extensions:
                    exchange.on_interim = partial(_early_hint, send)
                answer = await balancer.dispatcher.forward(exchange, runtime)
                headers = translator.response(exchange, answer, scope)
                start: Message = {"type": "http.response.start", "status": answer.status, "headers": headers}
                trailers: Headers | None = None
                if extensions and _wants_trailers(extensions, exchange, headers):
                    start["trailers"] = True
                    trailers = answer.trailers  # the connection has others by the time these are sent
                body = answer.take()
                complete = answer.complete
                if complete:
                    exchange.let_go()  # the backend is free for the next, however slow this client is
                started = exchange.sending = True
                await send(start)
                if complete:
                    await send({"type": "http.response.body", "body": body, "more_body": False})
                else:
                    await stream(exchange, answer, body, send)
                if trailers is not None:
                    kept = [pair for pair in trailers if pair[0] not in _NOT_IN_TRAILERS]
                    await send({"type": "http.response.trailers", "headers": kept, "more_trailers": False})
        except ClientGone:
            logger.info("499 %s %r: the client left", scope["method"], scope["path"])
        except (Rejected, Unavailable, UpstreamFailure) as error:
            if started:
                raise  # all that is left is to cut the connection: the server does on an exception
            if isinstance(error, Rejected):
                balancer.stats.rejected += 1
            else:
                logger.warning("%d %s %r: %s", error.status, scope["method"], scope["path"], error)
            await problem(error, self._proxy_status)(scope, receive, send)


async def _early_hint(send: Send, status: int, fields: Headers) -> None:
    if status == 103:
        links = [value for name, value in fields if name == b"link"]
        await send({"type": "http.response.early_hint", "links": links})


def _wants_trailers(extensions: Container[str], exchange: Exchange, headers: Headers) -> bool:
    return (
        "http.response.trailers" in extensions and exchange.head.trailers and header(headers, b"content-length") is None
    )


def _answered_here(exchange: Exchange) -> bool:
    """RFC 9110, 7.6.2: TRACE and OPTIONS go no further than Max-Forwards says. CONNECT goes nowhere."""
    method, head = exchange.method, exchange.head
    if method == "CONNECT":
        raise Rejected(405, "This proxy opens no tunnels.")
    left = head.max_forwards
    if left is None:
        return False
    if left > 0:
        lowered = (b"max-forwards", b"%d" % (left - 1))
        head.fields = [lowered if pair[0] == b"max-forwards" else pair for pair in head.fields]
    return left == 0


async def _max_forwards_reached(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["method"] == "OPTIONS":
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return
    body = b"%b %b HTTP/1.1\r\n" % (scope["method"].encode("ascii"), scope.get("raw_path") or b"/")
    body += b"".join(b"%b: %b\r\n" % pair for pair in scope["headers"] if pair[0] not in _CONFIDENTIAL)
    headers = [(b"content-type", b"message/http"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


_CONFIDENTIAL = frozenset({b"authorization", b"cookie", b"proxy-authorization"})
