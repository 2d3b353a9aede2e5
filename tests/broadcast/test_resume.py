"""Coming back: a client who tells where he was gets what he missed, once and in order, or a reset."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from asgi_enhance.broadcast import BroadcastRouter, History, RealTimeStreamProcessor
from asgi_enhance.testing.driver import Response, WebSocket, websocket_scope
from tests.broadcast.helpers import client


@pytest.fixture
async def router() -> AsyncIterator[BroadcastRouter]:
    async with RealTimeStreamProcessor(history={"room": History(size=3), "hall": History()}) as processor:
        yield BroadcastRouter(processor=processor)


async def join(socket: WebSocket, **more: Any) -> Any:
    socket.send_json({"type": "join", "group": "room", **more})
    return await socket.receive_json()


async def test_messages_of_a_group_with_a_history_carry_their_position(router: BroadcastRouter) -> None:
    async with client(router) as ann:
        joined = await join(ann)
        assert joined == {"type": "joined", "group": "room", "id": joined["id"]}
        position = await router.processor.broadcast_to_group("room", {"n": 1})
        assert await ann.receive_json() == {"type": "message", "group": "room", "id": position, "data": {"n": 1}}


async def test_who_comes_back_gets_what_he_missed_in_order_and_once(router: BroadcastRouter) -> None:
    async with client(router) as ann:
        since = (await join(ann))["id"]
    for n in (1, 2, 3):
        await router.processor.broadcast_to_group("room", n)
    async with client(router) as ann:
        assert await join(ann, since=since) == {"type": "joined", "group": "room", "id": since}
        await router.processor.broadcast_to_group("room", 4)
        assert [(await ann.receive_json())["data"] for _ in range(4)] == [1, 2, 3, 4]
    assert router.processor.stats.resumed == 1
    assert router.processor.stats.resets == 0


async def test_the_place_may_be_told_in_the_address(router: BroadcastRouter) -> None:
    async with client(router) as ann:
        since = (await join(ann))["id"]
    await router.processor.broadcast_to_group("room", 1)
    async with WebSocket(router, websocket_scope(f"/ws/ann?group=room&last_event_id=room%3D{since}")) as ann:
        await ann.accepted()
        assert (await ann.receive_json())["id"] == since
        assert (await ann.receive_json())["data"] == 1


async def test_who_missed_more_than_is_kept_gets_a_reset_and_no_part_of_it(router: BroadcastRouter) -> None:
    async with client(router) as ann:
        since = (await join(ann))["id"]
    for n in (1, 2, 3):
        await router.processor.broadcast_to_group("room", n)
    last = await router.processor.broadcast_to_group("room", 4)
    async with client(router) as ann:
        assert await join(ann, since=since) == {"type": "reset", "group": "room", "id": last}
        assert await ann.receive_json() == {"type": "joined", "group": "room", "id": last}
        await router.processor.broadcast_to_group("room", 5)
        assert (await ann.receive_json())["data"] == 5


async def test_who_is_new_may_begin_with_the_last_messages(router: BroadcastRouter) -> None:
    ids = [await router.processor.broadcast_to_group("room", n) for n in (1, 2, 3)]
    async with client(router) as ann, client(router) as bob:
        assert (await join(ann, last=2))["id"] == ids[0]
        assert (await join(bob, last=9))["id"] is not None  # more than there are
        await router.processor.broadcast_to_group("room", 4)
        assert [(await ann.receive_json())["data"] for _ in range(3)] == [2, 3, 4]
        assert [(await bob.receive_json())["data"] for _ in range(4)] == [1, 2, 3, 4]
    assert (router.processor.stats.resumed, router.processor.stats.resets) == (0, 0)


async def test_of_an_empty_history_the_last_messages_are_none(router: BroadcastRouter) -> None:
    async with client(router) as ann:
        await join(ann, last=2)
        await router.processor.broadcast_to_group("room", 1)
        assert (await ann.receive_json())["data"] == 1


async def test_the_address_may_ask_for_the_last_messages_of_groups_whose_place_it_does_not_tell(
    router: BroadcastRouter,
) -> None:
    for group in ("room", "hall"):
        ids = [await router.processor.broadcast_to_group(group, n) for n in (1, 2, 3)]
    path = f"/ws/ann?group=room&group=hall&last=1&last_event_id=hall%3D{ids[0]}"
    async with WebSocket(router, websocket_scope(path)) as ann:
        await ann.accepted()
        frames = [await ann.receive_json() for _ in range(5)]
        seen = [(frame["group"], frame["data"]) for frame in frames if frame["type"] == "message"]
        assert seen == [("room", 3), ("hall", 2), ("hall", 3)]


@pytest.mark.parametrize("last", [0, -1, "3", 1.5, True])
async def test_last_is_a_number_of_messages(router: BroadcastRouter, last: object) -> None:
    async with client(router) as ann:
        assert (await join(ann, last=last))["code"] == "bad-message"
    async with WebSocket(router, websocket_scope("/ws/ann?group=room&last=-1")) as ann:
        answer = await ann.refused()
        assert isinstance(answer, Response)
        assert answer.status == 400


async def test_a_cursor_that_cannot_be_read_is_a_reset(router: BroadcastRouter) -> None:
    async with WebSocket(router, websocket_scope("/ws/ann?group=room&last_event_id=zzz")) as ann:
        await ann.accepted()
        assert (await ann.receive_json())["type"] == "reset"


@pytest.mark.parametrize("since", ["", "nonsense", "another:0", 7, {}])
async def test_a_position_that_means_nothing_is_a_reset(router: BroadcastRouter, since: object) -> None:
    async with client(router) as ann:
        assert (await join(ann, since=since))["type"] == "reset"


async def test_a_member_who_noticed_a_gap_joins_again_and_is_a_member_once(router: BroadcastRouter) -> None:
    async with client(router) as ann:
        since = (await join(ann))["id"]
        await router.processor.broadcast_to_group("room", 1)
        assert (await ann.receive_json())["data"] == 1
        assert (await join(ann, since=since))["type"] == "joined"
        assert (await ann.receive_json())["data"] == 1
        await router.processor.broadcast_to_group("room", 2)
        await router.processor.send_to_client("ann", "end")
        assert (await ann.receive_json())["data"] == 2
        assert await ann.receive_json() == "end"


async def test_the_same_idempotency_key_publishes_once(router: BroadcastRouter) -> None:
    async with client(router) as ann:
        await join(ann)
        first = await router.processor.broadcast_to_group("room", 1, idempotency_key="k")
        again = await router.processor.broadcast_to_group("room", 1, idempotency_key="k")
        assert first == again
        await router.processor.broadcast_to_group("room", 2)
        assert [(await ann.receive_json())["data"] for _ in range(2)] == [1, 2]


async def test_an_idempotency_key_needs_a_history(router: BroadcastRouter) -> None:
    with pytest.raises(ValueError, match="keeps none"):
        await router.processor.broadcast_to_group("elsewhere", 1, idempotency_key="k")


async def test_the_history_is_kept_while_nobody_is_there(router: BroadcastRouter) -> None:
    for n in (1, 2, 3, 4):
        await router.processor.broadcast_to_group("room", n)
    assert await router.processor.history("room") == [2, 3, 4]
    assert await router.processor.history("elsewhere") == []
