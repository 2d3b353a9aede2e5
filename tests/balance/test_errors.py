"""Behaviours 73–82: what the client is told when it goes wrong, and what is left behind when it goes away."""

import asyncio
import json
import logging
import socket
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from asgi_enhance.asgi.types import Message, Receive, Scope, Send
from asgi_enhance.balance import Backend, Limits, LoadBalanceApp, LoadBalancer, Retries, Timeouts
from asgi_enhance.testing.live import free_port
from tests.balance.wire import OK, ScriptedBackend, Wire, ask, connect, front, get, serve, until

HALF = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf"


async def silent(wire: Wire) -> None:
    """Read a request and never answer."""
    await wire.head()
    await wire.rest()


async def streaming(wire: Wire) -> None:
    """Begin an answer and never end it."""
    await wire.head()
    await wire.send(HALF)
    await wire.rest()


@pytest.mark.parametrize("reset", [True, False])
async def test_73_a_connection_lost_before_the_head_is_a_502(http: str, reset: bool) -> None:
    async def answer(wire: Wire) -> None:
        await wire.head()
        if reset:
            wire.reset()

    async with front(answer, http) as (backend, port):
        assert (await ask(port, get(method=b"POST"))).status == 502
        assert backend.balancer.in_flight == 0


async def test_73_a_head_that_does_not_come_is_a_504(http: str) -> None:
    async with front(silent, http, timeouts=Timeouts(first_byte=0.1)) as (backend, port):
        assert (await ask(port, get())).status == 504
        await until(lambda: backend.wires[0].reader.at_eof())
        assert len(backend.wires) == 1


async def test_73_a_connect_that_hangs_is_a_504(http: str) -> None:
    async with _FullListener() as port_of_backend:
        app = LoadBalanceApp([f"http://127.0.0.1:{port_of_backend}"], timeouts=Timeouts(connect=0.05))
        async with serve(app, http=http) as port:
            assert (await ask(port, get())).status == 504


async def test_73_a_queue_that_is_too_slow_or_full_is_a_503_with_retry_after(http: str) -> None:
    limits = Limits(max_connections=1, max_queue=1)
    async with front(silent, http, limits=limits, timeouts=Timeouts(queue=0.2)) as (backend, port):
        async with connect(port) as first, connect(port) as second, connect(port) as third:
            await first.send(get())
            await until(lambda: backend.balancer.in_flight == 1)
            await second.send(get())
            await until(lambda: backend.balancer.stats.queued == 1)
            await third.send(get())
            for client in (third, second):
                answer = await client.message()
                assert (answer.status, answer.one(b"retry-after")) == (503, b"1")
        await until(lambda: backend.balancer.in_flight == 0)


async def test_73_who_waits_in_the_queue_is_served_when_a_slot_is_free(http: str) -> None:
    go = asyncio.Event()

    async def answer(wire: Wire) -> None:
        while True:
            await wire.head()
            await go.wait()
            await wire.send(OK)

    async with front(answer, http, limits=Limits(max_connections=1)) as (backend, port):
        async with connect(port) as first, connect(port) as second:
            await first.send(get())
            await until(lambda: backend.balancer.in_flight == 1)
            await second.send(get())
            await until(lambda: backend.balancer.stats.queued == 1)
            go.set()
            assert [(await client.message()).status for client in (first, second)] == [200, 200]
        assert backend.balancer.in_flight == 0


async def test_73_nobody_overtakes_the_queue_when_a_backend_comes_back(http: str) -> None:
    async with ScriptedBackend(silent) as busy, ScriptedBackend() as back:
        limits = Limits(max_connections=1)
        backends = [Backend(busy.url), Backend(back.url, weight=0)]
        app = LoadBalanceApp(backends, limits=limits, timeouts=Timeouts(queue=5))
        balancer = app.balancer
        async with serve(app, http=http) as port, connect(port) as first, connect(port) as second:
            await first.send(get())
            await until(lambda: balancer.in_flight == 1)
            await second.send(get(b"/second"))
            await until(lambda: balancer.stats.queued == 1)
            balancer.set_weight(back.url, 1)
            assert (await ask(port, get(b"/third"))).status == 200
            assert (await second.message()).status == 200
            assert [request.target for request in back.requests] == [b"/second", b"/third"]
        await balancer.close()


