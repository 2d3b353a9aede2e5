"""Choosing: the policies are pure, so every rule is a few lines of arithmetic."""

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from asgi_enhance.balance.backend import Backend, Endpoint
from asgi_enhance.balance.options import Limits
from asgi_enhance.balance.policy import IpHash, LeastConnections, PeakEwma, Policy, RoundRobin, SlowStart, rendezvous
from asgi_enhance.errors import ConfigError


def endpoints(*weights: float) -> list[Endpoint]:
    return [
        Endpoint(Backend(f"http://{index}", weight=weight), Limits(max_connections=100))
        for index, weight in enumerate(weights)
    ]


def picks(policy: Policy, among: Sequence[Endpoint], times: int, *, now: float = 0.0) -> list[int]:
    rng = random.Random(1)
    return [among.index(policy.pick(among, now, rng, b"")) for _ in range(times)]


def test_93_smooth_weighted_round_robin_takes_turns_as_nginx_does() -> None:
    assert picks(RoundRobin(), endpoints(5, 1, 1), 7) == [0, 0, 1, 0, 2, 0, 0]


def test_93_every_cycle_honours_the_weights_exactly() -> None:
    members = endpoints(4, 3, 2, 1)
    policy = RoundRobin()
    for _ in range(10):
        assert Counter(picks(policy, members, 10)) == {0: 4, 1: 3, 2: 2, 3: 1}


def test_least_connections_takes_the_fewest_for_the_weight() -> None:
    members = endpoints(1, 2)
    members[0].in_flight, members[1].in_flight = 2, 3
    assert picks(LeastConnections(), members, 3) == [1, 1, 1]  # 4 / 2 beats 3 / 1


@pytest.mark.parametrize("policy", [LeastConnections(), PeakEwma()])
def test_94_ties_are_broken_at_random(policy: Policy) -> None:
    shares = Counter(picks(policy, endpoints(1, 1, 1, 1), 4000))
    assert all(800 < shares[index] < 1200 for index in range(4))


def test_peak_ewma_takes_the_quickest_for_its_load_and_weight() -> None:
    policy = PeakEwma()
    members = endpoints(1, 1)
    policy.observe(members[0], 0.010, 0.0)
    policy.observe(members[1], 0.050, 0.0)
    assert picks(policy, members, 3) == [0, 0, 0]
    members[0].in_flight = 5  # six times 10 ms is more than 50 ms
    assert picks(policy, members, 3) == [1, 1, 1]
    members[0].weight = 2.0
    assert picks(policy, members, 3) == [0, 0, 0]


def test_peak_ewma_believes_a_slow_answer_at_once_and_a_quick_one_slowly() -> None:
    policy = PeakEwma(decay=10.0)
    (member,) = endpoints(1)
    policy.observe(member, 0.010, 0.0)
    policy.observe(member, 1.000, 0.1)
    assert member.cost == 1.0
    policy.observe(member, 0.010, 0.2)
    assert 0.98 < member.cost < 1.0


def test_peak_ewma_forgets_what_it_has_not_seen_for_long() -> None:
    policy = PeakEwma(decay=10.0)
    (member,) = endpoints(1)
    policy.observe(member, 1.0, 0.0)
    assert policy.load(member, 10.0) == pytest.approx(0.3679, rel=0.01)


def test_a_backend_that_has_not_answered_yet_gets_one_request_and_no_more() -> None:
    policy = PeakEwma()
    members = endpoints(1, 1)
    policy.observe(members[0], 0.050, 0.0)
    assert picks(policy, members, 1) == [1]
    members[1].in_flight = 1
    assert picks(policy, members, 1) == [0]


def test_beyond_sixteen_backends_the_better_of_two_random_ones_is_taken() -> None:
    policy = PeakEwma()
    members = endpoints(*[1.0] * 40)
    for member in members:
        policy.observe(member, 0.1, 0.0)
    members[0].cost = 10.0
    shares = Counter(picks(policy, members, 8000))
    assert shares[0] == 0
    assert len(shares) == 39


def test_a_backend_in_slow_start_has_a_tenth_of_its_weight_at_first_and_all_of_it_at_the_end() -> None:
    ramp = SlowStart(10.0)
    (member,) = endpoints(2)
    member.ramp_from = 100.0
    assert ramp.weight(member, 99.0) == pytest.approx(0.2)
    assert ramp.weight(member, 100.0) == pytest.approx(0.2)
    assert ramp.weight(member, 105.0) == pytest.approx(1.0)
    assert ramp.weight(member, 110.0) == 2.0
    assert member.ramp_from is None


def test_slow_start_is_steeper_at_first_with_aggression() -> None:
    (member,) = endpoints(1)
    member.ramp_from = 0.0
    assert SlowStart(10.0, aggression=2.0).weight(member, 2.5) == pytest.approx(0.5)


def test_a_key_stays_with_its_backend_and_moves_only_when_that_goes() -> None:
    policy, rng = IpHash(bound=100.0), random.Random(1)
    members = endpoints(*[1.0] * 10)
    keys = [b"%d" % number for number in range(2000)]
    before = {key: policy.pick(members, 0.0, rng, key) for key in keys}
    gone = members.pop(3)
    after = {key: policy.pick(members, 0.0, rng, key) for key in keys}
    assert all(after[key] is before[key] for key in keys if before[key] is not gone)
    assert 0.07 < sum(before[key] is gone for key in keys) / len(keys) < 0.13


def test_rendezvous_honours_weights() -> None:
    scores = Counter(
        "b" if rendezvous(b"%d" % n, "b", 3.0) > rendezvous(b"%d" % n, "a", 1.0) else "a" for n in range(8000)
    )
    assert scores["b"] / scores["a"] == pytest.approx(3.0, rel=0.1)


def test_bounded_load_lets_a_hot_key_overflow() -> None:
    policy, rng = IpHash(bound=1.25), random.Random(1)
    members = endpoints(1, 1, 1, 1)
    for _ in range(40):
        policy.pick(members, 0.0, rng, b"hot").in_flight += 1
    assert max(member.in_flight for member in members) <= 13  # 1.25 times ten, and one


def test_without_a_bound_a_client_stays_whatever_its_backend_carries() -> None:
    made = endpoints(1, 1, 1)
    policy = IpHash(bound=None)
    rng = random.Random(1)
    homes = {key: policy.pick(made, 0.0, rng, key) for key in (b"%d" % number for number in range(20))}
    assert len({home.id for home in homes.values()}) == 3
    homes[b"0"].in_flight = 1000
    assert all(policy.pick(made, 0.0, rng, key) is home for key, home in homes.items())


@pytest.mark.parametrize(
    "make",
    [lambda: PeakEwma(decay=0), lambda: IpHash(bound=1.0), lambda: SlowStart(-1.0)],
    ids=["decay", "bound", "window"],
)
def test_a_setting_that_makes_no_sense_is_refused(make: object) -> None:
    with pytest.raises(ConfigError):
        make()  # type: ignore[operator]
