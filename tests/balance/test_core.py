"""`LoadBalancer` as user code calls it, and the members that change while it runs."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import httpx2
import pytest
import trustme
import uvloop
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from asgi_enhance.balance import Backend, HealthCheck, Limits, LoadBalanceApp, LoadBalancer, Retries, Sticky, Timeouts
from asgi_enhance.balance.discovery import DnsName
from asgi_enhance.balance.upstream.pool import tls_of
from asgi_enhance.errors import BackendError, ConfigError, LoadBalancerError
from asgi_enhance.testing.driver import request
from asgi_enhance.testing.live import free_port
from tests.balance.wire import OK, ScriptedBackend, Wire, ask, connect, front, get, serve, until


async def test_get_backend_url_gives_one_that_is_available() -> None:
    async with LoadBalancer(["http://a", "http://b"], algorithm="round-robin") as balancer:
        assert [await balancer.get_backend_url() for _ in range(3)] == ["http://a", "http://b", "http://a"]
    async with LoadBalancer([]) as balancer:
        with pytest.raises(LoadBalancerError):
            await balancer.get_backend_url()


async def test_forward_request_gives_a_starlette_response(http: str) -> None:
    async with ScriptedBackend(b"HTTP/1.1 201 Made\r\nx-a: 1\r\ncontent-length: 4\r\n\r\nbody") as backend:
        balancer = LoadBalancer([backend.url])

        async def endpoint(request: Request) -> Response:
            response = await balancer.forward_request(request)
            assert isinstance(response, Response)
            assert response.headers["x-a"] == "1"
            response.headers["x-b"] = "2"
            return response

        async with balancer, serve(Starlette(routes=[Route("/x", endpoint, methods=["POST"])]), http=http) as port:
            answer = await ask(port, get(b"/x?y", b"Content-Length: 3", method=b"POST", body=b"abc"))
            assert (answer.status, answer.body, answer.one(b"x-b")) == (201, b"body", b"2")
            assert (backend.last.target, backend.last.body) == (b"/x?y", b"abc")
            assert balancer.in_flight == 0


async def test_forward_request_streams_and_lets_go_when_the_client_leaves(http: str) -> None:
    async def answer(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\none")
        await wire.rest()

    async with ScriptedBackend(answer) as backend:
        balancer = LoadBalancer([backend.url])

        async def endpoint(request: Request) -> Response:
            return await balancer.forward_request(request)

        async with balancer, serve(Starlette(routes=[Route("/", endpoint)]), http=http) as port:
            async with connect(port) as client:
                await client.send(get())
                await client.head()
                assert await client.read(3) == b"one"
                assert balancer.in_flight == 1
            await until(lambda: balancer.in_flight == 0, within=1)


@pytest.mark.parametrize("length", [2, 3], ids=["at once", "streamed"])
async def test_forward_request_runs_the_background_task_of_its_response(http: str, length: int) -> None:
    async def answer(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\nok" % length)
        await until(lambda: bool(told))
        await wire.send(b"!"[: length - 2])

    told: list[str] = []
    ran = asyncio.Event()

    async with ScriptedBackend(answer) as backend, LoadBalancer([backend.url]) as balancer:

        async def endpoint(request: Request) -> Response:
            response = await balancer.forward_request(request)
            told.append("answered")
            response.background = BackgroundTask(ran.set)
            return response

        async with serve(Starlette(routes=[Route("/", endpoint)]), http=http) as port:
            assert len((await ask(port, get())).body) == length
            async with asyncio.timeout(1):
                await ran.wait()


async def test_forward_request_takes_another_path_from_a_changed_scope(http: str) -> None:
    async with ScriptedBackend() as backend, LoadBalancer([backend.url]) as balancer:

        async def endpoint(request: Request) -> Response:
            changed = {**request.scope, "path": "/" + request.path_params["rest"], "raw_path": None}
            return await balancer.forward_request(Request(changed, request.receive))

        async with serve(Starlette(routes=[Route("/gateway/{rest:path}", endpoint)]), http=http) as port:
            assert (await ask(port, get(b"/gateway/a%20b/c?d=e"))).status == 200
        assert backend.last.target == b"/a%20b/c?d=e"


async def test_forward_request_raises_what_went_wrong() -> None:
    async with LoadBalancer([f"http://127.0.0.1:{free_port()}"]) as balancer:
        scope = {
            "type": "http",
            "method": "GET",
            "path": "/",
            "query_string": b"",
            "headers": [(b"host", b"a")],
        }

        async def receive() -> dict[str, str]:
            return {"type": "http.request"}

        with pytest.raises(BackendError):
            await balancer.forward_request(Request(scope, receive))
        assert balancer.in_flight == 0


async def test_health_check_asks_every_backend_now() -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    async with ScriptedBackend() as alive, LoadBalancer([alive.url, dead]) as balancer:
        report = await balancer.health_check()
        assert {url: one["healthy"] for url, one in report.items()} == {alive.url: True, dead: False}
        assert report[alive.url]["state"] == "up"


async def test_active_checks_take_a_backend_out_and_bring_it_back() -> None:
    check = HealthCheck(path="/health?x=1", interval=0.02, fast=0.01, rise=1, fall=2)
    balancer = LoadBalancer(health=check)
    async with ScriptedBackend() as backend, ScriptedBackend() as other, balancer:
        balancer.add_backend(backend.url)
        balancer.add_backend(other.url)
        endpoint = balancer.endpoints[0]
        await until(lambda: backend.requests != [])
        assert backend.last.target == b"/health?x=1"
        await backend.stop()
        await until(lambda: not endpoint.checked)
        assert {await balancer.get_backend_url() for _ in range(20)} == {other.url}
        await backend.start()
        await until(lambda: endpoint.checked)
        assert endpoint.ramp_from is not None


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\nshort",
        b"nonsense\r\n\r\n",
    ],
)
async def test_a_check_that_is_not_answered_well_in_time_is_bad(answer: bytes) -> None:
    from asgi_enhance.balance.checks import probe

    async with ScriptedBackend(answer) as backend:
        assert "GET /" in await probe(Backend(backend.url), HealthCheck(timeout=0.1))


async def test_a_backend_is_added_and_removed_while_the_rest_keeps_what_was_learnt() -> None:
    async with ScriptedBackend() as one, ScriptedBackend() as two:
        app = LoadBalanceApp([one.url])
        core = app.balancer
        async with serve(app) as port:
            await ask(port, get())
            before = core.endpoints[0]
            core.add_backend(two.url)
            assert core.endpoints[0] is before
            assert core.endpoints[1].ramp_from is not None
            core.remove_backend(one.url)
            assert [(await ask(port, get())).status for _ in range(3)] == [200] * 3
            assert (len(one.requests), len(two.requests)) == (1, 3)
            await until(lambda: one.wires[0].reader.at_eof())  # its idle connection is closed
        await core.close()


async def test_a_backend_that_is_added_again_unchanged_keeps_its_state() -> None:
    balancer = LoadBalancer(["http://a", "http://b"])
    endpoint = balancer.endpoints[0]
    endpoint.cost, endpoint.ejections = 0.5, 3
    balancer.add_backend(Backend("http://a", weight=7))
    kept = next(one for one in balancer.endpoints if one.name == "http://a")
    assert kept is endpoint
    assert (kept.cost, kept.ejections, kept.weight) == (0.5, 3, 7)


async def test_set_weight_moves_the_traffic() -> None:
    async with LoadBalancer(["http://a", "http://b"], algorithm="round-robin") as balancer:
        balancer.set_weight("http://a", 0)
        assert {await balancer.get_backend_url() for _ in range(5)} == {"http://b"}
        balancer.set_weight("http://a", 3)
        urls = [await balancer.get_backend_url() for _ in range(8)]
        assert urls.count("http://a") == 6
        with pytest.raises(ConfigError, match="weight"):
            balancer.set_weight("http://a", -1)


async def test_a_name_that_is_no_backend_is_refused() -> None:
    balancer = LoadBalancer(["http://a"])
    with pytest.raises(ConfigError, match="http://z"):
        balancer.remove_backend("http://z")
    with pytest.raises(ConfigError, match="http://z"):
        balancer.set_weight("http://z", 1)


async def test_drain_waits_for_requests_gives_nothing_new_and_add_brings_it_back(http: str) -> None:
    go = asyncio.Event()

    async def answer(wire: Wire) -> None:
        while True:
            await wire.head()
            await go.wait()
            await wire.send(OK)

    async with front(answer, http) as (backend, port), connect(port) as client:
        await client.send(get())
        await until(lambda: backend.balancer.in_flight == 1)
        drained = asyncio.ensure_future(backend.balancer.drain(backend.url))
        await asyncio.sleep(0.02)
        assert not drained.done()
        assert (await ask(port, get())).status == 503
        go.set()
        assert await drained
        assert (await client.message()).status == 200
        backend.balancer.add_backend(backend.url)
        assert (await ask(port, get())).status == 200


async def test_drain_says_so_when_its_time_is_over(http: str) -> None:
    async def silent(wire: Wire) -> None:
        await wire.head()
        await wire.rest()

    async with front(silent, http) as (backend, port), connect(port) as client:
        await client.send(get())
        await until(lambda: backend.balancer.in_flight == 1)
        began = asyncio.get_running_loop().time()
        assert not await backend.balancer.drain(backend.url, timeout=0.05)
        assert asyncio.get_running_loop().time() - began < 0.5


async def test_a_backend_that_is_brought_back_ends_its_drain_and_keeps_what_it_has(http: str) -> None:
    go = asyncio.Event()

    async def held(wire: Wire) -> None:
        await wire.head()
        await go.wait()
        await wire.send(OK)

    async with front(held, http) as (backend, port), connect(port) as client:
        await client.send(get())
        await until(lambda: backend.balancer.in_flight == 1)
        drained = asyncio.ensure_future(backend.balancer.drain(backend.url))
        await asyncio.sleep(0.02)
        backend.balancer.add_backend(backend.url)
        async with asyncio.timeout(1):
            assert not await drained
        go.set()
        assert (await client.message()).status == 200


async def test_backends_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_LOAD_BALANCER_BACKENDS", "http://a:1, http://b:2")
    assert [endpoint.name for endpoint in LoadBalancer().endpoints] == ["http://a:1", "http://b:2"]


async def test_every_address_of_a_name_is_a_backend_and_the_last_good_list_stays() -> None:
    answers: list[Any] = [["127.0.0.1", "127.0.0.2"], OSError("no resolver"), ["127.0.0.2", "127.0.0.3"]]

    async def resolve(self: DnsName) -> list[Backend]:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, OSError):
            raise answer
        return [Backend(self.pattern.url, address=address) for address in answer]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DnsName, "resolve", resolve)
        async with LoadBalancer(["dns+http://api.internal:8000"], poll=0.02) as balancer:

            def addresses() -> list[str | None]:
                return [endpoint.backend.address for endpoint in balancer.endpoints]

            assert addresses() == ["127.0.0.1", "127.0.0.2"]
            kept = balancer.endpoints[1]
            await until(lambda: len(answers) == 1 and addresses() == ["127.0.0.2", "127.0.0.3"])
            assert balancer.endpoints[0] is kept


async def test_a_name_is_resolved_by_the_loop_and_its_host_is_kept() -> None:
    async with ScriptedBackend() as backend:
        app = LoadBalanceApp([f"dns+http://localhost:{backend.port}"])
        async with serve(app) as port:
            assert (await ask(port, get())).status == 200
        assert app.balancer.endpoints[0].backend.hostname == "localhost"
        await app.balancer.close()


async def test_a_name_that_cannot_be_one_is_asked_for_again_and_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = 0
    really = DnsName.resolve

    async def resolve(self: DnsName) -> list[Backend]:
        nonlocal asked
        asked += 1
        return await really(self) if asked < 4 else [Backend("http://a")]

    monkeypatch.setattr(DnsName, "resolve", resolve)
    async with LoadBalancer(["dns+http://a..b:80"], poll=0.01) as balancer:
        await until(lambda: bool(balancer.endpoints))
    assert caplog.text.count("cannot resolve a..b") == 1
    assert caplog.text.count("a..b is resolved again") == 1


async def pieces() -> AsyncIterator[bytes]:
    yield b"one,"
    yield b"two"


async def test_an_in_process_app_can_be_a_backend(http: str) -> None:
    async def upper(request: Request) -> Response:
        return PlainTextResponse(request.url.path.encode() + (await request.body()).upper())

    async def stream(request: Request) -> Response:
        return StreamingResponse(pieces())

    inner = Starlette(routes=[Route("/a/{rest:path}", upper, methods=["POST"]), Route("/stream", stream)])
    backend = Backend("http://inner", transport=httpx2.ASGITransport(inner))
    app = LoadBalanceApp([backend])
    async with serve(app, http=http) as port:
        answer = await ask(port, get(b"/a/b", b"Content-Length: 3", method=b"POST", body=b"abc"))
        assert (answer.status, answer.body) == (200, b"/a/bABC")
        assert (await ask(port, get(b"/stream"))).body == b"one,two"
    assert app.balancer.in_flight == 0
    await app.balancer.close()


async def test_a_backend_with_a_transport_is_checked_by_it() -> None:
    async def status(request: Request) -> Response:
        return PlainTextResponse(request.headers["host"], int(request.path_params["status"]))

    transport = httpx2.ASGITransport(Starlette(routes=[Route("/base/{status}", status)]))
    backend = Backend("http://inner.invalid/base", transport=transport)
    for code, healthy in ((200, True), (503, False)):
        async with LoadBalancer([backend], health=HealthCheck(f"/{code}")) as balancer:
            report = (await balancer.health_check())[backend.name]
            assert (report["healthy"], f"answered {code}" in report["error"]) == (healthy, not healthy)


async def test_a_transport_sends_target_and_fields_as_they_are_and_maps_its_errors(http: str) -> None:
    async with ScriptedBackend() as backend, httpx2.AsyncHTTPTransport() as transport:
        app = LoadBalanceApp([Backend(backend.url, transport=transport)])
        async with serve(app, http=http) as port:
            await ask(port, get(b"//e/a%2Fb;x?q=%zz", b"X-A: 1", b"X-A: caf\xe9", b"TE: trailers"))
            assert backend.last.target == b"//e/a%2Fb;x?q=%zz"
            assert backend.last.all(b"x-a") == [b"1", b"caf\xe9"]
            assert backend.last.one(b"te") == b"trailers"
            assert b"connection" not in backend.last.names()  # HTTP/2 must not have it
            assert b"user-agent" not in backend.last.names()
            body = b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
            await ask(port, get(b"/", b"Transfer-Encoding: chunked", method=b"POST", body=body))
            assert backend.last.body == b"abc"
            await backend.stop()
            assert (await ask(port, get(method=b"POST"))).status == 502
        assert app.balancer.in_flight == 0
        await app.balancer.close()
        await backend.start()


def test_a_transport_that_is_none_is_refused_when_it_is_used() -> None:
    from asgi_enhance.balance.upstream.transport import library_of

    with pytest.raises(ConfigError, match="transport"):
        library_of(object())


async def test_95_a_sticky_client_stays_and_its_cookie_says_nothing(http: str) -> None:
    async with ScriptedBackend() as one, ScriptedBackend() as two:
        app = LoadBalanceApp([one.url, two.url], algorithm="round-robin", sticky=Sticky("0123456789abcdef"))
        async with serve(app, http=http) as port:
            cookie = (await ask(port, get())).one(b"set-cookie")
            assert cookie is not None
            assert cookie.endswith(b"; Path=/; HttpOnly; SameSite=Lax")
            assert b"127.0.0.1" not in cookie
            value = cookie.partition(b";")[0]
            for _ in range(5):
                assert (await ask(port, get(b"/", b"Cookie: a=b; " + value))).one(b"set-cookie") is None
            assert sorted([len(one.requests), len(two.requests)]) == [0, 6]
            tampered = value[:-1] + (b"x" if value[-1:] != b"x" else b"y")
            for bad in (tampered, b"lb=127.0.0.1:80", b"lb="):
                assert (await ask(port, get(b"/", b"Cookie: " + bad))).one(b"set-cookie") is not None
            home = app.balancer.endpoints[0 if one.requests and len(one.requests) > 5 else 1]
            home.draining = True
            app.balancer._roster.changed()
            moved = (await ask(port, get(b"/", b"Cookie: " + value))).one(b"set-cookie")
            assert moved is not None
            assert not moved.startswith(value)
        await app.balancer.close()


async def test_95_the_cookie_is_secure_behind_a_trusted_proxy_that_speaks_https(http: str) -> None:
    from asgi_enhance.balance import Forwarding

    sticky = Sticky("0123456789abcdef")
    async with front(http=http, sticky=sticky, forwarding=Forwarding(trusted=["127.0.0.1"])) as (_, port):
        cookie = (await ask(port, get(b"/", b"X-Forwarded-Proto: https"))).one(b"set-cookie")
        assert cookie is not None
        assert cookie.endswith(b"; Secure")


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: LoadBalancer(["ftp://a"]), "ftp://a"),
        (lambda: LoadBalancer(["http://user:pw@a"]), "credentials"),
        (lambda: LoadBalancer(["http://a", "http://a"]), "twice"),
        (lambda: LoadBalancer([3]), "backends"),  # type: ignore[list-item]
        (lambda: LoadBalancer(algorithm="fastest"), "algorithm"),  # type: ignore[arg-type]
        (lambda: LoadBalancer(poll=0), "poll"),
        (lambda: LoadBalancer(registry_networks=["nonsense"]), "registry_networks"),
        (lambda: Timeouts(connect=0), "connect"),
        (lambda: Limits(max_connections=0), "max_connections"),
        (lambda: LoadBalancer(["HTTP://A:80", "http://a/"]), "backends"),
        (lambda: LoadBalancer({"http://a": 2}), "backends"),
        (lambda: LoadBalancer(algorithm="ip-hash", hash_bound=float("inf")), "hash_bound"),
        (lambda: LoadBalanceApp([], proxy_status="a b"), "proxy_status"),
        (lambda: HealthCheck(expect="2xx"), "expect"),  # type: ignore[arg-type]
        (lambda: Retries(statuses=["503"]), "statuses"),  # type: ignore[list-item]
        (lambda: Backend("http://a", address="127.0.0.1:80"), "address"),
        (lambda: Backend("http://a", max_queue=-1), "max_queue"),
        (lambda: Backend("http://a", transport=1), "transport"),
        (lambda: HealthCheck(path="health"), "path"),
        (lambda: Sticky("short"), "secret"),
        (lambda: Backend("http://a", weight=-1), "weight"),
    ],
)
def test_a_bad_argument_is_named(make: Any, argument: str) -> None:
    with pytest.raises(ConfigError, match=argument):
        make()


def test_the_systems_trust_is_read_once() -> None:
    assert tls_of(Backend("https://a")) is tls_of(Backend("https://b"))


async def test_tls_backends_are_verified() -> None:
    """A certificate nobody trusts is a 502; with its own authority given it is served."""
    authority = trustme.CA()
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server_context)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with pytest.MonkeyPatch.context():
            try:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(OK)
                await writer.drain()
            except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
                pass
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=server_context)
    url = f"https://localhost:{server.sockets[0].getsockname()[1]}"
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    for tls, status in ((None, 502), (trusting, 200)):
        app = LoadBalanceApp([Backend(url, tls=tls, address="127.0.0.1")], proxy_status="lb")
        async with serve(app) as port:
            response = await ask(port, get())
            assert response.status == status
            if tls is None:
                assert response.one(b"proxy-status") == b"lb; error=tls_certificate_error"
        await app.balancer.close()
    server.close()


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_connection_over_tls_serves_many_posts(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Each is preceded by a question to the socket, which a TLS transport must be able to answer."""
    authority = trustme.CA()
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server_context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    connections = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(OK)
        writer.close()

    async def posts() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=server_context)
        url = f"https://localhost:{server.sockets[0].getsockname()[1]}"
        async with LoadBalancer([Backend(url, tls=trusting, address="127.0.0.1")]) as balancer:
            for _ in range(5):
                assert (await request(LoadBalanceApp(balancer=balancer), method="POST")).status == 200
                await asyncio.sleep(0)
        server.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(posts())
    assert connections == 1


async def test_close_ends_what_is_under_way_and_nothing_is_tried_again(http: str) -> None:
    async def silent(wire: Wire) -> None:
        await backend.request(wire)
        await wire.rest()

    async with front(silent, http, limits=Limits(max_connections=1)) as (backend, port):
        balancer = backend.balancer
        asked, queued = (asyncio.create_task(ask(port, get())) for _ in range(2))
        await until(lambda: bool(backend.requests) and balancer.stats.queued == 1)
        await balancer.close()
        assert [(await one).status for one in (asked, queued)] == [503, 503]
        assert (balancer.in_flight, len(backend.requests), balancer.stats.backend_failures) == (0, 1, 0)
