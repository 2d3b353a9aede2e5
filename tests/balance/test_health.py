"""Who may be chosen: ejection, verdicts, priorities, panic, after Envoy's own tables."""

import random

import pytest

from asgi_enhance.balance.backend import Backend, Endpoint
from asgi_enhance.balance.failure import UpstreamFailure
from asgi_enhance.balance.health import Roster, spill, success_threshold
from asgi_enhance.balance.options import Ejection, Limits, Retries
from asgi_enhance.balance.retry import RetryBudget, backoff, may_retry

RNG = random.Random(1)


def roster(size: int, ejection: Ejection | None = Ejection(), *, priorities: tuple[int, ...] = ()) -> Roster:  # noqa: B008
    made = Roster(ejection)
    for index in range(size):
        priority = priorities[index] if priorities else 0
        made.endpoints.append(Endpoint(Backend(f"http://{index}", priority=priority), Limits(max_connections=100)))
    return made


def fail(made: Roster, index: int, times: int, now: float = 0.0) -> None:
    for _ in range(times):
        made.failed(made.endpoints[index], now)


def down(made: Roster, *indices: int) -> None:
    for index in indices:
        made.judged(made.endpoints[index], False, 0.0)


def chosen(made: Roster, now: float = 0.0) -> set[int]:
    return {made.endpoints.index(one) for _ in range(400) for one in made.candidates(now, RNG)}


def test_five_failures_in_a_row_eject_for_thirty_seconds_times_the_ejections() -> None:
    made = roster(3)
    fail(made, 0, 4)
    assert chosen(made) == {0, 1, 2}
    fail(made, 0, 1)
    assert chosen(made) == {1, 2}
    assert chosen(made, 29.9) == {1, 2}
    assert chosen(made, 30.0) == {0, 1, 2}
    fail(made, 0, 5, now=30.0)
    assert chosen(made, 89.9) == {1, 2}
    assert chosen(made, 90.0) == {0, 1, 2}


def test_a_success_in_between_begins_the_count_anew() -> None:
    made = roster(2)
    fail(made, 0, 4)
    made.served(made.endpoints[0], 0.0)
    fail(made, 0, 4)
    assert chosen(made) == {0, 1}


def test_heads_and_bodies_have_rows_of_their_own_and_an_ejection_ends_both() -> None:
    made = roster(2)
    one = made.endpoints[0]
    for _ in range(5):
        fail(made, 0, 4)
        made.served(one, 0.0)
        made.failed(one, 0.0, cut=True)
    assert chosen(made) == {1}
    fail(made, 0, 4, now=30.0)
    for _ in range(4):
        made.failed(one, 30.0, cut=True)
    assert chosen(made, 30.0) == {0, 1}


def test_an_ejection_is_never_longer_than_the_maximum_and_shrinks_with_good_conduct() -> None:
    made = roster(2, Ejection(base_time=30, max_time=50))
    fail(made, 0, 5)
    fail(made, 0, 5, now=31.0)
    assert made.endpoints[0].ejected_until == 31.0 + 50.0
    fail(made, 0, 5, now=81.0 + 35.0)  # three good intervals forgive three ejections
    assert made.endpoints[0].ejections == 1


def test_at_most_a_tenth_is_ejected_but_one_always_may_be() -> None:
    made = roster(10)
    for index in range(10):
        fail(made, index, 5)
    assert len(chosen(made)) == 9
    made = roster(30)
    for index in range(30):
        fail(made, index, 5)
    assert len(chosen(made)) == 27


def test_backends_taken_out_by_checks_do_not_use_the_allowance() -> None:
    made = roster(10)
    down(made, 8, 9)
    fail(made, 0, 5)
    assert chosen(made) == {1, 2, 3, 4, 5, 6, 7}


def test_one_that_fails_far_more_than_the_others_is_ejected_though_never_in_a_row() -> None:
    made = roster(10, Ejection(consecutive=1000))
    for now in (0.0, 11.0):
        for _ in range(100):
            for index, endpoint in enumerate(made.endpoints):
                made.served(endpoint, now)
                if index == 0:
                    made.failed(endpoint, now)
        made.served(made.endpoints[1], now + 10.5)
    assert 0 not in chosen(made, 22.0)


def test_the_success_threshold_is_the_mean_less_1_9_deviations() -> None:
    assert success_threshold([1.0, 1.0, 1.0, 0.5]) == pytest.approx(0.875 - 1.9 * 0.2165, rel=0.001)


