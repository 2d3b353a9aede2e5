"""Fan-out beside a minimal send loop and the peers: real servers, real sockets, 1 000 subscribers, 64-byte messages.

    python -m benchmarks.broadcast [--quick] [--redis] [--only NAME …]

Each way is an app under uvicorn (uvloop, no compression) in a process of its own on one core; the subscribers are raw
sockets in this one, on another core. Paced is 8 messages a second, bursts are 60 messages back to back. CPU is the
server's; latency is from just before publishing to the subscriber's read. In each round all ways have new processes,
since two of the same way may differ by a tenth for as long as they live, and take many short turns one after the other,
so that what else runs meets all alike; the table has medians of the turns, and of their ratios to the minimal loop.
All paced turns come before all bursts: for two seconds after a burst that was written socket by socket a send costs a
tenth more, by whatever loop it is made. With `--redis`, messages are published by a second process of the same app and
reach the subscribers' process through Redis; the minimal loop stays without.
"""

import argparse
import asyncio
import base64
import contextlib
import gc
import importlib
import json
import os
import resource
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

from asgi_enhance.asgi.types import ASGIApp, Receive, Scope, Send
from benchmarks.harness import Table, progress, show

GROUP = "group"
CORES = sorted(os.sched_getaffinity(0))
Publish = Callable[[str], Awaitable[object]]


# -- the ways: each gives an app that sends what is published to every WebSocket, and a function that publishes


def minimal_loop(redis: str | None) -> tuple[ASGIApp, Publish]:
    sockets: dict[Send, None] = {}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        sockets[send] = None
        try:
            while (await receive())["type"] != "websocket.disconnect":
                pass
        finally:
            del sockets[send]

    async def publish(text: str) -> None:
        message = {"type": "websocket.send", "text": text}
        for send in sockets:
            await send(message)

    return app, publish


def asgi_enhance(redis: str | None) -> tuple[ASGIApp, Publish]:
    import msgspec

    from asgi_enhance.broadcast import BroadcastRouter, Limits, RealTimeStreamProcessor

    processor = RealTimeStreamProcessor(redis=redis, limits=Limits(connections_per_client=10_000))
    numbers = iter(range(1_000_000))
    router = BroadcastRouter(processor=processor, path="/ws", authenticate=lambda scope: f"client {next(numbers)}")

    async def publish(text: str) -> None:
        await processor.broadcast_to_group(GROUP, msgspec.Raw(text.encode()))

    return router, publish


def encode_broadcaster(redis: str | None) -> tuple[ASGIApp, Publish]:
    from broadcaster import Broadcast

    broadcast = Broadcast(redis or "memory://")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await broadcast.connect()
            async with broadcast.subscribe("second channel"):  # with only one it hears nothing from redis-py 8
                await send({"type": "lifespan.startup.complete"})
                await receive()
            await broadcast.disconnect()
            await send({"type": "lifespan.shutdown.complete"})
            return
        await receive()
        await send({"type": "websocket.accept"})

        async def forward() -> None:
            async with broadcast.subscribe(GROUP) as events:
                async for event in events:
                    await send({"type": "websocket.send", "text": event.message})

        task = asyncio.create_task(forward())
        try:
            while (await receive())["type"] != "websocket.disconnect":
                pass
        finally:
            task.cancel()

    async def publish(text: str) -> None:
        await broadcast.publish(GROUP, text)

    return app, publish


def litestar_channels(redis: str | None) -> tuple[ASGIApp, Publish]:
    from litestar import Litestar, WebSocket, websocket
    from litestar.channels import ChannelsPlugin
    from litestar.channels.backends.memory import MemoryChannelsBackend
    from litestar.channels.backends.redis import RedisChannelsPubSubBackend

    if redis is None:
        plugin = ChannelsPlugin(MemoryChannelsBackend(), channels=[GROUP])
    else:
        from redis.asyncio import Redis

        plugin = ChannelsPlugin(RedisChannelsPubSubBackend(redis=Redis.from_url(redis)), channels=[GROUP])

    async def endpoint(socket: WebSocket[Any, Any, Any]) -> None:
        await socket.accept()
        async with plugin.start_subscription([GROUP]) as events, events.run_in_background(socket.send_text):
            with contextlib.suppress(Exception):
                while True:
                    await socket.receive_text()

    endpoint.__annotations__["socket"] = WebSocket
    app: Any = Litestar([websocket("/ws")(endpoint)], plugins=[plugin])

    async def publish(text: str) -> None:
        await plugin.wait_published(text, [GROUP])

    return app, publish


