"""A client that does not read: it is queued for within bounds, dealt with by policy, and delays nobody."""

import asyncio
import json
from typing import Any

import pytest

from asgi_enhance.asgi.types import Message, Receive, Scope, Send
from asgi_enhance.broadcast import BroadcastRouter, History, Limits, RealTimeStreamProcessor
from asgi_enhance.testing.driver import WebSocket, websocket_scope
from tests.broadcast.helpers import client, nothing, until


async def stuck(router: BroadcastRouter, path: str = "/ws/slow?group=g") -> WebSocket:
    """A client that has let itself be connected and reads nothing more: the second message is one too many."""
    socket = WebSocket(router, websocket_scope(path), capacity=1)
    await socket.__aenter__()
    await socket.accepted()
    await until(lambda: router.processor.stats.connections >= 1)
    return socket


async def publish(router: BroadcastRouter, count: int, **more: str) -> None:
    for n in range(count):
        await router.processor.broadcast_to_group("g", n, **more)
    await asyncio.sleep(0)  # they are handed over at the end of the turn


async def numbers(socket: WebSocket, count: int) -> list[object]:
    return [await socket.receive_json() for _ in range(count)]


async def test_others_get_everything_at_once_while_one_does_not_read() -> None:
    async with RealTimeStreamProcessor() as processor:
        router = BroadcastRouter(processor=processor)
        slow = await stuck(router)
        async with client(router, "/ws/ann?group=g") as ann:
            await publish(router, 50)
            assert len(ann.sent) == 2 + 50
            assert await numbers(ann, 50) == list(range(50))
        assert await numbers(slow, 50) == list(range(50))
        await until(lambda: processor.stats.outbox_bytes == 0)
        slow.leave()
        await slow.ended()


async def test_after_it_has_caught_up_it_is_written_directly_again() -> None:
    async with RealTimeStreamProcessor() as processor:
        router = BroadcastRouter(processor=processor)
        slow = await stuck(router)
        await publish(router, 3)
        assert await numbers(slow, 3) == [0, 1, 2]
        await until(lambda: processor.stats.outbox_bytes == 0)
        queued = processor.stats.queued
        await publish(router, 1)
        assert processor.stats.queued == queued
        slow.leave()
        await slow.ended()


async def test_disconnect_closes_it_with_1013_and_frees_what_waited() -> None:
    async with RealTimeStreamProcessor(limits=Limits(outbox_messages=2)) as processor:
        router = BroadcastRouter(processor=processor)
        slow = await stuck(router)
        await publish(router, 5)
        assert processor.stats.outbox_bytes == 0
        assert processor.stats.slow_disconnects == 1
        assert await numbers(slow, 2) == [0, 1]  # what was on its way
        closed = await slow.next()
        assert (closed["type"], closed["code"]) == ("websocket.close", 1013)
        await slow.ended()
        assert (processor.stats.connections, processor.stats.groups) == (0, 0)


async def test_one_that_never_reads_again_is_let_go_without_a_farewell() -> None:
    limits = Limits(outbox_messages=2, close_seconds=0.02)
    async with RealTimeStreamProcessor(limits=limits) as processor:
        slow = await stuck(BroadcastRouter(processor=processor))
        await publish(BroadcastRouter(processor=processor), 5)
        await slow.ended()
        assert processor.stats.connections == 0


async def test_one_whose_socket_takes_nothing_for_too_long_is_closed_before_its_outbox_is_full() -> None:
    limits = Limits(send_seconds=0.03, close_seconds=0.02)
    async with RealTimeStreamProcessor(limits=limits) as processor:
        slow = await stuck(BroadcastRouter(processor=processor))
        await publish(BroadcastRouter(processor=processor), 2)
        await slow.ended()
        assert processor.stats.slow_disconnects == 1


@pytest.mark.parametrize(
    ("policy", "left"), [("drop-oldest", [0, 1, 4, 5]), ("drop-newest", [0, 1, 2, 3]), ("latest-per-key", [0, 1, 5])]
)
async def test_each_policy_keeps_what_it_says(policy: str, left: list[int]) -> None:
    async with RealTimeStreamProcessor(slow_consumer=policy, limits=Limits(outbox_messages=2)) as processor:
        router = BroadcastRouter(processor=processor)
        slow = await stuck(router)
        await publish(router, 6, key="price")  # one written, one on its way, then the outbox
        assert await numbers(slow, len(left)) == left
        await processor.send_to_client("slow", "end")
        assert await slow.receive_json() == "end"
        assert processor.stats.dropped == 6 - len(left)
        slow.leave()
        await slow.ended()


async def test_a_message_dropped_from_a_history_is_followed_by_a_reset() -> None:
    processor = RealTimeStreamProcessor(
        slow_consumer="drop-oldest", limits=Limits(outbox_messages=2), history={"g": History()}
    )
    async with processor:
        router = BroadcastRouter(processor=processor)
        slow = await stuck(router)
        assert (await slow.receive_json())["type"] == "joined"
        await publish(router, 6)
        frames = [await slow.receive_json() for _ in range(5)]
        seen = [(frame["type"], frame.get("data")) for frame in frames]
        assert seen == [("message", 0), ("message", 1), ("reset", None), ("message", 4), ("message", 5)]
        slow.leave()
        await slow.ended()


