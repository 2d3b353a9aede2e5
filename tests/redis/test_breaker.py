"""The breaker decides by failures in a row; the delays between attempts grow, with jitter."""

from random import Random

import pytest

from asgi_enhance.redis.breaker import Backoff, Breaker


def test_it_opens_at_the_threshold_and_says_so_once() -> None:
    breaker = Breaker(3)
    assert [breaker.failed(now) for now in (1.0, 2.0, 3.0, 4.0)] == [False, False, True, False]
    assert breaker.is_open


def test_a_success_forgets_the_failures_before_it() -> None:
    breaker = Breaker(2)
    breaker.failed(1.0)
    breaker.succeeded()
    assert not breaker.failed(3.0)
    assert not breaker.is_open


def opened() -> Breaker:
    breaker = Breaker(2)
    breaker.failed(9.0)
    assert breaker.failed(10.0)
    return breaker


def test_closing_tells_how_long_it_was_open() -> None:
    breaker = opened()
    assert breaker.probed(14.5) == pytest.approx(4.5)
    assert not breaker.is_open


def test_after_a_probe_one_failure_opens_it_again() -> None:
    breaker = opened()
    breaker.probed(14.5)
    assert breaker.failed(15.0)


def test_an_answer_to_a_caller_ends_the_trial() -> None:
    breaker = opened()
    breaker.probed(14.5)
    breaker.succeeded()
    assert not breaker.failed(15.0)


def test_delays_double_up_to_the_last_between_half_and_whole() -> None:
    backoff = Backoff(0.1, 0.5)
    rng = Random(1)
    delays = [backoff.next(rng) for _ in range(6)]
    for delay, whole in zip(delays, (0.1, 0.2, 0.4, 0.5, 0.5, 0.5), strict=True):
        assert whole / 2 <= delay <= whole
    assert len(set(delays[3:])) == 3


def test_reset_begins_the_delays_anew() -> None:
    backoff = Backoff(0.1, 5.0)
    for _ in range(5):
        backoff.next(Random(1))
    backoff.reset()
    assert backoff.next(Random(1)) <= 0.1