async def test_73_one_more_may_wait_for_every_backend_that_may_be_chosen() -> None:
    async with ScriptedBackend(silent) as one, ScriptedBackend(silent) as other, AsyncExitStack() as stack:
        backends = [Backend(one.url, max_queue=2), Backend(other.url)]
        limits = Limits(max_connections=1, max_queue=1)
        app = LoadBalanceApp(backends, limits=limits, ejection=None, timeouts=Timeouts(queue=5))
        stats = app.balancer.stats
        port = await stack.enter_async_context(serve(app))

        async def send() -> Wire:
            client = await stack.enter_async_context(connect(port))
            await client.send(get())
            return client

        for _ in range(2 + 3):
            await send()
        await until(lambda: (app.balancer.in_flight, stats.queued) == (2, 3))
        assert (await (await send()).message()).status == 503
        app.balancer.add_backend(Backend(other.url, max_queue=2))  # the others' requests stay where they are
        await send()
        await until(lambda: stats.queued == 4)
        app.balancer.remove_backend(one.url)
        assert (await (await send()).message()).status == 503
        await app.balancer.close()


async def test_74_a_problem_shows_nothing_of_the_inside(http: str) -> None:
    dead = free_port()
    async with serve(LoadBalanceApp([f"http://127.0.0.1:{dead}"]), http=http) as port:
        answer = await ask(port, get())
    assert answer.one(b"content-type") == b"application/problem+json"
    assert json.loads(answer.body)["status"] == 502
    assert b"127.0.0.1" not in answer.raw + answer.body
    assert answer.one(b"proxy-status") is None


async def test_75_the_total_deadline_covers_all_retries(http: str) -> None:
    async def answer(wire: Wire) -> None:
        await wire.head()
        await asyncio.sleep(0.15)

    timeouts = Timeouts(total=0.25)
    async with front(answer, http, timeouts=timeouts, retries=Retries(attempts=100)) as (_, port):
        async with asyncio.timeout(2):
            assert (await ask(port, get())).status == 504


async def test_76_a_stream_that_stands_still_is_cut_and_one_that_moves_is_not(http: str) -> None:
    async def ticking(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n")
        for _ in range(8):
            await asyncio.sleep(0.08)
            await wire.send(b".")

    async with front(ticking, http, timeouts=Timeouts(idle=0.3)) as (_, port):
        assert (await ask(port, get())).body == b"........"
    async with front(streaming, http, timeouts=Timeouts(idle=0.2)) as (backend, port), connect(port) as client:
        await client.send(get())
        await client.head()
        assert await client.rest() == b"half"
        assert backend.balancer.in_flight == 0


@pytest.mark.parametrize("deadline", ["idle", "total"])
async def test_76_streams_that_are_cut_because_they_were_quiet_are_nobodys_failure(http: str, deadline: str) -> None:
    async with front(streaming, http) as (backend, port), AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connect(port)) for _ in range(6)]
        for client in clients:
            await client.send(get())
            await client.head()
        runtime = backend.balancer.opened()
        assert runtime is not None
        for exchange in runtime.active:
            if deadline == "total":
                exchange.limit = 0.0
            exchange.wait_until(0.0 if deadline == "idle" else 60.0)
        assert [await client.rest() for client in clients] == [b"half"] * 6
        assert backend.balancer.stats.backend_failures == 0
        assert backend.balancer.report()[backend.url]["state"] == "up"


async def test_75_the_next_try_and_the_queue_have_their_own_time(http: str) -> None:
    options: dict[str, Any] = {"limits": Limits(max_connections=1), "timeouts": Timeouts(queue=5)}
    async with front(silent, http, **options) as (backend, port), connect(port) as first, connect(port) as second:
        await first.send(get())
        await until(lambda: bool(backend.wires))
        runtime = backend.balancer.opened()
        assert runtime is not None
        (asked,) = runtime.active
        assert not asked.overdue(0.0)
        asked.rewind()
        assert not asked.overdue(61.0)  # what the first try used up is not the next one's
        await second.send(get())
        await until(lambda: bool(runtime.queue))
        waiting = runtime.queue[0].exchange
        assert not any(waiting.overdue(now) for now in (0.0, 1e9))


async def test_77_a_client_that_leaves_before_the_head_lets_the_backend_go_within_a_second(http: str) -> None:
    async with front(silent, http) as (backend, port):
        async with connect(port) as client:
            await client.send(get())
            await until(lambda: backend.balancer.in_flight == 1)
            await until(lambda: bool(backend.wires))
        await until(lambda: backend.wires[0].reader.at_eof(), within=1)
        assert backend.balancer.in_flight == 0