async def test_the_outboxes_together_have_a_bound_that_no_policy_exceeds() -> None:
    limits = Limits(all_outboxes_bytes=1000)
    async with RealTimeStreamProcessor(slow_consumer="drop-oldest", limits=limits) as processor:
        router = BroadcastRouter(processor=processor)
        slow = await stuck(router)
        for _ in range(20):
            await processor.broadcast_to_group("g", "x" * 100)
            await asyncio.sleep(0)
            assert processor.stats.outbox_bytes <= 1000
        assert processor.stats.slow_disconnects == 1
        assert processor.stats.outbox_bytes == 0
        for _ in range(2):
            await slow.next()
        assert (await slow.next())["code"] == 1013
        await slow.ended()


async def test_drain_waits_for_what_is_in_the_outbox() -> None:
    async with RealTimeStreamProcessor() as processor:
        router = BroadcastRouter(processor=processor)
        slow = await stuck(router)
        await publish(router, 5)
        draining = asyncio.create_task(router.drain(spread=0.0))
        assert await numbers(slow, 5) == list(range(5))
        assert (await slow.next())["code"] == 1012
        await draining


async def test_what_is_published_while_the_farewell_waits_does_not_come_after_it() -> None:
    async with RealTimeStreamProcessor() as processor:
        router = BroadcastRouter(processor=processor)
        slow = await stuck(router)
        await publish(router, 5)
        draining = asyncio.create_task(router.drain(spread=0.0))
        assert await numbers(slow, 4) == list(range(4))
        await until(lambda: processor.stats.outbox_bytes == 0)
        for _ in range(5):  # the writer has ended, and the farewell waits for the last message to be read
            await asyncio.sleep(0)
        (connection,) = (await processor.started()).hub.connections
        assert connection.closing
        assert connection.busy
        await publish(router, 1)
        await numbers(slow, 1)
        assert (await slow.next())["code"] == 1012
        await draining
        assert slow.sent[-1]["type"] == "websocket.close"


async def test_a_member_may_leave_while_its_group_is_being_sent_to() -> None:
    """`send` is the application's to wrap, and it is called in the middle of a fan-out."""
    processor = RealTimeStreamProcessor()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        name = scope["path"]

        async def leaving(message: Message) -> None:
            await send(message)
            if message["type"] == "websocket.send" and name == "/a":
                await processor.leave("/a", "g")
                await processor.leave("/b", "g")

        await receive()
        await send({"type": "websocket.accept"})
        await processor.add_connection(name, (receive, leaving), groups=["g"])

    a, b = WebSocket(app, websocket_scope("/a")), WebSocket(app, websocket_scope("/b"))
    async with processor, a, b:
        await a.accepted()
        await b.accepted()
        await until(lambda: processor.stats.connections == 2)
        await processor.broadcast_to_group("g", 1)
        assert [await a.receive_json(), await b.receive_json()] == [1, 1]
        await processor.broadcast_to_group("g", 2)
        await processor.broadcast_all(3)
        assert [await a.receive_json(), await b.receive_json()] == [3, 3]
        for each in (a, b):
            each.leave()
            await each.ended()


async def test_who_does_not_read_his_answers_gets_no_further_ones() -> None:
    async with RealTimeStreamProcessor() as processor:
        slow = await stuck(BroadcastRouter(processor=processor), "/ws/slow")
        for ref in range(50):
            slow.send_json({"type": "ping", "ref": ref})
        await until(lambda: processor.stats.received == 3)  # one answered, one on its way, one that waits
        assert processor.stats.queued == 0
        assert [(await slow.receive_json())["ref"] for _ in range(50)] == list(range(50))
        slow.leave()
        await slow.ended()


async def test_a_message_published_while_another_is_being_sent_comes_after_it() -> None:
    processor = RealTimeStreamProcessor()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def reentrant(message: Message) -> None:
            if message == {"type": "websocket.send", "text": "1"}:
                await processor.send_to_client("ann", 2)
            await send(message)

        await receive()
        await send({"type": "websocket.accept"})
        await processor.add_connection("ann", (receive, reentrant))

    async with processor, WebSocket(app, websocket_scope("/")) as ann:
        await ann.accepted()
        await until(lambda: processor.stats.connections == 1)
        await processor.send_to_client("ann", 1)
        assert [await ann.receive_json(), await ann.receive_json()] == [1, 2]
        ann.leave()
        await ann.ended()


