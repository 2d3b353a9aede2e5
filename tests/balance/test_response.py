"""Behaviours 54–72: the answer comes back as the backend gave it, as it comes, and visibly incomplete if it is."""

import asyncio
import logging
import time

import pytest

from asgi_enhance.asgi.types import Message
from asgi_enhance.balance import Forwarding, Limits, LoadBalanceApp, Retries
from asgi_enhance.testing.driver import Driver, http_scope, request
from tests.balance.wire import OK, Script, ScriptedBackend, Wire, ask, connect, front, get, until


def response(head: bytes = b"", body: bytes = b"", *, status: bytes = b"200 OK", length: bool = True) -> bytes:
    framing = b"content-length: %d\r\n" % len(body) if length else b""
    return b"HTTP/1.1 " + status + b"\r\n" + head + framing + b"\r\n" + body


def once(*pieces: bytes) -> Script:
    """A script: read a head, send the pieces, close."""

    async def answer(wire: Wire) -> None:
        await wire.head()
        for piece in pieces:
            await wire.send(piece)

    return answer


async def driven(answer: bytes | Script, *, headers: tuple[tuple[bytes, bytes], ...] = ()) -> list[Message]:
    """All messages of one GET behind a server that offers every extension."""
    messages: list[Message] = []
    async with ScriptedBackend(answer) as backend:
        app = LoadBalanceApp([backend.url])
        async with Driver(app, http_scope(headers=headers)) as driver:
            driver.feed({"type": "http.request", "body": b"", "more_body": False})
            while not messages or not _last(messages):
                messages.append(await driver.next())
        await app.balancer.close()
    return messages


def _last(messages: list[Message]) -> bool:
    final = messages[-1]
    if final["type"] == "http.response.trailers":
        return True
    trailers = any(message.get("trailers") for message in messages)
    return final["type"] == "http.response.body" and not final["more_body"] and not trailers


@pytest.mark.parametrize("status", [b"200 OK", b"404 Not Found", b"418 Tea", b"500 Oh", b"299", b"503 Busy"])
async def test_54_the_status_is_kept(http: str, status: bytes) -> None:
    async with front(response(status=status), http) as (_, port):
        if http == "httptools" and status == b"299":
            pytest.skip("uvicorn's httptools protocol knows no line for 299")
        assert (await ask(port, get())).status == int(status[:3])


async def test_55_set_cookie_lines_stay_apart(http: str) -> None:
    async with front(response(b"Set-Cookie: a=1\r\nset-cookie: b=2; Path=/\r\n"), http) as (_, port):
        assert (await ask(port, get())).all(b"set-cookie") == [b"a=1", b"b=2; Path=/"]


async def test_56_hop_by_hop_fields_of_the_backend_end_here(http: str) -> None:
    head = b"Connection: X-Gone, keep-alive\r\nX-Gone: 1\r\nKeep-Alive: timeout=5\r\n"
    head += b"Proxy-Authenticate: x\r\nUpgrade: h2c\r\n"
    async with front(response(head + b"X-Kept: 1\r\n"), http) as (_, port):
        names = (await ask(port, get())).names()
    assert names.isdisjoint({b"x-gone", b"keep-alive", b"proxy-authenticate", b"upgrade"})
    assert b"x-kept" in names


async def test_57_head_keeps_the_length_and_has_no_body(http: str) -> None:
    async with front(response(b"etag: x\r\n").replace(b"content-length: 0", b"content-length: 99"), http) as (
        backend,
        port,
    ):
        for _ in range(2):
            answer = await ask(port, get(method=b"HEAD"), no_body=True)
            assert answer.one(b"content-length") == b"99"
        assert len(backend.wires) == 1  # and the connection served twice
    async with front(response(b"", b"hello"), http) as (_, port), connect(port) as client:
        await client.send(get(method=b"HEAD"))
        await client.head()
        await client.send(get(b"/", b"Connection: close"))
        assert (await client.message()).status == 200  # nothing of a body in between


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_57_statuses_without_body_have_none(http: str, status: bytes) -> None:
    async with front(b"HTTP/1.1 " + status + b"\r\netag: x\r\ncontent-length: 9\r\n\r\n", http) as (backend, port):
        async with connect(port) as client:
            for _ in range(2):
                await client.send(get())
                answer = await client.message()
                assert answer.status == int(status[:3])
                assert answer.one(b"etag") == b"x"
        assert len(backend.wires) == 1


