"""Subscriptions last: through killed, silent and restarted connections, and gaps are told."""

import asyncio
import logging
from collections import Counter

import pytest

from asgi_enhance.errors import RedisUnavailable
from asgi_enhance.redis import RedisManager
from asgi_enhance.testing.servers import RedisServer
from tests.redis.helpers import command, patient, scripted, until


async def test_a_message_reaches_every_listener_of_its_channel_and_no_other(redis: RedisManager) -> None:
    got: list[tuple[str, bytes]] = []
    subscriptions = [
        redis.subscribe("a", lambda payload: got.append(("first", payload))),
        redis.subscribe(b"a", lambda payload: got.append(("second", payload))),
        redis.subscribe("b", lambda payload: got.append(("other", payload))),
    ]
    for subscription in subscriptions:
        await subscription.ready()
    assert await redis.execute("PUBLISH", "a", b"\x00one") == 1  # one connection, however many listeners
    await redis.execute("PUBLISH", "b", "two")
    await until(lambda: len(got) == 3)
    assert got == [("first", b"\x00one"), ("second", b"\x00one"), ("other", b"two")]


async def test_messages_keep_their_order(redis: RedisManager) -> None:
    got: list[bytes] = []
    await redis.subscribe("c", got.append).ready()
    sent = [str(number).encode() for number in range(2000)]
    await asyncio.gather(*(redis.execute("PUBLISH", "c", payload) for payload in sent))
    await until(lambda: len(got) == 2000)
    assert got == sent


async def test_after_close_nothing_is_delivered_and_the_server_is_told(redis: RedisManager) -> None:
    got: list[bytes] = []
    first = redis.subscribe("c", got.append)
    second = redis.subscribe("c", got.append)
    await first.ready()
    await first.close()
    await first.close()
    assert await redis.execute("PUBLISH", "c", "1") == 1
    await until(lambda: got == [b"1"])
    await second.close()
    async with asyncio.timeout(5):
        while await redis.execute("PUBLISH", "c", "2"):  # noqa: ASYNC110 - the server's count
            await asyncio.sleep(0.001)
    assert got == [b"1"]


async def test_a_second_listener_is_ready_when_the_channel_is(redis: RedisManager) -> None:
    await redis.subscribe("other", print).ready()
    first, second = redis.subscribe("c", print), redis.subscribe("c", print)
    assert not second.is_ready  # the server has not answered yet
    await first.ready()
    assert second.is_ready
    assert redis.subscribe("c", print).is_ready


async def test_a_channel_left_and_joined_again_at_once_is_on(redis: RedisManager) -> None:
    got: list[bytes] = []
    await redis.subscribe("other", print).ready()
    subscription = redis.subscribe("c", got.append)
    for _ in range(50):
        await subscription.close()
        subscription = redis.subscribe("c", got.append)
    await subscription.ready()
    assert await redis.execute("PUBLISH", "c", "x") == 1
    await until(lambda: got == [b"x"])


async def test_ready_is_asked_of_each_subscription_even_when_it_comes_late(redis: RedisManager) -> None:
    await redis.subscribe("c", print).ready()
    late = redis.subscribe("c", print)
    assert late.is_ready
    await late.ready()


async def test_thousands_of_channels_subscribe_in_batches(redis: RedisManager) -> None:
    got: Counter[bytes] = Counter()
    subscriptions = [redis.subscribe(f"many:{number}", lambda payload: got.update([payload])) for number in range(3000)]
    await until(lambda: all(subscription.is_ready for subscription in subscriptions))
    await asyncio.gather(*(redis.execute("PUBLISH", f"many:{number}", number) for number in range(3000)))
    await until(lambda: len(got) == 3000)


async def test_a_sharded_channel_works_on_a_single_server_too(redis: RedisManager) -> None:
    sharded: list[bytes] = []
    plain: list[bytes] = []
    await redis.subscribe("c", sharded.append, sharded=True).ready()
    await redis.subscribe("c", plain.append).ready()
    await redis.execute("SPUBLISH", "c", "s")
    await redis.execute("PUBLISH", "c", "p")
    await until(lambda: sharded and plain)
    assert (sharded, plain) == ([b"s"], [b"p"])


async def test_a_listener_that_fails_harms_nobody(redis: RedisManager, caplog: pytest.LogCaptureFixture) -> None:
    def fail(payload: bytes) -> None:
        raise ValueError("listener")

    got: list[bytes] = []
    await redis.subscribe("c", fail).ready()
    await redis.subscribe("c", got.append).ready()
    with caplog.at_level(logging.ERROR, logger="asgi_enhance.redis"):
        await redis.execute("PUBLISH", "c", "1")
        await redis.execute("PUBLISH", "c", "2")
        await until(lambda: got == [b"1", b"2"])
    assert "listener on b'c' failed" in caplog.text


