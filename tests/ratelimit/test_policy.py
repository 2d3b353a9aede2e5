"""What the default algorithm promises, whatever the traffic."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from asgi_enhance.ratelimit.policy import BUCKETS, NEVER, SECOND, Quota, Usage

MINUTE = 60 * SECOND

traffic = st.lists(st.tuples(st.integers(0, 20 * SECOND), st.integers(1, 4)), max_size=120)
rates = st.builds(lambda limit, burst: Quota(limit, MINUTE, min(limit, burst)), st.integers(4, 40), st.integers(4, 40))


def admit(quota: Quota, arrivals: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """(time, cost) of what is admitted of (pause before, cost)."""
    usage, now, admitted = Usage(), 1_000 * MINUTE, []
    for pause, cost in arrivals:
        now += pause
        usage.advance(quota, now)
        if usage.room(quota) >= cost:
            usage.add(quota, cost)
            admitted.append((now, cost))
    return admitted


@given(rates, traffic)
def test_no_window_ever_has_more_than_the_limit(quota: Quota, arrivals: list[tuple[int, int]]) -> None:
    admitted = admit(quota, arrivals)
    for start, _ in admitted:
        assert sum(cost for at, cost in admitted if start <= at < start + quota.window) <= quota.limit


@given(rates, traffic)
def test_no_interval_has_more_than_the_burst_and_the_rate(quota: Quota, arrivals: list[tuple[int, int]]) -> None:
    admitted = admit(quota, arrivals)
    for i, (start, _) in enumerate(admitted):
        for end, _ in admitted[i:]:
            inside = sum(cost for at, cost in admitted if start <= at <= end)
            assert inside <= quota.burst + (end - start) * quota.limit / quota.window + 0.001


@given(rates, traffic, st.integers(1, 4))
def test_after_the_wait_it_fits_and_a_moment_before_it_does_not(
    quota: Quota, arrivals: list[tuple[int, int]], cost: int
) -> None:
    usage, now = Usage(), 1_000 * MINUTE
    for pause, units in arrivals:
        now += pause
        usage.advance(quota, now)
        if usage.room(quota) >= units:
            usage.add(quota, units)
    wait = usage.wait(quota, cost, now)
    assert (wait == 0) == (usage.room(quota) >= cost)
    if wait > 100:
        usage.advance(quota, now + wait - 100)
        assert usage.room(quota) < cost
    usage.advance(quota, now + wait)
    assert usage.room(quota) >= cost


@given(rates, traffic)
def test_at_the_reset_there_is_more_room_than_before(quota: Quota, arrivals: list[tuple[int, int]]) -> None:
    usage, now = Usage(), 1_000 * MINUTE
    for pause, cost in arrivals:
        now += pause
        usage.advance(quota, now)
        if usage.room(quota) >= cost:
            usage.add(quota, cost)
    room = usage.room(quota)
    reset = usage.reset(quota, room, now)
    if not reset:
        assert room == min(quota.limit, quota.burst)
    else:
        usage.advance(quota, now + reset)
        assert usage.room(quota) > room


@given(rates, st.integers(0, 20 * SECOND), st.integers(0, 60))
def test_at_the_reset_of_who_is_in_debt_there_is_room(quota: Quota, pause: int, debt: int) -> None:
    usage, now = Usage(), 1_000 * MINUTE
    usage.advance(quota, now)
    usage.add(quota, 1)
    now += pause
    usage.advance(quota, now)
    usage.add(quota, quota.limit + debt)
    usage.advance(quota, now + usage.reset(quota, usage.room(quota), now))
    assert usage.room(quota) >= 1


def test_a_steady_stream_gets_nearly_all_of_the_limit() -> None:
    quota = Quota(1000, MINUTE)
    admitted = admit(quota, [(MINUTE // 2000, 1)] * 20_000)
    assert len(admitted) / 10 > 1000 * BUCKETS / (BUCKETS + 1) * 0.99


def test_a_cost_above_the_burst_never_fits() -> None:
    quota = Quota(100, MINUTE, 20)
    assert Usage().wait(quota, 21, 0) == NEVER
    assert Usage().wait(quota, 20, 0) == 0


def test_a_window_is_recovered_from_when_it_is_over_and_not_before() -> None:
    quota, usage = Quota(100, MINUTE, 20), Usage()
    usage.advance(quota, MINUTE)
    usage.add(quota, 1)
    assert not usage.recovered(quota, 2 * MINUTE)
    assert usage.recovered(quota, 2 * MINUTE + quota.width)


def test_a_charge_may_go_into_debt_and_the_debt_is_over_with_the_window() -> None:
    quota, usage = Quota(10, MINUTE, 5), Usage()
    usage.advance(quota, MINUTE)
    usage.add(quota, 500)
    assert usage.room(quota) < 0
    later = MINUTE + usage.wait(quota, 1, MINUTE)
    assert later <= 2 * MINUTE + quota.width
    usage.advance(quota, later)
    assert usage.room(quota) >= 1


@given(rates, st.integers(1, 4), st.integers(0, 90 * SECOND))
def test_a_refund_never_gives_more_than_was_taken(quota: Quota, cost: int, later: int) -> None:
    usage, fresh, now = Usage(), Usage(), 1_000 * MINUTE
    for one in (usage, fresh):
        one.advance(quota, now)
    usage.add(quota, cost)
    for one in (usage, fresh):
        one.advance(quota, now + later)
    usage.refund(quota, cost, now)
    assert usage.used == 0
    assert usage.room(quota) == fresh.room(quota)


def test_a_refund_takes_nothing_from_what_others_used_since() -> None:
    quota, usage = Quota(10, MINUTE), Usage()
    usage.advance(quota, MINUTE)
    usage.add(quota, 3)
    usage.advance(quota, 3 * MINUTE)
    usage.add(quota, 5)
    usage.refund(quota, 3, MINUTE)
    assert usage.room(quota) == 5


@given(st.integers(1, 100 * MINUTE))
def test_a_clock_set_back_forgets_nothing_and_locks_nobody_out_for_longer_than_a_window(back: int) -> None:
    quota, usage, now = Quota(10, MINUTE, 8), Usage(), 1_000 * MINUTE
    usage.advance(quota, now)
    usage.add(quota, 8)
    now -= back
    usage.advance(quota, now)
    assert usage.room(quota) == 0
    assert usage.wait(quota, 8, now) <= MINUTE + quota.width


def test_a_share_is_at_least_one_of_each() -> None:
    assert Quota(100, MINUTE, 20).share(4) == Quota(25, MINUTE, 5)
    assert Quota(2, MINUTE).share(8) == Quota(1, MINUTE)


def test_a_diary_tells_the_end_of_each_bucket_and_no_time_that_is_yet_to_come() -> None:
    quota, usage, now = Quota(10, 32 * SECOND), Usage(), 1_000 * SECOND
    for cost in (2, 3):
        usage.advance(quota, now)
        usage.add(quota, cost)
        now += 5 * SECOND // 2
    assert usage.diary(quota, 1_004 * SECOND) == (0.0, [3 * SECOND, 2, SECOND, 3])
    assert usage.diary(quota, 1_002 * SECOND) == (0.0, [SECOND, 2, 0, 3])
