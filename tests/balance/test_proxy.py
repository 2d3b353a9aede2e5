"""The main path: a request goes to a backend and its answer comes back, whole, streamed, or as a problem."""

import asyncio
import json

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from websockets.asyncio.client import connect as ws_connect
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as ws_serve

from asgi_enhance.balance import LoadBalanceApp, LoadBalancer
from asgi_enhance.errors import ConfigError
from asgi_enhance.testing.live import free_port
from tests.balance.wire import ScriptedBackend, Wire, ask, connect, front, get, serve, until


async def test_a_get_reaches_the_backend_and_its_answer_comes_back(http: str) -> None:
    async with ScriptedBackend() as backend, serve(LoadBalanceApp([backend.url]), http=http) as port:
        response = await ask(port, get(b"/a?b=c"))
        assert (response.status, response.body) == (200, b"ok")
        assert backend.last.start == b"GET /a?b=c HTTP/1.1"


async def test_connections_to_backends_are_kept_and_used_again(http: str) -> None:
    async with ScriptedBackend() as backend, serve(LoadBalanceApp([backend.url]), http=http) as port:
        for _ in range(5):
            assert (await ask(port, get())).status == 200
        assert len(backend.requests) == 5
        assert len(backend.wires) == 1


async def test_round_robin_takes_turns(http: str) -> None:
    async with ScriptedBackend() as one, ScriptedBackend() as two, ScriptedBackend() as three:
        app = LoadBalanceApp([one.url, two.url, three.url], algorithm="round-robin")
        async with serve(app, http=http) as port:
            for _ in range(9):
                await ask(port, get())
        assert [len(backend.requests) for backend in (one, two, three)] == [3, 3, 3]


@pytest.mark.parametrize("method", [b"GET", b"POST"])
async def test_a_refused_connection_is_answered_by_another_backend(http: str, method: bytes) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    async with ScriptedBackend() as alive:
        app = LoadBalanceApp([dead, alive.url], algorithm="round-robin")
        async with serve(app, http=http) as port:
            for _ in range(4):
                request = get(b"/", b"Content-Length: 5", method=method, body=b"hello")
                assert (await ask(port, request)).status == 200
        assert [request.body for request in alive.requests] == [b"hello"] * 4
        assert app.balancer.in_flight == 0


async def test_when_all_backends_refuse_the_answer_is_a_502_problem_without_addresses(http: str) -> None:
    dead = free_port()
    app = LoadBalanceApp([f"http://127.0.0.1:{dead}"], proxy_status="lb")
    async with serve(app, http=http) as port:
        response = await ask(port, get())
    assert response.status == 502
    assert response.one(b"content-type") == b"application/problem+json"
    assert json.loads(response.body) == {"type": "about:blank", "title": "Bad Gateway", "status": 502}
    assert response.one(b"proxy-status") == b"lb; error=connection_refused"


async def test_without_backends_the_answer_is_a_503_problem_with_retry_after(http: str) -> None:
    async with serve(LoadBalanceApp([]), http=http) as port:
        response = await ask(port, get())
    assert response.status == 503
    assert response.one(b"retry-after") == b"1"


async def test_a_mounted_balancer_needs_no_lifespan_and_gives_backends_the_path_below_the_mount(http: str) -> None:
    async with ScriptedBackend() as backend:
        site = Starlette(routes=[Mount("/api", LoadBalanceApp([backend.url]))])
        async with serve(site, http=http) as port:
            assert (await ask(port, get(b"/api/x%2Fy?z"))).status == 200
    assert backend.last.target == b"/x%2Fy?z"


async def test_a_response_streams_as_it_comes(http: str) -> None:
    second = asyncio.Event()

    async def answer(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
        await second.wait()
        await wire.send(b"3\r\ntwo\r\n0\r\n\r\n")

    async with front(answer, http) as (_, port), connect(port) as client:
        await client.send(get())
        await client.head()
        assert (await client.line(), await client.line()) == (b"3", b"one")
        second.set()
        assert (await client.line(), await client.line(), await client.line()) == (b"3", b"two", b"0")


async def test_an_upload_streams_as_it_comes(http: str) -> None:
    pieces: list[bytes] = []

    async def answer(wire: Wire) -> None:
        await wire.head()
        while size := int(await wire.line(), 16):
            pieces.append(await wire.reader.readexactly(size))
            await wire.line()
        await wire.line()
        await wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    async with front(answer, http) as (_, port), connect(port) as client:
        await client.send(get(b"/", b"Transfer-Encoding: chunked", method=b"POST", body=b"3\r\none\r\n"))
        await until(lambda: pieces == [b"one"])
        await client.send(b"3\r\ntwo\r\n0\r\n\r\n")
        assert (await client.message()).status == 200
    assert pieces == [b"one", b"two"]


async def test_websocket_messages_cross_in_both_directions(http: str) -> None:
    async def echo(socket: ServerConnection) -> None:
        async for message in socket:
            await socket.send(message)

    async with ws_serve(echo, "127.0.0.1", 0) as backend:
        url = f"http://127.0.0.1:{backend.sockets[0].getsockname()[1]}"
        app = LoadBalanceApp([url])
        async with serve(app, http=http) as port:
            async with ws_connect(f"ws://127.0.0.1:{port}/chat") as client:
                for message in ("text", b"binary", "", b""):
                    await client.send(message)
                    assert await client.recv() == message
                assert app.balancer.in_flight == 1
            await until(lambda: app.balancer.in_flight == 0)


def test_a_balancer_given_from_outside_excludes_other_options() -> None:
    with pytest.raises(ConfigError, match="balancer"):
        LoadBalanceApp(["http://a"], balancer=LoadBalancer(["http://b"]))
