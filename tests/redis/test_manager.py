"""The manager's promises to its callers, against a real server."""

import asyncio
import subprocess
import sys

import pytest
from redis.exceptions import ResponseError

from asgi_enhance.errors import ConfigError
from asgi_enhance.redis import RedisManager


async def test_execute_gives_the_reply_as_it_came(redis: RedisManager) -> None:
    key = redis.key("x")
    assert await redis.execute("SET", key, "1") == b"OK"
    assert await redis.execute("GET", key) == b"1"
    assert await redis.execute("INCRBY", key, 41) == 42
    assert await redis.execute("GET", redis.key("none")) is None
    assert await redis.execute("MGET", key, key) == [b"42", b"42"]


async def test_commands_of_one_loop_turn_go_out_in_one_write(redis: RedisManager) -> None:
    await redis.ping()
    before = redis.stats.writes
    replies = await asyncio.gather(*(redis.execute("INCR", redis.key("n")) for _ in range(100)))
    assert replies == list(range(1, 101))
    assert redis.stats.writes == before + 1


async def test_an_error_belongs_to_its_command_alone(redis: RedisManager) -> None:
    await redis.execute("SET", redis.key("text"), "text")
    commands = [redis.execute(name, redis.key("text")) for name in ("GET", "INCR", "GET")]
    replies = await asyncio.gather(*commands, return_exceptions=True)
    assert isinstance(replies[1], ResponseError)
    assert replies[0] == replies[2] == b"text"


def test_importing_the_package_does_not_import_redis_py() -> None:
    code = "import asgi_enhance.redis, sys; sys.exit('redis' in sys.modules or 'hiredis' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_a_url_the_environment_names_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://somewhere:1234/5")
    assert "somewhere:1234/5" in repr(RedisManager())
    monkeypatch.delenv("REDIS_URL")
    with pytest.raises(ConfigError, match="REDIS_URL"):
        RedisManager()
