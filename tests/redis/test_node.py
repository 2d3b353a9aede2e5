"""What one server's node does with a command that its connection did not take to the end."""

import asyncio
import gc
import logging
import select
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest
from redis.exceptions import ResponseError

from asgi_enhance.asgi.tasks import Tasks
from asgi_enhance.errors import RedisUnavailable
from asgi_enhance.redis import node as node_module
from asgi_enhance.redis.breaker import Backoff, Breaker
from asgi_enhance.redis.dial import Dialer
from asgi_enhance.redis.node import Node
from asgi_enhance.redis.stats import RedisStats
from asgi_enhance.redis.wire import pack
from asgi_enhance.testing.servers import RedisServer
from tests.redis.helpers import command, patient, scripted, until

INCR = pack(("INCR", "n"))


@asynccontextmanager
async def node_of(
    server: RedisServer,
    *,
    max_in_flight: int = 100,
    command_timeout: float = 2.0,
    backoff: Backoff | None = None,
    user: dict[str, str] | None = None,
) -> AsyncIterator[Node]:
    tasks = Tasks()
    node = Node(
        Dialer({"host": "127.0.0.1", "port": server.port, **(user or {})}, timeout=2.0).connect,
        label="here",
        connect_timeout=2.0,
        command_timeout=command_timeout,
        max_in_flight=max_in_flight,
        breaker=Breaker(3),
        backoff=backoff or Backoff(0.1, 1.0),
        stats=RedisStats(),
        tasks=tasks,
    )
    yield node
    await tasks.cancel()
    await node.aclose()


async def test_what_was_not_written_when_the_connection_broke_is_sent_on_the_next(private_redis: RedisServer) -> None:
    async with node_of(private_redis) as node:
        assert await node.call(INCR, idempotent=False) == 1
        calls = [asyncio.create_task(node.call(INCR, idempotent=False)) for _ in range(3)]
        await asyncio.sleep(0)  # queued for the write at the end of this turn
        assert node.pipeline is not None
        node.pipeline.discard("gone")
        assert await asyncio.gather(*calls) == [2, 3, 4]


async def test_only_what_was_written_may_have_run(private_redis: RedisServer) -> None:
    async with node_of(private_redis) as node:
        await node.call(INCR, idempotent=False)
        assert node.pipeline is not None
        written = node.pipeline.send(INCR)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        queued = node.pipeline.send(INCR)
        node.pipeline.discard("gone")
        errors = await asyncio.gather(written, queued, return_exceptions=True)
        assert [isinstance(error, RedisUnavailable) and error.maybe_executed for error in errors] == [True, False]


async def test_a_node_that_is_closed_lets_nobody_wait_and_connects_no_more(private_redis: RedisServer) -> None:
    async with node_of(private_redis, max_in_flight=1, command_timeout=0.1) as node:
        await node.call(INCR, idempotent=False)
        private_redis.pause()
        try:
            calls = [asyncio.create_task(node.call(INCR, idempotent=False)) for _ in range(10)]
            await asyncio.sleep(0)
            await node.aclose()
            results = await asyncio.gather(*calls, return_exceptions=True)
        finally:
            private_redis.resume()
        assert all(isinstance(result, RedisUnavailable) and "was closed" in str(result) for result in results)
        assert node.pipeline is None
        with pytest.raises(RedisUnavailable, match="was closed"):
            await node.call(INCR, idempotent=False)


async def test_a_node_that_is_closed_while_it_connects_keeps_no_connection(private_redis: RedisServer) -> None:
    async with node_of(private_redis) as node:
        attempt = node._begin()
        await node.aclose()
        assert await attempt == "the manager was closed"
        assert node.pipeline is None


async def test_a_caller_who_leaves_when_it_is_his_turn_gives_it_to_the_next(private_redis: RedisServer) -> None:
    async with node_of(private_redis, max_in_flight=1) as node:
        await node.call(INCR, idempotent=False)

        async def first() -> object:
            reply = await node.call(INCR, idempotent=False)
            second.cancel()  # it has been woken by the same reply, and has not run yet
            return reply

        one = asyncio.create_task(first())
        second = asyncio.create_task(node.call(INCR, idempotent=False))
        third = asyncio.create_task(node.call(INCR, idempotent=False))
        assert await one == 2
        assert await third == 3
        assert second.cancelled()


async def test_after_an_outage_the_next_one_is_probed_as_soon_as_the_first(private_redis: RedisServer) -> None:
    backoff = Backoff(0.01, 10.0)
    async with node_of(private_redis, backoff=backoff) as node:
        private_redis.stop()
        while not node.breaker.is_open:
            with pytest.raises(RedisUnavailable):
                await node.call(INCR, idempotent=False)
        private_redis.start()
        await until(lambda: not node.breaker.is_open)
        assert await node.call(INCR, idempotent=False) == 1
        assert backoff.next(Random(1)) <= 0.01


async def test_a_server_that_answers_pings_alone_is_tried_ever_more_seldom(private_redis: RedisServer) -> None:
    private_redis.call("REPLICAOF", "127.0.0.1", 1)  # it takes no writes any more
    private_redis.call("ACL", "SETUSER", "default", "-role")  # and does not say so before
    backoff = Backoff(0.01, 10.0)
    async with node_of(private_redis, backoff=backoff) as node:
        for _ in range(4):
            while not node.breaker.is_open:
                with pytest.raises(RedisUnavailable):
                    await node.call(INCR, idempotent=False)
            await until(lambda: not node.breaker.is_open)
        assert backoff.next(Random(1)) > 0.05


