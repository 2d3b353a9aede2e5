"""Behaviours 93, 94 and 96 over sockets: who gets the second try, and who gets none."""

import asyncio
import socket
from typing import Any

import pytest

from asgi_enhance.asgi.types import Message
from asgi_enhance.balance import Backend, Ejection, Hedge, Limits, LoadBalanceApp, Retries, Timeouts
from asgi_enhance.testing.driver import Driver, http_scope, request
from tests.balance.wire import OK, Script, ScriptedBackend, Wire, ask, connect, front, get, serve, until

BUSY = b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"


async def hang_up(wire: Wire) -> None:
    await wire.head()


def closes_after(answers: int) -> Script:
    """A backend whose kept-alive connections break while the next request is on its way."""

    async def answer(wire: Wire) -> None:
        for _ in range(answers):
            await wire.message()
            await wire.send(OK)
        await wire.head()

    return answer


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS"])
async def test_96_a_kept_alive_connection_that_ends_is_replaced_for_idempotent_methods(
    http: str, method: bytes
) -> None:
    async with front(closes_after(1), http, retries=Retries(attempts=1)) as (backend, port):
        for _ in range(3):
            assert (await ask(port, get(method=method), no_body=method == b"HEAD")).status == 200
        assert backend.balancer.stats.backend_failures == 0


async def test_96_a_kept_alive_connection_that_ends_is_not_replaced_for_a_post(http: str) -> None:
    async with front(closes_after(1), http) as (_, port):
        statuses = [(await ask(port, get(method=b"POST"))).status for _ in range(2)]
        assert statuses == [200, 502]


async def test_96_a_connection_nobody_uses_is_closed_in_its_time() -> None:
    async with front(timeouts=Timeouts(keep_alive=0.1)) as (backend, port):
        await asyncio.gather(*(ask(port, get()) for _ in range(3)))
        await until(lambda: all(wire.over for wire in backend.wires))


async def test_96_a_connection_that_is_still_closing_is_not_used_again() -> None:
    async with ScriptedBackend() as backend:
        app = LoadBalanceApp([backend.url])
        assert (await request(app)).status == 200
        upstream: Any = app.balancer.opened().upstream(app.balancer.endpoints[0])  # type: ignore[union-attr]
        upstream._idle[0].eof_received()  # and `connection_lost` is yet to come
        assert (await request(app)).status == 200
        assert len(backend.wires) == 2
        await app.balancer.close()


async def test_96_a_post_is_not_risked_on_a_connection_that_has_ended_already() -> None:
    async with ScriptedBackend() as backend:
        app = LoadBalanceApp([backend.url])
        for ended in range(3):
            assert (await request(app, method="POST")).status == 200
            assert len(backend.wires) == ended + 1
            backend.wires[-1].writer.get_extra_info("socket").shutdown(socket.SHUT_WR)  # the loop has not seen it yet
        await app.balancer.close()


async def test_96_a_get_that_fails_is_tried_at_another_backend(http: str) -> None:
    async with ScriptedBackend(hang_up) as bad, ScriptedBackend() as good:
        app = LoadBalanceApp([bad.url, good.url], algorithm="round-robin")
        async with serve(app, http=http) as port:
            assert [(await ask(port, get())).status for _ in range(4)] == [200] * 4
        assert app.balancer.stats.retries >= 1
        await app.balancer.close()


async def test_96_a_post_that_was_sent_is_never_sent_again(http: str) -> None:
    async with ScriptedBackend(hang_up) as bad, ScriptedBackend() as good:
        app = LoadBalanceApp([bad.url, good.url], algorithm="round-robin")
        async with serve(app, http=http) as port:
            assert (await ask(port, get(method=b"POST"))).status == 502
        assert good.requests == []
        await app.balancer.close()