def python_socketio(redis: str | None) -> tuple[ASGIApp, Publish]:
    import socketio

    manager = None if redis is None else socketio.AsyncRedisManager(redis)
    server = socketio.AsyncServer(async_mode="asgi", client_manager=manager, cors_allowed_origins="*")

    @server.event  # type: ignore[untyped-decorator]
    async def connect(sid: str, environ: dict[str, Any]) -> None:
        await server.enter_room(sid, GROUP)

    async def publish(text: str) -> None:
        await server.emit("m", text, room=GROUP)

    return socketio.ASGIApp(server, socketio_path="ws"), publish


def channels(redis: str | None) -> tuple[ASGIApp, Publish]:
    if redis is None:
        from channels.layers import InMemoryChannelLayer

        layer = InMemoryChannelLayer(capacity=10_000)
    else:
        from channels_redis.pubsub import RedisPubSubChannelLayer

        layer = RedisPubSubChannelLayer(hosts=[redis])

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        channel = await layer.new_channel()
        await layer.group_add(GROUP, channel)

        async def forward() -> None:
            while True:
                message = await layer.receive(channel)
                await send({"type": "websocket.send", "text": message["text"]})

        task = asyncio.create_task(forward())
        try:
            while (await receive())["type"] != "websocket.disconnect":
                pass
        finally:
            task.cancel()
            await layer.group_discard(GROUP, channel)

    async def publish(text: str) -> None:
        await layer.group_send(GROUP, {"type": "m", "text": text})

    return app, publish


WAYS = {
    "minimal loop": minimal_loop,
    "asgi_enhance": asgi_enhance,
    "encode/broadcaster": encode_broadcaster,
    "Litestar channels": litestar_channels,
    "python-socketio": python_socketio,
    "channels": channels,
}


# -- the server process


