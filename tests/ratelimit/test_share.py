"""Several processes, one Redis that goes away and comes back: what all of them admit together.

The processes are shares that decide as the limiter does; Redis is the real script, and all of them have one clock."""

import gc
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from redis import Redis

from asgi_enhance.ratelimit.decision import Demand, Stats
from asgi_enhance.ratelimit.memory import MemoryStore
from asgi_enhance.ratelimit.policy import SECOND, Quota
from asgi_enhance.ratelimit.share import SETTLE, Share
from asgi_enhance.testing.servers import RedisServer
from tests.ratelimit.test_lua import WITH_CLOCK

MINUTE = 60 * SECOND
WIDTH = MINUTE // 32


class World:
    """Time, Redis, the processes, and a book of what was admitted."""

    def __init__(self, redis: Redis, quota: Quota, workers: int) -> None:
        redis.delete("key")
        self.now = 1_000_000 * SECOND
        self.up = True
        self.redis = redis
        self.quota = quota
        self.processes = [Process(self, workers) for _ in range(workers)]
        self.book: list[tuple[int, Process, int]] = []

    def script(self, mode: str, cost: int, *news: bytes) -> list[int]:
        quota = self.quota
        arguments: list[Any] = [mode, 1, 0, quota.limit, quota.window, quota.burst, cost, "take", *news, self.now]
        reply: list[int] = self.redis.eval(WITH_CLOCK, 1, "key", *arguments)
        self.redis.persist("key")
        return reply

    def goes(self) -> None:
        self.now += 1
        self.up = False
        for process in self.processes:
            process.manager.available = False
            process.manager.stats.outages += 1

    def comes(self, *, empty: bool) -> None:
        self.up = True
        if empty:
            self.redis.delete("key")
        for process in self.processes:
            process.manager.stats.connect_failures += 1  # the last look before
            process.manager.available = True
            process.share.unsettled()  # has noticed

    def room(self) -> tuple[int, int]:
        """What Redis has left in the window, and at once."""
        left, spare = self.script("peek", 1)[2:4]
        return left, spare

    def most(self) -> int:
        """The most that was admitted in any window."""
        return max(
            (sum(c for at, _, c in self.book if begin <= at < begin + self.quota.window) for begin, _, _ in self.book),
            default=0,
        )


class Process:
    manager: Any

    def __init__(self, world: World, workers: int) -> None:
        self.world = world
        self.manager = SimpleNamespace(available=True, stats=SimpleNamespace(outages=0, connect_failures=0))
        memory = MemoryStore(Stats(), clock=lambda: world.now * 1000)
        self.share = Share(memory, Stats(), self.manager, workers=workers, on_error="local", max_keys=100)
        self.heard = 0

    def ask(self, cost: int = 1) -> bool:
        """What `RateLimiter` does with a request."""
        world, share = self.world, self.share
        world.now += 1
        demands = (Demand(world.quota, "a", cost),)
        unsettled = share.unsettled()
        if world.up and (news := share.news(demands[0])) is not None:
            world.script("report", cost, news.packed)
        held = share.hold(demands) if unsettled else None
        allowed = held is None or held.allowed
        if allowed and world.up:
            granted, _, left, spare, *_ = world.script("hit", cost)
            share.learn(demands, granted, [left], [spare])
            allowed, self.heard = granted == 1, world.now
        if held is not None:
            share.release(demands, held)
        if allowed and not world.up:
            allowed = share.hit(demands).allowed
        if allowed:
            world.book.append((world.now, self, cost))
        return allowed

    def ask_often(self, times: int) -> int:
        return sum(self.ask() for _ in range(times))


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[Redis]:
    with Redis.from_url(redis_server.url) as client:
        yield client


def test_what_others_have_used_leaves_less_for_a_share(client: Redis) -> None:
    world = World(client, Quota(40, MINUTE), 4)
    one, other = world.processes[:2]
    other.ask_often(28)
    one.ask()
    world.goes()
    assert one.ask_often(20) == 2  # a quarter of the 11 that were left


def test_it_grows_back_when_what_was_used_has_left_the_window(client: Redis) -> None:
    world = World(client, Quota(40, MINUTE), 4)
    one, other = world.processes[:2]
    other.ask_often(40)
    one.ask()
    world.goes()
    assert one.ask_often(20) == 0
    world.now += MINUTE + WIDTH
    assert one.ask_often(20) == 10


def test_a_process_that_has_not_heard_of_an_identity_has_its_whole_share(client: Redis) -> None:
    world = World(client, Quota(40, MINUTE), 4)
    world.processes[1].ask()
    world.goes()
    assert world.processes[0].ask_often(20) == 10