async def test_a_server_that_was_demoted_is_away_until_it_takes_writes_again(
    private_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    get = pack(("GET", "n"))
    async with node_of(private_redis, backoff=Backoff(0.01, 0.01)) as node:
        private_redis.call("REPLICAOF", "127.0.0.1", 1)
        with caplog.at_level(logging.WARNING, logger="asgi_enhance.redis"):
            with pytest.raises(RedisUnavailable, match="READONLY"):
                await node.call(INCR, idempotent=False)
            while not node.breaker.is_open:  # though it would answer these
                with pytest.raises(RedisUnavailable):
                    await node.call(get, idempotent=True)
            connects = node._stats.connects
            await until(lambda: node._stats.connects > connects + 5)
            assert node.breaker.is_open
            private_redis.call("REPLICAOF", "NO", "ONE")
            await until(lambda: not node.breaker.is_open)
        assert await node.call(INCR, idempotent=False) == 1
    opened, closed = (record.getMessage() for record in caplog.records)
    assert "it is a replica and takes no writes; commands fail at once" in opened
    assert "available again" in closed


async def test_the_answer_to_asking_is_nobodys_worry(
    private_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with node_of(private_redis) as node:
        assert await node.call(INCR, idempotent=False, asking=True) == 1  # "cluster support disabled", and 1
        gc.collect()
    assert "never retrieved" not in caplog.text


async def test_a_server_that_refuses_commands_is_complained_of_once(
    private_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with node_of(private_redis) as node:
        await node.call(pack(("ACL", "SETUSER", "default", "-incr")), idempotent=True)
        with caplog.at_level(logging.WARNING, logger="asgi_enhance.redis"):
            for _ in range(3):
                with pytest.raises(ResponseError):
                    await node.call(INCR, idempotent=True)
            with pytest.raises(ResponseError):
                await node.call(pack(("GET",)), idempotent=True)  # a mistake of one command is its caller's business
    (record,) = caplog.records
    assert "redis here refuses commands: NOPERM" in record.getMessage()


@pytest.mark.parametrize("command", [INCR, pack(("MGET", *"abcdefghijkl"))], ids=["short", "long"])
async def test_a_missing_password_is_complained_of_though_each_connection_stands(
    private_redis: RedisServer, caplog: pytest.LogCaptureFixture, command: bytes
) -> None:
    async with node_of(private_redis) as node:
        await node.call(pack(("CONFIG", "SET", "requirepass", "secret")), idempotent=True)
        assert node.pipeline is not None
        node.pipeline.discard("a new one is not authenticated")
        with caplog.at_level(logging.WARNING, logger="asgi_enhance.redis"):
            for _ in range(5):
                with pytest.raises((RedisUnavailable, ResponseError)):
                    await node.call(command, idempotent=False)
    refused, unavailable = "refuses commands: NOAUTH", "unavailable: Authentication required"  # by Redis, by Valkey
    assert caplog.text.count(refused) + caplog.text.count(unavailable) == 1


async def test_a_connection_that_is_closed_while_it_is_idle_is_made_anew_at_once_and_nothing_has_happened(
    private_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_module, "STEADY", 0.0)
    async with node_of(private_redis) as node:
        await node.call(INCR, idempotent=False)
        for times in range(1, 6):
            private_redis.call("CLIENT", "KILL", "TYPE", "normal")
            await until(lambda times=times: node._stats.lost == times and node.pipeline)  # type: ignore[misc]
        assert (node._stats.lost, node._stats.outages, node.breaker.failures) == (5, 0, 0)
        assert await node.call(INCR, idempotent=False) == 2
    assert node._stats.connects == 6


async def test_when_the_server_does_not_tell_its_run_it_may_be_another_one(
    private_redis: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(node_module, "STEADY", 0.0)
    private_redis.call("ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all", "-info")
    async with node_of(private_redis, user={"username": "app", "password": "secret"}) as node:
        await node.call(INCR, idempotent=False)
        private_redis.call("CLIENT", "KILL", "TYPE", "normal")
        await until(lambda: node._stats.outages)
        assert (node._stats.lost, node._stats.outages) == (1, 1)
    assert not caplog.messages


async def test_a_connection_that_is_closed_while_a_reply_is_due_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    async def takes_and_hangs_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await command(reader)

    monkeypatch.setattr(node_module, "STEADY", 0.0)
    async with scripted(takes_and_hangs_up) as url, patient(url) as manager:
        with pytest.raises(RedisUnavailable):
            await manager.execute("INCR", "n")
        assert (manager.stats.lost, manager.stats.outages) == (1, 1)


async def test_a_server_that_hangs_up_as_soon_as_it_has_answered_is_not_called_again_before_somebody_asks() -> None:
    async def hangs_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await command(reader)
        writer.write(b"+OK\r\n")

    async with scripted(hangs_up) as url, patient(url) as manager:
        for times in (1, 2):
            assert await manager.execute("SET", "a", 1) == b"OK"
            await until(lambda times=times: manager.stats.lost == times)  # type: ignore[misc]
            assert (manager.stats.connects, manager.stats.outages) == (times, times)


async def test_what_is_not_written_yet_when_the_end_is_seen_goes_out_on_the_next_connection(
    private_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_module, "STEADY", 0.0)
    async with node_of(private_redis) as node:
        await node.call(INCR, idempotent=False)
        assert node.pipeline is not None
        socket = node.pipeline._wire._transport.get_extra_info("socket")  # type: ignore[union-attr]
        private_redis.call("CLIENT", "KILL", "TYPE", "normal")
        select.select([socket.fileno()], [], [])  # the end is here; the loop has not looked yet
        await asyncio.sleep(0)  # it does so right after this
        assert await node.call(INCR, idempotent=False) == 2
        assert (node._stats.repeated, node._stats.outages) == (1, 0)
