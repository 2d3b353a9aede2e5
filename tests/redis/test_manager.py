"""The manager's promises to its callers, against a real server."""

import asyncio
import gc
import subprocess
import sys
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from asgi_enhance.errors import ConfigError, RedisUnavailable
from asgi_enhance.redis import RedisManager
from asgi_enhance.redis.pipeline import BATCH
from asgi_enhance.testing.servers import RedisServer, wait_until
from tests.redis.helpers import patient


async def test_execute_gives_the_reply_as_it_came(redis: RedisManager) -> None:
    key = redis.key("x")
    assert await redis.execute("SET", key, "1") == b"OK"
    assert await redis.execute("GET", key) == b"1"
    assert await redis.execute("INCRBY", key, 41) == 42
    assert await redis.execute("GET", redis.key("none")) is None
    assert await redis.execute("MGET", key, key) == [b"42", b"42"]


async def test_every_kind_of_argument_arrives(redis: RedisManager) -> None:
    arguments: tuple[Any, ...] = ("é", b"\x00\xff", 7, 1.5, bytearray(b"array"), memoryview(b"view"), b"x" * 200_000)
    await redis.execute("RPUSH", redis.key("list"), *arguments)
    got = await redis.execute("LRANGE", redis.key("list"), 0, -1)
    assert got == ["é".encode(), b"\x00\xff", b"7", b"1.5", b"array", b"view", b"x" * 200_000]


@pytest.mark.parametrize("argument", [None, True, ["a"], object()])
async def test_what_is_not_an_argument_is_refused_before_anything_is_sent(redis: RedisManager, argument: Any) -> None:
    with pytest.raises(TypeError, match="argument"):
        await redis.execute("SET", redis.key("x"), argument)
    assert await redis.execute("EXISTS", redis.key("x")) == 0


async def test_commands_of_one_loop_turn_go_out_in_one_write(redis: RedisManager) -> None:
    await redis.ping()
    before = redis.stats.writes
    replies = await asyncio.gather(*(redis.execute("INCR", redis.key("n")) for _ in range(BATCH - 1)))
    assert replies == list(range(1, BATCH))
    assert redis.stats.writes == before + 1


async def test_many_commands_of_one_loop_turn_go_out_in_batches(redis: RedisManager) -> None:
    await redis.ping()
    before = redis.stats.writes
    replies = await asyncio.gather(*(redis.execute("INCR", redis.key("n")) for _ in range(3 * BATCH + 1)))
    assert replies == list(range(1, 3 * BATCH + 2))
    assert redis.stats.writes == before + 4


async def test_a_batch_does_not_wait_for_the_replies_of_the_one_before(redis: RedisManager) -> None:
    await redis.ping()
    slow = asyncio.create_task(redis.execute("EVAL", "local n = 0; for i = 1, 3e6 do n = n + 1 end; return n", 0))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    before = redis.stats.writes
    quick = asyncio.create_task(redis.execute("ECHO", "x"))
    while redis.stats.writes == before:
        assert not slow.done()
        await asyncio.sleep(0)
    assert await slow == 3_000_000
    assert await quick == b"x"


async def test_an_error_belongs_to_its_command_alone(redis: RedisManager) -> None:
    await redis.execute("SET", redis.key("text"), "text")
    commands = [redis.execute(name, redis.key("text")) for name in ("GET", "INCR", "GET", "NOSUCH", "GET")]
    replies = await asyncio.gather(*commands, return_exceptions=True)
    assert isinstance(replies[1], ResponseError)
    assert "NOSUCH" in str(replies[3])
    assert replies[0] == replies[2] == replies[4] == b"text"
    assert redis.stats.errors == 2


async def test_more_commands_than_may_be_in_flight_wait_their_turn(redis_url: str) -> None:
    async with patient(redis_url, max_in_flight=10) as manager:
        await manager.ping()
        before = manager.stats.writes
        replies = await asyncio.gather(*(manager.execute("ECHO", number) for number in range(1000)))
        assert replies == [str(number).encode() for number in range(1000)]
        assert manager.stats.writes - before >= 100