def test_the_burst_is_shared_as_well(client: Redis) -> None:
    world = World(client, Quota(400, MINUTE, 40), 4)
    one, other = world.processes[:2]
    other.ask_often(31)
    one.ask()
    world.goes()
    assert one.ask_often(20) == 2


def test_a_single_process_has_all_that_is_left(client: Redis) -> None:
    world = World(client, Quota(10, MINUTE), 1)
    world.processes[0].ask_often(4)
    world.goes()
    assert world.processes[0].ask_often(20) == 6


def test_what_was_admitted_alone_counts_in_redis_when_it_is_back(client: Redis) -> None:
    world = World(client, Quota(40, MINUTE), 4)
    world.goes()
    assert world.processes[0].ask_often(20) == 10
    world.comes(empty=False)
    world.now += SETTLE
    world.processes[0].ask()
    assert world.processes[1].ask_often(50) == 29


def test_what_was_admitted_alone_under_other_limits_is_told_as_well(client: Redis) -> None:
    world = World(client, Quota(40, MINUTE), 4)
    one = world.processes[0]
    one.ask()
    world.goes()
    assert one.ask_often(20) == 9
    world.quota = Quota(80, MINUTE)
    assert one.ask_often(20) == 10
    world.comes(empty=False)
    world.now += SETTLE
    one.ask()
    assert world.room() == (59, 59)


def test_it_counts_at_the_time_when_it_was(client: Redis) -> None:
    world = World(client, Quota(40, MINUTE), 4)
    world.goes()
    begun = world.now
    assert world.processes[0].ask_often(20) == 10
    world.now += MINUTE // 2
    world.comes(empty=False)
    assert world.processes[1].ask_often(3) == 3  # is told of earlier ones after later ones
    world.processes[0].ask()
    assert world.room() == (27, 27)
    assert world.now + world.script("peek", 1)[4] < begun + MINUTE + 2 * WIDTH  # when there is more
    world.now = begun + MINUTE + 2 * WIDTH
    assert world.room() == (37, 37)


def test_what_was_admitted_alone_is_a_burst_to_redis_as_well(client: Redis) -> None:
    world = World(client, Quota(400, MINUTE, 40), 4)
    world.goes()
    assert world.processes[0].ask_often(20) == 10
    world.comes(empty=False)
    world.processes[0].ask()
    assert world.room() == (390, 30)


def test_what_was_charged_alone_is_told_and_what_was_given_back_or_forgotten_is_not(client: Redis) -> None:
    world = World(client, Quota(400, MINUTE), 4)
    one, other = world.processes[:2]
    other.ask()
    demands = (Demand(world.quota, "a", 10),)
    world.goes()
    one.share.charge(demands, told=False)
    one.share.charge(demands, told=True)
    decision = one.share.hit(demands)
    one.share.refund((Demand(world.quota, "a", 4),), decision.at)
    news = one.share.news(demands[0])
    assert news is not None
    assert news.alone.used == 16
    one.share.keep(news)
    one.share.reset(demands)
    assert one.share.news(demands[0]) is None


def test_redis_is_told_once(client: Redis) -> None:
    world = World(client, Quota(40, MINUTE), 4)
    world.goes()
    world.processes[0].ask_often(3)
    world.comes(empty=False)
    world.now += SETTLE
    world.processes[0].ask_often(2)
    assert world.processes[1].ask_often(50) == 35


def test_what_was_lost_is_told_when_it_could_not_be_told_before(client: Redis) -> None:
    world = World(client, Quota(40, MINUTE), 2)
    one, other = world.processes
    for _ in range(12):
        one.ask()
        other.ask()
    world.goes()
    world.comes(empty=True)
    for _ in range(2):
        news = one.share.news(Demand(world.quota, "a"))
        assert news is not None
        one.share.keep(news)
    one.ask()
    assert world.room() == (27, 27)


def test_what_could_not_be_told_is_kept(client: Redis) -> None:
    world = World(client, Quota(40, MINUTE), 4)
    one, other = world.processes[:2]
    other.ask()
    one.ask()
    world.goes()
    one.ask_often(3)
    news = one.share.news(Demand(world.quota, "a"))
    assert news is not None
    one.ask_often(2)  # while it was on its way
    one.share.keep(news)
    world.comes(empty=False)
    world.now += SETTLE
    one.ask()
    assert other.ask_often(50) == 32


def test_a_redis_that_came_back_empty_is_told_what_was_used_before(client: Redis) -> None:
    world = World(client, Quota(40, MINUTE), 2)
    one, other = world.processes
    for _ in range(12):
        one.ask()
        other.ask()
    world.goes()
    world.comes(empty=True)
    world.now += SETTLE
    assert one.ask()
    assert other.ask()
    assert one.ask_often(20) == 14
    assert world.most() == 40


