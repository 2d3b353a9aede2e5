"""The route label over six frameworks: the template as it was declared, with all its prefixes; never the path."""

import sys
from collections.abc import Callable, Iterator
from functools import cache
from types import ModuleType
from typing import Any

import django
import falcon.asgi
import pytest
from django.conf import settings
from django.core.handlers.asgi import ASGIHandler
from django.http import HttpResponse
from django.urls import include, path, re_path
from fastapi import APIRouter, FastAPI
from litestar import Litestar, Router, asgi, get
from litestar.params import FromPath
from quart import Blueprint, Quart
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Host, Mount, Route
from starlette.routing import Router as StarletteRouter

from asgi_enhance.asgi.types import ASGIApp, Receive, Scope, Send
from asgi_enhance.metrics import MetricsMiddleware
from asgi_enhance.metrics.hooks import FalconRoutes, quart_routes
from asgi_enhance.metrics.route import MOST_SEARCHES
from asgi_enhance.testing.driver import request


async def page(request: Request) -> Response:
    return PlainTextResponse("page")


async def other(request: Request) -> Response:
    return PlainTextResponse("other")


async def raw(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("raw")(scope, receive, send)


class Plain:
    """A middleware as they are written."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


@cache
def starlette_app() -> Any:
    twice = Starlette(routes=[Route("/leaf/{leaf}", page)])
    fast = FastAPI()
    fast.get("/quick/{n}")(lambda n: n)
    return Starlette(
        routes=[
            Route("/items/{item:int}", page, methods=["GET"]),
            Route("/files/{rest:path}", other),
            Mount("/m/{tenant}", routes=[Mount("/n", routes=[Route("/deep/{k}", lambda r: Response())])]),
            Mount("/one", app=twice),
            Mount("/two/{x}", app=twice),
            Mount("/wrapped", app=Plain(Starlette(routes=[Route("/in/{y}", raw_endpoint)]))),
            Mount("/layered", routes=[Route("/z/{z}", z_endpoint)], middleware=[Middleware(Plain)]),
            Mount("/raw", app=raw),
            Mount("/fast", app=fast),
            Host("api.example", app=StarletteRouter([Route("/hosted/{h}", hosted)])),
        ]
    )


async def raw_endpoint(request: Request) -> Response:
    return Response()


async def z_endpoint(request: Request) -> Response:
    return Response()


async def hosted(request: Request) -> Response:
    return Response()


@cache
def fastapi_app() -> Any:
    items = APIRouter(prefix="/items")

    @items.get("/{item}")
    async def item(item: int) -> int:
        return item

    versions = APIRouter()
    versions.include_router(items)
    app = FastAPI()
    app.include_router(versions, prefix="/api/{version}")
    app.include_router(items, prefix="/old")
    app.include_router(items)

    @app.get("/plain/{name}")
    async def plain(name: str) -> str:
        return name

    plain_router = APIRouter()
    plain_router.add_route("/bare/{b}", page)
    app.include_router(plain_router, prefix="/included")
    sub = FastAPI()
    sub.include_router(items, prefix="/v9")
    app.mount("/sub/{tenant}", sub)
    return app


@cache
def litestar_app() -> Any:
    @get("/deep/{k:int}")
    async def deep(k: FromPath[int]) -> int:
        return k

    @get("/")
    async def index() -> str:
        return "index"

    @asgi("/mounted", is_mount=True, copy_scope=False)
    async def mounted(scope: Scope, receive: Receive, send: Send) -> None:
        await Starlette(routes=_MOUNTED)(scope, receive, send)

    return Litestar([index, Router("/pre/{p:str}", route_handlers=[deep]), mounted], openapi_config=None)


_MOUNTED = [Route("/inner/{i}/", page)]  # Litestar adds the slash


@cache
def quart_app() -> Any:
    app = Quart("routes")
    quart_routes(app)
    blueprint = Blueprint("b", "b", url_prefix="/bp/<tenant>")

    @app.get("/q/<int:n>")
    async def q(n: int) -> str:
        return str(n)

    @blueprint.get("/x/<path:rest>")
    async def x(tenant: str, rest: str) -> str:
        return rest

    app.register_blueprint(blueprint)
    return app


@cache
def falcon_app() -> Any:
    class Resource:
        async def on_get(self, req: Any, resp: Any, **params: str) -> None:
            resp.text = "ok"

    app = falcon.asgi.App(middleware=[FalconRoutes()])
    app.add_route("/f/{a}/g/{b}", Resource())
    return app


@cache
def django_app() -> Any:
    def view(request: Any, **params: Any) -> HttpResponse:
        return HttpResponse("ok")

    async def later(request: Any, **params: Any) -> HttpResponse:
        return HttpResponse("ok")

    urls: Any = ModuleType("routes_of_django")
    urls.urlpatterns = [
        path("d/<int:pk>/", view),
        path("api/<str:version>/", include([path("e/<slug:s>", later)])),
        re_path(r"^old/(?P<year>[0-9]{4})/$", view),
    ]
    sys.modules[urls.__name__] = urls
    if not settings.configured:
        settings.configure(
            ROOT_URLCONF=urls.__name__,
            MIDDLEWARE=["asgi_enhance.metrics.hooks.django_routes"],
            ALLOWED_HOSTS=["*"],
            SECRET_KEY="for tests",
            LOGGING_CONFIG=None,
        )
        django.setup()
    return ASGIHandler()


CASES: list[tuple[Callable[[], Any], str, str]] = [
    (starlette_app, "/items/7", "/items/{item}"),
    (starlette_app, "/items/7?q=1", "/items/{item}"),
    (starlette_app, "/files/a/b/c", "/files/{rest}"),
    (starlette_app, "/m/acme/n/deep/5", "/m/{tenant}/n/deep/{k}"),
    (starlette_app, "/one/leaf/1", "/one/leaf/{leaf}"),
    (starlette_app, "/two/q/leaf/1", "/two/{x}/leaf/{leaf}"),
    (starlette_app, "/wrapped/in/3", "/wrapped/in/{y}"),
    (starlette_app, "/layered/z/3", "/layered/z/{z}"),
    (starlette_app, "/raw/whatever/3", "/raw/{path}"),
    (starlette_app, "/fast/quick/3", "/fast/quick/{n}"),
    (starlette_app, "/nowhere", "<unmatched>"),
    (starlette_app, "/m/acme/n/nowhere", "<unmatched>"),
    (starlette_app, "/one/nowhere", "<unmatched>"),
    (fastapi_app, "/api/v1/items/3", "/api/{version}/items/{item}"),
    (fastapi_app, "/old/items/3", "/old/items/{item}"),
    (fastapi_app, "/items/3", "/items/{item}"),
    (fastapi_app, "/items/x", "/items/{item}"),
    (fastapi_app, "/plain/x", "/plain/{name}"),
    (fastapi_app, "/included/bare/2", "/included/bare/{b}"),
    (fastapi_app, "/sub/acme/v9/items/4", "/sub/{tenant}/v9/items/{item}"),
    (fastapi_app, "/docs", "/docs"),
    (fastapi_app, "/nowhere", "<unmatched>"),
    (litestar_app, "/", "/"),
    (litestar_app, "/pre/x/deep/3", "/pre/{p}/deep/{k}"),
    (litestar_app, "/mounted/inner/9", "/mounted/inner/{i}/"),
    (litestar_app, "/nowhere", "<unmatched>"),
    (quart_app, "/q/5", "/q/<int:n>"),
    (quart_app, "/bp/acme/x/a/b", "/bp/<tenant>/x/<path:rest>"),
    (quart_app, "/nowhere", "<unmatched>"),
    (falcon_app, "/f/1/g/2", "/f/{a}/g/{b}"),
    (falcon_app, "/nowhere", "<unmatched>"),
    (django_app, "/d/5/", "/d/<int:pk>/"),
    (django_app, "/api/v2/e/word", "/api/<str:version>/e/<slug:s>"),
    (django_app, "/old/1999/", "/old/<year>/"),
    (django_app, "/nowhere", "<unmatched>"),
]


def labels(layer: MetricsMiddleware) -> list[str]:
    layer.collector.totals()
    return [one.route for one in layer.collector.table.requests]


@pytest.mark.parametrize(("app", "url", "template"), CASES, ids=[f"{app.__name__} {url}" for app, url, _ in CASES])
async def test_the_label_is_the_template(app: Callable[[], Any], url: str, template: str) -> None:
    layer = MetricsMiddleware(app())
    for _ in range(2):  # the second time it comes from the table
        await request(layer, url)
    assert labels(layer) == [template]


async def test_a_host_adds_nothing_to_the_template() -> None:
    layer = MetricsMiddleware(starlette_app())
    await request(layer, "/hosted/1", headers=[(b"host", b"api.example")])
    await request(layer, "/hosted/1", headers=[(b"host", b"other.example")])
    assert labels(layer) == ["<unmatched>"]  # the first host header is the driver's own


async def test_a_wrong_method_has_its_route() -> None:
    layer = MetricsMiddleware(starlette_app())
    answer = await request(layer, "/items/7", method="DELETE")
    assert answer.status == 405
    assert labels(layer) == ["/items/{item}"]


@pytest.mark.parametrize(
    ("inner", "url", "template"),
    [
        (litestar_app, "/pre/x/deep/3", "/outer/{o}/pre/{p}/deep/{k}"),
        (quart_app, "/q/5", "/outer/{o}/q/<int:n>"),
        (falcon_app, "/f/1/g/2", "/outer/{o}/{path}"),
    ],
)
async def test_a_framework_below_a_mount_has_the_prefix_of_the_mount(
    inner: Callable[[], Any], url: str, template: str
) -> None:
    layer = MetricsMiddleware(Starlette(routes=[Mount("/outer/{o}", app=inner())]))
    await request(layer, f"/outer/7{url}")
    assert labels(layer) == [template]


async def test_inside_a_framework_the_layer_sees_the_same() -> None:
    app = Starlette(routes=[Route("/items/{item}", page)])
    collectors: list[MetricsMiddleware] = []

    def factory(app: ASGIApp) -> ASGIApp:
        collectors.append(MetricsMiddleware(app))
        return collectors[-1]

    app.add_middleware(factory)
    await request(app, "/items/3")
    assert labels(collectors[0]) == ["/items/{item}"]


async def test_what_a_layer_answers_before_the_router_has_the_route_it_would_have_taken() -> None:
    class Full(Plain):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["path"].startswith("/items"):
                await Response(status_code=429)(scope, receive, send)
            else:
                await self.app(scope, receive, send)

    for app in (Full(Plain(starlette_app())), Full(fastapi_app())):
        layer = MetricsMiddleware(app)
        for number in range(3):
            await request(layer, f"/items/{number}")
        await request(layer, "/items/a/b/c")
        await request(layer, "/nowhere")
        found = [(one.route, one.status) for one in layer.collector.table.requests]
        assert found == [("/items/{item}", "429"), ("<unmatched>", "429"), ("<unmatched>", "404")]


async def test_what_a_layer_round_a_mounted_app_answers_has_the_route_it_would_have_taken() -> None:
    class Full(Plain):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await Response(status_code=429)(scope, receive, send)

    inner = Starlette(routes=[Route("/items/{item}", page)])
    for app in (MetricsMiddleware(Starlette(routes=[Mount("/v1", Full(inner))])), MetricsMiddleware(Full(inner))):
        outer = app if isinstance(app.app, Starlette) else Starlette(routes=[Mount("/v1", app)])
        for number in range(2):
            await request(outer, f"/v1/items/{number}")
        await request(outer, "/v1/nowhere")
        assert [one.route for one in app.collector.table.requests] == ["/v1/items/{item}", "<unmatched>"]


async def test_a_page_that_a_layer_has_not_is_no_page_that_the_router_has_not() -> None:
    class Gone(Plain):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["path"].startswith("/items"):
                await Response(status_code=404)(scope, receive, send)
            else:
                await self.app(scope, receive, send)

    layer = MetricsMiddleware(Gone(starlette_app()))
    for url in ("/nowhere", "/items/1", "/nowhere", "/items/2"):
        await request(layer, url)
    layer.collector.totals()
    assert {one.route: series.duration.count for one, series in layer.collector.table.requests.items()} == {
        "<unmatched>": 2,
        "/items/{item}": 2,
    }


async def test_an_app_that_makes_its_endpoints_as_it_goes_is_not_searched_for_ever() -> None:
    class Maker:
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            scope["router"], scope["endpoint"] = router, object()
            await Response()(scope, receive, send)

    router = StarletteRouter([Route("/items/{item}", page)])
    layer = MetricsMiddleware(Maker())
    for _ in range(MOST_SEARCHES + 50):
        await request(layer, "/made")
    assert labels(layer) == ["<unmatched>"]
    (tree,) = layer.collector.table.routes._trees.values()
    assert len(tree._places) <= MOST_SEARCHES + 1
    assert not layer.collector.table.bound


async def test_a_route_added_later_is_found() -> None:
    app = Starlette(routes=[Route("/first", page)])
    layer = MetricsMiddleware(app)
    await request(layer, "/first")
    app.router.routes.append(Route("/late/{x}", other))
    await request(layer, "/late/1")
    assert labels(layer) == ["/first", "/late/{x}"]


@pytest.fixture(autouse=True, scope="module")
def _forget() -> Iterator[None]:
    yield
    sys.modules.pop("routes_of_django", None)
