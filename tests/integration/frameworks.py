"""One small app in each framework with the stack round it: a page to keep, one with a limit, a WebSocket that echoes.

What a framework cannot mount (the balancer), a dispatcher in front of it does. `FRAMEWORK` in the environment chooses.
"""

from collections.abc import Callable
from os import environ
from typing import Any

from asgi_enhance import (
    BroadcastRouter,
    CacheMiddleware,
    LoadBalanceApp,
    MetricsMiddleware,
    RateLimitMiddleware,
    Rule,
)
from asgi_enhance.asgi.types import ASGIApp, Receive, Scope, Send

KEEP = {"cache-control": "max-age=60"}
NO_STORE = {"cache-control": "no-store"}


def starlette_app(balancer: ASGIApp) -> ASGIApp:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse
    from starlette.routing import Mount, Route, WebSocketRoute
    from starlette.websockets import WebSocket

    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse("page", headers=KEEP)

    async def limited(request: Request) -> PlainTextResponse:
        return PlainTextResponse("welcome", headers=NO_STORE)

    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(f"echo {text}")

    routes = [Route("/page/{number}", page), Route("/limited", limited), WebSocketRoute("/echo", echo)]
    return Starlette(routes=[*routes, Mount("/lb", balancer)])


def fastapi_app(balancer: ASGIApp) -> ASGIApp:
    from fastapi import APIRouter, FastAPI, WebSocket
    from fastapi.responses import PlainTextResponse

    app, router = FastAPI(), APIRouter()

    @router.get("/{number}")
    async def page(number: int) -> PlainTextResponse:
        return PlainTextResponse("page", headers=KEEP)

    @app.get("/limited")
    async def limited() -> PlainTextResponse:
        return PlainTextResponse("welcome", headers=NO_STORE)

    @app.websocket("/echo")
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(f"echo {text}")

    app.include_router(router, prefix="/page")
    app.mount("/lb", balancer)
    return app


def litestar_app(balancer: ASGIApp) -> ASGIApp:
    import litestar
    from litestar.params import FromPath

    @litestar.get("/page/{number:int}", media_type="text/plain")
    async def page(number: FromPath[int]) -> litestar.Response[str]:
        return litestar.Response("page", headers=KEEP)

    @litestar.get("/limited", media_type="text/plain")
    async def limited() -> litestar.Response[str]:
        return litestar.Response("welcome", headers=NO_STORE)

    @litestar.websocket("/echo")
    async def echo(socket: litestar.WebSocket[Any, Any, Any]) -> None:
        await socket.accept()
        async for text in socket.iter_data("text"):
            await socket.send_text(f"echo {text}")

    lb = litestar.asgi("/lb", is_mount=True, copy_scope=False)(balancer)
    app: Any = litestar.Litestar([page, limited, echo, lb])
    return app  # type: ignore[no-any-return]


def quart_app(balancer: ASGIApp) -> ASGIApp:
    from quart import Quart, Response, websocket

    from asgi_enhance.metrics.hooks import quart_routes

    app: Any = Quart(__name__)
    quart_routes(app)

    @app.get("/page/<number>")  # type: ignore[untyped-decorator]
    async def page(number: str) -> Response:
        return Response("page", headers=KEEP)

    @app.get("/limited")  # type: ignore[untyped-decorator]
    async def limited() -> Response:
        return Response("welcome", headers=NO_STORE)

    @app.websocket("/echo")  # type: ignore[untyped-decorator]
    async def echo() -> None:
        while True:
            text = await websocket.receive()
            await websocket.send(f"echo {text!s}")

    return dispatching(app, balancer)


def falcon_app(balancer: ASGIApp) -> ASGIApp:
    import falcon
    import falcon.asgi

    from asgi_enhance.metrics.hooks import FalconRoutes

    class Page:
        async def on_get(self, req: Any, resp: Any, number: str) -> None:
            resp.text = "page"
            resp.set_headers(KEEP)

    class Limited:
        async def on_get(self, req: Any, resp: Any) -> None:
            resp.text = "welcome"
            resp.set_headers(NO_STORE)

    class Echo:
        async def on_websocket(self, req: Any, ws: Any) -> None:
            await ws.accept()
            try:
                while True:
                    await ws.send_text(f"echo {await ws.receive_text()}")
            except falcon.WebSocketDisconnected:
                pass

    app: Any = falcon.asgi.App(middleware=[FalconRoutes()])
    app.add_route("/page/{number}", Page())
    app.add_route("/limited", Limited())
    app.add_route("/echo", Echo())
    return dispatching(app, balancer)