async def test_a_caller_that_leaves_the_queue_leaves_its_place_to_the_next(redis_url: str) -> None:
    async with patient(redis_url, max_in_flight=2) as manager:
        await manager.ping()
        tasks = [asyncio.create_task(manager.execute("ECHO", number)) for number in range(60)]
        await asyncio.sleep(0)
        for task in tasks[2::3]:
            task.cancel()
        replies = await asyncio.gather(*tasks, return_exceptions=True)
        for number, reply in enumerate(replies):
            assert isinstance(reply, asyncio.CancelledError) if number % 3 == 2 else reply == str(number).encode()
        assert await manager.execute("ECHO", "on") == b"on"


async def test_ping_is_not_measured_by_the_clock_of_uvloop_which_counts_milliseconds(redis_url: str) -> None:
    import uvloop

    async def shortest() -> float:
        async with RedisManager(redis_url) as manager:
            return min([await manager.ping() for _ in range(20)])

    assert await asyncio.to_thread(uvloop.run, shortest()) > 0


async def test_ping_tells_how_long_it_took(redis: RedisManager) -> None:
    assert 0 < await redis.ping() < 1


async def test_the_client_is_redis_pys_own_on_the_same_server(redis: RedisManager) -> None:
    client = redis.client
    assert isinstance(client, Redis)
    assert client is redis.client
    await redis.execute("SET", redis.key("x"), "1")
    async with client.pipeline(transaction=True) as pipe:
        pipe.incr(redis.key("x"))
        pipe.get(redis.key("x"))
        assert await pipe.execute() == [2, b"2"]


async def test_the_client_does_not_repeat_what_failed() -> None:
    async with RedisManager("redis://127.0.0.1:1/0") as manager:
        before = asyncio.get_running_loop().time()
        with pytest.raises(ConnectionError, match="connecting"):
            await _as_builtin(manager.client.ping())
        assert asyncio.get_running_loop().time() - before < 0.3


async def _as_builtin(awaitable: Any) -> None:
    import redis

    try:
        await awaitable
    except redis.ConnectionError as error:
        raise ConnectionError(str(error)) from error


async def test_keys_begin_with_the_prefix() -> None:
    manager = RedisManager("redis://localhost", prefix="shop")
    assert manager.prefix == "shop"
    assert manager.key("cache", "{a}", "b") == "shop:cache:{a}:b"


async def test_it_can_be_used_again_after_it_was_closed(redis_url: str) -> None:
    manager = patient(redis_url)
    async with manager:
        await manager.execute("SET", "x", "1")
    async with manager:
        assert await manager.execute("GET", "x") == b"1"
    assert await manager.execute("GET", "x") == b"1"
    await manager.aclose()


async def test_closing_waits_for_replies_and_leaves_no_connection(redis_url: str, redis: RedisManager) -> None:
    manager = patient(redis_url + "?client_name=closing")
    async with manager:
        task = asyncio.create_task(manager.execute("ECHO", "last"))
        await manager.ping()
        subscription = manager.subscribe("c", print)
        await subscription.ready()
        await manager.client.ping()
    assert await task == b"last"
    async with asyncio.timeout(5):
        while b"name=closing" in await redis.execute("CLIENT", "LIST"):  # noqa: ASYNC110 - it is the server's list
            await asyncio.sleep(0.01)


async def test_without_async_with_the_first_use_starts_it(redis_url: str) -> None:
    manager = patient(redis_url)
    assert await manager.execute("ECHO", "x") == b"x"
    await manager.aclose()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # nobody closed the loops' transports
