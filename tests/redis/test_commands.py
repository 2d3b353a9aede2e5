"""What may not share a connection is refused; what runs on a cluster knows its key."""

import pytest

from asgi_enhance.errors import ConfigError
from asgi_enhance.redis import RedisManager
from asgi_enhance.redis.commands import first_key


@pytest.mark.parametrize(
    "command",
    [
        ("SUBSCRIBE", "c"),
        ("psubscribe", "c"),
        (b"ssubscribe", "c"),
        ("BLPOP", "k", 0),
        ("bzmpop", 0, 1, "k", "MIN"),
        ("XREAD", "BLOCK", 0, "STREAMS", "s", "$"),
        ("xreadgroup", "GROUP", "g", "c", "block", 1, "streams", "s", ">"),
        ("MULTI",),
        ("EXEC",),
        ("WATCH", "k"),
        ("SELECT", 1),
        ("CLIENT", "REPLY", "OFF"),
        ("client", b"tracking", "on"),
        ("MONITOR",),
        ("HELLO", 3),
        ("AUTH", "x"),
        ("QUIT",),
        ("WAIT", 1, 0),
        ("RESET",),
    ],
)
async def test_a_command_that_would_hold_up_or_change_the_connection_is_refused(
    redis: RedisManager, command: tuple[str | bytes | int, ...]
) -> None:
    name, *arguments = command
    assert isinstance(name, str | bytes)
    with pytest.raises(ConfigError, match=r"\.client"):
        await redis.execute(name, *arguments)
    assert await redis.execute("ECHO", "still there") == b"still there"


async def test_words_of_a_command_are_arguments_of_their_own(redis: RedisManager) -> None:
    with pytest.raises(ConfigError, match="'CONFIG GET'"):
        await redis.execute("CONFIG GET", "maxmemory")


async def test_their_harmless_relatives_run(redis: RedisManager) -> None:
    assert isinstance(await redis.execute("CLIENT", "ID"), int)
    stream = redis.key("block")
    await redis.execute("XADD", stream, "1-1", "f", "v")
    assert await redis.execute("XREAD", "STREAMS", stream, "0") == [[stream.encode(), [[b"1-1", [b"f", b"v"]]]]]
    # a stream called as the option is
    assert await redis.execute("XREAD", "COUNT", 1, "STREAMS", "BLOCK", "0") is None


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (("GET", "k"), b"k"),
        ((b"get", b"k"), b"k"),
        (("INCRBY", 7, 1), b"7"),
        (("EVALSHA", "sha", 2, "a", "b", "c"), b"a"),
        (("EVAL", "return 1", 0, "argument"), None),
        (("FCALL", "f", "1", "a"), b"a"),
        (("ZUNION", 2, "a", "b"), b"a"),
        (("ZUNIONSTORE", "to", 2, "a", "b"), b"to"),
        (("BITOP", "AND", "to", "a"), b"to"),
        (("OBJECT", "ENCODING", "k"), b"k"),
        (("XREAD", "COUNT", 2, "streams", "s", "0"), b"s"),
        (("SPUBLISH", "channel", "x"), b"channel"),
        (("PUBLISH", "channel", "x"), None),
        (("PING",), None),
        (("GET",), None),
    ],
)
def test_the_first_key_of_a_command(command: tuple[object, ...], key: bytes | None) -> None:
    assert first_key(command) == key