async def test_96_a_put_is_replayed_with_its_body_and_one_that_is_too_large_to_keep_is_not(http: str) -> None:
    async def read_then_hang_up(wire: Wire) -> None:
        await wire.message()

    for size, status in ((1000, 200), (200_000, 502)):
        async with ScriptedBackend(read_then_hang_up) as bad, ScriptedBackend() as good:
            app = LoadBalanceApp([bad.url, good.url], algorithm="round-robin")
            async with serve(app, http=http) as port:
                body = bytes(range(250)) * (size // 250)
                request = get(b"/", b"Content-Length: %d" % size, method=b"PUT", body=body)
                assert (await ask(port, request)).status == status
            assert [request.body for request in good.requests] == ([body] if status == 200 else [])
            await app.balancer.close()


async def test_96_a_streamed_put_that_is_still_here_is_replayed_from_its_beginning() -> None:
    read: list[bytes] = []

    async def read_then_hang_up(wire: Wire) -> None:
        read.append((await wire.message()).body)

    async with ScriptedBackend(read_then_hang_up) as bad, ScriptedBackend() as good:
        app = LoadBalanceApp([bad.url, good.url], algorithm="round-robin")
        async with Driver(app, http_scope(method="PUT", headers=[(b"transfer-encoding", b"chunked")])) as driver:
            for piece, more in ((b"one ", True), (b"two ", True), (b"three", False)):
                driver.feed({"type": "http.request", "body": piece, "more_body": more})
            assert (await driver.next())["status"] == 200
        await app.balancer.close()
    assert read == [b"one two three"]
    assert [request.body for request in good.requests] == [b"one two three"]


async def test_96_a_status_is_tried_again_only_if_it_was_named(http: str) -> None:
    for statuses, expected in ((frozenset({503}), [200, 200]), (frozenset(), [503, 200])):
        async with ScriptedBackend(BUSY) as busy, ScriptedBackend() as good:
            app = LoadBalanceApp([busy.url, good.url], algorithm="round-robin", retries=Retries(statuses=statuses))
            async with serve(app, http=http) as port:
                assert [(await ask(port, get())).status for _ in range(2)] == expected
            await app.balancer.close()


async def test_96_without_budget_only_what_was_in_flight_when_a_backend_began_to_fail_is_retried(http: str) -> None:
    retries = Retries(budget=0.0, min_budget=0)
    async with ScriptedBackend(hang_up) as bad, ScriptedBackend() as good:
        app = LoadBalanceApp([bad.url, good.url], algorithm="round-robin", retries=retries)
        async with serve(app, http=http) as port:
            statuses = [(await ask(port, get())).status for _ in range(4)]
        assert statuses[0] == 200
        assert 502 in statuses[1:]
        await app.balancer.close()


async def test_93_turns_are_taken_by_weight_and_none_without(http: str) -> None:
    a, b, c, none = (ScriptedBackend(OK.replace(b"ok", name * 2)) for name in (b"a", b"b", b"c", b"n"))
    async with a, b, c, none:
        backends = [Backend(a.url, weight=5), Backend(b.url), Backend(c.url), Backend(none.url, weight=0)]
        app = LoadBalanceApp(backends, algorithm="round-robin")
        async with serve(app, http=http) as port:
            order = [(await ask(port, get())).body[:1] for _ in range(14)]
        await app.balancer.close()
    assert b"".join(order) == b"aabacaa" * 2


async def test_94_a_full_backend_is_passed_over(http: str) -> None:
    async def silent(wire: Wire) -> None:
        await wire.head()
        await wire.rest()

    async with ScriptedBackend(silent) as slow, ScriptedBackend() as free:
        app = LoadBalanceApp([slow.url, free.url], algorithm="round-robin", limits=Limits(max_connections=1))
        async with serve(app, http=http) as port, connect(port) as first:
            await first.send(get())
            await until(lambda: app.balancer.in_flight == 1)
            assert [(await ask(port, get())).status for _ in range(4)] == [200] * 4
        await app.balancer.close()


async def test_a_black_hole_that_fails_fast_gets_under_one_percent_of_the_traffic() -> None:
    """Without ejection: the failure penalty alone keeps it from winning by speed."""
    failing = b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n"

    async def works(wire: Wire) -> None:
        while True:
            await wire.message()
            await asyncio.sleep(0.005)
            await wire.send(OK)

    async with ScriptedBackend(failing) as hole, ScriptedBackend(works) as one, ScriptedBackend(works) as two:
        app = LoadBalanceApp([hole.url, one.url, two.url], ejection=None, seed=1)
        async with serve(app) as port:

            async def client(requests: int) -> None:
                async with connect(port) as wire:
                    for _ in range(requests):
                        await wire.send(get())
                        await wire.message()

            await asyncio.gather(*(client(100) for _ in range(10)))
        assert len(hole.requests) < 10
        await app.balancer.close()


async def test_five_failures_in_a_row_take_a_backend_out(http: str) -> None:
    failing = b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n"
    async with ScriptedBackend(failing) as bad, ScriptedBackend() as good:
        app = LoadBalanceApp([bad.url, good.url], algorithm="round-robin", ejection=Ejection(consecutive=5))
        async with serve(app, http=http) as port:
            for _ in range(20):
                await ask(port, get())
        assert len(bad.requests) == 5
        assert app.balancer.stats.ejections == 1
        await app.balancer.close()


@pytest.mark.parametrize(
    "cut",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    ],
    ids=["length", "chunks", "coding"],
)
async def test_five_good_heads_in_a_row_whose_bodies_are_cut_take_a_backend_out(http: str, cut: bytes) -> None:
    asked = 0

    async def cuts(wire: Wire) -> None:
        nonlocal asked
        await wire.head()
        asked += 1
        await wire.send(cut)

    async with ScriptedBackend(cuts) as bad, ScriptedBackend() as good:
        app = LoadBalanceApp([bad.url, good.url], algorithm="round-robin")
        async with serve(app, http=http) as port:
            for _ in range(20):
                async with connect(port) as client:
                    await client.send(get(b"/", b"Connection: close"))
                    await client.rest()
        assert asked == 5
        assert app.balancer.stats.backend_failures == 5
        assert app.balancer.stats.ejections == 1
        await app.balancer.close()