def test_below_half_available_health_is_ignored() -> None:
    made = roster(3)
    down(made, 0)
    assert chosen(made) == {1, 2}
    assert not made.panicking
    down(made, 1)
    assert chosen(made) == {0, 1, 2}
    assert made.panicking


def test_with_a_panic_threshold_of_zero_nobody_well_means_nobody() -> None:
    made = roster(2, Ejection(panic=0.0))
    down(made, 0)
    assert chosen(made) == {1}
    down(made, 1)
    assert chosen(made) == set()


@pytest.mark.parametrize(
    ("healthy", "shares"),
    [(0.72, (1.0, 0.0)), (0.71, (0.994, 0.006)), (0.5, (0.7, 0.3)), (0.25, (0.35, 0.65)), (0.0, (0.0, 1.0))],
)
def test_what_the_first_priority_cannot_take_spills_over(healthy: float, shares: tuple[float, float]) -> None:
    assert spill([min(1.0, 1.4 * healthy), 1.0]) == pytest.approx(list(shares), abs=0.001)


def test_the_second_priority_serves_only_when_the_first_cannot() -> None:
    made = roster(4, priorities=(0, 0, 1, 1))
    assert chosen(made) == {0, 1}
    down(made, 0)
    assert chosen(made) == {1, 2, 3}
    down(made, 1)
    assert chosen(made) == {2, 3}


def test_checks_need_rise_and_fall_in_a_row() -> None:
    made = roster(2)
    endpoint = made.endpoints[0]

    def check(good: bool, now: float = 0.0) -> bool:
        made.checked(endpoint, good, now, rise=2, fall=3, uneject=False)
        return endpoint.checked

    assert [check(result) for result in (False, False, True, False, False, False)] == [True] * 5 + [False]
    assert [check(result) for result in (True, False, True, True)] == [False] * 3 + [True]
    assert endpoint.ramp_from == 0.0  # and it comes back slowly


@pytest.mark.parametrize("uneject", [True, False])
def test_a_good_check_ends_an_ejection_only_if_it_may(uneject: bool) -> None:
    made = roster(2)
    fail(made, 0, 5)
    made.checked(made.endpoints[0], True, 1.0, rise=2, fall=3, uneject=uneject)
    assert (0 in chosen(made, 1.0)) is uneject


def test_a_backend_that_checks_saw_down_is_no_longer_ejected_when_they_see_it_up() -> None:
    made = roster(2)
    fail(made, 0, 5)
    for good in (False, True):
        for _ in range(3):
            made.checked(made.endpoints[0], good, 1.0, rise=2, fall=3, uneject=False)
    assert 0 in chosen(made, 1.0)


def test_a_draining_backend_and_one_without_weight_get_nothing() -> None:
    made = roster(3)
    made.endpoints[0].draining = True
    made.endpoints[1].weight = 0
    made.changed()
    assert chosen(made) == {2}


def failure(*, unsent: bool = False, stale: bool = False) -> UpstreamFailure:
    return UpstreamFailure("", error="connection_terminated", unsent=unsent, stale=stale)


@pytest.mark.parametrize(
    ("method", "unsent", "replayable", "may"),
    [
        ("POST", True, True, True),
        ("POST", True, False, False),
        ("POST", False, True, False),
        ("PATCH", False, True, False),
        ("GET", False, True, True),
        ("PUT", False, True, True),
        ("PUT", False, False, False),
        ("DELETE", False, True, True),
    ],
)
def test_96_only_what_is_safe_to_send_twice_is_sent_twice(
    method: str, unsent: bool, replayable: bool, may: bool
) -> None:
    assert may_retry(failure(unsent=unsent), method, replayable=replayable) is may


def test_96_retries_are_a_fifth_of_the_requests_in_flight_or_three() -> None:
    budget = RetryBudget(Retries())
    budget.active = 2
    assert budget.allows(1)
    budget.active = 3
    assert not budget.allows(15)
    assert budget.allows(16)


def test_back_off_doubles_with_full_jitter_and_has_an_end() -> None:
    assert [backoff(0.025, attempt, 1.0) for attempt in (2, 3, 4, 9)] == [0.025, 0.05, 0.1, 0.25]
    assert backoff(0.025, 3, 0.5) == 0.025
