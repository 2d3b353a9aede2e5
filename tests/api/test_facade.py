"""The facade as a part of somebody's program."""

import asyncio

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from asgi_enhance import ConfigError, EnhancedAPI, EnhancedAPIMiddleware, Rule, Settings
from asgi_enhance.testing.driver import Driver, Lifetime, WebSocket, http_scope, request, websocket_scope


async def page(request: Request) -> PlainTextResponse:
    return PlainTextResponse("page", headers={"cache-control": "max-age=60"})


@pytest.fixture
def inner() -> Starlette:
    return Starlette(routes=[Route("/page", page), Route("/login", page)])


async def test_wrap_puts_all_layers_round_an_app_and_starts_and_stops_with_it(inner: Starlette) -> None:
    api = EnhancedAPI(settings=Settings(rate_limit=3))
    app = api.wrap(inner, rules=[Rule("1/minute", name="login", path="/login")], websocket_path="/ws/{client_id}")
    async with Lifetime(app):
        assert api.opened() is not None
        assert "fwd=uri-miss" in str((await request(app, "/page")).header("cache-status"))
        assert "hit" in str((await request(app, "/page")).header("cache-status"))
        assert [(await request(app, "/login")).status for _ in range(2)] == [200, 429]
        assert (await request(app, "/page")).status == 429
        async with WebSocket(app, websocket_scope("/ws/ada", client=("198.51.100.1", 1))) as socket:
            await socket.accepted()
            await api.broadcast_event("news", {"n": 1})
            assert await socket.receive_json() == {"event": "news", "data": {"n": 1}}
            socket.leave()
            await socket.ended()
        assert 'http_route="/page"' in (await request(app, "/metrics")).body.decode()
    assert api.opened() is None


async def test_the_snapshot_has_all_that_the_parts_count(inner: Starlette) -> None:
    async with EnhancedAPI(settings=Settings(backends=("http://127.0.0.1:1",))) as api:
        app = api.wrap(inner)
        for _ in range(2):
            await request(app, "/page")
        metrics = api.get_metrics()
        assert metrics["cache"]["hits"] == 1
        assert metrics["ratelimit"]["allowed"] == 2
        assert metrics["requests"]["total"] == 2
        assert metrics["backend"]["http://127.0.0.1:1"]["state"] == "up"
        assert metrics["broadcast"]["connections"] == 0
        assert {"p50", "p95", "p99"} <= set(metrics["latency"]["start"])


async def test_a_handler_inside_wrap_that_asks_the_backends_is_limited_cached_and_counted_once(
    backend_url: str,
) -> None:
    api = EnhancedAPI(settings=Settings(backends=(backend_url,), rate_limit=3))
    app = api.wrap(Starlette(routes=[Route("/{path:path}", api.handle_request)]))
    async with Lifetime(app), asyncio.timeout(api.cache.collapse_timeout / 2):
        for left in (2, 1, 0):
            answer = await request(app, f"/{left}")
            assert answer.json() == {"path": f"/{left}", "query": ""}
            said = [value for name, value in answer.headers if name == b"ratelimit"]
            assert [value.partition(b";t=")[0] for value in said] == [b'"default";r=%d' % left]
        assert (await request(app, "/")).status == 429
        assert api.get_metrics()["requests"]["total"] == 4


async def test_a_request_that_passes_two_middlewares_of_one_collector_is_counted_once(inner: Starlette) -> None:
    api = EnhancedAPI(settings=Settings())
    inner.add_middleware(EnhancedAPIMiddleware, metrics_collector=api.metrics_collector)
    app = api.wrap(inner)
    async with Lifetime(app):
        assert (await request(app, "/page")).status == 200
        assert api.get_metrics()["requests"]["total"] == 1


async def test_the_websocket_path_is_the_apps_own_unless_it_is_given(inner: Starlette) -> None:
    async with EnhancedAPI() as api, WebSocket(api.wrap(inner), websocket_scope("/ws/ada")) as socket:
        answer = await socket.refused()
        assert answer["type"] == "websocket.close"  # type: ignore[index]


async def test_initializing_again_adds_backends_and_forgets_none() -> None:
    api = EnhancedAPI(settings=Settings(backends=("http://127.0.0.1:1",)))
    await api.initialize(["http://127.0.0.1:2"])
    await api.initialize(backend_urls=["http://127.0.0.1:2", "http://127.0.0.1:3"])
    assert sorted(api.load_balancer.report()) == [f"http://127.0.0.1:{port}" for port in (1, 2, 3)]
    await api.shutdown()
    await api.shutdown()


async def test_who_only_wraps_an_app_hears_nothing_of_backends(
    inner: Starlette, caplog: pytest.LogCaptureFixture
) -> None:
    api = EnhancedAPI(settings=Settings())
    async with Lifetime(api.wrap(inner)):
        assert not caplog.records
        await api.initialize(["http://127.0.0.1:1"])
        assert api.load_balancer.opened() is not None
    assert api.load_balancer.opened() is None
    async with EnhancedAPI(settings=Settings()) as other:  # started by its first use
        assert (await request(other.wrap(Starlette(routes=[Route("/", other.handle_request)])), "/")).status == 503
    assert other.load_balancer.opened() is None


async def test_backends_may_be_given_as_one_string() -> None:
    api = EnhancedAPI(settings=Settings())
    await api.initialize("http://127.0.0.1:1, http://127.0.0.1:2")
    assert list(api.load_balancer.report()) == ["http://127.0.0.1:1", "http://127.0.0.1:2"]
    await api.shutdown()


async def test_no_backends_may_be_given_as_a_string_and_a_name_to_be_followed_belongs_into_the_settings() -> None:
    api = EnhancedAPI(settings=Settings())
    await api.initialize(" , ")
    assert api.load_balancer.report() == {}
    with pytest.raises(ConfigError, match="settings"):
        await api.initialize("dns+http://backends:80")
    await api.shutdown()


@pytest.mark.parametrize("way", ["handle_request", "forward_request"])
async def test_a_client_that_leaves_while_a_backend_is_asked_is_no_exception(way: str) -> None:
    asked, done = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await done.wait()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    backend = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with EnhancedAPI(settings=Settings(backends=(backend,))) as api:
        handler = api.handle_request if way == "handle_request" else api.load_balancer.forward_request
        app = EnhancedAPIMiddleware(
            Starlette(routes=[Route("/", handler)]), metrics_collector=api.metrics_collector, path=None
        )
        client = Driver(app, http_scope("/"), [{"type": "http.request"}])
        request = asyncio.create_task(client.run())
        await asked.wait()
        client.feed({"type": "http.disconnect"})
        await asyncio.wait([request])
        assert api.metrics_collector.table.exceptions == {}
        assert api.get_metrics()["requests"]["disconnected"] == 1
    done.set()
    server.close()


async def test_a_frameworks_lifespan_starts_and_stops_it() -> None:
    api = EnhancedAPI(settings=Settings())
    async with Lifetime(Starlette(lifespan=api.lifespan)):
        assert api.opened() is not None
    assert api.opened() is None


def test_a_bad_backend_or_redis_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="ftp://x"):
        EnhancedAPI(settings=Settings(backends=("ftp://x",)))
    with pytest.raises(ConfigError, match="redis://"):
        EnhancedAPI("http://127.0.0.1:6379")


def test_the_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_CACHE_TTL", "7")
    assert EnhancedAPI().cache.ttl == 7
