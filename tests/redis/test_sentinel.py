"""With Sentinels the manager finds the primary, and the new one after a failover."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from asgi_enhance.errors import RedisUnavailable
from asgi_enhance.redis import RedisManager
from asgi_enhance.testing.servers import RedisServer, SentinelServer, wait_until
from tests.redis.helpers import command, patient, scripted, until, until_true


@dataclass
class Watched:
    primary: RedisServer
    replica: RedisServer
    sentinel: SentinelServer


@pytest.fixture
def watched() -> Iterator[Watched]:
    at_once = {"repl-diskless-sync-delay": "0"}
    with RedisServer(config=at_once) as primary, RedisServer(config=at_once) as replica:
        replica.call("REPLICAOF", "127.0.0.1", primary.port)
        wait_until(lambda: b"master_link_status:up" in replica.call("INFO", "replication"), what="a replica")
        with SentinelServer(primary) as sentinel:
            wait_until(lambda: len(sentinel.call("SENTINEL", "REPLICAS", "main")) == 1, what="a replica", timeout=20)
            yield Watched(primary, replica, sentinel)


async def written(manager: RedisManager, value: str) -> bool:
    try:
        return bool(await manager.execute("SET", "x", value) == b"OK")
    except RedisUnavailable:
        return False


async def test_after_a_failover_the_new_primary_serves_commands_subscriptions_and_the_client(watched: Watched) -> None:
    # a Sentinel that does not answer stands first, and one is enough
    url = watched.sentinel.sentinel_url.replace("://", "://127.0.0.1:1,")
    async with patient(url, max_probe_delay=0.1) as manager:
        got: list[bytes] = []
        subscription = manager.subscribe("c", got.append, lambda: got.append(b"gap"))
        await subscription.ready()
        assert await manager.execute("SET", "x", "1") == b"OK"
        assert watched.primary.call("GET", "x") == b"1"
        assert await manager.client.get("x") == b"1"

        watched.primary.kill()
        with pytest.raises(RedisUnavailable):
            await manager.execute("SET", "x", "2")
        await until_true(lambda: written(manager, "3"), seconds=20)
        assert watched.replica.call("GET", "x") == b"3"
        await until(lambda: subscription.is_ready)
        assert got == [b"gap"]
        await manager.execute("PUBLISH", "c", "x")
        await until(lambda: got == [b"gap", b"x"])


async def test_a_sentinel_that_does_not_know_of_a_failover_yet_is_not_believed(watched: Watched) -> None:
    ports = iter((watched.replica.port, watched.primary.port))

    async def names(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert (await command(reader))[:2] == [b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME"]
        port = str(next(ports)).encode()
        writer.write(b"*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%s\r\n" % (len(port), port))
        await reader.read()

    async with scripted(names, asked_for_run=False) as url:
        place = url.removeprefix("redis://").removesuffix("/0")
        async with patient(f"redis+sentinel://{place}/main/0") as manager:
            with pytest.raises(RedisUnavailable, match="is a slave"):
                await manager.execute("SET", "x", "1")
            assert await manager.execute("SET", "x", "1") == b"OK"
        assert watched.primary.call("GET", "x") == b"1"


async def test_a_service_nobody_knows_is_told(watched: Watched) -> None:
    async with patient(f"redis+sentinel://127.0.0.1:{watched.sentinel.port}/nosuch/0") as manager:
        with pytest.raises(RedisUnavailable, match="does not know 'nosuch'"):
            await manager.execute("GET", "x")


async def test_the_sentinel_that_knew_is_asked_first_the_next_time(watched: Watched) -> None:
    asked = 0

    async def ignorant(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        await command(reader)
        asked += 1
        writer.write(b"*-1\r\n")
        await reader.read()

    async with scripted(ignorant, asked_for_run=False) as url:
        first = url.removeprefix("redis://").removesuffix("/0")
        async with patient(watched.sentinel.sentinel_url.replace("://", f"://{first},")) as manager:
            for times in range(1, 4):
                await manager.ping()
                watched.primary.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                await until(lambda times=times: manager.stats.lost == times)  # type: ignore[misc]
            assert asked == 1
