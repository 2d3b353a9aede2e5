"""One connection shared by many: each gets its own reply, and nobody suffers for a neighbour."""

import asyncio
import logging
import random
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asgi_enhance.errors import RedisUnavailable
from asgi_enhance.redis import RedisManager
from tests.redis.helpers import command, patient, scripted, until


async def test_thousands_of_random_cancellations_never_mix_up_replies(redis: RedisManager) -> None:
    rng = random.Random(20)
    right = 0

    async def caller(number: int) -> None:
        nonlocal right
        token = f"{number}:{rng.random()}".encode()
        assert await redis.execute("ECHO", token) == token
        right += 1

    tasks: list[asyncio.Task[None]] = []
    doomed: list[asyncio.Task[None]] = []
    for number in range(6000):
        task = asyncio.create_task(caller(number))
        tasks.append(task)
        if rng.random() < 0.4:
            doomed.append(task)
        while doomed and rng.random() < 0.5:
            doomed.pop(rng.randrange(len(doomed))).cancel()
        if rng.random() < 0.1:
            await asyncio.sleep(rng.choice((0, 0, 0.0001, 0.001)))
    for task in doomed:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    cancelled = sum(isinstance(result, asyncio.CancelledError) for result in results)
    assert cancelled > 500
    assert right == 6000 - cancelled
    assert redis.stats.lost == 0
    assert redis.stats.connects == 1


steps = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(["keep", "cancel now", "cancel later"]), st.booleans()), max_size=60
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=steps)
def test_any_pattern_of_pauses_and_cancellations_leaves_replies_with_their_owners(redis_url: str, plan: Any) -> None:
    async def run() -> None:
        async with patient(redis_url, max_in_flight=5) as manager:
            tasks = []
            for number, (pauses, fate, fails) in enumerate(plan):
                name = "NOSUCH" if fails else "ECHO"
                tasks.append((asyncio.create_task(manager.execute(name, number)), number, fails, fate))
                for _ in range(pauses):
                    await asyncio.sleep(0)
                if fate == "cancel now":
                    tasks[-1][0].cancel()
            for task, _, _, fate in tasks:
                if fate == "cancel later":
                    task.cancel()
            for task, number, fails, _ in tasks:
                result: Any = (await asyncio.gather(task, return_exceptions=True))[0]
                if isinstance(result, asyncio.CancelledError):
                    continue
                assert (f"'{number}'" in str(result)) if fails else (result == str(number).encode()), result
            assert await manager.execute("ECHO", "end") == b"end"
            assert manager.stats.connects == 1

    asyncio.run(run())


async def test_a_silent_connection_is_discarded_within_the_deadline_and_its_commands_may_have_run() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with scripted(silent) as url, patient(url, command_timeout=0.1) as manager:
        begun = time.monotonic()
        results = await asyncio.gather(*(manager.execute("INCR", "n") for _ in range(20)), return_exceptions=True)
        assert 0.1 <= time.monotonic() - begun < 1.0
        for result in results:
            assert isinstance(result, RedisUnavailable)
            assert result.maybe_executed
            assert "no answer within 0.1 s" in str(result)
        assert manager.stats.lost == 1