def django_app(balancer: ASGIApp) -> ASGIApp:
    import django
    from django.conf import settings
    from django.core.handlers.asgi import ASGIHandler
    from django.http import HttpRequest, HttpResponse
    from django.urls import path

    async def page(request: HttpRequest, number: int) -> HttpResponse:
        return HttpResponse("page", headers=KEEP)

    async def limited(request: HttpRequest) -> HttpResponse:
        return HttpResponse("welcome", headers=NO_STORE)

    urls = type("Urls", (), {"urlpatterns": [path("page/<int:number>", page), path("limited", limited)]})
    settings.configure(
        ROOT_URLCONF=urls, ALLOWED_HOSTS=["*"], MIDDLEWARE=["asgi_enhance.metrics.hooks.django_routes"], SECRET_KEY="x"
    )
    django.setup()
    return dispatching(ASGIHandler(), balancer, echo=True)


def blacksheep_app(balancer: ASGIApp) -> ASGIApp:
    from blacksheep import Application, Content, Response, WebSocket

    app: Any = Application()

    def text(body: bytes, headers: dict[str, str]) -> Response:
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        return Response(200, pairs, Content(b"text/plain", body))

    @app.router.get("/page/{number}")  # type: ignore[untyped-decorator]
    async def page(number: int) -> Response:
        return text(b"page", KEEP)

    @app.router.get("/limited")  # type: ignore[untyped-decorator]
    async def limited() -> Response:
        return text(b"welcome", NO_STORE)

    @app.router.ws("/echo")  # type: ignore[untyped-decorator]
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        while True:
            await websocket.send_text(f"echo {await websocket.receive_text()}")

    return dispatching(app, balancer)


def sanic_app(balancer: ASGIApp) -> ASGIApp:
    from sanic import Request, Sanic, Websocket, text
    from sanic.response import HTTPResponse

    app: Any = Sanic("stack")

    @app.get("/page/<number:int>")  # type: ignore[untyped-decorator]
    async def page(request: Request, number: int) -> HTTPResponse:
        return text("page", headers=KEEP)

    @app.get("/limited")  # type: ignore[untyped-decorator]
    async def limited(request: Request) -> HTTPResponse:
        return text("welcome", headers=NO_STORE)

    @app.websocket("/echo")  # type: ignore[untyped-decorator]
    async def echo(request: Request, ws: Websocket) -> None:
        while True:
            text = await ws.recv()
            await ws.send(f"echo {text!s}")

    return dispatching(app, balancer)


def dispatching(app: ASGIApp, balancer: ASGIApp, *, echo: bool = False) -> ASGIApp:
    """In front of an app that mounts nothing: the balancer below /lb, and the echo of one that has no WebSockets."""

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await app(scope, receive, send)
        if scope["path"].startswith("/lb/"):
            return await balancer({**scope, "root_path": scope.get("root_path", "") + "/lb"}, receive, send)
        if echo and scope["type"] == "websocket":
            return await echoing(scope, receive, send)
        await app(scope, receive, send)

    return dispatch


async def echoing(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": f"echo {message['text']}"})


FRAMEWORKS: dict[str, Callable[[ASGIApp], ASGIApp]] = {
    "starlette": starlette_app,
    "fastapi": fastapi_app,
    "litestar": litestar_app,
    "quart": quart_app,
    "falcon": falcon_app,
    "django": django_app,
    "blacksheep": blacksheep_app,
    "sanic": sanic_app,
}

if "FRAMEWORK" in environ:
    served: ASGIApp = FRAMEWORKS[environ["FRAMEWORK"]](LoadBalanceApp([environ["STACK_BACKEND"]]))
    served = BroadcastRouter(CacheMiddleware(served))
    served = RateLimitMiddleware(served, [Rule("2/minute", name="limited", path="/limited")], default=None)
    served = MetricsMiddleware(served)