@pytest.mark.parametrize(("fifth", "ejected_at"), [("at once", 10), ("apart", 10), ("left", 6)])
async def test_only_an_answer_that_is_whole_ends_a_row_of_cut_ones(http: str, fifth: str, ejected_at: int) -> None:
    asked = 0
    goes_on = asyncio.Event()

    async def cuts(wire: Wire) -> None:
        nonlocal asked
        await wire.head()
        asked += 1
        if asked == 5 and fifth == "at once":
            await wire.send(OK)
            return
        await wire.send(OK[:-1])
        if asked == 5:
            await goes_on.wait()
            await wire.send(OK[-1:])

    async with front(cuts, http) as (backend, port):
        for number in range(1, ejected_at + 1):
            async with connect(port) as client:
                await client.send(get(b"/", b"Connection: close"))
                await client.head()
                if number != 5 or fifth != "left":
                    goes_on.set()
                    await client.rest()
            await until(lambda: backend.balancer.in_flight == 0)
            goes_on.clear()
            assert backend.balancer.stats.ejections == (number == ejected_at), number


async def test_a_slow_answer_is_hedged_and_the_quicker_one_wins(http: str) -> None:
    asked: list[int] = []

    def backend(number: int) -> Script:
        async def answer(wire: Wire) -> None:
            while True:
                await wire.message()
                asked.append(number)
                if len(asked) == 1:
                    await asyncio.sleep(60)
                await wire.send(OK)

        return answer

    async with ScriptedBackend(backend(1)) as one, ScriptedBackend(backend(2)) as two:
        app = LoadBalanceApp([one.url, two.url], hedge=Hedge(initial=0.05))
        async with serve(app, http=http) as port:
            async with asyncio.timeout(2):
                assert (await ask(port, get())).status == 200
        assert sorted(asked) == [1, 2]
        assert app.balancer.stats.hedges == 1
        await until(lambda: app.balancer.in_flight == 0 and app.balancer.dispatcher.budget.active == 0)
        await app.balancer.close()


