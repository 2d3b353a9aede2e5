"""Under real servers: both transports, clients that vanish, and a shutdown that says goodbye."""

import asyncio
import json
import os
import signal
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import httpx2
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from asgi_enhance.testing.live import SERVERS, LiveServer
from tests.broadcast.helpers import until

UPGRADE = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[LiveServer]:
    with LiveServer("tests.broadcast.app:app", server=request.param) as found:
        yield found


@asynccontextmanager
async def events(server: LiveServer, query: str, **headers: str) -> AsyncIterator[AsyncIterator[dict[str, str]]]:
    async with (
        httpx2.AsyncClient(timeout=10) as http,
        http.stream("GET", f"{server.url}/events/bob?{query}", headers=headers) as response,
    ):
        assert response.status_code == 200

        async def parse() -> AsyncIterator[dict[str, str]]:
            event: dict[str, str] = {}
            async for line in response.aiter_lines():
                name, _, value = line.partition(": ")
                if line:
                    event[name] = value
                else:
                    yield event
                    event = {}

        yield parse()


async def post(server: LiveServer, path: str, content: str = "") -> None:
    async with httpx2.AsyncClient() as http:
        assert (await http.post(f"{server.url}{path}", content=content)).status_code == 200


async def stats(server: LiveServer) -> dict[str, int]:
    async with httpx2.AsyncClient() as http:
        found: dict[str, int] = (await http.get(f"{server.url}/stats")).json()
        return found


async def test_a_message_reaches_both_transports_and_a_lost_client_what_it_missed(server: LiveServer) -> None:
    async with connect(f"{server.ws_url}/ws/ann?group=kept") as ann, events(server, "group=kept") as bob:
        position = json.loads(await ann.recv())["id"]
        assert "retry" in await anext(bob)
        cursor = (await anext(bob))["id"]
        await post(server, "/publish/kept", "1")
        assert json.loads(await ann.recv())["data"] == 1
        assert json.loads((await anext(bob))["data"])["data"] == 1
    await post(server, "/publish/kept", "2")
    async with (
        connect(f"{server.ws_url}/ws/ann") as ann,
        events(server, "group=kept", **{"last-event-id": cursor}) as bob,
    ):
        await ann.send(json.dumps({"type": "join", "group": "kept", "since": position}))
        await anext(bob)
        frames = [json.loads(await ann.recv()) for _ in range(3)]
        assert [(frame["type"], frame.get("data")) for frame in frames] == [
            ("joined", None),
            ("message", 1),
            ("message", 2),
        ]
        datas = [json.loads((await anext(bob))["data"]) for _ in range(3)]
        assert datas == frames


async def test_who_vanishes_is_forgotten(server: LiveServer) -> None:
    for path in ("/ws/ann?group=g", "/events/ann?group=g"):
        raw = socket.create_connection(("127.0.0.1", server.port))
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n{UPGRADE if 'ws' in path else ''}\r\n".encode())
        await until(lambda: connections(server, 1))
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raw.close()  # a reset, no goodbye
        await until(lambda: connections(server, 0))
    assert (await stats(server))["groups"] == 0


async def connections(server: LiveServer, count: int) -> bool:
    return (await stats(server))["connections"] == count


async def test_a_page_of_another_origin_is_refused_with_a_reason(server: LiveServer) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with connect(f"{server.ws_url}/ws/ann", origin="https://evil.example"):  # type: ignore[arg-type]
            pass
    assert refused.value.response.status_code == 403
    assert b"pages of this origin may not connect" in (refused.value.response.body or b"")


DRAINS = {"uvicorn": [], "granian": [], "hypercorn": ["--workers", "0"]}
"""Hypercorn's parent process keeps the signal for itself: there must be none, or all must be signalled."""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("name", SERVERS)
async def test_sigterm_says_goodbye_and_the_server_ends(name: str, loop: str) -> None:
    chosen = ["--worker-class" if name == "hypercorn" else "--loop", loop]
    with LiveServer("tests.broadcast.app:app", server=name, options=[*DRAINS[name], *chosen]) as server:
        await says_goodbye(server, lambda: os.kill(server.pid, signal.SIGTERM))


@pytest.mark.parametrize("workers", [1, 2])
async def test_sigterm_to_all_processes_of_hypercorn_says_goodbye_as_well(workers: int) -> None:
    with LiveServer("tests.broadcast.app:app", server="hypercorn", options=["--workers", str(workers)]) as server:
        await says_goodbye(server, lambda: os.killpg(server.pid, signal.SIGTERM))


@pytest.mark.parametrize("name", SERVERS)
async def test_sigterm_says_goodbye_to_sockets_of_the_apps_own(name: str) -> None:
    with LiveServer("tests.broadcast.app:app", server=name, options=DRAINS[name]) as server:
        async with connect(f"{server.ws_url}/own") as own:
            assert json.loads(await own.recv())["type"] == "joined"
            os.kill(server.pid, signal.SIGTERM)
            with pytest.raises(ConnectionClosed) as closed:
                await asyncio.wait_for(own.recv(), 5)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1012


async def says_goodbye(server: LiveServer, stop: Callable[[], None]) -> None:
    async with connect(f"{server.ws_url}/ws/ann") as ann, events(server, "group=kept") as bob:
        await anext(bob)
        await anext(bob)
        stop()
        with pytest.raises(ConnectionClosed) as closed:
            await asyncio.wait_for(ann.recv(), 5)
        last = [event async for event in bob]
        assert [list(event) for event in last] == [["retry"]]
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
    await until(lambda: not server.running, seconds=8)
    assert server.output() == ""


async def test_sigterm_with_nobody_connected_ends_the_server_at_once() -> None:
    with LiveServer("tests.broadcast.app:app") as server:
        os.kill(server.pid, signal.SIGTERM)
        await until(lambda: not server.running, seconds=2)


async def test_a_second_sigterm_does_not_wait_for_the_first() -> None:
    with LiveServer("tests.broadcast.app:app", env={"DRAIN_SPREAD": "60"}) as server:
        async with connect(f"{server.ws_url}/ws/ann") as ann:
            await until(lambda: connections(server, 1))
            os.kill(server.pid, signal.SIGTERM)
            async with httpx2.AsyncClient() as http:

                async def is_draining() -> bool:
                    return (await http.get(f"{server.url}/events/eve")).status_code == 503

                await until(is_draining)
            os.kill(server.pid, signal.SIGTERM)
            with pytest.raises(ConnectionClosed):
                await asyncio.wait_for(ann.recv(), 5)
        await until(lambda: not server.running, seconds=8)
