"""Two processes, 200 clients and a steady publisher, while Redis is cut off, paused, restarted and killed.

With a history every accepted message arrives exactly once and in order, or the client gets a reset. Nothing hangs, and
groups without a history go on within their process.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from typing import Any

import httpx2
import pytest
from websockets.asyncio.client import ClientConnection, connect

from asgi_enhance.testing.live import LiveServer
from asgi_enhance.testing.servers import RedisServer
from tests.broadcast.helpers import until

CLIENTS = 100  # on each of the two processes
PAUSE = 0.02  # seconds between messages


class Client:
    """A member of the group: what it was given, and where it was told that something may be missing."""

    def __init__(self, socket: ClientConnection, server: int) -> None:
        self.socket = socket
        self.server = server
        self.numbers: list[int] = []
        self.local: list[int] = []  # of the group without a history, published in the client's own process
        self.resets = 0
        self.joined = asyncio.Event()
        self._next: tuple[str, int] | None = None

    async def read(self) -> None:
        async for text in self.socket:
            frame = json.loads(text)
            if "local" in frame:
                if frame["server"] == self.server:
                    self.local.append(frame["local"])
            elif frame["type"] == "message":
                self.numbers.append(frame["data"])
                epoch, offset = self._position(frame)
                assert (epoch, offset) == self._next, f"{frame} came where {self._next} was due"
                self._next = (epoch, offset + 1)
            elif frame["type"] in ("joined", "reset"):
                epoch, offset = self._position(frame)
                self._next = (epoch, offset + 1)
                self.resets += frame["type"] == "reset"
                self.joined.set()

    def _position(self, frame: dict[str, Any]) -> tuple[str, int]:
        epoch, _, offset = frame["id"].rpartition(":")
        return epoch, int(offset)


class Publisher:
    """Publishes one number after the other, by both processes in turn, each until it is accepted."""

    def __init__(self, servers: list[LiveServer], http: httpx2.AsyncClient) -> None:
        self.accepted = 0
        self.refusals = 0
        self.local = [0, 0]  # messages published in each process to the group without a history
        self._servers = servers
        self._http = http
        self._stop = False

    async def run(self) -> None:
        while not self._stop:
            number = self.accepted + 1
            server = self._servers[number % 2]
            await self._to_local(number % 2)
            answer = await self._http.post(f"{server.url}/publish/kept?key={number}", content=str(number))
            if answer.status_code == 200:
                self.accepted = number
            else:
                assert answer.status_code == 503
                self.refusals += 1
            await asyncio.sleep(PAUSE)

    async def _to_local(self, server: int) -> None:
        self.local[server] += 1
        message = json.dumps({"local": self.local[server], "server": server})
        answer = await self._http.post(f"{self._servers[server].url}/publish/plain", content=message)
        assert answer.status_code == 200

    async def more(self, count: int) -> None:
        goal = self.accepted + count
        await until(lambda: self.accepted >= goal, seconds=20)

    def stop(self) -> None:
        self._stop = True


@asynccontextmanager
async def stage(redis: RedisServer) -> AsyncIterator[tuple[list[Client], Publisher]]:
    """Everything up and running, and at the end everything accounted for."""
    with ExitStack() as processes:
        env = {"REDIS_URL": redis.url}
        servers = [processes.enter_context(LiveServer("tests.broadcast.app:app", env=env)) for _ in range(2)]
        async with AsyncExitStack() as stack:
            http = await stack.enter_async_context(httpx2.AsyncClient(timeout=10))
            clients = []
            for number in range(2 * CLIENTS):
                url = f"{servers[number % 2].ws_url}/ws/{number}?group=kept&group=plain"
                socket = await stack.enter_async_context(connect(url, compression=None, ping_interval=None))
                clients.append(Client(socket, number % 2))
            readers = [asyncio.create_task(client.read()) for client in clients]
            await asyncio.gather(*(client.joined.wait() for client in clients))
            publisher = Publisher(servers, http)
            publishing = asyncio.create_task(publisher.run())
            await publisher.more(10)

            yield clients, publisher

            await publisher.more(30)
            publisher.stop()
            await publishing
            last = publisher.accepted
            # on a machine that is busy the clients themselves may be seconds behind
            await until(
                lambda: all(c.numbers and c.numbers[-1] == last for c in clients) or any_done(readers), seconds=30
            )
            for reader in readers:
                reader.cancel()
            for result in await asyncio.gather(*readers, return_exceptions=True):
                assert isinstance(result, asyncio.CancelledError), repr(result)
            for client in clients:
                assert client.local == list(range(1, publisher.local[client.server] + 1))


def any_done(tasks: list[asyncio.Task[None]]) -> bool:
    return any(task.done() for task in tasks)


async def cut(redis: RedisServer, publisher: Publisher) -> None:
    for round in range(20):
        for kind in ("pubsub", "normal") if round % 4 == 0 else ("pubsub",):
            await asyncio.to_thread(redis.call, "CLIENT", "KILL", "TYPE", kind)
        await publisher.more(2)


async def pause(redis: RedisServer, publisher: Publisher) -> None:
    redis.pause()
    await asyncio.sleep(3)  # the fault itself
    redis.resume()


async def restart(redis: RedisServer, publisher: Publisher) -> None:
    await asyncio.to_thread(redis.stop)
    await until(lambda: publisher.refusals > 0)
    await asyncio.to_thread(redis.start)


async def kill(redis: RedisServer, publisher: Publisher) -> None:
    redis.kill()
    await until(lambda: publisher.refusals > 0)
    await asyncio.to_thread(redis.start)


Fault = Callable[[RedisServer, Publisher], Awaitable[None]]


@pytest.mark.parametrize("fault", [cut, pause, restart, kill])
async def test_every_accepted_message_arrives_once_and_in_order(fault: Fault) -> None:
    with RedisServer(appendonly=True) as redis:
        async with stage(redis) as (clients, publisher):
            await fault(redis, publisher)
        for client in clients:
            assert client.resets == 0
            assert client.numbers == list(range(1, publisher.accepted + 1))


@pytest.mark.parametrize("fault", [restart, kill])
async def test_a_redis_that_forgets_everything_costs_every_client_one_reset(fault: Fault) -> None:
    with RedisServer() as redis:
        async with stage(redis) as (clients, publisher):
            await fault(redis, publisher)
        for client in clients:
            assert client.resets == 1
            # in order; the one message that was neither accepted nor refused may be there on both sides of the reset
            assert client.numbers == sorted(client.numbers)
            assert len(client.numbers) - len(set(client.numbers)) <= 1


async def test_while_redis_is_away_all_else_goes_on_within_a_process() -> None:
    with RedisServer() as redis, LiveServer("tests.broadcast.app:app", env={"REDIS_URL": redis.url}) as server:
        async with (
            httpx2.AsyncClient() as http,
            connect(f"{server.ws_url}/ws/ann?group=plain") as ann,
        ):
            redis.kill()
            for number in range(20):
                answer = await http.post(f"{server.url}/publish/plain", content=str(number))
                assert answer.status_code == 200
                assert json.loads(await asyncio.wait_for(ann.recv(), 1)) == number
            assert (await http.post(f"{server.url}/publish/kept", content="0")).status_code == 503
            async with connect(f"{server.ws_url}/ws/bob?group=plain") as bob:
                assert (await http.post(f"{server.url}/send/bob", content="1")).json() is True
                assert json.loads(await asyncio.wait_for(bob.recv(), 1)) == 1