def test_what_a_closed_loop_left_is_dropped_and_never_used_again(redis_server: RedisServer) -> None:
    manager = patient(redis_server.url + "?client_name=dropped")

    async def use() -> Any:
        subscription = manager.subscribe("c", print)
        await subscription.ready()
        return await manager.execute("INCR", "loops")

    assert [asyncio.run(use()) for _ in range(3)] == [1, 2, 3]

    async def use_and_close() -> Any:
        async with manager:
            return await manager.execute("INCR", "loops")

    assert asyncio.run(use_and_close()) == 4
    gc.collect()
    wait_until(lambda: b"name=dropped" not in redis_server.call("CLIENT", "LIST"), what="the sockets to be closed")


async def test_one_manager_serves_two_event_loops_at_once(redis_url: str) -> None:
    async with patient(redis_url) as manager:

        async def count() -> list[int]:
            async with manager:
                return [await manager.execute("INCR", "n") for _ in range(200)]

        here, there = await asyncio.gather(count(), asyncio.to_thread(asyncio.run, count()))
        assert sorted(here + there) == list(range(1, 401))


async def test_subscriptions_and_commands_work_on_uvloop(redis_url: str) -> None:
    import uvloop

    async def use() -> None:
        async with patient(redis_url) as manager:
            replies = await asyncio.gather(*(manager.execute("INCR", "uv") for _ in range(100)))
            assert replies == list(range(1, 101))
            got = asyncio.Event()
            subscription = manager.subscribe("uv", lambda payload: got.set())
            await subscription.ready()
            await manager.execute("PUBLISH", "uv", "x")
            async with asyncio.timeout(5):
                await got.wait()

    await asyncio.to_thread(uvloop.run, use())


def test_of_gives_one_manager_for_one_url() -> None:
    manager = RedisManager.of("redis://localhost/7")
    assert manager is RedisManager.of("redis://localhost/7")
    assert manager is RedisManager.of(manager)
    assert manager is not RedisManager.of("redis://localhost/8")
    assert RedisManager.of(None) is None
    for wrong in ({"url": "redis://localhost"}, object()):  # or a client of redis-py's
        with pytest.raises(ConfigError, match="redis must be a RedisManager or a URL, not "):
            RedisManager.of(wrong)  # type: ignore[arg-type]


async def test_repr_shows_the_state_and_hides_the_password() -> None:
    manager = RedisManager("redis://joe:s3cret@127.0.0.1:1/0", breaker_threshold=1)
    assert repr(manager) == "<RedisManager redis://joe:***@127.0.0.1:1/0 available>"
    async with manager:
        with pytest.raises(RedisUnavailable):
            await manager.ping()
        assert repr(manager) == "<RedisManager redis://joe:***@127.0.0.1:1/0 unavailable>"
        assert not manager.available


def test_importing_the_package_does_not_import_redis_py() -> None:
    code = "import asgi_enhance.redis, sys; sys.exit('redis' in sys.modules or 'hiredis' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_a_url_the_environment_names_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://somewhere:1234/5")
    assert "somewhere:1234/5" in repr(RedisManager())
    monkeypatch.delenv("REDIS_URL")
    with pytest.raises(ConfigError, match="REDIS_URL"):
        RedisManager()


@pytest.mark.parametrize(
    "name",
    [
        *("connect_timeout", "command_timeout", "max_in_flight", "breaker_threshold"),
        *("probe_delay", "max_probe_delay", "silence", "client_timeout"),
    ],
)
def test_an_option_that_makes_no_sense_is_named(name: str) -> None:
    options: dict[str, Any] = {name: 0}
    with pytest.raises(ConfigError, match=name):
        RedisManager("redis://localhost", **options)


def test_an_empty_prefix_is_refused() -> None:
    with pytest.raises(ConfigError, match="prefix"):
        RedisManager("redis://localhost", prefix="")


async def test_closing_ends_what_was_used_a_moment_ago(redis_url: str) -> None:
    manager = patient(redis_url)
    manager.subscribe("c", print)
    await manager.aclose()
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("redis ")]