@pytest.mark.parametrize(
    ("method", "status"), [("HEAD", b"200 OK"), ("GET", b"204 No Content"), ("GET", b"304 Not Modified")]
)
async def test_57_a_body_that_comes_late_is_not_the_next_answer(method: str, status: bytes) -> None:
    async def answer(wire: Wire) -> None:
        while True:
            await wire.head()
            await wire.send(b"HTTP/1.1 " + status + b"\r\ncontent-length: 41\r\n\r\n")

    async with ScriptedBackend(answer) as backend:
        app = LoadBalanceApp([backend.url])
        await request(app, method=method)
        (first,) = backend.wires
        backend.answer = OK
        # in the socket before the next request, and not seen by the loop, since nothing here waits for it
        first.writer.write(b"HTTP/1.1 201 Evil\r\ncontent-length: 0\r\n\r\n")
        assert (await request(app)).status == 200
        await until(lambda: first.over)
        await app.balancer.close()


@pytest.mark.parametrize("late", [b"HTTP/1.1 201 Evil\r\ncontent-length: 0\r\n\r\n", b"."])
async def test_70_what_comes_while_nothing_was_asked_closes_the_connection(http: str, late: bytes) -> None:
    async with front(OK, http) as (backend, port):
        assert (await ask(port, get())).status == 200
        (first,) = backend.wires
        await first.send(late)
        await until(lambda: first.over)
        assert (await ask(port, get())).status == 200
        assert len(backend.wires) == 2


async def test_58_a_coded_body_is_not_touched(http: str) -> None:
    body = bytes(range(256))
    async with front(response(b"content-encoding: br\r\n", body), http) as (_, port):
        answer = await ask(port, get(b"/", b"Accept-Encoding: br"))
    assert (answer.one(b"content-encoding"), answer.body) == (b"br", body)


async def test_59_server_and_date_are_there_once(http: str) -> None:
    head = b"server: backend\r\ndate: Fri, 02 Jan 1970 00:00:00 GMT\r\n"
    async with front(response(head), http) as (_, port):
        answer = await ask(port, get())
        assert answer.all(b"server") == [b"uvicorn"]
        assert len(answer.all(b"date")) == 1


async def test_59_server_and_date_can_be_the_backends() -> None:
    async with ScriptedBackend(response(b"server: backend\r\n")) as backend:
        app = LoadBalanceApp([backend.url], forwarding=Forwarding(server_fields="forward"))
        async with Driver(app, http_scope()) as driver:
            driver.feed({"type": "http.request"})
            assert (b"server", b"backend") in (await driver.next())["headers"]
        await app.balancer.close()


