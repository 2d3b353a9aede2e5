"""What clients send: handlers by type, errors that are answers, and what holds a flood back."""

import asyncio
import logging
from collections.abc import AsyncIterator
from time import monotonic
from typing import Any

import msgspec
import pytest

from asgi_enhance.broadcast import BroadcastRouter, History, Limits, RealTimeStreamProcessor
from tests.broadcast.helpers import client, until


@pytest.fixture
async def processor() -> AsyncIterator[RealTimeStreamProcessor]:
    async with RealTimeStreamProcessor(limits=Limits(message_bytes=2000, handler_seconds=0.05)) as processor:
        yield processor


@pytest.fixture
def router(processor: RealTimeStreamProcessor) -> BroadcastRouter:
    return BroadcastRouter(processor=processor)


async def test_a_message_goes_to_the_handler_of_its_type_and_the_answer_comes_back(router: BroadcastRouter) -> None:
    async def update(client_id: str, message: dict[str, Any]) -> dict[str, Any]:
        return {"from": client_id, "n": message["n"] + 1}

    router.processor.register_processor("update", update)
    router.processor.register_processor("double", lambda client_id, message: message["n"] * 2)
    async with client(router) as ann:
        ann.send_json({"type": "update", "n": 1, "ref": "r"})
        ann.send_json({"type": "update", "n": 1})
        ann.send_json({"type": "double", "n": 21, "ref": "r"})
        assert await ann.receive_json() == {"from": "ann", "n": 2, "ref": "r"}
        assert await ann.receive_json() == {"from": "ann", "n": 2}
        assert await ann.receive_json() == 42


async def test_messages_of_one_client_are_handled_in_order(router: BroadcastRouter) -> None:
    handled = []

    async def slow_first(client_id: str, message: dict[str, Any]) -> None:
        if message["n"] == 0:
            await asyncio.sleep(0.01)
        handled.append(message["n"])

    router.processor.register_processor("n", slow_first)
    async with client(router) as ann:
        for n in range(5):
            ann.send_json({"type": "n", "n": n})
        await until(lambda: len(handled) == 5)
    assert handled == [0, 1, 2, 3, 4]


async def test_what_was_received_is_handled_even_if_the_client_leaves_at_once(router: BroadcastRouter) -> None:
    handled = []

    async def save(client_id: str, message: dict[str, Any]) -> None:
        await asyncio.sleep(0.001)
        handled.append(message["n"])

    router.processor.register_processor("save", save)
    async with client(router) as ann:
        ann.send_json({"type": "save", "n": 1})
        ann.send_json({"type": "save", "n": 2})
    await until(lambda: handled == [1, 2])


async def test_a_handler_that_fails_is_answered_logged_and_not_the_end(
    router: BroadcastRouter, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(client_id: str, message: dict[str, Any]) -> None:
        raise RuntimeError("secret")

    router.processor.register_processor("fail", fail)
    async with client(router) as ann:
        with caplog.at_level(logging.ERROR, "asgi_enhance.broadcast"):
            ann.send_json({"type": "fail", "ref": 1})
            error = await ann.receive_json()
        assert (error["type"], error["code"], error["ref"]) == ("error", "failed", 1)
        assert "secret" not in error["detail"]
        assert "secret" in caplog.text
        assert "messages of type 'fail'" in caplog.text
        ann.send_json({"type": "ping"})
        assert await ann.receive_json() == {"type": "pong"}
    assert router.processor.stats.handler_errors == 1


async def test_a_handler_that_awaits_something_cancelled_has_failed_and_the_next_ones_run() -> None:
    async def wait(client_id: str, message: dict[str, Any]) -> None:
        cancelled = asyncio.get_running_loop().create_future()
        cancelled.cancel()
        await cancelled

    async with RealTimeStreamProcessor(limits=Limits(inbox_messages=1)) as processor:
        processor.register_processor("wait", wait)
        async with client(BroadcastRouter(processor=processor)) as ann:
            for n in range(3):
                ann.send_json({"type": "wait", "ref": n})
            for n in range(3):
                error = await ann.receive_json()
                assert (error["code"], error["ref"]) == ("failed", n)


async def test_a_handler_that_takes_too_long_is_cancelled_and_pings_are_answered_meanwhile(
    router: BroadcastRouter,
) -> None:
    router.processor.register_processor("wait", lambda client_id, message: asyncio.Event().wait())
    async with client(router) as ann:
        ann.send_json({"type": "wait"})
        ann.send_json({"type": "ping"})
        assert await ann.receive_json() == {"type": "pong"}
        assert (await ann.receive_json())["code"] == "failed"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("not json", "bad-json"),
        ("[" * 2000, "bad-json"),
        ("[1]", "bad-message"),
        ('{"type": 7}', "bad-message"),
        ('{"type": "nobody"}', "unknown-type"),
        ('{"type": "ping", "ref": [1]}', "bad-message"),
        ('{"type": "join"}', "bad-message"),
        ('{"type": "join", "group": ""}', "bad-message"),
        ('{"type": "publish", "group": "g", "data": 1}', "forbidden"),
    ],
)
async def test_what_cannot_be_understood_is_answered_with_an_error(
    router: BroadcastRouter, text: str, code: str
) -> None:
    async with client(router) as ann:
        ann.send_text(text)
        error = await ann.receive_json()
        assert (error["type"], error["code"]) == ("error", code)


async def test_messages_are_validated_against_the_schema_of_their_type(router: BroadcastRouter) -> None:
    class Move(msgspec.Struct):
        x: int

    router.processor.register_processor("move", lambda client_id, move: [move.x], schema=Move)
    async with client(router) as ann:
        ann.send_json({"type": "move", "x": 3})
        assert await ann.receive_json() == [3]
        ann.send_json({"type": "move", "x": "three"})
        error = await ann.receive_json()
        assert error["code"] == "invalid"
        assert "$.x" in error["detail"]


