"""`window.lua` decides as `policy.py` does: the same traffic, with the same clock, is played to both."""

from collections.abc import Iterator, Sequence
from math import floor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from redis import Redis

from asgi_enhance.ratelimit.policy import ROUNDING, SECOND, Quota, Usage
from asgi_enhance.ratelimit.shared import SCRIPT
from asgi_enhance.testing.servers import RedisServer

CLOCK = "redis.call('TIME')"
WITH_CLOCK = SCRIPT.replace(CLOCK, "{0, table.remove(ARGV)}")
START = 1_700_000_000 * SECOND

steps = st.lists(
    st.tuples(
        st.sampled_from(["hit", "hit", "hit", "peek", "charge", "refund"]),
        st.one_of(st.integers(0, 3 * SECOND), st.integers(-2 * SECOND, 70 * SECOND)),  # microseconds to the next step
        st.integers(1, 5),
    ),
    max_size=40,
)
rates = st.tuples(st.integers(1, 30), st.integers(1, 30), st.sampled_from([1, 10, 60, 61])).map(
    lambda rate: Quota(rate[0], rate[2] * SECOND, min(rate[0], rate[1]))
)


def play_to_lua(redis: Redis, quota: Quota, play: Sequence[tuple[str, int, int, int]]) -> list[list[int]]:
    """All steps in one round trip. The key lives by the server's own clock, which has nothing to do with theirs."""
    pipeline = redis.pipeline(transaction=False)
    pipeline.delete("key")
    for mode, now, cost, admitted in play:
        arguments = (mode, 1, admitted, quota.limit, quota.window, quota.burst, cost, "take", now)
        pipeline.eval(WITH_CLOCK, 1, "key", *map(str, arguments))
        pipeline.persist("key")
    return pipeline.execute()[1::2]


def play_to_policy(quota: Quota, play: Sequence[tuple[str, int, int, int]]) -> list[list[int]]:
    usage, replies = Usage(), []
    for mode, now, cost, admitted in play:
        before, usage = usage, replace(usage)
        usage.advance(quota, now)
        fits = usage.room(quota) >= cost
        if mode == "charge" or (mode == "hit" and fits):
            usage.add(quota, cost)
        elif mode == "refund":
            usage.refund(quota, cost, admitted)
        room = usage.room(quota)
        granted = int(fits) if mode in ("hit", "peek") else 1
        spare = floor(quota.burst - usage.level + ROUNDING) if quota.bursty else quota.limit - usage.used
        replies.append(
            [granted, now, quota.limit - usage.used, spare, usage.reset(quota, room, now), usage.wait(quota, cost, now)]
        )
        if mode == "peek" or (mode == "hit" and not fits):
            usage = before  # the script writes only what it changes
    return replies


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[Redis]:
    with Redis.from_url(redis_server.url) as client:
        yield client


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
@given(quota=rates, script=steps)
def test_both_say_the_same_to_everything(client: Redis, quota: Quota, script: list[tuple[str, int, int]]) -> None:
    assert CLOCK in SCRIPT
    now, play, admitted = START, [], START
    for mode, pause, cost in script:
        now += pause
        play.append((mode, now, cost, admitted))
        admitted = now
    ours, theirs = play_to_policy(quota, play), play_to_lua(client, quota, play)
    for step, mine, lua in zip(play, ours, theirs, strict=True):
        assert mine[:4] == lua[:4], step
        assert all(abs(a - b) <= 1 for a, b in zip(mine[4:], lua[4:], strict=True)), step
