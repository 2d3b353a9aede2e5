"""Redis refused, paused, killed and restarted in the middle of traffic.

Each outage is held to the same promises: no command hangs, each ends within the deadlines, one log line tells that
Redis is away and one that it is back, and when it is back everything works as before.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from asgi_enhance.errors import RedisUnavailable
from asgi_enhance.redis import RedisManager
from asgi_enhance.testing.servers import RedisServer
from tests.redis.helpers import until

CONNECT, COMMAND = 0.5, 0.5
# What a caller may be held up at most: by waiting for a connection, then for its reply; and what the machine adds.
LONGEST = CONNECT + COMMAND + 1.0


@dataclass
class Traffic:
    """Twenty callers that never stop asking, and what they got."""

    manager: RedisManager
    answered: int = 0
    failed: int = 0
    wrong: int = 0
    longest: float = 0.0
    going: bool = True
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def __aenter__(self) -> "Traffic":
        self.tasks = [asyncio.create_task(self._call(number)) for number in range(20)]
        await self.more(200)
        return self

    async def __aexit__(self, *error: object) -> None:
        self.going = False
        done, pending = await asyncio.wait(self.tasks, timeout=5)
        assert not pending, "a command hangs"
        for task in done:
            task.result()

    async def more(self, answers: int) -> None:
        """Until that many more were answered."""
        goal = self.answered + answers
        await until(lambda: self.answered >= goal)

    async def failures(self, number: int) -> None:
        goal = self.failed + number
        await until(lambda: self.failed >= goal)

    async def _call(self, caller: int) -> None:
        number = 0
        while self.going:
            number += 1
            said = f"{caller}:{number}".encode()
            begun = time.monotonic()
            try:
                self.wrong += await self.manager.execute("ECHO", said) != said
                self.answered += 1
            except RedisUnavailable:
                self.failed += 1
                await asyncio.sleep(0.001)
            self.longest = max(self.longest, time.monotonic() - begun)
            await asyncio.sleep(0)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    with caplog.at_level(logging.DEBUG, logger="asgi_enhance"):
        yield lambda: [record.getMessage() for record in caplog.records if record.name.startswith("asgi_enhance")]


def a_manager(server: RedisServer) -> RedisManager:
    return RedisManager(server.url, connect_timeout=CONNECT, command_timeout=COMMAND, max_probe_delay=0.2)


OUTAGES: dict[str, tuple[Callable[[RedisServer], None], Callable[[RedisServer], object]]] = {
    "killed": (RedisServer.kill, RedisServer.start),
    "stopped": (RedisServer.stop, RedisServer.start),
    "paused": (RedisServer.pause, RedisServer.resume),
}


@pytest.mark.parametrize("outage", OUTAGES)
async def test_in_the_middle_of_traffic(private_redis: RedisServer, outage: str, said: Callable[[], list[str]]) -> None:
    begin, end = OUTAGES[outage]
    async with a_manager(private_redis) as manager, Traffic(manager) as traffic:
        assert traffic.failed == 0
        assert said() == []

        await asyncio.to_thread(begin, private_redis)
        await until(lambda: not manager.available)
        await traffic.failures(500)
        assert len(said()) == 1
        assert f"redis 127.0.0.1:{private_redis.port} is unavailable: " in said()[0]

        await asyncio.to_thread(end, private_redis)
        await until(lambda: manager.available)
        failed = traffic.failed
        await traffic.more(500)
        assert traffic.failed == failed
        assert len(said()) == 2
        assert f"redis 127.0.0.1:{private_redis.port} is available again" in said()[1]

        assert traffic.wrong == 0
        assert traffic.longest < LONGEST
        assert manager.stats.opened == 1


async def test_while_it_is_away_a_command_costs_next_to_nothing(private_redis: RedisServer) -> None:
    private_redis.pause()
    try:
        async with a_manager(private_redis) as manager:
            begun = time.monotonic()
            while manager.available:
                with pytest.raises(RedisUnavailable):
                    await manager.execute("GET", "x")
            # three attempts to connect
            assert time.monotonic() - begun < 3 * CONNECT + 1.0
            begun = time.process_time()
            for _ in range(1000):
                with pytest.raises(RedisUnavailable):
                    await manager.execute("GET", "x")
            assert (time.process_time() - begun) / 1000 < 0.000_1
    finally:
        private_redis.resume()


async def test_a_restart_between_two_commands_is_not_noticed(
    private_redis: RedisServer, said: Callable[[], list[str]]
) -> None:
    async with a_manager(private_redis) as manager:
        for _ in range(3):
            await manager.execute("SET", "x", "1")
            lost = manager.stats.lost
            private_redis.stop()
            private_redis.start()
            await until(lambda lost=lost: manager.stats.lost > lost)  # type: ignore[misc]
        assert await manager.execute("GET", "x") is None
        assert said() == []


async def test_killed_connections_in_the_middle_of_traffic_cost_only_what_was_in_flight(
    private_redis: RedisServer, said: Callable[[], list[str]]
) -> None:
    async with a_manager(private_redis) as manager, Traffic(manager) as traffic:
        for _ in range(10):
            private_redis.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await traffic.more(100)
        assert traffic.failed <= 10 * 20
        assert traffic.wrong == 0
        assert traffic.longest < LONGEST
        assert manager.available
    assert said() == []


async def test_idempotent_commands_are_not_lost_with_their_connections(private_redis: RedisServer) -> None:
    async with a_manager(private_redis) as manager:
        await manager.execute("SET", "x", "1")
        for times in range(1, 21):
            await manager.ping()
            tasks = [asyncio.create_task(manager.execute("GET", "x", idempotent=True)) for _ in range(20)]
            await asyncio.sleep(0)
            await asyncio.to_thread(private_redis.call, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            assert await asyncio.gather(*tasks) == [b"1"] * 20
            await until(lambda times=times: manager.stats.lost == times)  # type: ignore[misc]


async def test_a_command_is_never_executed_twice_in_an_outage(private_redis: RedisServer) -> None:
    """INCR under killed connections: each reply is one step, and what was not answered counts at most once."""
    async with a_manager(private_redis) as manager:
        replies: list[int] = []
        unknown = 0

        async def count() -> None:
            nonlocal unknown
            while len(replies) < (3000 if unknown else 100_000):  # a kill that finds nothing in flight shows nothing
                try:
                    replies.append(await manager.execute("INCR", "n"))
                except RedisUnavailable as error:
                    unknown += error.maybe_executed
                    await asyncio.sleep(0.001)

        tasks = [asyncio.create_task(count()) for _ in range(20)]

        def ended() -> bool:
            return all(task.done() for task in tasks)

        while not ended():
            goal = len(replies) + 100
            await until(lambda goal=goal: len(replies) >= goal or ended())  # type: ignore[misc]
            await asyncio.to_thread(private_redis.call, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await asyncio.gather(*tasks)
        await manager.ping()
        total = int(await manager.execute("GET", "n", idempotent=True))
        assert len(set(replies)) == len(replies)
        assert len(replies) <= total <= len(replies) + unknown
        assert unknown > 0


async def test_redis_that_is_down_at_the_start_is_used_when_it_comes(
    private_redis: RedisServer, said: Callable[[], list[str]]
) -> None:
    private_redis.stop()
    got: list[bytes] = []
    async with a_manager(private_redis) as manager:
        subscription = manager.subscribe("c", got.append)
        while manager.available:
            with pytest.raises(RedisUnavailable) as caught:
                await manager.execute("SET", "x", "1")
            assert not caught.value.maybe_executed
        private_redis.start()
        await until(lambda: manager.available and subscription.is_ready)
        assert await manager.execute("SET", "x", "1") == b"OK"
        assert await manager.execute("PUBLISH", "c", "x") == 1
        await until(lambda: got == [b"x"])
        assert len(said()) == 2


async def test_subscriptions_come_back_after_a_kill_and_a_pause_and_tell_the_gap(private_redis: RedisServer) -> None:
    got: list[bytes] = []
    manager = RedisManager(private_redis.url, max_probe_delay=0.1, silence=0.4)
    async with manager:
        subscription = manager.subscribe("c", got.append, lambda: got.append(b"gap"))
        await subscription.ready()
        private_redis.kill()
        await until(lambda: not subscription.is_ready)
        private_redis.start()
        await until(lambda: got == [b"gap"])
        private_redis.pause()
        await until(lambda: not subscription.is_ready)  # the watchdog saw it
        private_redis.resume()
        await until(lambda: got == [b"gap", b"gap"])
        private_redis.call("PUBLISH", "c", "x")
        await until(lambda: got == [b"gap", b"gap", b"x"])
