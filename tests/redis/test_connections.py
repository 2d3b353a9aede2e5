"""What redis-py does for us holds (RESP2 and 3, passwords, databases, UNIX, TLS), and so does what we take from it."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from redis.asyncio.connection import Connection

from asgi_enhance.errors import RedisUnavailable
from asgi_enhance.redis import RedisManager
from asgi_enhance.testing.servers import RedisServer
from tests.redis.helpers import patient


async def test_resp2_gives_flat_lists(redis: RedisManager) -> None:
    await redis.execute("HSET", redis.key("h"), "a", 1, "b", 2)
    assert await redis.execute("HGETALL", redis.key("h")) == [b"a", b"1", b"b", b"2"]


async def test_resp3_gives_its_own_types_and_pushes_are_not_replies(redis_url: str) -> None:
    async with patient(redis_url + "?protocol=3") as manager:
        await manager.execute("HSET", "h", "a", 1, "b", 2)
        assert await manager.execute("HGETALL", "h") == {b"a": b"1", b"b": b"2"}
        assert await manager.execute("ZADD", "z", 1.5, "m") == 1
        assert await manager.execute("ZSCORE", "z", "m") == 1.5
        got: list[bytes] = []
        subscription = manager.subscribe("c", got.append)
        await subscription.ready()
        await manager.execute("PUBLISH", "c", "x")
        while not got:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert got == [b"x"]
        for number in range(100):
            assert await manager.execute("ECHO", number) == str(number).encode()


async def test_a_password_opens_the_door_and_a_wrong_one_is_told_without_being_shown() -> None:
    with RedisServer(config={"requirepass": "s3cret"}) as server:
        async with patient(server.url) as manager:
            assert await manager.execute("PING") == b"PONG"
            assert await manager.client.ping()
        for password in (":wrong@", ""):
            url = f"redis://{password}127.0.0.1:{server.port}/0"
            async with patient(url) as manager:
                with pytest.raises(RedisUnavailable, match=r"(?i)password|auth") as caught:
                    await manager.execute("GET", "x")
                assert "wrong@" not in str(caught.value)
                assert not caught.value.maybe_executed


async def test_the_database_is_the_urls(redis_server: RedisServer, redis: RedisManager) -> None:
    other = redis_server.url.rsplit("/", 1)[0] + "/5"
    async with patient(other) as manager:
        await manager.execute("SET", redis.key("where"), "five")
        assert await manager.execute("GET", redis.key("where")) == b"five"
        assert await redis.execute("GET", redis.key("where")) is None
        await manager.execute("DEL", redis.key("where"))


async def test_a_unix_socket() -> None:
    with RedisServer(unix=True) as server:
        async with patient(server.unix_url) as manager:
            assert await manager.execute("PING") == b"PONG"
            assert await manager.client.ping()
            subscription = manager.subscribe("c", print)
            await subscription.ready()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A server's key and certificate, and the authority that vouches for it."""
    own, authority = tmp_path / "own.pem", tmp_path / "authority.pem"
    ca = trustme.CA()
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(own)
    ca.cert_pem.write_to_path(authority)
    return own, authority


@asynccontextmanager
async def tls_in_front_of(port: int, certificate: Path) -> AsyncIterator[int]:
    """What a TLS terminator does: the engine for tests is built without TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        for pair in ((reader, inner_writer), (inner_reader, writer)):
            task = asyncio.create_task(pump(*pair))
            tasks.add(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        if tasks:
            await asyncio.wait(tasks)


async def test_tls_with_a_certificate_that_is_checked(
    private_redis: RedisServer, certificate: tuple[Path, Path]
) -> None:
    async with tls_in_front_of(private_redis.port, certificate[0]) as port:
        url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate[1]}"
        async with patient(url) as manager:
            value = b"x" * 300_000
            assert await manager.execute("SET", "k", value) == b"OK"
            replies = await asyncio.gather(*(manager.execute("GET", "k") for _ in range(20)))
            assert replies == [value] * 20
            subscription = manager.subscribe("c", print)
            await subscription.ready()
            assert await manager.client.ping()
        async with patient(f"rediss://127.0.0.1:{port}/0") as manager:
            with pytest.raises(RedisUnavailable, match="CERTIFICATE"):
                await manager.execute("PING")


async def test_what_is_taken_from_redis_py_is_still_where_it_was(redis_server: RedisServer) -> None:
    """`wire.py` uses two private attributes; if a new redis-py moves them, this says so first."""
    connection = Connection(host="127.0.0.1", port=redis_server.port)
    assert (connection._writer, connection._reader) == (None, None)
    await connection.connect()  # type: ignore[no-untyped-call]
    writer = connection._writer
    assert isinstance(writer, asyncio.StreamWriter)
    assert isinstance(connection._reader, asyncio.StreamReader)
    connection._writer = connection._reader = None
    assert not connection.is_connected
    writer.close()
    await writer.wait_closed()