async def test_77_a_layer_that_answers_every_receive_with_the_body_does_not_hold_the_loop(http: str) -> None:
    """How a middleware that has read the body commonly puts it back; it cannot tell that the client has left."""
    asked = 0

    async def receive() -> Message:
        nonlocal asked
        asked += 1
        if asked > 100:
            raise RuntimeError("asked for ever")
        return {"type": "http.request", "body": b"abc"}

    async def answer(wire: Wire) -> None:
        await wire.message()
        await until(lambda: asked > 1)
        await wire.send(OK)

    async with ScriptedBackend(answer) as backend:
        balanced = LoadBalanceApp([backend.url])

        async def app(scope: Scope, _: Receive, send: Send) -> None:
            await balanced(scope, receive, send)

        async with serve(app, http=http) as port:
            assert (await ask(port, get(b"/", b"Content-Length: 3", method=b"POST", body=b"abc"))).status == 200
        await balanced.balancer.close()
    assert asked == 2


async def test_78_a_client_that_leaves_in_mid_stream_lets_the_backend_go_within_a_second(http: str) -> None:
    async with front(streaming, http) as (backend, port):
        async with connect(port) as client:
            await client.send(get())
            await client.head()
            assert await client.read() == b"half"
        await until(lambda: backend.wires[0].reader.at_eof(), within=1)
        assert backend.balancer.in_flight == 0


async def test_79_a_client_that_leaves_is_no_failure_of_the_backend_and_logged_as_499(
    http: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "asgi_enhance.balance"):
        async with front(silent, http) as (backend, port):
            async with connect(port) as client:
                await client.send(get())
                await until(lambda: backend.balancer.in_flight == 1)
            await until(lambda: backend.balancer.in_flight == 0)
            await until(lambda: "499" in caplog.text)
            assert backend.balancer.stats.clients_gone == 1
            assert backend.balancer.stats.backend_failures == 0
            assert backend.balancer.endpoints[0].failed_in_a_row == 0


async def test_79_a_client_that_leaves_what_is_forwarded_by_hand_is_counted_too(http: str) -> None:
    async with ScriptedBackend(streaming) as backend, LoadBalancer([backend.url]) as balancer:
        site = Starlette(routes=[Route("/", balancer.forward_request)])
        async with serve(site, http=http) as port:
            async with connect(port) as client:
                await client.send(get())
                await client.head()
            await until(lambda: balancer.in_flight == 0)
        assert balancer.stats.clients_gone == 1


async def test_80_ten_plain_requests_pass_after_a_cold_pool_was_cancelled_two_hundred_times(http: str) -> None:
    async with front(http=http, limits=Limits(max_connections=10)) as (backend, port):

        async def leave(after: float) -> None:
            with suppress(ConnectionError):
                async with connect(port) as client:
                    await client.send(get())
                    await asyncio.sleep(after)

        for _ in range(10):
            await asyncio.gather(*(leave(number / 2000) for number in range(20)))
        await until(lambda: backend.balancer.in_flight == 0)
        assert [(await ask(port, get())).status for _ in range(10)] == [200] * 10


async def test_81_a_response_that_is_never_sent_frees_the_backend(http: str) -> None:
    balancer = LoadBalancer(timeouts=Timeouts(idle=0.1))

    async def endpoint(request: Request) -> Response:
        forwarded = await balancer.forward_request(request)
        assert (forwarded.status_code, balancer.in_flight) == (200, 1)
        return Response("something else")

    async with ScriptedBackend(streaming) as backend, balancer:
        balancer.add_backend(backend.url)
        async with serve(Starlette(routes=[Route("/", endpoint)]), http=http) as port:
            assert (await ask(port, get())).body == b"something else"
            await until(lambda: balancer.in_flight == 0)
            await until(lambda: backend.wires[0].reader.at_eof())


class _Base(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)


async def test_82_it_works_mounted_under_base_http_middleware(http: str) -> None:
    async with ScriptedBackend() as backend:
        app = LoadBalanceApp([backend.url])
        site = Starlette(routes=[Mount("/api", app)], middleware=[Middleware(_Base)])
        async with serve(site, http=http) as port:
            for _ in range(3):
                assert (
                    await ask(port, get(b"/api/x", b"Content-Length: 3", method=b"POST", body=b"abc"))
                ).body == b"ok"
            assert app.balancer.in_flight == 0
        await app.balancer.close()
        assert [request.body for request in backend.requests] == [b"abc"] * 3


class _FullListener:
    """A port whose backlog is full, so that a connect hangs."""

    async def __aenter__(self) -> int:
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(0)
        address = self.listener.getsockname()
        self.others = []
        for _ in range(4):
            other = socket.socket()
            other.setblocking(False)
            with suppress(BlockingIOError):
                other.connect(address)
            self.others.append(other)
        port: int = address[1]
        return port

    async def __aexit__(self, *_: object) -> None:
        for one in (*self.others, self.listener):
            one.close()