async def test_a_killed_connection_is_made_again_and_every_gap_is_told(
    redis: RedisManager, redis_server: RedisServer
) -> None:
    got: list[bytes] = []
    gaps: list[str] = []
    first = redis.subscribe("a", got.append, lambda: gaps.append("a"))
    second = redis.subscribe("b", got.append, lambda: gaps.append("b"))
    await first.ready()
    await second.ready()
    assert gaps == []
    for times in range(1, 6):
        assert redis_server.call("CLIENT", "KILL", "TYPE", "pubsub") == 1
        await until(lambda times=times: len(gaps) == 2 * times)  # type: ignore[misc]
        assert first.is_ready
        assert second.is_ready
        await redis.execute("PUBLISH", "a", times)
        await until(lambda times=times: len(got) == times)  # type: ignore[misc]
    assert sorted(gaps) == ["a"] * 5 + ["b"] * 5


async def test_a_connection_that_falls_silent_is_noticed() -> None:
    """As behind a firewall that forgot the connection: nothing comes, nothing is refused."""
    pings: list[bytes] = []

    async def falls_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await confirm(reader, writer)
        pings.extend(await command(reader))
        await reader.read()

    async def stays(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await confirm(reader, writer)
        writer.write(b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$4\r\nback\r\n")
        while await command(reader):
            writer.write(b"*2\r\n$4\r\npong\r\n$0\r\n\r\n")

    async def confirm(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await command(reader) == [b"SUBSCRIBE", b"c"]
        writer.write(b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n")

    got: list[bytes] = []
    async with scripted(falls_silent, stays, asked_for_run=False) as url, patient(url, silence=0.15) as manager:
        subscription = manager.subscribe("c", got.append, lambda: got.append(b"gap"))
        await subscription.ready()
        await until(lambda: got == [b"gap", b"back"])
        assert pings == [b"PING"]
        gaps = manager.stats.gaps
        await asyncio.sleep(0.6)  # twice as long as it takes: pongs keep the second connection
        assert manager.stats.gaps == gaps == 1
        assert subscription.is_ready


async def test_ready_gives_up_when_redis_is_away_but_the_subscription_does_not(private_redis: RedisServer) -> None:
    private_redis.stop()
    async with patient(private_redis.url, max_probe_delay=0.05, connect_timeout=0.3, command_timeout=0.3) as manager:
        got: list[bytes] = []
        subscription = manager.subscribe("c", got.append, lambda: got.append(b"gap"))
        with pytest.raises(RedisUnavailable, match="not confirmed"):
            await subscription.ready()
        private_redis.start()
        await until(lambda: subscription.is_ready)
        await manager.execute("PUBLISH", "c", "x", idempotent=True)
        await until(lambda: got)
        assert got == [b"x"]  # it had missed nothing: no gap


async def test_a_channel_that_is_not_permitted_is_told_and_leaves_the_others_alone(
    private_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    private_redis.call("ACL", "SETUSER", "limited", "on", ">pw", "+@all", "~*", "resetchannels", "&good")
    url = f"redis://limited:pw@127.0.0.1:{private_redis.port}/0"
    async with patient(url, connect_timeout=0.5, command_timeout=0.5) as manager:
        got: list[bytes] = []
        good = manager.subscribe("good", got.append)
        await good.ready()
        bad = manager.subscribe("bad", got.append)
        with pytest.raises(RedisUnavailable):
            await bad.ready()
        assert "refused a subscription" in caplog.text
        await manager.execute("PUBLISH", "good", "x")
        await until(lambda: got == [b"x"])
        assert good.is_ready


def _subscribers() -> list[str]:
    names = [task.get_name() for task in asyncio.all_tasks()]
    return [name for name in names if name.startswith("redis subscriptions")]


async def test_when_nobody_listens_a_lost_connection_is_not_made_again_until_somebody_does(
    redis: RedisManager, redis_server: RedisServer
) -> None:
    subscription = redis.subscribe("c", print)
    await subscription.ready()
    await subscription.close()
    assert len(_subscribers()) == 1
    for kind in ("pubsub", "normal"):  # it is the one or the other, before and after the server reads our UNSUBSCRIBE
        redis_server.call("CLIENT", "KILL", "TYPE", kind)
    await until(lambda: not _subscribers())
    await redis.subscribe("c", print).ready()


async def test_a_server_that_takes_connections_and_drops_them_is_not_stormed() -> None:
    connections = 0

    async def drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1

    async with scripted(drop, asked_for_run=False) as url, patient(url, probe_delay=0.1) as manager:
        manager.subscribe("c", print)
        await asyncio.sleep(0.4)
        assert 1 <= connections <= 6


@pytest.mark.parametrize("answer", [b"-ERR unknown command 'SUBSCRIBE'\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
async def test_a_server_that_knows_no_subscriptions_is_not_stormed(
    answer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    connections = 0

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await command(reader)
        writer.write(answer)

    async with scripted(refuse, asked_for_run=False) as url, patient(url, probe_delay=0.1) as manager:
        manager.subscribe("c", print)
        await asyncio.sleep(0.4)
        assert 1 <= connections <= 6
        assert 1 <= len(caplog.records) <= connections
        assert {record.name for record in caplog.records} == {"asgi_enhance.redis"}