def test_a_redis_that_kept_what_it_knew_is_not_told_it_again(client: Redis) -> None:
    world = World(client, Quota(40, MINUTE), 2)
    one, other = world.processes
    for _ in range(12):
        one.ask()
        other.ask()
    world.goes()
    world.comes(empty=False)
    world.now += SETTLE
    assert one.ask()
    assert other.ask_often(20) == 15


def test_just_after_an_outage_a_process_stays_within_its_share(client: Redis) -> None:
    world = World(client, Quota(40, MINUTE), 4)
    one, other = world.processes[:2]
    world.goes()
    other.ask_often(20)  # of which Redis is not told yet
    world.comes(empty=False)
    assert one.ask_often(50) == 10
    world.now += SETTLE
    other.ask()
    assert one.ask_often(50) == 19
    assert world.most() == 40


def test_a_process_that_did_not_ask_meanwhile_has_noticed_the_outage_all_the_same(client: Redis) -> None:
    world = World(client, Quota(40, MINUTE), 4)
    world.goes()
    world.comes(empty=False)
    assert world.processes[0].ask_often(50) == 10


def test_an_outage_is_not_over_before_redis_is_available(client: Redis) -> None:
    world = World(client, Quota(40, MINUTE), 4)
    one = world.processes[0]
    world.goes()
    one.ask()
    world.now += 3 * SETTLE  # nothing new: it hangs
    one.ask()
    one.manager.available = world.up = True
    assert one.ask_often(50) == 8


def test_what_is_untold_is_nothing_for_the_garbage_collector_to_walk() -> None:
    manager: Any = SimpleNamespace(available=False, stats=SimpleNamespace(outages=1, connect_failures=0))
    share = Share(MemoryStore(Stats()), Stats(), manager, workers=1, on_error="local", max_keys=2000)
    gc.collect()
    before = len(gc.get_objects())
    for i in range(1000):
        share.hit((Demand(Quota(5, MINUTE), f"{i}"),))
    gc.collect()
    assert len(share._untold) == 1000
    assert len(gc.get_objects()) < before + 500


def test_what_did_not_fit_the_share_is_not_given_back_to_it() -> None:
    manager: Any = SimpleNamespace(available=True, stats=SimpleNamespace(outages=1, connect_failures=0))
    memory = MemoryStore(Stats(), clock=lambda: 1000 * SECOND)  # a machine that has just started
    share = Share(memory, Stats(), manager, workers=1, on_error="local", max_keys=10)
    demands = (Demand(Quota(1, 60 * MINUTE), "a"),)
    assert share.hit(demands).allowed
    for _ in range(3):
        held = share.hold(demands)
        assert held is not None
        assert not held.allowed
        share.release(demands, held)


def test_what_is_not_told_for_a_window_is_forgotten_a_little_at_a_time() -> None:
    now = 10**15
    manager: Any = SimpleNamespace(available=False, stats=SimpleNamespace(outages=1, connect_failures=0))
    memory = MemoryStore(Stats(), clock=lambda: now * 1000)
    share = Share(memory, Stats(), manager, workers=1, on_error="local", max_keys=10)
    for i in range(25):
        assert share.hit((Demand(Quota(5, MINUTE), f"{i}"),)).allowed
    assert len(share._untold) == 10
    now += MINUTE + WIDTH
    for i in range(10):
        share.hit((Demand(Quota(5, MINUTE), f"new {i}"),))
    assert {identity for _, identity in share._untold} == {f"new {i}" for i in range(10)}


steps = st.lists(st.tuples(st.integers(0, 8 * SECOND), st.integers(0, 2), st.integers(1, 3)), max_size=25)
quotas = st.tuples(st.integers(6, 30), st.integers(3, 30)).map(lambda n: Quota(n[0], MINUTE, min(n)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(quotas, steps, steps, steps, st.booleans())
@example(Quota(6, MINUTE), [(0, 0, 3), (0, 1, 3)], [(0, 2, 2)], [], False)
def test_all_together_are_over_by_no_more_than_what_a_share_has_not_heard_of(
    client: Redis, quota: Quota, before: Any, during: Any, after: Any, empty: bool
) -> None:
    world = World(client, quota, 3)
    for pause, number, cost in before:
        world.now += pause
        world.processes[number].ask(cost)
    unheard = sum(
        cost for process in world.processes for at, by, cost in world.book if by is not process and at >= process.heard
    )
    world.goes()
    for pause, number, cost in during:
        world.now += pause
        world.processes[number].ask(cost)
    world.comes(empty=empty)
    for process in world.processes:  # all are asked again before it is over for good
        process.ask()
    for pause, number, cost in after:
        world.now += pause
        world.processes[number].ask(cost)
    assert world.most() <= quota.limit + unheard // 3
