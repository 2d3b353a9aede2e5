"""Behaviours 40–53: the body. For a bad request the backend sees nothing, or exactly one well-formed beginning."""

import asyncio
from contextlib import suppress

import pytest

from asgi_enhance.balance import Limits, LoadBalanceApp, Timeouts
from asgi_enhance.testing.driver import Driver, http_scope
from tests.balance.wire import OK, ScriptedBackend, Wire, ask, connect, front, get, serve, until


async def test_40_content_length_and_chunked_together_never_reach_a_backend(http: str) -> None:
    smuggled = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    request = get(b"/", b"Content-Length: 4", b"Transfer-Encoding: chunked", method=b"POST", body=smuggled)
    async with front(http=http) as (backend, port):
        response = await ask(port, request)
        assert response.status == 400
        assert not backend.wires


async def test_41_the_clients_framing_is_replaced(http: str) -> None:
    async with front(http=http) as (backend, port):
        await ask(
            port, get(b"/", b"Transfer-Encoding: chunked", method=b"POST", body=b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n")
        )
        request = backend.last
        assert request.body == b"abc"
        framing = request.all(b"content-length") + request.all(b"transfer-encoding")
        assert framing in ([b"3"], [b"chunked"])


async def test_41_a_body_of_unknown_length_goes_out_chunked() -> None:
    async with ScriptedBackend() as backend:
        scope = http_scope(method="POST", headers=[(b"transfer-encoding", b"chunked")])
        app = LoadBalanceApp([backend.url])
        async with Driver(app, scope) as driver:
            driver.feed({"type": "http.request", "body": b"one", "more_body": True})
            driver.feed({"type": "http.request", "body": b"", "more_body": True})
            driver.feed({"type": "http.request", "body": b"two", "more_body": False})
            assert (await driver.next())["status"] == 200
        await app.balancer.close()
    assert backend.last.one(b"transfer-encoding") == b"chunked"
    assert backend.last.body == b"onetwo"


async def test_42_a_transfer_coding_other_than_chunked_is_refused(http: str) -> None:
    async with front(http=http) as (backend, port):
        request = get(b"/", b"Transfer-Encoding: gzip, chunked", method=b"POST", body=b"1\r\nx\r\n0\r\n\r\n")
        assert (await ask(port, request)).status in (400, 501)
        assert not backend.wires


@pytest.mark.parametrize("lines", [(b"3", b"4"), (b"+3",), (b"0x3",), (b"3, 3",), (b"-1",), (b"",)])
async def test_43_a_content_length_that_is_not_one_number_is_refused(http: str, lines: tuple[bytes, ...]) -> None:
    async with front(http=http) as (backend, port):
        request = get(b"/", *(b"Content-Length: " + line for line in lines), method=b"POST", body=b"abc")
        response = await ask(port, request)
        if response.status == 200:  # h11 makes one number of a list of equal ones
            assert backend.last.all(b"content-length") == [b"3"]
        else:
            assert response.status == 400
            assert not backend.wires


async def test_43_equal_content_lengths_collapse() -> None:
    async with ScriptedBackend() as backend:
        app = LoadBalanceApp([backend.url])
        scope = http_scope(method="POST", headers=[(b"content-length", b"3"), (b"content-length", b"3")])
        async with Driver(app, scope) as driver:
            driver.feed({"type": "http.request", "body": b"abc", "more_body": False})
            assert (await driver.next())["status"] == 200
        await app.balancer.close()
    assert backend.last.all(b"content-length") == [b"3"]


async def test_44_a_body_cut_short_never_becomes_a_complete_request(http: str) -> None:
    seen: list[bytes] = []

    async def answer(wire: Wire) -> None:
        await wire.head()
        seen.append(await wire.rest())

    async with front(answer, http) as (backend, port):
        async with connect(port) as client:
            await client.send(get(b"/", b"Content-Length: 200000", method=b"PUT", body=b"x" * 100_000))
            await until(lambda: backend.wires != [])
        await until(lambda: seen != [])
        assert len(seen[0]) < 200_000
        assert len(backend.wires) == 1  # and it was not tried again
        await until(lambda: backend.balancer.in_flight == 0)


async def test_45_what_follows_a_body_is_not_of_that_body(http: str) -> None:
    async with front(http=http) as (backend, port), connect(port) as client:
        await client.send(get(b"/", b"Content-Length: 2", method=b"POST", body=b"abcd\r\n\r\n"))
        await client.rest()  # the server refuses what follows, and may have done so before the answer
        assert [request.body for request in backend.requests] in ([], [b"ab"])


@pytest.mark.parametrize("pieces", [[b"abc", b"d"], [b"abcd"], [b"a", b""], [b"ab"]])
async def test_45_the_backend_gets_as_many_bytes_as_were_announced_or_no_complete_request(pieces: list[bytes]) -> None:
    async with ScriptedBackend() as backend:
        app = LoadBalanceApp([backend.url])
        async with Driver(app, http_scope(method="POST", headers=[(b"content-length", b"3")])) as driver:
            for index, piece in enumerate(pieces):
                driver.feed({"type": "http.request", "body": piece, "more_body": index + 1 < len(pieces)})
            assert (await driver.next())["status"] == 400
        assert [request.body for request in backend.requests] in ([], [b"abc"])
        await app.balancer.close()


async def test_46_a_post_of_a_mebibyte_arrives_whole_with_its_length(http: str) -> None:
    body = bytes(range(256)) * 4096
    async with front(http=http) as (backend, port):
        await ask(port, get(b"/", b"Content-Length: 1048576", method=b"POST", body=body))
        assert backend.last.one(b"content-length") == b"1048576"
        assert backend.last.body == body


async def test_47_no_body_stays_no_body_and_an_empty_one_stays_empty(http: str) -> None:
    async with front(http=http) as (backend, port):
        await ask(port, get(method=b"POST"))
        assert backend.last.names().isdisjoint({b"content-length", b"transfer-encoding"})
        await ask(port, get(b"/", b"Content-Length: 0", method=b"POST"))
        assert backend.last.one(b"content-length") == b"0"


@pytest.mark.parametrize("method", [b"GET", b"DELETE"])
async def test_48_a_get_with_a_body_keeps_it_and_the_connection_in_step(http: str, method: bytes) -> None:
    async with front(http=http) as (backend, port), connect(port) as client:
        for number in (b"1", b"2"):
            await client.send(get(b"/" + number, b"Content-Length: 3", method=method, body=b"abc"))
            assert (await client.message()).status == 200
        assert [(request.target, request.body) for request in backend.requests] == [(b"/1", b"abc"), (b"/2", b"abc")]
        assert len(backend.wires) == 1


async def test_49_an_upload_is_streamed(http: str) -> None:
    first = asyncio.Event()

    async def answer(wire: Wire) -> None:
        await wire.head()
        assert await wire.reader.readexactly(3) == b"one"
        first.set()
        assert await wire.reader.readexactly(3) == b"two"
        await wire.send(OK)

    async with front(answer, http) as (_, port), connect(port) as client:
        await client.send(get(b"/", b"Content-Length: 6", method=b"POST", body=b"one"))
        async with asyncio.timeout(5):
            await first.wait()
        await client.send(b"two")
        assert (await client.message()).status == 200


async def test_50_a_backend_that_does_not_read_stalls_the_client(http: str) -> None:
    async def answer(wire: Wire) -> None:
        await wire.head()
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(60)

    async with front(answer, http) as (_, port), connect(port) as client:
        client.writer.write(get(b"/", b"Content-Length: 1073741824", method=b"POST"))
        sent = 0
        with suppress(TimeoutError):
            while True:
                client.writer.write(bytes(65536))
                async with asyncio.timeout(0.3):
                    await client.writer.drain()
                sent += 65536
        assert sent < 64 * 1024 * 1024  # kernels buffer some megabytes, the proxy a few hundred kilobytes


async def test_51_a_body_that_is_announced_too_large_never_reaches_a_backend(http: str) -> None:
    async with front(http=http, limits=Limits(max_body=10)) as (backend, port), connect(port) as client:
        await client.send(get(b"/", b"Content-Length: 11", method=b"POST"))
        assert (await client.message()).status == 413
        assert not backend.wires


async def test_51_a_body_that_grows_too_large_is_cut_at_the_limit(http: str) -> None:
    async with front(http=http, limits=Limits(max_body=10)) as (backend, port), connect(port) as client:
        await client.send(get(b"/", b"Transfer-Encoding: chunked", method=b"POST", body=b"5\r\nabcde\r\n"))
        await until(lambda: backend.wires != [])
        await client.send(b"6\r\nabcdef\r\n")
        assert (await client.message()).status == 413
        await until(lambda: backend.balancer.in_flight == 0)
        assert backend.requests == []


async def test_52_an_expectation_is_met_by_the_proxy_and_not_forwarded(http: str) -> None:
    async with front(http=http) as (backend, port), connect(port) as client:
        await client.send(get(b"/", b"Expect: 100-continue", b"Content-Length: 2", method=b"POST"))
        assert (await client.head()).status == 100
        await client.send(b"ab")
        assert (await client.message()).status == 200
        assert backend.last.one(b"expect") is None
        assert backend.last.body == b"ab"


@pytest.mark.parametrize(("limits", "status"), [(Limits(max_body=1), 413), (Limits(), 503)])
async def test_52_a_request_that_cannot_be_served_is_not_told_to_continue(
    http: str, limits: Limits, status: int
) -> None:
    async with serve(LoadBalanceApp([], limits=limits), http=http) as port, connect(port) as client:
        await client.send(get(b"/", b"Expect: 100-continue", b"Content-Length: 2", method=b"POST"))
        assert (await client.head()).status == status


async def test_52_any_other_expectation_is_a_417(http: str) -> None:
    async with front(http=http) as (backend, port):
        assert (await ask(port, get(b"/", b"Expect: the-unexpected"))).status == 417
        assert not backend.wires


@pytest.mark.parametrize("close", [True, False])
async def test_53_an_answer_before_the_upload_has_ended_reaches_the_client(http: str, close: bool) -> None:
    async def answer(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
        if not close:
            await wire.rest()

    async with front(answer, http) as (backend, port), connect(port) as client:
        client.writer.write(get(b"/", b"Content-Length: 6000000", method=b"POST", body=bytes(100_000)))
        response = await client.message()
        assert (response.status, response.body) == (413, b"no")
        await until(lambda: backend.balancer.in_flight == 0)
        assert (await ask(port, get())).status == 413
        assert len(backend.wires) == 2  # a request that was not sent whole leaves no connection to use again


async def test_53_an_upload_that_ends_after_the_answer_does_not_disturb_the_next_request(http: str) -> None:
    """Six uploads to a backend that answers and resets: each gets the answer, and the backend is not to blame."""

    async def answer(wire: Wire) -> None:
        head = await wire.head()
        await wire.send(OK if head.start.startswith(b"GET") else b"HTTP/1.1 413 No\r\ncontent-length: 0\r\n\r\n")

    async with front(answer, http) as (backend, port):
        for _ in range(6):
            async with connect(port) as client:
                client.writer.write(get(b"/", b"Content-Length: 6000000", method=b"POST", body=bytes(6_000_000)))
                assert (await client.message()).status == 413
        assert (await ask(port, get())).status == 200
        assert backend.balancer.stats.backend_failures == 0
        await until(lambda: backend.balancer.in_flight == 0)


async def test_76_an_upload_that_nobody_takes_ends_however_the_response_moves(http: str) -> None:
    async def chatter(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            await wire.send(b"2\r\nok\r\n")
            await asyncio.sleep(0.01)

    async def pour(client: Wire) -> None:
        with suppress(ConnectionError, TimeoutError):
            while True:
                await client.send(b"10000\r\n%b\r\n" % bytes(65_536))

    async with front(chatter, http, timeouts=Timeouts(idle=0.2)) as (backend, port), connect(port) as client:
        await client.send(get(b"/", b"Transfer-Encoding: chunked", method=b"POST"))
        pouring = asyncio.ensure_future(pour(client))
        await until(lambda: backend.balancer.in_flight == 1)
        await until(lambda: backend.balancer.in_flight == 0)
        pouring.cancel()
        await asyncio.wait([pouring])