async def test_the_deadline_counts_from_the_write_and_not_from_the_last_reply() -> None:
    async def one_in_two(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers = 0
        while await command(reader):
            answers += 1
            if answers <= 4:
                writer.write(b":1\r\n")

    async with scripted(one_in_two) as url, patient(url, command_timeout=0.15) as manager:
        for _ in range(4):
            assert await manager.execute("INCR", "n") == 1
            await asyncio.sleep(0.05)
        begun = time.monotonic()
        with pytest.raises(RedisUnavailable):
            await manager.execute("INCR", "n")
        assert 0.14 < time.monotonic() - begun < 1.0


async def test_a_busy_event_loop_is_not_a_silent_server(redis_url: str) -> None:
    async with patient(redis_url, command_timeout=0.2) as manager:
        await manager.ping()
        for _ in range(3):
            task = asyncio.create_task(manager.execute("ECHO", "x"))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            time.sleep(0.3)  # noqa: ASYNC251 - that is the point
            assert await task == b"x"
        assert manager.stats.lost == 0


async def test_a_busy_uvloop_is_not_a_silent_server(redis_url: str) -> None:
    import uvloop

    await asyncio.to_thread(uvloop.run, test_a_busy_event_loop_is_not_a_silent_server(redis_url))


async def test_what_may_have_run_is_not_sent_again() -> None:
    seen: list[bytes] = []

    async def take_and_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append((await command(reader))[1])

    async with scripted(take_and_close) as url, patient(url) as manager:
        with pytest.raises(RedisUnavailable) as caught:
            await manager.execute("INCR", "once")
        assert caught.value.maybe_executed
        assert seen == [b"once"]
        assert manager.stats.repeated == 0


async def test_what_is_idempotent_is_sent_again_once() -> None:
    seen: list[bytes] = []

    async def take_and_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append((await command(reader))[1])

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append((await command(reader))[1])
        writer.write(b"$5\r\nvalue\r\n")
        await reader.read()

    async with scripted(take_and_close, answer) as url, patient(url) as manager:
        assert await manager.execute("GET", "a", idempotent=True) == b"value"
        assert seen == [b"a", b"a"]
        assert manager.stats.repeated == 1
    seen.clear()
    async with scripted(take_and_close) as url, patient(url) as manager:
        with pytest.raises(RedisUnavailable):
            await manager.execute("GET", "b", idempotent=True)
        assert seen == [b"b", b"b"]


async def test_what_timed_out_is_not_sent_again_even_if_it_is_idempotent() -> None:
    seen: list[bytes] = []

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            seen.append((await command(reader))[1])

    async with scripted(silent) as url, patient(url, command_timeout=0.05) as manager:
        with pytest.raises(RedisUnavailable):
            await manager.execute("GET", "a", idempotent=True)
        assert seen == [b"a"]


async def test_replies_before_the_break_count_and_only_the_rest_fails() -> None:
    async def two_of_four(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(4):
            await command(reader)
        writer.write(b":1\r\n:2\r\n:")

    async with scripted(two_of_four) as url, patient(url) as manager:
        results = await asyncio.gather(*(manager.execute("INCR", "n") for _ in range(4)), return_exceptions=True)
        assert results[:2] == [1, 2]
        assert all(isinstance(result, RedisUnavailable) and result.maybe_executed for result in results[2:])


@pytest.mark.parametrize("garbage", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b":1\r\n:2\r\n"])
async def test_what_is_no_answer_ends_the_connection(garbage: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await command(reader)
        writer.write(garbage)
        await reader.read()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await command(reader):
            writer.write(b":7\r\n")

    async with scripted(talk, answer) as url, patient(url) as manager:
        await asyncio.gather(manager.execute("INCR", "n"), return_exceptions=True)
        await until(lambda: manager.stats.lost)
        assert await manager.execute("INCR", "n") == 7


async def test_a_server_that_is_loading_is_away_and_what_it_refused_has_not_run() -> None:
    async def loading(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await command(reader)
        writer.write(b"-LOADING Redis is loading the dataset in memory\r\n")
        await reader.read()

    async with scripted(loading) as url, patient(url) as manager:
        with pytest.raises(RedisUnavailable, match="LOADING") as caught:
            await manager.execute("GET", "a")
        assert not caught.value.maybe_executed
        assert manager.stats.lost == 1


async def test_a_refusal_does_not_cost_the_neighbours_their_replies() -> None:
    closed = asyncio.Event()

    async def demoted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(3):
            await command(reader)
        writer.write(b"$1\r\na\r\n-READONLY You can't write against a read only replica.\r\n")
        await asyncio.sleep(0.02)
        writer.write(b"$1\r\nb\r\n")
        await reader.read()
        closed.set()

    async def primary(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await command(reader) == [b"ROLE"]
        writer.write(b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n")
        await command(reader)
        writer.write(b"+OK\r\n")
        await reader.read()

    async with scripted(demoted, primary) as url, patient(url) as manager:
        commands = [manager.execute("GET", "a"), manager.execute("SET", "a", 1), manager.execute("GET", "b")]
        first, second, third = await asyncio.gather(*commands, return_exceptions=True)
        assert (first, third) == (b"a", b"b")
        assert isinstance(second, RedisUnavailable)
        assert await manager.execute("SET", "a", 1) == b"OK"
        await until(closed.is_set)  # as soon as the last reply was there


async def test_a_slot_that_is_not_served_says_nothing_against_the_node() -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await command(reader):
            writer.write(b"-CLUSTERDOWN Hash slot not served\r\n")

    async with scripted(half) as url, patient(url, breaker_threshold=1) as manager:
        with pytest.raises(RedisUnavailable, match="not served"):
            await manager.execute("GET", "a")
        assert manager.stats.lost == 0
        assert manager.available


async def test_while_a_server_takes_no_bytes_no_more_is_handed_to_the_connection() -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        transport = writer.transport
        assert isinstance(transport, asyncio.ReadTransport)
        transport.pause_reading()
        await asyncio.Event().wait()

    async with scripted(deaf) as url, RedisManager(url, connect_timeout=0.3, command_timeout=1.5) as manager:
        begun = time.monotonic()
        big = [asyncio.create_task(manager.execute("SET", "k", b"x" * 8_000_000)) for _ in range(3)]
        await until(lambda: manager.stats.writes == 2)  # after the one that asks for the run
        results = await asyncio.gather(*(manager.execute("GET", "k") for _ in range(20)), return_exceptions=True)
        assert time.monotonic() - begun < 1.4, results
        for result in results:
            assert isinstance(result, RedisUnavailable)
            assert "no room" in str(result)
            assert not result.maybe_executed
        results = await asyncio.gather(*big, return_exceptions=True)
        assert all(isinstance(result, RedisUnavailable) and result.maybe_executed for result in results)


async def test_when_a_server_takes_bytes_again_those_who_waited_go_on() -> None:
    go_on = asyncio.Event()

    async def hesitant(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        transport = writer.transport
        assert isinstance(transport, asyncio.ReadTransport)
        transport.pause_reading()
        await go_on.wait()
        transport.resume_reading()
        for _ in range(21):  # it takes them all before it answers the first
            await command(reader)
        writer.write(b"+OK\r\n" * 21)
        await reader.read()

    async with scripted(hesitant) as url, patient(url) as manager:
        big = asyncio.create_task(manager.execute("SET", "k", b"x" * 16_000_000))
        await until(lambda: manager.stats.writes == 2)  # after the one that asks for the run
        small = [asyncio.create_task(manager.execute("SET", "k", "x")) for _ in range(20)]
        await asyncio.sleep(0)
        assert manager.stats.writes == 2
        go_on.set()
        assert await asyncio.gather(big, *small) == [b"OK"] * 21


async def test_a_push_is_not_a_reply() -> None:
    async def pushes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await command(reader):
            writer.write(b">2\r\n+invalidate\r\n*1\r\n+k\r\n:5\r\n")

    async with scripted(pushes) as url, patient(url) as manager:
        assert [await manager.execute("INCR", "n") for _ in range(3)] == [5, 5, 5]


async def test_a_reply_that_comes_in_pieces_is_put_together() -> None:
    async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await command(reader)
        for byte in b"*2\r\n$3\r\nabc\r\n:12\r\n":
            writer.write(bytes((byte,)))
            await writer.drain()
            await asyncio.sleep(0)
        await reader.read()

    async with scripted(slowly) as url, patient(url) as manager:
        assert await manager.execute("MGET", "a", "b") == [b"abc", 12]


async def test_a_caller_with_a_shorter_deadline_of_his_own_leaves_the_others_alone(redis: RedisManager) -> None:
    await redis.ping()
    busy = asyncio.create_task(redis.execute("EVAL", "for i = 1, 4e6 do end; return 'done'", 0))
    await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await redis.execute("ECHO", "impatient")
    patient = asyncio.create_task(redis.execute("ECHO", "patient"))
    assert await busy == b"done"
    assert await patient == b"patient"


async def test_the_breaker_tells_once_that_it_opens_and_once_that_it_closes(caplog: pytest.LogCaptureFixture) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await command(reader):
            writer.write(b"+PONG\r\n")

    with caplog.at_level(logging.DEBUG, logger="asgi_enhance"):
        async with scripted(silent, silent, silent, silent, answer) as url:
            manager = patient(url, command_timeout=0.1, breaker_threshold=3, probe_delay=0.05)
            async with manager:
                for _ in range(3):
                    with pytest.raises(RedisUnavailable):
                        await manager.ping()
                assert not manager.available
                for _ in range(50):
                    with pytest.raises(RedisUnavailable) as caught:
                        await manager.ping()
                    assert not caught.value.maybe_executed
                assert manager.stats.refused == 50
                await until(lambda: manager.available)
                for _ in range(50):
                    await manager.ping()
    said = [record.getMessage() for record in caplog.records if record.name == "asgi_enhance.redis"]
    assert len(said) == 2
    assert "is unavailable" in said[0]
    assert "available again" in said[1]
    assert manager.stats.opened == 1


async def test_an_error_is_an_answer_to_a_probe() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def forbids(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await command(reader):
            writer.write(b"-NOPERM User default has no permissions to run the 'ping' command\r\n")

    quick = {"command_timeout": 0.05, "probe_delay": 0.01}
    async with scripted(silent, forbids) as url, patient(url, breaker_threshold=1, **quick) as manager:
        with pytest.raises(RedisUnavailable):
            await manager.execute("GET", "a")
        assert not manager.available
        await until(lambda: manager.available)


async def test_closing_ends_a_probe_that_waits_for_its_answer_and_its_connection() -> None:
    asked, closed = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def thinks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await command(reader) == [b"PING"]
        asked.set()
        await reader.read()
        closed.set()

    async with scripted(silent, thinks) as url:
        async with patient(url, command_timeout=0.5, breaker_threshold=1, probe_delay=0.01) as manager:
            with pytest.raises(RedisUnavailable):
                await manager.execute("GET", "a")
            await until(asked.is_set)
        await until(closed.is_set, seconds=0.3)


async def test_a_probe_whose_answer_is_followed_by_garbage_puts_nothing_in_service() -> None:
    async def drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await command(reader)

    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await command(reader)
        writer.write(b"+PONG\r\n:1\r\n")
        await command(reader)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await command(reader):
            writer.write(b"+OK\r\n")

    async with scripted(drop, babble, answer) as url, patient(url, breaker_threshold=1, probe_delay=0.01) as manager:
        with pytest.raises(RedisUnavailable):
            await manager.execute("GET", "x")
        await until(lambda: manager.available)
        assert await manager.execute("GET", "x") == b"OK"


async def test_a_caller_who_waits_while_the_breaker_opens_is_refused_with_the_rest() -> None:
    connections = 0

    async def drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1

    async with (
        scripted(drop) as url,
        patient(url, connect_timeout=0.5, probe_delay=10.0, max_probe_delay=10.0) as manager,
    ):
        with pytest.raises(RedisUnavailable, match="connection was closed"):
            await manager.execute("GET", "x")
        assert connections == 3