async def test_binary_messages_are_json_too(router: BroadcastRouter) -> None:
    async with client(router) as ann:
        ann.feed({"type": "websocket.receive", "bytes": b'{"type":"ping"}'})
        assert await ann.receive_json() == {"type": "pong"}


@pytest.mark.parametrize("text", ["x" * 2001, "é" * 1001])
async def test_a_message_that_is_too_large_closes_the_connection(router: BroadcastRouter, text: str) -> None:
    async with client(router) as ann:
        ann.send_text(text)
        closed = await ann.next()
        assert (closed["type"], closed["code"]) == ("websocket.close", 1009)
        await ann.ended()


async def test_who_sends_too_fast_is_read_more_slowly_and_loses_nothing() -> None:
    processor = RealTimeStreamProcessor(limits=Limits(inbound_rate=20, inbound_burst=5))
    begun = monotonic()
    async with processor, client(BroadcastRouter(processor=processor)) as ann:  # which sends one message itself
        for ref in range(9):
            ann.send_json({"type": "ping", "ref": ref})
        assert [(await ann.receive_json())["ref"] for _ in range(9)] == list(range(9))
    assert monotonic() - begun >= (10 - 5) / 20


async def test_no_more_handlers_run_at_once_than_allowed() -> None:
    running: list[str] = []
    most = []
    go_on = asyncio.Event()

    async def handle(client_id: str, message: dict[str, Any]) -> None:
        running.append(client_id)
        most.append(len(running))
        await go_on.wait()
        running.remove(client_id)

    async with RealTimeStreamProcessor(limits=Limits(handlers=2)) as processor:
        processor.register_processor("work", handle)
        router = BroadcastRouter(processor=processor)
        async with client(router, "/ws/a") as a, client(router, "/ws/b") as b, client(router, "/ws/c") as c:
            for each in (a, b, c):
                each.send_json({"type": "work"})
            await until(lambda: len(running) == 2)
            go_on.set()
            await until(lambda: len(most) == 3)
    assert max(most) == 2


async def test_a_full_inbox_is_not_read_further() -> None:
    go_on = asyncio.Event()
    handled: list[int] = []

    async def handle(client_id: str, message: dict[str, Any]) -> None:
        await go_on.wait()
        handled.append(message["n"])

    async with RealTimeStreamProcessor(limits=Limits(inbox_messages=2)) as processor:
        processor.register_processor("n", handle)
        async with client(BroadcastRouter(processor=processor)) as ann:
            for n in range(6):
                ann.send_json({"type": "n", "n": n})
            await until(lambda: processor.stats.received == 5)  # the ping, one handled, two waiting, one in hand
            await asyncio.sleep(0)
            assert processor.stats.received == 5
            go_on.set()
            await until(lambda: handled == [0, 1, 2, 3, 4, 5])


async def test_what_is_published_must_be_there() -> None:
    processor = RealTimeStreamProcessor(authorize=lambda *asked: True)
    async with processor, client(BroadcastRouter(processor=processor)) as ann:
        ann.send_json({"type": "publish", "group": "g"})
        assert (await ann.receive_json())["code"] == "bad-message"
        ann.send_json({"type": "publish", "group": "g", "data": None})
        assert (await ann.receive_json())["type"] == "published"


async def test_clients_publish_where_authorize_lets_them_and_each_has_his_own_keys() -> None:
    asked = []

    async def authorize(client_id: str, group: str, action: str) -> bool:
        asked.append((client_id, group, action))
        return client_id != "eve"

    async with RealTimeStreamProcessor(history={"*": History()}, authorize=authorize) as processor:
        router = BroadcastRouter(processor=processor)
        async with client(router, "/ws/ann?group=g") as ann, client(router, "/ws/bob") as bob:
            for sender in (ann, ann, bob):
                sender.send_json({"type": "publish", "group": "g", "data": 1, "idempotency_key": "k"})
            await until(lambda: processor.stats.received == 5)
            await until(lambda: len(asked) == 4)
            assert await processor.history("g") == [1, 1]
        async with client(router, "/ws/eve") as eve:
            eve.send_json({"type": "join", "group": "g"})
            assert (await eve.receive_json())["code"] == "forbidden"
    assert ("ann", "g", "join") in asked
    assert ("bob", "g", "publish") in asked


async def test_no_name_makes_the_key_of_one_client_that_of_another() -> None:
    async with RealTimeStreamProcessor(history={"g": History()}, authorize=lambda *asked: True) as processor:
        router = BroadcastRouter(
            processor=processor, path="/ws", sse_path=None, authenticate=lambda scope: scope["query_string"].decode()
        )
        async with client(router, "/ws?a") as one, client(router, "/ws?a/b") as other:
            one.send_json({"type": "publish", "group": "g", "data": 1, "idempotency_key": "b/c"})
            await one.receive_json()
            other.send_json({"type": "publish", "group": "g", "data": 2, "idempotency_key": "c"})
            await other.receive_json()
        assert await processor.history("g") == [1, 2]


async def test_a_client_asks_who_is_there(router: BroadcastRouter) -> None:
    async with client(router, "/ws/ann?group=g") as ann, client(router, "/ws/bob?group=g"):
        ann.send_json({"type": "presence", "group": "g"})
        assert await ann.receive_json() == {"type": "presence", "group": "g", "clients": ["ann", "bob"]}
    assert await router.processor.presence("g") == []