async def test_60_a_body_shorter_than_its_length_aborts_the_connection(http: str) -> None:
    async with (
        front(once(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf"), http) as (_, port),
        connect(port) as client,
    ):
        await client.send(get())
        assert (await client.head()).one(b"content-length") == b"10"
        assert await client.rest() == b"half"


async def test_61_a_chunked_body_cut_short_has_no_last_chunk(http: str) -> None:
    pieces = (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n", b"5\r\nab")
    async with front(once(*pieces), http) as (_, port), connect(port) as client:
        await client.send(get())
        await client.head()
        rest = await client.rest()
        assert b"half" in rest
        assert not rest.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("ending", [b"", b"zz\r\n"], ids=["closed", "not a chunk"])
async def test_62_after_an_error_in_mid_stream_there_is_no_second_response(http: str, ending: bytes) -> None:
    half = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n"
    gate = asyncio.Event()

    async def answer(wire: Wire) -> None:
        await wire.head()
        await wire.send(half)
        await gate.wait()
        await wire.send(ending)

    async with front(answer, http) as (_, port), connect(port) as client:
        await client.send(get())
        assert (await client.head()).status == 200
        gate.set()
        rest = await client.rest()
        assert b"HTTP/1.1" not in rest
        assert b"0\r\n\r\n" not in rest


async def test_62_an_error_after_the_start_makes_no_second_start() -> None:
    starts = 0
    async with ScriptedBackend(once(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")) as backend:
        app = LoadBalanceApp([backend.url])

        async def receive() -> Message:
            if starts == 0:
                return {"type": "http.request"}
            await asyncio.sleep(60)
            raise AssertionError

        async def send(message: Message) -> None:
            nonlocal starts
            starts += message["type"] == "http.response.start"

        with pytest.raises(Exception, match="closed the connection"):
            await app(http_scope(), receive, send)
        await app.balancer.close()
    assert starts == 1


@pytest.mark.parametrize(
    "head",
    [
        b"content-type: text/event-stream\r\n",
        b"content-type: text/event-stream;charset=utf-8\r\n",
        b"content-type: text/plain\r\n",
        b"content-length: 100\r\n",
    ],
)
async def test_63_every_piece_is_sent_on_at_once(http: str, head: bytes) -> None:
    chunked = b"" if b"length" in head else b"transfer-encoding: chunked\r\n"
    piece = b"data: 1\n\n" if not chunked else b"9\r\ndata: 1\n\n\r\n"

    async def answer(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\n" + head + chunked + b"\r\n")
        await asyncio.sleep(0.02)
        await wire.send(piece)
        await wire.rest()

    async with front(answer, http) as (_, port), connect(port) as client:
        await client.send(get())
        await client.head()
        began = time.monotonic()
        assert b"data: 1" in await client.read()
        assert time.monotonic() - began < 0.5


async def test_64_the_head_comes_before_the_body_has_begun(http: str) -> None:
    async def answer(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n")
        await wire.rest()

    async with front(answer, http) as (_, port), connect(port) as client:
        await client.send(get())
        assert (await client.head()).status == 200


async def test_64_an_empty_message_follows_the_head_for_servers_that_wait_for_one() -> None:
    async def answer(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n")
        await wire.rest()

    async with ScriptedBackend(answer) as backend:
        app = LoadBalanceApp([backend.url])
        async with Driver(app, http_scope()) as driver:
            driver.feed({"type": "http.request"})
            assert (await driver.next())["type"] == "http.response.start"
            assert await driver.next() == {"type": "http.response.body", "body": b"", "more_body": True}
            driver.feed({"type": "http.disconnect"})
        await app.balancer.close()


async def test_65_a_client_that_does_not_read_stalls_the_backend(http: str) -> None:
    sent = 0

    async def answer(wire: Wire) -> None:
        nonlocal sent
        await wire.head()
        wire.writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1073741824\r\n\r\n")
        while True:
            wire.writer.write(bytes(65536))
            await wire.writer.drain()
            sent += 65536

    async with front(answer, http) as (backend, port), connect(port) as client:
        await client.send(get())
        await client.head()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        before = -1
        while sent != before:
            before = sent
            await asyncio.sleep(0.1)
        assert 0 < sent < 64 * 1024 * 1024  # kernels buffer some megabytes, the proxy a few hundred kilobytes
        client.close()
        await until(lambda: backend.balancer.in_flight == 0)


_TRAILERS = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\nSet-Cookie: a\r\n\r\n"


async def test_66_trailers_go_to_a_client_that_takes_them() -> None:
    messages = await driven(_TRAILERS, headers=((b"te", b"trailers"),))
    assert messages[0]["trailers"] is True
    assert messages[-1] == {"type": "http.response.trailers", "headers": [(b"x-sum", b"1")], "more_trailers": False}


async def test_66_trailers_are_those_of_the_response_though_its_connection_serves_another_by_then() -> None:
    async def answer(wire: Wire) -> None:
        for number in (b"1", b"2"):
            await wire.message()
            await wire.send(_TRAILERS.replace(b"X-Sum: 1", b"X-Sum: " + number))

    async def trailers(sent: list[Message], slow: asyncio.Event) -> None:
        async def send(message: Message) -> None:
            sent.append(message)
            if message["type"] == "http.response.body" and not message["more_body"]:
                await slow.wait()

        await app(http_scope(headers=((b"te", b"trailers"),)), asyncio.Event().wait, send)  # type: ignore[arg-type]

    async with ScriptedBackend(answer) as backend:
        app = LoadBalanceApp([backend.url])
        go, first, second = asyncio.Event(), list[Message](), list[Message]()
        task = asyncio.create_task(trailers(first, go))
        await until(lambda: bool(first) and first[-1].get("more_body") is False)
        go_on = asyncio.Event()
        go_on.set()
        await trailers(second, go_on)
        go.set()
        await task
        assert len(backend.wires) == 1
        assert [sent[-1]["headers"] for sent in (first, second)] == [[(b"x-sum", b"1")], [(b"x-sum", b"2")]]
        await app.balancer.close()


async def test_66_trailers_are_dropped_for_others(http: str) -> None:
    messages = await driven(_TRAILERS)
    assert "trailers" not in messages[0]
    assert messages[-1]["type"] == "http.response.body"
    async with front(_TRAILERS, http) as (_, port):
        answer = await ask(port, get(b"/", b"TE: trailers"))
        assert (answer.body, answer.trailers) == (b"ok", [])


async def test_67_early_hints_are_passed_on_and_other_interim_responses_are_not() -> None:
    hints = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\nlink: </b>\r\n\r\n"
    messages = await driven(hints + b"HTTP/1.1 103 Early Hints\r\nlink: </c>\r\n\r\n" + response(b"", b"ok"))
    assert [message.get("links") for message in messages[:2]] == [[b"</a>", b"</b>"], [b"</c>"]]
    assert messages[2]["status"] == 200


async def test_67_interim_responses_are_never_final(http: str) -> None:
    async with front(b"HTTP/1.1 102 Processing\r\n\r\n" * 5 + response(b"", b"ok"), http) as (_, port):
        answer = await ask(port, get())
        assert (answer.status, answer.body) == (200, b"ok")


async def test_68_an_interim_response_leaves_no_field_behind(http: str) -> None:
    async with front(once(b"HTTP/1.1 103 Early Hints\r\nx-early: 1\r\n\r\n"), http) as (_, port):
        answer = await ask(port, get())
        assert answer.status == 502
        assert b"x-early" not in answer.names()


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nx: a\r\n b\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 20 OK\r\ncontent-length: 0\r\n\r\n",
        b"NONSENSE\r\n\r\n",
        b"HTTP/1.1 099 Odd\r\ncontent-length: 0\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\ncontent-length: 0\n\n",
        b"HTTP/1.1 200 OK\r\nx-large: " + b"a" * 70_000 + b"\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\n\r\n" * 4_000,
    ],
)
async def test_69_what_is_not_http_is_a_502_and_the_connection_is_closed(http: str, raw: bytes) -> None:
    async def answer(wire: Wire) -> None:
        await wire.head()
        wire.writer.write(raw)
        await wire.rest()

    async with front(answer, http, limits=Limits(max_response_head=16_384)) as (backend, port):
        assert (await ask(port, get(method=b"POST"))).status == 502
        await until(lambda: all(wire.reader.at_eof() for wire in backend.wires))


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ],
)
async def test_70_ambiguous_framing_of_a_backend_is_a_502_and_not_reused(http: str, raw: bytes) -> None:
    async with front(raw, http) as (backend, port):
        for _ in range(2):
            assert (await ask(port, get(method=b"POST"))).status == 502
        await until(lambda: backend.balancer.in_flight == 0)
        assert len(backend.wires) == 2 or b"gzip" in raw


async def test_70_a_second_response_nobody_asked_for_is_never_given_to_anybody(http: str) -> None:
    poisoned = response(b"", b"mine") + response(b"", b"poison")
    async with front(poisoned, http) as (backend, port):
        for _ in range(3):
            assert (await ask(port, get())).body == b"mine"
        assert len(backend.wires) == 3


async def test_71_a_response_that_is_not_to_be_handed_on_is_a_502_and_its_body_is_closed(http: str) -> None:
    async def answer(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n4\r\nhalf\r\n")
        await wire.rest()

    async with front(answer, http, retries=Retries(attempts=1)) as (backend, port):
        assert (await ask(port, get())).status == 502
        await until(lambda: backend.wires[0].over)
        assert backend.balancer.in_flight == 0


async def test_71_a_response_that_cannot_be_handed_on_frees_the_backend() -> None:
    """The server refuses the start, so nobody ever reads the body."""

    async def answer(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
        await wire.rest()

    async with ScriptedBackend(answer) as backend:
        app = LoadBalanceApp([backend.url])

        async def receive() -> Message:
            return {"type": "http.request"}

        async def send(message: Message) -> None:
            raise RuntimeError("not this one")

        with pytest.raises(RuntimeError, match="not this one"):
            await app(http_scope(), receive, send)
        assert app.balancer.in_flight == 0
        await until(lambda: backend.wires[0].reader.at_eof())
        await app.balancer.close()


async def test_72_a_redirect_is_returned_and_not_followed(http: str) -> None:
    async with front(response(b"location: /elsewhere\r\n", status=b"302 Found"), http) as (backend, port):
        assert (await ask(port, get())).one(b"location") == b"/elsewhere"
        assert len(backend.requests) == 1


async def test_a_body_that_ends_with_the_connection_is_complete(http: str) -> None:
    async with front(once(b"HTTP/1.0 200 OK\r\n\r\nall of it"), http) as (_, port):
        assert (await ask(port, get())).body == b"all of it"


async def test_the_log_says_nothing_of_a_request_that_went_well(http: str, caplog: pytest.LogCaptureFixture) -> None:
    async with front(http=http) as (_, port):
        with caplog.at_level(logging.DEBUG, "asgi_enhance"):
            assert (await ask(port, get())).status == 200
    assert [record for record in caplog.records if record.name.startswith("asgi_enhance")] == []


async def test_69_a_body_of_many_tiny_chunks_is_not_taken_for_a_large_head(http: str) -> None:
    body = b"1\r\nx\r\n" * 40_000 + b"0\r\n\r\n"
    async with front(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + body, http) as (_, port):
        for _ in range(3):  # how much of it comes together with the head is chance
            response = await ask(port, get())
            assert (response.status, len(response.body)) == (200, 40_000)


@pytest.mark.parametrize("lines", [b"\r\nx-more: ", b""], ids=["many", "one"])
async def test_66_trailers_without_end_cut_the_response(lines: bytes) -> None:
    sent = 0

    async def answer(wire: Wire) -> None:
        nonlocal sent
        await wire.message()
        await wire.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-first: ")
        while sent < 500:
            await wire.send(b"y" * 65_536 + lines)
            sent += 1

    async with front(answer) as (backend, port):
        async with connect(port) as client:
            await client.send(get())
            assert not (await client.rest()).endswith(b"0\r\n\r\n")
        assert sent < 100
        assert backend.balancer.in_flight == 0


async def test_67_an_interim_response_with_a_body_is_a_502(http: str) -> None:
    odd = b"HTTP/1.1 099 Odd\r\ncontent-length: 2\r\n\r\nhi"
    async with front(odd + OK, http) as (_, port):
        assert (await ask(port, get())).status == 502
