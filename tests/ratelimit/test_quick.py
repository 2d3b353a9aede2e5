"""The quick way says and takes what the long way does."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_enhance.ratelimit import Ban, RateLimiter, RateLimitMiddleware, Rule
from asgi_enhance.ratelimit.headers import draft10, x_ratelimit
from asgi_enhance.testing.driver import request
from tests.ratelimit.apps import hello

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "nothing but the default": {"default": "3/minute"},
    "a burst": {"default": "9/minute burst 3"},
    "several rates": {"default": "3/10 seconds; 5/minute"},
    "the wide rule first": {"rules": [Rule("8/minute", name="wide")], "default": "2/10 seconds"},
    "a rule by header, and one for a path": {
        "rules": [Rule("3/minute", name="100%", key="header:x-key"), Rule("2/minute", path="/a", cost=2)],
        "default": "6/minute",
    },
    "no default": {"rules": [Rule("3/minute", path="/a")], "default": None},
    "who is exempt": {"default": "2/minute", "exempt": "/a"},
    "other fields": {"default": "3/minute", "headers": (draft10, x_ratelimit)},
    "a ban": {"default": Rule("2/10 seconds", ban=Ban(after=2, seconds=300))},
}

visits = st.lists(
    st.tuples(
        st.integers(0, 7_000_000),
        st.sampled_from(["/", "/a"]),
        st.sampled_from(["198.51.100.1", "2001:db8::1", "x" * 70, None]),
        st.sampled_from([(), ((b"x-key", b"1"),), ((b"x-key", b"k" * 80),)]),
    ),
    max_size=25,
)


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
@given(visits=visits)
async def test_both_ways_are_one(configuration: str, visits: Any) -> None:
    now = 10**15
    layers = []
    for _ in range(2):
        limiter = RateLimiter()
        limiter._memory.clock = lambda: now * 1000
        layers.append(RateLimitMiddleware(hello, limiter=limiter, rng=lambda: 0.0, **CONFIGURATIONS[configuration]))
    quick, long = layers
    long._quick = None
    assert (quick._quick is None) == (configuration == "a ban")
    for pause, path, address, headers in visits:
        now += pause
        client = (address, 1) if address else None
        one, other = [await request(layer, path, headers=headers, client=client) for layer in layers]
        assert (one.status, one.header("ratelimit")) == (other.status, other.header("ratelimit"))
        assert one.header("ratelimit-policy") == other.header("ratelimit-policy")
        assert one.header("x-ratelimit-remaining") == other.header("x-ratelimit-remaining")
    assert quick.limiter.stats == long.limiter.stats


async def test_a_ban_outlives_the_refusals_that_led_to_it() -> None:
    now = 10**15
    limiter = RateLimiter()
    limiter._memory.clock = lambda: now * 1000
    layer = RateLimitMiddleware(hello, limiter=limiter, default=Rule("1/second", ban=Ban(after=1, seconds=300)))
    assert [(await request(layer)).status for _ in range(2)] == [200, 429]
    now += 60_000_000
    assert (await request(layer)).json()["violated-policies"] == ["default-ban"]