def serve(name: str, port: int, redis: str | None, core: int) -> None:
    """One way under uvicorn, with a second way in: HTTP to have it publish, and to ask what it has used."""
    import uvicorn

    pin(core)
    app, publish = WAYS[name](redis)

    async def with_control(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not scope["path"].startswith("/ws"):
            await control(scope, send)
        elif scope["type"] != "lifespan" or name not in ("minimal loop", "channels"):
            await app(scope, receive, send)

    async def control(scope: Scope, send: Send) -> None:
        if scope["path"].startswith("/publish/"):
            _, _, count, interval = scope["path"].split("/")
            loop = asyncio.get_running_loop()
            due = loop.time()
            for _ in range(int(count)):
                # a JSON string of 64 bytes that tells when it was published
                await publish(f'"t={time.monotonic():.6f};'.ljust(63, "x") + '"')
                due += float(interval)
                if float(interval):
                    await asyncio.sleep(max(0.0, due - loop.time()))
        if scope["path"] == "/memory":
            gc.collect()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        pages = int(open("/proc/self/statm").read().split()[1])  # noqa: ASYNC230, SIM115 a file of the kernel
        body = json.dumps({"cpu": usage.ru_utime + usage.ru_stime, "memory": pages * resource.getpagesize()}).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    uvicorn.run(
        with_control,
        port=port,
        loop="uvloop",
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        log_level="warning",
        access_log=False,
        ws_ping_interval=None,
    )


def core(number: int) -> int:
    """One of the cores this program was given, before it took one of them."""
    return CORES[number % len(CORES)]


def pin(core: int) -> None:
    os.sched_setaffinity(0, {core})


@contextlib.contextmanager
def server(name: str, redis: str | None, core: int) -> Any:
    from asgi_enhance.testing.live import free_port

    port = free_port()
    command = [sys.executable, "-m", "benchmarks.broadcast", "--serve", name, "--port", str(port), "--core", str(core)]
    process = subprocess.Popen([*command, *(["--redis-url", redis] if redis else [])])
    try:
        for _ in range(400):
            with contextlib.suppress(OSError):
                ask(port, "/usage")
                break
            time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


def ask(port: int, path: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=120) as answer:
        return json.load(answer)


# -- the subscribers


class Subscriber(asyncio.Protocol):
    """A WebSocket client that does nothing but read: its CPU must not be what is measured."""

    def __init__(self, socketio: bool, latencies: list[float], opened: Callable[[], None]) -> None:
        self._socketio = socketio
        self._latencies = latencies
        self._opened = opened
        self._buffer = b""
        self._open = False
        self.received = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        key = base64.b64encode(os.urandom(16)).decode()
        path = "/ws/?EIO=4&transport=websocket" if self._socketio else f"/ws?group={GROUP}"
        transport.write(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        if not self._open:
            head, end, data = data.partition(b"\r\n\r\n")
            if not end:
                self._buffer = head
                return
            assert b" 101 " in head, head
            self._open = True
            self._buffer = b""
            if not self._socketio:
                self._opened()
        now = time.monotonic()
        at = 0
        while len(data) - at >= 2:
            size, start = data[at + 1], at + 2
            if size == 126:
                if len(data) - at < 4:
                    break
                size, start = int.from_bytes(data[at + 2 : at + 4]), at + 4
            if len(data) - start < size:
                break
            self._message(data[start : start + size], now)
            at = start + size
        self._buffer = data[at:]

    def _message(self, payload: bytes, now: float) -> None:
        stamp = payload.find(b"t=")
        if stamp >= 0:
            self.received += 1
            self._latencies.append(now - float(payload[stamp + 2 : payload.index(b";", stamp)]))
        elif self._socketio and payload[:1] == b"0":
            self._write(b"40")  # connect to the namespace
        elif self._socketio and payload[:2] == b"40":
            self._opened()
        elif self._socketio and payload == b"2":
            self._write(b"3")

    def _write(self, text: bytes) -> None:
        self.transport.write(bytes((0x81, 0x80 | len(text), 0, 0, 0, 0)) + text)


@contextlib.asynccontextmanager
async def subscribers(port: int, count: int, socketio: bool, latencies: list[float]) -> AsyncIterator[list[Subscriber]]:
    loop = asyncio.get_running_loop()
    found: list[Subscriber] = []
    for _ in range(0, count, 50):
        opened: list[asyncio.Future[None]] = [loop.create_future() for _ in range(50)]
        for future in opened:

            def done(future: asyncio.Future[None] = future) -> None:
                if not future.done():
                    future.set_result(None)

            _, protocol = await loop.create_connection(
                lambda done=done: Subscriber(socketio, latencies, done),  # type: ignore[misc]
                "127.0.0.1",
                port,
            )
            found.append(protocol)
        await asyncio.wait_for(asyncio.gather(*opened), 30)
    await asyncio.sleep(0.5)  # the groups are joined after the handshake
    try:
        yield found
    finally:
        for each in found:
            each.transport.abort()


# -- the rounds


@dataclass(slots=True)
class Way:
    """A server with its subscribers, and what each round has measured."""

    port: int
    publisher: int
    latencies: list[float]
    clients: list[Subscriber]
    memory: float  # KB a connection
    burst: list[float] = field(default_factory=list)  # deliveries a CPU second
    paced: list[float] = field(default_factory=list)  # CPU µs a delivery
    p50: list[float] = field(default_factory=list)  # ms
    p99: list[float] = field(default_factory=list)
    lost: int = 0

    async def paced_turn(self) -> None:
        self.latencies.clear()
        cpu, delivered = await self._publish(8, 0.125)
        self.paced.append(cpu / delivered * 1e6)
        self.p50.append(median(self.latencies) * 1e3)
        self.p99.append(quantiles(self.latencies, n=100)[98] * 1e3)

    async def burst_turn(self) -> None:
        cpu, delivered = await self._publish(60, 0)
        self.burst.append(delivered / cpu)

    async def _publish(self, messages: int, interval: float) -> tuple[float, int]:
        cpu, lost = await publish(self.port, self.publisher, self.clients, messages, interval)
        self.lost += lost
        return cpu, messages * len(self.clients) - lost


@contextlib.asynccontextmanager
async def way(name: str, redis: str | None, count: int) -> AsyncIterator[Way]:
    redis = None if name == "minimal loop" else redis
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(server(name, redis, core(0)))
        publisher = stack.enter_context(server(name, redis, core(1))) if redis else port
        latencies: list[float] = []
        before = ask(port, "/memory")
        async with subscribers(port, count, name == "python-socketio", latencies) as clients:
            idle = await asyncio.to_thread(ask, port, "/memory")
            memory = (idle["memory"] - before["memory"]) / count / 1024
            await publish(port, publisher, clients, 8, 0.125)  # warm
            yield Way(port, publisher, latencies, clients, memory)


async def publish(
    port: int, publisher: int, clients: list[Subscriber], count: int, interval: float
) -> tuple[float, int]:
    """Publish, and wait until all has arrived or nothing comes any more. CPU seconds of the server; messages lost."""
    begun = (await asyncio.to_thread(ask, port, "/usage"))["cpu"]
    target = [client.received + count for client in clients]
    await asyncio.to_thread(ask, publisher, f"/publish/{count}/{interval}")
    missing, since = -1, time.monotonic()
    while time.monotonic() - since < 5:
        now = sum(max(0, goal - client.received) for goal, client in zip(target, clients, strict=True))
        if now == 0:
            break
        if now != missing:
            missing, since = now, time.monotonic()
        await asyncio.sleep(0.02)
    lost = sum(max(0, goal - client.received) for goal, client in zip(target, clients, strict=True))
    return (await asyncio.to_thread(ask, port, "/usage"))["cpu"] - begun, lost


async def main(arguments: argparse.Namespace) -> None:
    pin(core(1))
    count, paced, bursts, rounds = (200, 1, 1, 1) if arguments.quick else (1000, 8, 3, arguments.rounds)
    names = ["minimal loop", *(name for name in (arguments.only or WAYS) if name != "minimal loop")]
    async with contextlib.AsyncExitStack() as stack:
        redis = None
        if arguments.redis:
            from asgi_enhance.testing.servers import RedisServer

            redis = stack.enter_context(RedisServer()).url
        runs: dict[str, list[Way]] = {name: [] for name in names}
        for number in range(rounds):
            async with contextlib.AsyncExitStack() as processes:
                for name in names:
                    runs[name].append(await processes.enter_async_context(way(name, redis, count)))
                for name in names * paced:
                    progress(name, number, rounds)
                    await runs[name][-1].paced_turn()
                for name in names * bursts:
                    progress(name, number, rounds)
                    await runs[name][-1].burst_turn()
        ways = {name: together(found) for name, found in runs.items()}
        show(table(ways, f"{count} subscribers, 64 bytes, {'through Redis' if redis else 'in memory'}"))


def together(rounds: list[Way]) -> Way:
    """All turns of a way, as if its processes had been one."""
    first, *others = rounds
    for other in others:
        first.burst += other.burst
        first.paced += other.paced
        first.p50 += other.p50
        first.p99 += other.p99
        first.lost += other.lost
    first.memory = median(each.memory for each in rounds)
    return first


def table(ways: dict[str, Way], title: str) -> Table:
    reference = ways["minimal loop"]

    def ratio(mine: list[float], theirs: list[float]) -> float:
        return median(one / other for one, other in zip(mine, theirs, strict=True))

    columns = {
        "burst deliveries/CPU-s": ",.0f",
        "× burst": ".2f",
        "paced CPU µs/delivery": ".1f",
        "× faster paced": ".2f",
        "p50 ms": ".1f",
        "p99 ms": ".1f",
        "× p99": ".2f",
        "idle KB/connection": ".1f",
        "lost": ".0f",
    }
    rows: dict[str, list[float | str | None]] = {
        name: [
            median(way.burst),
            ratio(way.burst, reference.burst),
            median(way.paced),
            ratio(reference.paced, way.paced),
            median(way.p50),
            median(way.p99),
            ratio(way.p99, reference.p99),
            way.memory,
            way.lost,
        ]
        for name, way in ways.items()
    }
    return Table(title, columns, rows, drawn="paced CPU µs/delivery")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="200 subscribers, one short round")
    parser.add_argument("--redis", action="store_true", help="publish from a second process through Redis")
    parser.add_argument("--rounds", type=int, default=2, help="some three minutes each with all ways")
    parser.add_argument("--only", nargs="+", choices=WAYS)
    parser.add_argument("--serve", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--redis-url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.port, options.redis_url, options.core)
    else:
        with asyncio.Runner(loop_factory=importlib.import_module("uvloop").new_event_loop) as runner:
            runner.run(main(options))
