"""The stack as the command line puts it together: the layers asked for, round a balancer or an app that exists.

The command hands its options to the server's worker processes as JSON in one environment variable, since all that a
server takes for several workers is the name of something to import: `create`.
"""

import os
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from typing import Any, Self

import msgspec

from asgi_enhance.api import EnhancedAPI
from asgi_enhance.asgi.address import ClientAddress
from asgi_enhance.asgi.lifespan import Lifespan
from asgi_enhance.asgi.scope import derived
from asgi_enhance.asgi.types import ASGIApp, Receive, Scope, Send
from asgi_enhance.balance import LoadBalanceApp
from asgi_enhance.broadcast import BroadcastRouter
from asgi_enhance.cache import CacheMiddleware
from asgi_enhance.errors import ConfigError
from asgi_enhance.metrics import MetricsMiddleware
from asgi_enhance.ratelimit import RateLimitMiddleware
from asgi_enhance.settings import Settings

VARIABLE = "ASGI_ENHANCE_GATEWAY"
API = "asgi_enhance.api"
"""Scope key: the `EnhancedAPI` that stands round a wrapped app."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gateway:
    """What stands round what.

    backends:   URLs to balance to, or
    app:        `module:attribute` of an ASGI app (called if it is a function that makes one, marked by `()`).
    cache:      keep responses that may be kept. Default: False.
    rate_limit: a limit for each client, e.g. `100/minute burst 20`. Default: none.
    metrics:    count requests and serve the metrics at `/metrics`. Default: False.
    broadcast:  the path of the broadcaster's WebSockets, e.g. `/ws/{client_id}`. Default: none.
    redis_url:  shared by all of them. Default: the environment's REDIS_URL, or none.
    """

    backends: tuple[str, ...] = ()
    app: str | None = None
    cache: bool = False
    rate_limit: str | None = None
    metrics: bool = False
    broadcast: str | None = None
    redis_url: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if bool(self.backends) == bool(self.app):
            raise ConfigError("give backends or an app, and not both")

    def build(self) -> "Stack":
        """The app to serve. ConfigError if a part cannot work, ImportError if `app` is not there."""
        settings = Settings.from_env()
        api = EnhancedAPI(self.redis_url, settings=replace(settings, backends=self.backends or settings.backends))
        client = ClientAddress(api.settings.trusted_proxies)
        app: ASGIApp = _Inside(load(self.app), api) if self.app else LoadBalanceApp(balancer=api.load_balancer)
        if self.cache:
            app = CacheMiddleware(app, cache=api.cache)
        if self.broadcast is not None:
            app = BroadcastRouter(app, processor=api.stream_processor, path=self.broadcast, sse_path=None)
        if self.rate_limit is not None:
            app = RateLimitMiddleware(app, limiter=api.rate_limiter, default=self.rate_limit, client=client)
        if self.metrics:
            app = MetricsMiddleware(app, collector=api.metrics_collector)
        return Stack(app, api)

    def to_env(self) -> None:
        """Leave it to the worker processes to come."""
        os.environ[VARIABLE] = msgspec.json.encode(asdict(self)).decode()

    @classmethod
    def from_env(cls) -> Self:
        return msgspec.convert(msgspec.json.decode(os.environ[VARIABLE]), cls)


class Stack(Lifespan):
    """The layers round what is served, started and stopped with it."""

    def __init__(self, app: ASGIApp, api: EnhancedAPI) -> None:
        super().__init__(app, api)
        self.api = api


class _Inside:
    """Tells the wrapped app, in the scope, the `EnhancedAPI` round it: to publish, to purge, to ask for metrics."""

    def __init__(self, app: ASGIApp, api: EnhancedAPI) -> None:
        self.app, self._mine = app, {API: api}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            scope = derived(scope, **self._mine)
        await self.app(scope, receive, send)


def create() -> ASGIApp:
    """Called in each worker process."""
    return Gateway.from_env().build()


def load(target: str) -> ASGIApp:
    """What `module:attribute` names; with `()` behind it, what that returns."""
    module, colon, attribute = target.partition(":")
    if not colon or not all(module.split(".")) or not attribute:
        raise ConfigError(f"app: {target!r} is not module:attribute")
    value: Any = import_module(module)
    for name in attribute.removesuffix("()").split("."):
        if not hasattr(value, name):
            raise ConfigError(f"app: {target!r}: there is no {name!r} in {value!r}")
        value = getattr(value, name)
    if attribute.endswith("()"):
        value = value()
    if not callable(value):
        raise ConfigError(f"app: {target!r} is {value!r}, and no ASGI app")
    app: ASGIApp = value
    return app
