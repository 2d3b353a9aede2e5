"""Two processors on one Redis, as two processes would be: what one publishes reaches the clients of the other."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

import msgspec
import pytest

from asgi_enhance.asgi.types import Message, Send
from asgi_enhance.broadcast import BroadcastRouter, History, RealTimeStreamProcessor, rounds
from asgi_enhance.broadcast.keys import GroupKeys
from asgi_enhance.errors import RedisUnavailable
from asgi_enhance.redis import RedisManager
from asgi_enhance.testing.driver import WebSocket, websocket_scope
from asgi_enhance.testing.servers import RedisServer
from tests.broadcast.helpers import client, nothing, until

HISTORY = {"room*": History(size=5, ttl=10, meta_ttl=20), "long": History(size=1000)}


@asynccontextmanager
async def process(url: str, prefix: str) -> AsyncIterator[BroadcastRouter]:
    """A processor with a manager of its own, as in a process of its own."""
    async with RealTimeStreamProcessor(redis=RedisManager(url, prefix=prefix), history=HISTORY) as found:
        yield BroadcastRouter(processor=found)


@pytest.fixture
async def here(redis_url: str, redis: RedisManager) -> AsyncIterator[BroadcastRouter]:
    async with process(redis_url, redis.prefix) as router:
        yield router


@pytest.fixture
async def there(redis_url: str, redis: RedisManager) -> AsyncIterator[BroadcastRouter]:
    async with process(redis_url, redis.prefix) as router:
        yield router


async def joined(socket: WebSocket, group: str = "room", **more: Any) -> str:
    socket.send_json({"type": "join", "group": group, **more})
    frame = await socket.receive_json()
    assert frame["type"] == "joined", frame
    position: str = frame.get("id", "")
    return position


async def test_groups_clients_and_everyone_are_reached_in_the_other_process(
    here: BroadcastRouter, there: BroadcastRouter
) -> None:
    async with client(here, "/ws/ann?group=plain") as ann, client(there, "/ws/bob?group=plain") as bob:
        await here.processor.broadcast_to_group("plain", 1)
        assert await here.processor.send_to_client("bob", 2)
        await here.processor.broadcast_all(3)
        assert [await bob.receive_json() for _ in range(3)] == [1, 2, 3]
        assert [await ann.receive_json() for _ in range(2)] == [1, 3]
        assert not await here.processor.send_to_client("eve", 4)
        await here.processor.send_to_client("ann", "end")
        assert await ann.receive_json() == "end"  # and its own messages only once


async def test_a_client_in_both_processes_is_reached_in_both(here: BroadcastRouter, there: BroadcastRouter) -> None:
    async with client(here, "/ws/ann") as desk, client(there, "/ws/ann") as phone:
        assert await here.processor.send_to_client("ann", 1)
        assert [await desk.receive_json(), await phone.receive_json()] == [1, 1]


async def test_everybody_sees_a_history_in_the_same_order(here: BroadcastRouter, there: BroadcastRouter) -> None:
    async with client(here, "/ws/ann") as ann, client(there, "/ws/bob") as bob:
        await joined(ann)
        await joined(bob)
        await asyncio.gather(
            *(each.processor.broadcast_to_group("room", n) for n in range(20) for each in (here, there))
        )
        seen = [[(await each.receive_json())["data"] for _ in range(40)] for each in (ann, bob)]
        assert seen[0] == seen[1]


async def test_a_client_resumes_at_the_other_process(here: BroadcastRouter, there: BroadcastRouter) -> None:
    async with client(here, "/ws/ann") as ann:
        since = await joined(ann)
    for n in range(3):
        await here.processor.broadcast_to_group("room", n)
    async with client(there, "/ws/ann") as ann:
        await joined(ann, since=since)
        assert [(await ann.receive_json())["data"] for _ in range(3)] == [0, 1, 2]
    assert await there.processor.history("room") == [0, 1, 2]


async def test_who_is_new_at_another_process_may_begin_with_the_last_messages(
    here: BroadcastRouter, there: BroadcastRouter
) -> None:
    for n in range(3):
        await here.processor.broadcast_to_group("room", n)
    async with client(there, "/ws/ann") as ann:
        await joined(ann, last=2)
        assert [(await ann.receive_json())["data"] for _ in range(2)] == [1, 2]


async def test_a_client_who_has_seen_more_than_this_process_waits_for_it(
    here: BroadcastRouter, there: BroadcastRouter
) -> None:
    async with client(here, "/ws/ann") as ann:
        await joined(ann)
        last = await there.processor.broadcast_to_group("room", 1)
        node = await here.processor.started()
        log = node.hub.groups["room"].log
        assert log is not None
        await until(lambda: log.offset == 1)
        log.restart(log.position._replace(offset=0), (), 0.0)  # as if the message were still on its way
        async with client(here, "/ws/bob") as bob:
            assert await joined(bob, since=last) == last


async def test_the_same_idempotency_key_publishes_once_wherever_it_is_repeated(
    here: BroadcastRouter, there: BroadcastRouter
) -> None:
    async with client(here) as ann:
        await joined(ann)
        first = await here.processor.broadcast_to_group("room", 1, idempotency_key="k")
        assert await there.processor.broadcast_to_group("room", 1, idempotency_key="k") == first
        await there.processor.broadcast_to_group("room", 2)
        assert [(await ann.receive_json())["data"] for _ in range(2)] == [1, 2]


async def test_only_what_has_an_idempotency_key_may_be_sent_twice(here: BroadcastRouter) -> None:
    asked = []
    publishing = await transport(here)
    publish = publishing._publish

    async def spy(**arguments: Any) -> Any:
        asked.append(arguments["idempotent"])
        return await publish(**arguments)

    publishing._publish = spy
    await here.processor.broadcast_to_group("room", 1)
    await here.processor.broadcast_to_group("room", 1, idempotency_key="k")
    assert asked == [False, True]


async def test_a_log_whose_count_was_evicted_does_not_stand_in_the_way(
    redis: RedisManager, here: BroadcastRouter
) -> None:
    for n in range(3):
        await here.processor.broadcast_to_group("room", n)
    await redis.execute("DEL", GroupKeys(redis, "room").meta)
    await here.processor.broadcast_to_group("room", "new")
    assert await here.processor.history("room") == ["new"]


async def test_who_has_joined_hears_everything_from_then_on(here: BroadcastRouter) -> None:
    async with client(here) as ann:
        await joined(ann, "plain")
        assert (await transport(here))._subscriptions["plain"].is_ready


async def test_who_joins_in_a_storm_misses_nothing_and_sees_nothing_twice(
    here: BroadcastRouter, there: BroadcastRouter
) -> None:
    stop = False

    async def storm() -> None:
        n = 0
        while not stop:
            await asyncio.gather(*(there.processor.broadcast_to_group("room-storm", n + i) for i in range(5)))
            n += 5

    storming = asyncio.create_task(storm())
    for _ in range(10):
        async with client(here) as ann:
            start = await joined(ann, "room-storm")
            offsets = [int((await ann.receive_json())["id"].rpartition(":")[2]) for _ in range(30)]
            first = int(start.rpartition(":")[2]) + 1
            assert offsets == list(range(first, first + 30))
    stop = True
    await storming


async def test_presence_is_of_all_processes_and_ends_with_the_last_connection(
    here: BroadcastRouter, there: BroadcastRouter
) -> None:
    async def present(expected: set[str]) -> bool:
        return set(await here.processor.presence("plain")) == expected

    (await transport(there))._presence._renew_at = math.inf  # which would put things right, later
    async with client(there, "/ws/ann?group=plain") as desk:
        async with client(there, "/ws/ann?group=plain"), client(here, "/ws/bob?group=plain"):
            await until(lambda: present({"ann", "bob"}))
        await until(lambda: present({"ann"}))
        desk.send_json({"type": "leave", "group": "plain"})
        await until(lambda: present(set()))


async def test_a_process_that_died_is_not_present_any_longer_than_the_expiry(
    redis: RedisManager, here: BroadcastRouter
) -> None:
    key = GroupKeys(redis, "plain").presence

    async def written() -> list[bytes]:
        return [member.partition(b"\0")[0] for member in await redis.execute("ZRANGE", key, 0, -1)]

    async def only_ann_is_left() -> bool:
        return await written() == [b"ann"]

    await redis.execute("ZADD", key, 1, "ghost\0dead process")
    assert await here.processor.presence("plain") == []
    async with client(here, "/ws/ann?group=plain"):
        await until(only_ann_is_left)
        assert 0 < await redis.execute("PTTL", key) <= 30_000


async def test_what_is_kept_in_redis_is_bounded_and_expires(redis: RedisManager, here: BroadcastRouter) -> None:
    for n in range(8):
        await here.processor.broadcast_to_group("room", n, idempotency_key=str(n))
    keys = GroupKeys(redis, "room")
    assert await redis.execute("XLEN", keys.log) == 5
    assert 0 < await redis.execute("PTTL", keys.log) <= 10_000
    assert 0 < await redis.execute("PTTL", keys.meta) <= 20_000
    assert 0 < await redis.execute("PTTL", keys.idempotency + "7") <= 10_000


async def test_a_group_that_is_left_is_unsubscribed_after_a_while(
    redis: RedisManager, here: BroadcastRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asgi_enhance.broadcast.remote.LINGER", 0.0)

    async def channels() -> list[bytes]:
        found: list[bytes] = await redis.execute("PUBSUB", "SHARDCHANNELS", f"{redis.prefix}:broadcast:*")
        return found

    async def only_everyone_is_left() -> bool:
        return await channels() == [f"{redis.prefix}:broadcast:{{all}}:channel".encode()]

    async with client(here, "/ws/ann?group=plain&group=room"):
        assert len(await channels()) == 4  # two groups, ann, everyone
    await until(only_everyone_is_left)
    node = await here.processor.started()
    assert node.hub.groups == {}


async def test_leaving_and_joining_again_and_again_loses_nothing(
    here: BroadcastRouter, there: BroadcastRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asgi_enhance.broadcast.remote.LINGER", 0.0)
    node = await here.processor.started()
    async with client(here) as ann:
        for n in range(30):
            ann.send_json({"type": "join", "group": "plain"})
            assert (await ann.receive_json())["type"] == "joined"
            await there.processor.broadcast_to_group("plain", n)
            assert await ann.receive_json() == n
            ann.send_json({"type": "leave", "group": "plain"})
            assert (await ann.receive_json())["type"] == "left"
            node.transport.sweep(node.hub.shared.loop.time() + n % 2)  # unsubscribed every other time


async def test_a_log_that_has_lost_its_end_begins_a_new_epoch(redis: RedisManager, here: BroadcastRouter) -> None:
    """A failover to a replica that had not heard the last messages."""
    keys = GroupKeys(redis, "room")
    async with client(here) as ann:
        await joined(ann)
        for n in range(3):
            await here.processor.broadcast_to_group("room", n)
            await ann.receive_json()
        await redis.execute("HSET", keys.meta, "s", 1)
        await lose(redis, keys.log, 2)
        (await follower(here))._on_gap()
        reset = await ann.receive_json()
        assert reset["type"] == "reset"
        position = await here.processor.broadcast_to_group("room", "new")
        assert position is not None
        assert position.rpartition(":")[0] == reset["id"].rpartition(":")[0]
        message = await ann.receive_json()
        assert (message["id"], message["data"]) == (position, "new")


async def test_messages_in_the_place_of_lost_ones_are_not_taken_for_them(
    redis: RedisManager, here: BroadcastRouter, there: BroadcastRouter
) -> None:
    """As many are published after a failover as were lost, and more, before a process has looked at the log."""
    keys = GroupKeys(redis, "room")
    async with client(here) as ann:
        await joined(ann)
        for n in range(3):
            await here.processor.broadcast_to_group("room", n)
            await ann.receive_json()
        await redis.execute("HSET", keys.meta, "s", 1)
        await lose(redis, keys.log, 2)
        missed: list[bytes] = []
        follows = await follower(here)
        hears, follows._subscription._on_message = follows._subscription._on_message, missed.append
        for n in range(4):
            await there.processor.broadcast_to_group("room", f"new {n}")  # 2 to 5, of which 2 and 3 seem to be known
        await until(lambda: len(missed) == 4)
        follows._subscription._on_message = hears
        follows._on_gap()
        reset = await ann.receive_json()
        assert reset["type"] == "reset"
        position = await there.processor.broadcast_to_group("room", "last")
        message = await ann.receive_json()
        assert (message["id"], message["data"]) == (position, "last")


async def lose(redis: RedisManager, log: str, first: int) -> None:
    kept = await redis.execute("XRANGE", log, "-", first - 1)
    await redis.execute("DEL", log)
    for id, fields in kept:
        await redis.execute("XADD", log, id, *fields)


async def unheard(redis: RedisManager, offset: int, data: str, group: str = "room") -> None:
    """A message that is in the log, and whose live copy is lost."""
    keys = GroupKeys(redis, group)
    await redis.execute("HSET", keys.meta, "s", offset)
    await redis.execute("XADD", keys.log, f"{offset}-0", "d", b"\0" + data.encode())


async def transport(router: BroadcastRouter) -> Any:
    return (await router.processor.started()).transport


async def follower(router: BroadcastRouter, group: str = "room") -> Any:
    return (await transport(router))._followers[group]


async def test_a_live_message_that_is_not_the_next_has_the_others_read_from_the_log(
    redis: RedisManager, here: BroadcastRouter
) -> None:
    (await transport(here))._check_at = math.inf  # which would find it too, later
    async with client(here) as ann:
        await joined(ann)
        await unheard(redis, 1, "1")
        await here.processor.broadcast_to_group("room", 2)
        assert [(await ann.receive_json())["data"] for _ in range(2)] == [1, 2]
        assert here.processor.stats.gaps == 1


async def test_a_log_that_cannot_be_read_is_tried_again(
    redis: RedisManager, here: BroadcastRouter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("asgi_enhance.broadcast.follower.RETRY", (0.01, 0.01))
    meta = GroupKeys(redis, "room").meta
    await redis.execute("SET", meta, "no hash")
    async with client(here) as ann:
        ann.send_json({"type": "join", "group": "room"})
        await until(lambda: "the history of group 'room' cannot be read" in caplog.text)
        await redis.execute("DEL", meta)
        assert (await ann.receive_json())["type"] == "joined"


class Crowd:
    """1 200 connections in three groups, and the most that was ever due to them, in one turn of the loop and in all."""

    def __init__(self, router: BroadcastRouter) -> None:
        self.got: list[list[Any]] = [[] for _ in range(1200)]
        self.most_made = self.most_due = self._made = 0
        self._router = router

    async def __aenter__(self) -> Self:
        for number, frames in enumerate(self.got):
            await self._router.processor.add_connection(
                f"c{number}", (nothing, self._writes(frames)), ["room:1", "long", "plain"], listen=False
            )
        self._rounds = (await self._router.processor.started()).hub.rounds
        self._made = self._router.processor.stats.deliveries
        self._look()
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._handle.cancel()
        for number in range(len(self.got)):
            await self._router.processor.remove_connection(f"c{number}")

    async def has_got(self, count: int) -> None:
        await until(lambda: all(len(frames) == 2 + count for frames in self.got), seconds=20)  # and twice "joined"
        assert all(frames[2:] == self.got[0][2:] for frames in self.got)

    def _look(self) -> None:
        made = self._router.processor.stats.deliveries
        self.most_made = max(self.most_made, made - self._made)
        self.most_due = max(self.most_due, self._rounds.due)
        self._made = made
        self._handle = asyncio.get_running_loop().call_soon(self._look)

    def _writes(self, frames: list[Any]) -> Send:
        async def write(message: Message) -> None:
            frames.append(msgspec.json.decode(message["text"]))

        return write


async def test_a_burst_from_another_process_does_not_hold_the_loop_and_arrives_whole(
    here: BroadcastRouter, there: BroadcastRouter
) -> None:
    async with Crowd(here) as crowd:
        await asyncio.gather(*(there.processor.broadcast_to_group("room:1", n) for n in range(300)))
        await crowd.has_got(300)
        assert [frame["id"].partition(":")[2] for frame in crowd.got[0][2:]] == [str(n) for n in range(1, 301)]
        assert crowd.most_made <= 2 * rounds.TURN
        assert crowd.most_due <= 2 * rounds.BATCH * 1200


async def test_catching_up_does_not_hold_the_loop_either(
    redis: RedisManager, here: BroadcastRouter, there: BroadcastRouter
) -> None:
    (await transport(here))._check_at = math.inf  # which may look between the two halves of `unheard`
    async with Crowd(here) as crowd:
        for number in range(1, 301):
            await unheard(redis, number, str(number), "long")
        await there.processor.broadcast_to_group("long", 301)
        await crowd.has_got(301)
        assert [frame["data"] for frame in crowd.got[0][2:]] == list(range(1, 302))
        assert crowd.most_made <= 2 * rounds.TURN
        assert crowd.most_due <= 2 * rounds.BATCH * 1200


async def test_without_a_history_only_what_is_published_here_waits(
    here: BroadcastRouter, there: BroadcastRouter
) -> None:
    async with Crowd(here) as crowd:
        await asyncio.gather(*(here.processor.broadcast_to_group("plain", n) for n in range(300)))
        await asyncio.gather(*(here.processor.broadcast_all(n) for n in range(100)))
        await crowd.has_got(400)
        assert crowd.most_made <= 2 * rounds.TURN
        assert crowd.most_due <= 2 * rounds.BATCH * 1200
        await asyncio.gather(*(there.processor.broadcast_to_group("plain", n) for n in range(300)))
        await asyncio.gather(*(there.processor.broadcast_all(n) for n in range(100)))
        await crowd.has_got(800)
        assert crowd.most_due <= rounds.MOST + 2 * rounds.BATCH * 1200


@pytest.mark.parametrize("reconnects", [False, True])
async def test_a_gap_that_shows_while_messages_are_held_back_is_filled(
    redis: RedisManager, here: BroadcastRouter, there: BroadcastRouter, reconnects: bool
) -> None:
    (await transport(here))._check_at = math.inf
    async with Crowd(here) as crowd:
        await asyncio.gather(*(there.processor.broadcast_to_group("long", n) for n in range(1, 200)))
        await unheard(redis, 200, "200", "long")
        if reconnects:
            (await follower(here, "long"))._on_gap()
        else:
            await there.processor.broadcast_to_group("long", 201)
        await crowd.has_got(200 if reconnects else 201)
        assert [frame["data"] for frame in crowd.got[0][2:]] == list(range(1, 201 if reconnects else 202))


async def test_the_last_of_more_messages_than_are_held_back_is_not_missed(
    here: BroadcastRouter, there: BroadcastRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asgi_enhance.broadcast.follower.HELD_BACK", 5)
    (await transport(here))._check_at = math.inf  # which would find it too, later
    async with Crowd(here) as crowd:
        await asyncio.gather(*(there.processor.broadcast_to_group("long", n) for n in range(150)))
        await crowd.has_got(150)
        assert [frame["data"] for frame in crowd.got[0][2:]] == list(range(150))


async def test_a_reset_does_not_hold_the_loop_for_what_comes_before_it(
    redis: RedisManager, here: BroadcastRouter
) -> None:
    (await transport(here))._check_at = math.inf
    async with Crowd(here) as crowd:
        await redis.execute("DEL", GroupKeys(redis, "long").meta)
        (await follower(here, "long"))._on_gap()
        await asyncio.gather(*(here.processor.broadcast_to_group("plain", n) for n in range(200)))
        await crowd.has_got(201)
        assert here.processor.stats.resets == 1200
        assert crowd.most_made <= 2 * rounds.TURN


async def test_a_gap_that_the_log_cannot_fill_is_a_reset_and_what_is_left_follows(
    redis: RedisManager, here: BroadcastRouter
) -> None:
    async with client(here) as ann:
        await joined(ann)
        await unheard(redis, 7, "7")
        await here.processor.broadcast_to_group("room", 8)
        frames = [await ann.receive_json() for _ in range(3)]
        assert [(frame["type"], frame.get("data")) for frame in frames] == [
            ("reset", None),
            ("message", 7),
            ("message", 8),
        ]
        assert frames[0]["id"].endswith(":6")


async def test_a_gap_that_opens_while_the_log_is_read_has_it_read_again(
    redis: RedisManager, here: BroadcastRouter
) -> None:
    (await transport(here))._check_at = math.inf
    async with client(here) as ann:
        await joined(ann)
        following = await follower(here)
        read = following._history

        async def read_and_miss_one(**arguments: Any) -> Any:
            following._history = read
            answer = await read(**arguments)
            await unheard(redis, 1, "1")
            following._on_gap()  # the subscription was made anew
            return answer

        following._history = read_and_miss_one
        following._on_gap()
        assert (await ann.receive_json())["data"] == 1


async def test_a_late_message_of_an_epoch_that_is_over_does_not_have_the_log_read_for_ever(
    here: BroadcastRouter,
) -> None:
    async with client(here) as ann:
        await joined(ann)
        following = await follower(here)
        following._on_gap()
        following._on_message(b'gone:7\0\0"late"')
        await until(lambda: following._task is None)
        await here.processor.broadcast_to_group("room", 1)
        assert (await ann.receive_json())["data"] == 1


async def test_a_loss_nobody_noticed_is_found_by_looking_at_the_log(
    redis: RedisManager, here: BroadcastRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asgi_enhance.broadcast.remote.CHECK", 0.0)
    async with client(here) as ann:
        await joined(ann)
        await unheard(redis, 1, '"unheard"')
        assert (await ann.receive_json())["data"] == "unheard"
        assert here.processor.stats.gaps >= 1


async def test_a_process_starts_while_redis_is_away_and_serves_its_own_clients() -> None:
    redis = RedisServer()
    with redis:
        redis.kill()
        manager = RedisManager(redis.url)
        async with RealTimeStreamProcessor(redis=manager, history=HISTORY) as found:
            router = BroadcastRouter(processor=found)
            async with client(router, "/ws/ann?group=plain") as ann:
                await found.broadcast_to_group("plain", 1)
                assert await ann.receive_json() == 1
                assert await found.presence("plain") == ["ann"]
                with pytest.raises(RedisUnavailable):
                    await found.broadcast_to_group("room", 1)
                await asyncio.to_thread(redis.start)
                await until(lambda: manager.available, seconds=10)
                async with client(router, "/ws/bob?group=room") as bob:
                    await found.broadcast_to_group("room", 2)
                    assert (await bob.receive_json())["data"] == 2


async def test_a_group_with_a_history_cannot_be_joined_first_while_redis_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("asgi_enhance.broadcast.follower.PATIENCE", 0.05)
    with RedisServer() as redis:
        redis.kill()
        async with RealTimeStreamProcessor(redis=RedisManager(redis.url), history=HISTORY) as found:
            router = BroadcastRouter(processor=found)
            async with WebSocket(router, websocket_scope("/ws/bob?group=room")) as bob:
                answer = await bob.refused()
                assert answer.status == 503  # type: ignore[union-attr]
            async with client(router) as ann:
                ann.send_json({"type": "join", "group": "room"})
                error = await ann.receive_json()
                assert (error["type"], error["code"]) == ("error", "unavailable")
