"""Scripts run by their digest, and in full where the server does not know them."""

import asyncio

import pytest
from redis.exceptions import ResponseError

from asgi_enhance.redis import RedisManager
from asgi_enhance.testing.servers import RedisServer

COUNT = "return {redis.call('INCRBY', KEYS[1], ARGV[1]), ARGV[1]}"


async def test_a_script_takes_keys_and_arguments(redis: RedisManager) -> None:
    script = redis.script(COUNT)
    assert await script(keys=[redis.key("n")], args=[5]) == [5, b"5"]
    assert await script(keys=[redis.key("n")], args=[b"2"]) == [7, b"2"]


async def test_it_is_sent_in_full_once(redis: RedisManager) -> None:
    script = redis.script(COUNT)
    for _ in range(5):
        await script(keys=[redis.key("n")], args=[1])
    assert redis.stats.scripts_loaded == 1
    assert await redis.execute("SCRIPT", "EXISTS", script.sha) == [1]


async def test_it_survives_a_script_flush_and_runs_exactly_once_each_time(
    redis: RedisManager, redis_server: RedisServer
) -> None:
    script = redis.script(COUNT)
    for number in range(1, 6):
        assert await script(keys=[redis.key("n")], args=[1]) == [number, b"1"]
        redis_server.call("SCRIPT", "FLUSH")


async def test_many_callers_of_a_script_the_server_lacks_all_get_their_answers(redis: RedisManager) -> None:
    script = redis.script("return {ARGV[1], redis.call('INCR', KEYS[1])}")
    replies = await asyncio.gather(*(script(keys=[redis.key("n")], args=[number]) for number in range(50)))
    assert [int(reply[0]) for reply in replies] == list(range(50))
    assert sorted(reply[1] for reply in replies) == list(range(1, 51))


async def test_an_error_inside_a_script_is_the_callers(redis: RedisManager) -> None:
    script = redis.script("return redis.call('NOSUCH')")
    with pytest.raises(ResponseError):
        await script()


async def test_a_script_that_fails_with_noscript_itself_is_not_run_again(redis: RedisManager) -> None:
    script = redis.script("redis.call('INCR', KEYS[1]); return redis.error_reply('NOSCRIPT of my own')")
    for _ in range(3):
        with pytest.raises(ResponseError, match="of my own"):
            await script(keys=[redis.key("runs")])
    assert await redis.execute("GET", redis.key("runs")) == b"3"