@pytest.mark.parametrize("hurried", [False, True])
async def test_what_a_send_publishes_comes_to_everybody_after_what_was_being_sent(hurried: bool) -> None:
    got: list[str] = []

    async def reentrant(message: Message) -> None:
        if message["text"] == "1":
            await processor.broadcast_to_group("g", 2)
            await processor.broadcast_to_group("other", 0)
            await processor.send_to_client("bob", 3)

    async def write(message: Message) -> None:
        got.append(message["text"])

    async with RealTimeStreamProcessor() as processor:
        await processor.add_connection("ann", (nothing, reentrant), ["g"], listen=False)
        await processor.add_connection("bob", (nothing, write), ["g"], listen=False)
        await processor.broadcast_to_group("g", 1)
        if hurried:  # something is not to overtake it
            await processor.send_to_client("ann", 0)
        for _ in range(3):
            await asyncio.sleep(0)
        assert got == ["1", "2", "3"]
        await processor.remove_connection("ann")
        await processor.remove_connection("bob")


async def test_what_a_send_publishes_is_numbered_as_it_is_written() -> None:
    got: list[dict[str, Any]] = []

    async def reentrant(message: Message) -> None:
        await processor.broadcast_to_group("g", "by the send")

    async def write(message: Message) -> None:
        got.append(json.loads(message["text"]))

    async with RealTimeStreamProcessor(history={"g": History()}) as processor:
        await processor.add_connection("ann", (nothing, reentrant), ["other"], listen=False)
        await processor.add_connection("bob", (nothing, write), ["g"], listen=False)
        await processor.broadcast_to_group("other", 0)
        await processor.broadcast_to_group("g", "after it")
        await until(lambda: len(got) == 3)
        joined, *messages = got
        epoch, _, _ = joined["id"].partition(":")
        assert [(message["id"], message["data"]) for message in messages] == [
            (f"{epoch}:1", "after it"),
            (f"{epoch}:2", "by the send"),
        ]
        await processor.remove_connection("ann")
        await processor.remove_connection("bob")


async def test_a_large_group_does_not_hold_the_loop_and_is_not_overtaken() -> None:
    got: list[tuple[int, str]] = []

    def writes(number: int) -> Send:
        async def write(message: Message) -> None:
            got.append((number, message["text"]))

        return write

    async with RealTimeStreamProcessor() as processor:
        for number in range(2500):
            await processor.add_connection(f"c{number}", (nothing, writes(number)), ["g"], listen=False)
        await processor.broadcast_to_group("g", 1)
        await asyncio.sleep(0)
        assert 0 < len(got) < 2500  # others have their turn
        await processor.broadcast_to_group("g", 2)
        await processor.send_to_client("c2499", 3)
        await processor.broadcast_to_group("g", 4)
        await until(lambda: len(got) == 3 * 2500 + 1)
        assert [text for number, text in got if number == 2499] == ["1", "2", "3", "4"]
        await processor.broadcast_to_group("g", 5)
        await until(lambda: len(got) == 4 * 2500 + 1)
        assert all([t for n, t in got if n == number] == ["1", "2", "4", "5"] for number in (0, 1000, 2498))
        for number in range(2500):
            await processor.remove_connection(f"c{number}")


async def test_a_send_that_closes_its_own_connection_and_then_waits_is_finished() -> None:
    got: list[str] = []
    waits, goes_on = asyncio.Event(), asyncio.Event()

    async def closing(message: Message) -> None:
        if message["type"] == "websocket.send":
            if message["text"] == "1":
                await processor.send_to_client("ann", 2)
                await processor.remove_connection("ann")
            waits.set()
            await goes_on.wait()
        got.append(message.get("text", message["type"]))

    async with RealTimeStreamProcessor() as processor:
        serving = asyncio.create_task(processor.add_connection("ann", (nothing, closing)))
        await until(lambda: processor.stats.connections == 1)
        sending = asyncio.create_task(processor.send_to_client("ann", 1))
        await waits.wait()
        goes_on.set()
        await serving
        await sending
    assert got == ["1", "2", "websocket.close"]


async def test_a_send_that_has_just_begun_to_wait_hears_that_its_connection_is_over() -> None:
    heard = []

    async def send(message: Message) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:  # what it holds, or waits for in a queue, it gives back now
            heard.append(message["text"])
            raise

    async with RealTimeStreamProcessor() as processor:
        await processor.add_connection("ann", (nothing, send), listen=False)
        await processor.send_to_client("ann", 1)
        await processor.remove_connection("ann")
    assert heard == ["1"]


async def test_one_that_joins_a_group_while_it_leaves_is_left_in_none() -> None:
    async def send(message: Message) -> None:
        await processor.join("ann", "late")

    async with RealTimeStreamProcessor() as processor:
        await processor.add_connection("ann", (nothing, send), ["g"], listen=False)
        await processor.broadcast_to_group("g", 1)
        await processor.remove_connection("ann")
        assert await processor.presence("late") == []
        assert processor.stats.groups == 0


async def test_one_that_joins_a_group_while_it_is_let_into_it_is_in_it_once() -> None:
    async def send(message: Message) -> None:
        await processor.join("ann", "late")

    async with RealTimeStreamProcessor() as processor:
        await processor.add_connection("ann", (nothing, send), ["g"], listen=False)
        await processor.broadcast_to_group("g", 1)
        await processor.join("ann", "late")
        await processor.remove_connection("ann")
        assert processor.stats.groups == 0
