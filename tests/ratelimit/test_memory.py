"""The memory store: bounded, and safe to spray."""

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_enhance.ratelimit.decision import TAKE, Demand, Stats
from asgi_enhance.ratelimit.memory import LOOK, MemoryStore
from asgi_enhance.ratelimit.notation import parse
from asgi_enhance.ratelimit.policy import SECOND, Quota, Usage

QUOTA = Quota(2, 60 * SECOND)


class Clock:
    """Nanoseconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 10**15

    def __call__(self) -> int:
        return self.now

    def go(self, seconds: float) -> None:
        self.now += round(seconds * 1e9)


def store(max_keys: int = 10) -> tuple[MemoryStore, Clock]:
    clock = Clock()
    return MemoryStore(Stats(), max_keys=max_keys, clock=clock), clock


def hit(memory: MemoryStore, identity: str, cost: int = 1) -> bool:
    return memory.hit((Demand(QUOTA, identity, cost),)).allowed


def test_it_never_holds_more_than_its_bound() -> None:
    memory, _ = store(10)
    for i in range(1000):
        hit(memory, f"{i}")
        assert len(memory) <= 10


def test_a_large_store_is_of_many_tables_and_is_bounded_all_the_same() -> None:
    memory, _ = store(100_000)
    for i in range(150_000):
        hit(memory, f"{i}")
    (tables,) = memory._tables.values()
    assert max(map(len, tables)) <= 8192
    assert 95_000 <= len(memory) <= 100_000


def test_recovered_identities_leave_a_few_at_a_time_and_soon_all_of_them() -> None:
    memory, clock = store(1000)
    for i in range(100):
        hit(memory, f"old {i}")
    clock.go(63)
    sizes = []
    for i in range(110):
        hit(memory, f"new {i}")
        sizes.append(len(memory))
    assert all(before - after <= 2 for before, after in zip([100, *sizes], sizes, strict=False))
    assert sizes[-1] == 110


def test_an_identity_that_is_limited_is_not_forgotten_while_others_are_sprayed() -> None:
    memory, _ = store(10)
    assert [hit(memory, "limited") for _ in range(3)] == [True, True, False]
    for i in range(1000):
        hit(memory, f"spray {i}")
    assert not hit(memory, "limited")


def test_an_identity_that_has_used_its_last_unit_counts_as_limited_before_it_is_refused() -> None:
    memory, _ = store(10)
    assert [hit(memory, "full") for _ in range(2)] == [True, True]
    for i in range(100):
        hit(memory, f"spray {i}")
    assert not hit(memory, "full")


def test_a_recovered_identity_gives_way_before_one_that_is_not() -> None:
    memory, clock = store(3)
    hit(memory, "recovered")
    clock.go(50)
    hit(memory, "used")
    hit(memory, "also used")
    clock.go(13)
    hit(memory, "new")
    assert memory.stats.evicted == 0
    assert memory.peek((Demand(QUOTA, "used"),)).remaining == 1


def test_who_comes_again_recovers_later_than_who_does_not() -> None:
    memory, clock = store(2)
    hit(memory, "comes again")
    clock.go(2)
    hit(memory, "does not")
    clock.go(40)
    hit(memory, "comes again")
    clock.go(24)
    hit(memory, "new")
    assert memory.stats.evicted == 0
    assert memory.peek((Demand(QUOTA, "comes again"),)).remaining == 1


def test_when_all_are_limited_new_identities_share_one_entry() -> None:
    memory, clock = store(5)
    for i in range(5):
        assert hit(memory, f"{i}", 2)
    assert [hit(memory, f"new {i}") for i in range(4)] == [True, True, False, False]
    assert len(memory) == 6
    assert not any(hit(memory, f"{i}") for i in range(5))
    assert memory.stats.overflowed == 4
    clock.go(63)
    assert hit(memory, "newer")


def test_only_so_many_entries_are_looked_at_for_one_that_may_go() -> None:
    memory, _ = store(LOOK + 1)
    for i in range(LOOK):
        assert hit(memory, f"{i}", 2)
    hit(memory, "behind them, and not limited")
    hit(memory, "new")
    assert memory.stats.evicted == 0
    assert memory.stats.overflowed == 1


def test_states_are_nothing_for_the_garbage_collector_to_walk() -> None:
    memory, clock = store()
    hit(memory, "a")
    clock.go(5)
    hit(memory, "a")
    ((table,),) = memory._tables.values()
    (usage,) = table.values()
    gc.collect()
    assert not gc.is_tracked(usage)
    assert not gc.is_tracked(usage.older)


def test_several_demands_are_admitted_together_or_not_at_all() -> None:
    memory, _ = store()
    narrow, wide = parse("1/second;100/hour")
    demands = (Demand(wide, "a"), Demand(narrow, "a"))
    assert memory.hit(demands).allowed
    for _ in range(5):
        assert not memory.hit(demands).allowed
    assert [standing.remaining for standing in memory.peek(demands).standings] == [99, 0]


def test_the_room_is_told_of_all_quotas_when_the_first_refuses() -> None:
    memory, _ = store()
    narrow, wide = parse("1/second;100/hour")
    memory.hit((Demand(narrow, "a"), Demand(wide, "a")))
    refused = memory.hit((Demand(narrow, "a"), Demand(wide, "a")))
    assert [standing.remaining for standing in refused.standings] == [0, 99]
    assert refused.violated == ("default-1s",)


def test_what_was_tried_and_refused_is_not_kept() -> None:
    memory, _ = store()
    demands = (Demand(Quota(5, SECOND, name="a"), "x", 1), Demand(Quota(5, SECOND, name="b"), "x", 6))
    assert not memory.hit(demands).allowed
    assert len(memory) == 0


@pytest.mark.parametrize("admitted_before", [False, True])
def test_a_refund_gives_room_again(admitted_before: bool) -> None:
    memory, clock = store()
    if admitted_before:
        hit(memory, "a")
        clock.go(5)
    decision = memory.hit((Demand(QUOTA, "a"),))
    clock.go(5)
    memory.refund((Demand(QUOTA, "a"),), decision.at)
    assert memory.peek((Demand(QUOTA, "a"),)).remaining == 2 - admitted_before


def test_a_charge_is_taken_whether_it_fits_or_not() -> None:
    memory, clock = store()
    memory.take(QUOTA, "a", 5)
    assert not hit(memory, "a")
    clock.go(63)
    assert hit(memory, "a")


@given(
    st.builds(lambda n, b: Quota(n, 60 * SECOND, min(n, b)), st.integers(1, 20), st.integers(1, 20)),
    st.lists(st.tuples(st.integers(0, 20 * SECOND), st.integers(1, 4)), max_size=60),
)
def test_the_quick_way_to_spend_decides_like_the_policy(quota: Quota, arrivals: list[tuple[int, int]]) -> None:
    quick, plain, now = Usage(), Usage(), 10**15
    for pause, cost in arrivals:
        now += pause
        spent = quick.spend(quota, cost, now)
        plain.advance(quota, now)
        fits = plain.room(quota) >= cost
        assert (spent is not None) == fits
        if spent is not None:
            plain.add(quota, cost)
            room = plain.room(quota)
            assert spent[0] == room
            assert abs(spent[1] - plain.reset(quota, room, now)) <= 1
        quick.advance(quota, now)
        assert quick == plain


def test_demands_of_one_identity_under_two_names_are_two_counts() -> None:
    memory, _ = store()
    one, other = Quota(1, SECOND, name="one"), Quota(1, SECOND, name="other")
    assert memory.hit((Demand(one, "a", 1, TAKE),)).allowed
    assert memory.hit((Demand(other, "a", 1, TAKE),)).allowed


def test_who_shares_an_entry_gives_back_to_it_what_was_refused_after_all() -> None:
    memory, _ = store(5)
    for i in range(5):
        assert hit(memory, f"{i}", 2)
    tight = Quota(1, 60 * SECOND, name="tight")
    memory.take(tight, "new", 1)
    assert not memory.hit((Demand(QUOTA, "new"), Demand(tight, "new"))).allowed
    assert [hit(memory, "newer") for _ in range(3)] == [True, True, False]
