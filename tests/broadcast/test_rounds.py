"""What is on its way to many: whatever comes in between, each connection gets what it would have got one by one."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise

import pytest

from asgi_enhance.asgi.tasks import Tasks
from asgi_enhance.asgi.types import Message
from asgi_enhance.broadcast import BroadcastRouter, History, Limits, RealTimeStreamProcessor, rounds
from asgi_enhance.broadcast.connection import Connection, Shared
from asgi_enhance.broadcast.hub import Hub, publication
from asgi_enhance.broadcast.log import Entry, GroupLog
from asgi_enhance.broadcast.stats import Stats
from asgi_enhance.broadcast.wire import Encoding, Publication, pack
from asgi_enhance.testing.driver import WebSocket
from tests.broadcast.helpers import client, nothing, until

GROUPS = ("a", "b", "kept")


class Member:
    """A connection with what it was sent, and what it should have been sent."""

    def __init__(self, hub: Hub, number: int, chance: random.Random) -> None:
        self.connection = Connection(f"c{number}", self._send, Encoding.WEBSOCKET, hub.shared)
        self.got: list[object] = []
        self.due: list[object] = []
        self._chance = chance
        hub.add(self.connection)

    async def _send(self, message: Message) -> None:
        if self._chance.random() < 0.05:  # its socket is full for a moment
            await asyncio.sleep(0)
        self.got.append(json.loads(message["text"]))


class World:
    """A hub beside the simplest thing that could be right: everybody is told everything at once."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.hub = Hub(Shared(Limits(outbox_messages=10_000), "disconnect", Stats(), Tasks()))
        self.hub.group("kept").log = GroupLog(History(size=1000), "e", 0.0)
        self.members = {f"c{number}": Member(self.hub, number, self.chance) for number in range(20)}
        self.inside: dict[str, dict[str, Member]] = {name: {} for name in GROUPS}
        self.number = 0

    def step(self) -> None:
        name = self.chance.choice(GROUPS)
        member = self.chance.choice(list(self.members.values()))
        choice = self.chance.choices(("publish", "direct", "everyone", "join", "leave", "reset"), (60, 8, 2, 10, 6, 2))[
            0
        ]
        getattr(self, choice)(name, member)

    def publish(self, name: str, member: Member) -> None:
        self.number += 1
        group = self.hub.group(name)
        frame: object = self.number
        message = Publication(b"%d" % self.number, None, name)
        if group.log is not None:
            blob = pack(b"%d" % self.number, None)
            offset, _ = group.log.publish(blob, 0.0)
            message = publication(group, Entry(offset, blob))
            frame = {"type": "message", "group": name, "id": f"e:{offset}", "data": self.number}
        self.hub.rounds.to_group(group, message)
        for each in self.inside[name].values():
            each.due.append(frame)

    def direct(self, name: str, member: Member) -> None:
        self.number += 1
        self.hub.to_client(member.connection.client_id, Publication(b"%d" % self.number))
        member.due.append(self.number)

    def everyone(self, name: str, member: Member) -> None:
        self.number += 1
        self.hub.to_everyone(Publication(b"%d" % self.number))
        for each in self.members.values():
            each.due.append(self.number)

    def join(self, name: str, member: Member) -> None:
        group = self.hub.group(name)
        if group.name in member.connection.groups:
            return
        position = {"id": str(group.log.position)} if group.log is not None else {}
        self.hub.enter(member.connection, group, asked=True)
        member.due.append({"type": "joined", "group": name, **position})
        self.inside[name][member.connection.client_id] = member

    def reset(self, name: str, member: Member) -> None:
        group = self.hub.group(name)
        if group.log is not None:
            self.hub.reset(group, group.log.position)
            for each in self.inside[name].values():
                each.due.append({"type": "reset", "group": name, "id": str(group.log.position)})

    def leave(self, name: str, member: Member) -> None:
        self.hub.leave(member.connection, self.hub.group(name))
        self.inside[name].pop(member.connection.client_id, None)


@pytest.mark.parametrize("seed", range(12))
async def test_everybody_gets_all_that_is_his_in_the_order_in_which_it_came(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "TURN", 7)
    monkeypatch.setattr(rounds, "BATCH", 3)
    world = World(seed)
    for _ in range(300):
        world.step()
        if world.chance.random() < 0.3:
            await asyncio.sleep(0)
    await until(lambda: all(len(member.got) >= len(member.due) for member in world.members.values()))
    for member in world.members.values():
        assert member.got == member.due
    assert world.number > 150


async def test_one_who_cannot_wait_has_nobody_else_served_before_his_turn() -> None:
    world = World(0)
    hub = world.hub
    everybody = list(world.members.values()) + [Member(hub, number, world.chance) for number in range(20, 2500)]
    for each in everybody:
        hub.enter(each.connection, hub.group("a"))
    last = everybody[-1]
    hub.rounds.to_group(hub.group("a"), Publication(b"1"))
    hub.rounds.to_group(hub.group("a"), Publication(b"2"))
    assert hub.to_client("c2499", Publication(b"3")) == 1
    hub.leave(everybody[-2].connection, hub.group("a"))
    await until(lambda: last.got == [1, 2, 3] and everybody[-2].got == [1, 2])
    assert sum(len(each.got) for each in everybody[:-2]) == 0
    await until(lambda: all(each.got == [1, 2] for each in everybody[:-1]))
    assert last.got == [1, 2, 3]


