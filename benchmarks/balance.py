"""What a proxied request costs: ours, the Python peers, a bare uvicorn answer and, where it is installed, nginx.

`python -m benchmarks.balance [--quick]`. Every proxy runs in a process of its own, under uvicorn with uvloop and
httptools, before one small backend; all are loaded in turn within every round, and the order changes. CPU time is the
proxying process's own (user and system), so that it does not depend on who else uses the machine. Quote the ratios.
"""

import argparse
import asyncio
import importlib.util
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httptools
import uvloop

from asgi_enhance.asgi.types import ASGIApp, Receive, Scope, Send
from asgi_enhance.testing.live import LiveServer, free_port
from benchmarks.harness import Table, progress, show

BACKEND = "BENCHMARK_BACKEND"
SMALL = b'{"message": "hello world"}\n'
LARGE = bytes(1024 * 1024)
CONNECTIONS = 32

# The proxies, each an ASGI app made when uvicorn imports it


def __getattr__(name: str) -> Any:
    make = _APPS.get(name)
    if make is None:
        raise AttributeError(name)
    return make(os.environ[BACKEND])


def _bare(_: str) -> ASGIApp:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(SMALL))]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": SMALL, "more_body": False})

    return app


def _ours(backend: str) -> ASGIApp:
    from asgi_enhance.balance import LoadBalanceApp

    return LoadBalanceApp([backend])


def _asgi_proxy_lib(backend: str) -> ASGIApp:
    from asgi_proxy import asgi_proxy

    app: ASGIApp = asgi_proxy(backend)
    return app


def _fastapi_proxy_lib(backend: str) -> ASGIApp:
    from fastapi_proxy_lib.fastapi.app import reverse_http_app
    from httpx import AsyncClient

    app: ASGIApp = reverse_http_app(client=AsyncClient(), base_url=f"{backend}/")
    return app


def _aiohttp(backend: str) -> ASGIApp:
    """The usual hand-written proxy: aiohttp's client, streamed both ways."""
    import aiohttp
    from yarl import URL

    session: aiohttp.ClientSession | None = None

    async def body(receive: Receive) -> AsyncIterator[bytes]:
        more = True
        while more:
            message = await receive()
            more = message.get("more_body", False)
            if piece := message.get("body"):
                yield piece

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal session
        if session is None:
            session = aiohttp.ClientSession(auto_decompress=False, connector=aiohttp.TCPConnector(limit=0))
        url = URL(backend + scope["raw_path"].decode(), encoded=True)
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        data = body(receive) if any(name == "content-length" for name, _ in headers) else None
        async with session.request(scope["method"], url, headers=headers, data=data) as response:
            raw = [(name.lower(), value) for name, value in response.raw_headers]
            await send({"type": "http.response.start", "status": response.status, "headers": raw})
            async for piece in response.content.iter_any():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    return app


_APPS: dict[str, Callable[[str], ASGIApp]] = {
    "bare": _bare,
    "ours": _ours,
    "aiohttp": _aiohttp,
    "asgi_proxy_lib": _asgi_proxy_lib,
    "fastapi_proxy_lib": _fastapi_proxy_lib,
}
_SLOWER = {"asgi_proxy_lib": 80, "fastapi_proxy_lib": 8}
"""So many times fewer operations for those that need seconds for what takes the others a moment."""
_NEEDS = {"aiohttp": "aiohttp", "asgi_proxy_lib": "asgi_proxy", "fastapi_proxy_lib": "fastapi_proxy_lib"}


# The backend: as little as possible


class _Backend(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.parser = httptools.HttpRequestParser(self)
        self.large = False

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.large = url == b"/large"

    def on_message_complete(self) -> None:
        body = LARGE if self.large else SMALL
        self.transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        )
        self.transport.write(body)


async def _serve_backend(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Backend, "127.0.0.1", port)
    await server.serve_forever()


# The load


@dataclass(frozen=True)
class Job:
    """One kind of request."""

    name: str
    request: bytes
    operations: int


class _Client(asyncio.Protocol):
    """One connection that asks again as soon as it has its answer."""

    def __init__(self, load: "_Load") -> None:
        self._load = load
        self._began = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._parser = httptools.HttpResponseParser(self)
        self._ask()

    def _ask(self) -> None:
        if self._load.take():
            self._began = time.perf_counter()
            self._transport.write(self._load.request)
        else:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() != 200:
            self._load.errors += 1
        self._load.times.append(time.perf_counter() - self._began)
        asyncio.get_running_loop().call_soon(self._ask)

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.lost()


class _Load:
    def __init__(self, request: bytes, operations: int) -> None:
        self.request = request
        self.left = operations
        self.times: list[float] = []
        self.errors = 0
        self.open = CONNECTIONS
        self.done = asyncio.Event()

    def take(self) -> bool:
        self.left -= 1
        return self.left >= 0

    def lost(self) -> None:
        self.open -= 1
        if self.open == 0:
            self.done.set()


@dataclass
class Result:
    """The rounds of one proxy at one job."""

    cpu: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)