async def test_a_backend_that_a_hedge_had_to_stand_in_for_is_known_to_be_slow() -> None:
    """Nothing comes of one that never answers but that; it would look idle and be asked first for ever."""

    async def never(wire: Wire) -> None:
        asked.append("never")
        await wire.rest()

    asked: list[str] = []
    async with ScriptedBackend(never) as one, ScriptedBackend() as two:
        app = LoadBalanceApp([one.url, two.url], hedge=Hedge(initial=0.05))
        async with serve(app) as port:
            for _ in range(6):
                assert (await ask(port, get())).status == 200
        assert len(asked) <= 1
        await app.balancer.close()


async def test_a_backend_that_clients_have_waited_for_in_vain_is_known_to_be_slow() -> None:
    async def never(wire: Wire) -> None:
        asked.set()
        await wire.rest()

    asked = asyncio.Event()
    async with ScriptedBackend(never) as one, ScriptedBackend() as two:
        app = LoadBalanceApp([one.url, two.url], timeouts=Timeouts(first_byte=1))
        async with serve(app) as port:
            while not asked.is_set():
                async with connect(port) as client:
                    await client.send(get())
                    await until(lambda: asked.is_set() or app.balancer.in_flight == 0)
            await until(lambda: app.balancer.in_flight == 0)
            for _ in range(5):
                assert (await ask(port, get())).status == 200
        await app.balancer.close()


async def test_a_hedge_that_meets_a_connection_just_closed_is_nobodys_failure() -> None:
    asked: list[str] = []
    closed = asyncio.Event()

    async def first(wire: Wire) -> None:
        while True:
            await wire.message()
            asked.append("first")
            if len(asked) > 2:
                await closed.wait()
            await wire.send(OK)

    async def second(wire: Wire) -> None:
        await wire.message()
        asked.append("second")
        await wire.send(OK)
        await wire.message()
        closed.set()

    async with ScriptedBackend(first) as one, ScriptedBackend(second) as two:
        app = LoadBalanceApp([one.url, two.url], algorithm="round-robin", hedge=Hedge(initial=0.05))
        async with serve(app) as port:
            for _ in range(3):
                assert (await ask(port, get())).status == 200
        assert asked == ["first", "second", "first"]
        assert (app.balancer.stats.hedges, app.balancer.stats.backend_failures) == (1, 0)
        await app.balancer.close()


@pytest.mark.parametrize("request_", [get(method=b"POST"), get(b"/", b"Content-Length: 1", method=b"GET", body=b"x")])
async def test_what_is_not_safe_is_not_hedged(http: str, request_: bytes) -> None:
    async def slow(wire: Wire) -> None:
        while True:
            await wire.message()
            await asyncio.sleep(0.1)
            await wire.send(OK)

    async with ScriptedBackend(slow) as one, ScriptedBackend(slow) as two:
        app = LoadBalanceApp([one.url, two.url], hedge=Hedge(initial=0.02))
        async with serve(app, http=http) as port:
            assert (await ask(port, request_)).status == 200
        assert app.balancer.stats.hedges == 0
        await app.balancer.close()


async def test_a_get_whose_body_is_not_announced_is_not_hedged() -> None:
    async def slow(wire: Wire) -> None:
        while True:
            await wire.message()
            await asyncio.sleep(0.1)
            await wire.send(OK)

    async with ScriptedBackend(slow) as one, ScriptedBackend(slow) as two:
        app = LoadBalanceApp([one.url, two.url], hedge=Hedge(initial=0.02))
        body: list[Message] = [
            {"type": "http.request", "body": piece, "more_body": piece != b""} for piece in (b"a", b"")
        ]
        async with Driver(app, http_scope("/", http_version="2"), body) as server:
            assert (await server.next())["status"] == 200
        assert app.balancer.stats.hedges == 0
        await app.balancer.close()
