"""One line for each framework that keeps its routes to itself, so that its requests get their template as label.

    quart_routes(app)                                            # Quart
    falcon.asgi.App(middleware=[FalconRoutes()])                 # Falcon
    MIDDLEWARE = ["asgi_enhance.metrics.hooks.django_routes"]    # Django; anywhere in the list

Each writes the template to `scope["asgi_enhance.route"]`, as your own code may do for a router of its own.
"""

import re
from collections.abc import Callable
from typing import Any

from asgi_enhance.metrics.route import HOOK


def quart_routes(app: Any) -> None:
    """Have a Quart app tell the URL rule of each request and WebSocket."""
    from quart import request, websocket

    @app.before_request  # type: ignore[untyped-decorator]
    async def tell_request() -> None:
        if request.url_rule is not None:
            scope: Any = request.scope
            scope[HOOK] = request.url_rule.rule

    @app.before_websocket  # type: ignore[untyped-decorator]
    async def tell_websocket() -> None:
        if websocket.url_rule is not None:
            scope: Any = websocket.scope
            scope[HOOK] = websocket.url_rule.rule


class FalconRoutes:
    """A Falcon middleware that tells the URI template of each request."""

    async def process_resource(self, req: Any, resp: Any, resource: Any, params: Any) -> None:
        if req.uri_template:
            req.scope[HOOK] = req.uri_template

    async def process_resource_ws(self, req: Any, ws: Any, resource: Any, params: Any) -> None:
        if req.uri_template:
            req.scope[HOOK] = req.uri_template


def django_routes(get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A Django middleware that tells the pattern of each request, its prefixes included."""
    from asgiref.sync import iscoroutinefunction, markcoroutinefunction

    def tell(request: Any) -> None:
        match = request.resolver_match
        if match is not None and hasattr(request, "scope"):
            request.scope[HOOK] = "/" + plain_pattern(match.route)

    if iscoroutinefunction(get_response):

        async def in_the_loop(request: Any) -> Any:
            try:
                return await get_response(request)
            finally:
                tell(request)

        return markcoroutinefunction(in_the_loop)

    def in_a_thread(request: Any) -> Any:
        try:
            return get_response(request)
        finally:
            tell(request)

    return in_a_thread


django_routes.sync_capable = True  # type: ignore[attr-defined]
django_routes.async_capable = True  # type: ignore[attr-defined]


def plain_pattern(route: str) -> str:
    """A `re_path` as a template: anchors and escapes gone, named groups in angle brackets like those of `path`."""
    if "(?P<" not in route and not route.startswith("^") and not route.endswith("$"):
        return route
    return (
        re.sub(r"\(\?P<(\w+)>(?:[^()]|\([^()]*\))*\)", r"<\1>", route)
        .replace("^", "")
        .replace("$", "")
        .replace("\\", "")
    )