async def _run(port: int, pids: list[int], job: Job, operations: int, result: Result) -> None:
    load = _Load(job.request, operations)
    before, began = sum(map(_cpu_seconds, pids)), time.perf_counter()
    loop = asyncio.get_running_loop()
    for _ in range(CONNECTIONS):
        await loop.create_connection(lambda: _Client(load), "127.0.0.1", port)
    await load.done.wait()
    wall = time.perf_counter() - began
    if load.errors or len(load.times) != operations:
        raise RuntimeError(f"{job.name}: {load.errors} errors, {operations - len(load.times)} answers missing")
    result.cpu.append((sum(map(_cpu_seconds, pids)) - before) / operations)
    result.rate.append(operations / wall)
    result.times += load.times


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def _nginx(backend_port: int) -> Iterator[tuple[int, list[int]]]:
    """nginx with one worker, streaming as we do, in a directory of its own."""
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory, "nginx.conf")
        config.write_text(
            f"""daemon off; worker_processes 1; pid {directory}/pid; error_log stderr crit;
            events {{ worker_connections 1024; }}
            http {{ access_log off; client_body_temp_path {directory}; proxy_temp_path {directory};
              fastcgi_temp_path {directory}; uwsgi_temp_path {directory}; scgi_temp_path {directory};
              keepalive_requests 1000000; client_max_body_size 0;
              upstream backend {{ server 127.0.0.1:{backend_port}; keepalive 64; keepalive_requests 1000000; }}
              server {{ listen 127.0.0.1:{port};
                location / {{ proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection "";
                  proxy_buffering off; proxy_request_buffering off; }} }} }}"""
        )
        process = subprocess.Popen(["nginx", "-c", str(config), "-p", directory], stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 5
            while not (children := _children(process.pid)) and time.monotonic() < deadline:
                time.sleep(0.02)
            yield port, children
        finally:
            process.terminate()
            process.wait()


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


async def main(*, quick: bool) -> None:
    jobs = [
        Job("GET, 27 bytes", _request(b"GET", b"/small"), 2_000 if quick else 8_000),
        Job("download, 1 MiB", _request(b"GET", b"/large"), 60 if quick else 300),
        Job("upload, 1 MiB", _request(b"POST", b"/small", LARGE), 60 if quick else 300),
    ]
    rounds = 1 if quick else 5
    backend_port = free_port()
    command = [sys.executable, "-m", "benchmarks.balance", "--backend", str(backend_port)]
    with ExitStack() as stack:
        backend = subprocess.Popen(command)  # noqa: ASYNC220 nothing else runs yet
        stack.callback(backend.wait)
        stack.callback(backend.terminate)
        proxies: dict[str, tuple[int, list[int]]] = {}
        for name in _APPS:
            if name in _NEEDS and importlib.util.find_spec(_NEEDS[name]) is None:
                show(f"{name}: not installed, left out.")
                continue
            server = LiveServer(
                f"benchmarks.balance:{name}",
                options=["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"],
                env={BACKEND: f"http://127.0.0.1:{backend_port}"},
            )
            stack.callback(server.stop)
            server.start()
            proxies[name] = server.port, [server.pid]
        if shutil.which("nginx"):
            proxies["nginx"] = stack.enter_context(_nginx(backend_port))
        else:
            show("nginx: not installed, left out.")
        for job in jobs:
            results = {name: Result() for name in proxies}
            for number in range(rounds + 1):
                order = list(proxies)
                random.shuffle(order)
                for name in order:
                    if name == "bare" and not job.request.startswith(b"GET /small"):
                        continue
                    port, pids = proxies[name]
                    operations = max(CONNECTIONS, job.operations // _SLOWER.get(name, 1))
                    await _run(port, pids, job, operations, results[name] if number else Result())
                progress(job.name, number + 1, rounds + 1)
            show(_table(job, results))


def _request(method: bytes, path: bytes, body: bytes = b"") -> bytes:
    length = b"content-length: %d\r\n" % len(body) if body else b""
    return b"%b %b HTTP/1.1\r\nhost: benchmark\r\nuser-agent: benchmark\r\naccept: */*\r\n%b\r\n%b" % (
        method,
        path,
        length,
        body,
    )


def _table(job: Job, results: Mapping[str, Result]) -> Table:
    ours = statistics.mean(results["ours"].cpu)
    columns = {"CPU µs": ".0f", "ours ÷ it": ".3g", "requests/s": ",.0f", "p50 ms": ".1f", "p99 ms": ".1f"}
    rows: dict[str, list[float | str | None]] = {}
    for name, result in results.items():
        if result.cpu:
            times = sorted(result.times)
            cpu = statistics.mean(result.cpu)  # the kernel counts in ticks: a mean sees more of them
            p50, p99 = times[len(times) // 2], times[int(len(times) * 0.99)]
            rows[name] = [cpu * 1e6, ours / cpu, statistics.median(result.rate), p50 * 1e3, p99 * 1e3]
    return Table(f"{job.name}, {CONNECTIONS} at once", columns, rows, drawn="CPU µs")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--backend", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    uvloop.run(_serve_backend(options.backend) if options.backend else main(quick=options.quick))