CROWD = 1500


@asynccontextmanager
async def crowd() -> AsyncIterator[RealTimeStreamProcessor]:
    """Many connections in two groups."""

    async def write(message: Message) -> None: ...

    async with RealTimeStreamProcessor(history={"kept": History()}) as processor:
        for number in range(CROWD):
            await processor.add_connection(f"c{number}", (nothing, write), ["kept", "lost"], listen=False)
        yield processor
        for number in range(CROWD):
            await processor.remove_connection(f"c{number}")


async def test_publishers_that_never_pause_do_not_hold_the_loop() -> None:
    turns: list[int] = []
    ended = asyncio.Event()

    def count() -> None:
        turns.append(processor.stats.deliveries)
        if not ended.is_set():
            asyncio.get_running_loop().call_soon(count)

    async def publish(group: str) -> None:
        for number in range(150):
            await processor.broadcast_to_group(group, number)

    async with crowd() as processor:
        count()
        await asyncio.gather(publish("kept"), publish("lost"))
        await until(lambda: processor.stats.deliveries == 2 * 150 * CROWD)
        ended.set()
        assert max(after - before for before, after in pairwise(turns)) <= 2 * rounds.TURN


@pytest.mark.parametrize("group", ["kept", "lost", None])
async def test_a_publisher_is_not_far_ahead_of_what_has_been_delivered(group: str | None) -> None:
    ahead = 2 * rounds.BATCH if group is not None else 2
    async with crowd() as processor:
        for number in range(200):
            if group is None:
                await processor.broadcast_all(number)
            else:
                await processor.broadcast_to_group(group, number)
            assert processor.stats.deliveries >= (number - ahead) * CROWD
        await until(lambda: processor.stats.deliveries == 200 * CROWD)


async def test_a_publisher_that_never_pauses_leaves_others_their_turn() -> None:
    async def flood() -> None:
        while True:
            await processor.broadcast_to_group("kept", 0)

    async with crowd() as processor:
        flooding = asyncio.create_task(flood())
        async with asyncio.timeout(10):
            await until(lambda: processor.stats.deliveries)
            for number in range(3):
                await processor.broadcast_to_group("lost", number)
                await processor.broadcast_all(number)
        flooding.cancel()


async def test_nobody_who_waits_is_overtaken_by_all_who_come_after_him() -> None:
    async with crowd() as processor:
        for number in range(2 * rounds.BATCH):
            await processor.broadcast_to_group("kept", number)
        waiting = asyncio.create_task(processor.broadcast_all(0))
        later: list[asyncio.Task[str | None]] = []
        while not waiting.done() and len(later) < 3000:
            later.append(asyncio.create_task(processor.broadcast_to_group("kept", 0)))
            await asyncio.sleep(0)
        assert waiting.done()
        assert sum(each.done() for each in later) <= 2 * rounds.BATCH
        await asyncio.gather(*later)


async def test_a_round_that_others_wait_for_is_short_also_in_a_large_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "MOST", 3 * CROWD)
    async with crowd() as processor:
        for number in range(40):
            await processor.broadcast_to_group("lost", number)
            assert processor.stats.deliveries >= (number - 2 * 3) * CROWD


async def test_what_cannot_wait_does_not_pile_up_in_many_small_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "MANY", 5)
    world = World(0)
    for number in range(20):
        world.join("ab"[number % 2], world.members[f"c{number}"])
    for number in range(100):
        world.hub.rounds.limit()
        world.hub.rounds.to_group(world.hub.group("ab"[number % 2]), Publication(b"%d" % number))
        assert world.hub.rounds.due <= 7 * 10
    await until(lambda: world.hub.shared.stats.deliveries == 100 * 10)


async def test_what_cannot_wait_is_handed_over_at_once_when_too_much_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "MOST", 50)
    world = World(0)
    for number in range(3):
        world.hub.rounds.limit()
        assert world.hub.shared.stats.deliveries == 0
        world.hub.to_everyone(Publication(b"%d" % number))
    world.hub.rounds.limit()
    assert world.hub.shared.stats.deliveries == 3 * 20
    await until(lambda: all(each.got == [0, 1, 2] for each in world.members.values()))


@asynccontextmanager
async def last_of_many(router: BroadcastRouter, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WebSocket]:
    """The client whose turn comes last, long after a message has been published."""
    async with AsyncExitStack() as stack:
        for number in range(20):
            found = await stack.enter_async_context(client(router, f"/ws/c{number}?group=a"))
        monkeypatch.setattr(rounds, "TURN", 1)
        yield found


async def test_an_answer_comes_after_what_was_sent_before_the_question(monkeypatch: pytest.MonkeyPatch) -> None:
    router = BroadcastRouter()
    async with last_of_many(router, monkeypatch) as socket:
        await router.processor.broadcast_to_group("a", 1)
        socket.send_json({"type": "ping"})
        assert [await socket.receive_json() for _ in range(2)] == [1, {"type": "pong"}]


async def test_the_farewell_comes_after_what_was_sent_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    router = BroadcastRouter()
    async with last_of_many(router, monkeypatch) as socket:
        await router.processor.broadcast_to_group("a", 1)
        draining = asyncio.create_task(router.drain(0.0))
        assert await socket.receive_json() == 1
        assert (await socket.next())["code"] == 1012
        draining.cancel()
