"""Messages in one process: groups, clients, everyone; what a client asks for and what it is answered."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from asgi_enhance.asgi.problem import Problem
from asgi_enhance.broadcast import BroadcastRouter, RealTimeStreamProcessor
from asgi_enhance.testing.driver import Response, WebSocket, websocket_scope
from tests.broadcast.helpers import client


@pytest.fixture
async def processor() -> AsyncIterator[RealTimeStreamProcessor]:
    async with RealTimeStreamProcessor() as processor:
        yield processor


@pytest.fixture
def router(processor: RealTimeStreamProcessor) -> BroadcastRouter:
    return BroadcastRouter(processor=processor)


async def test_a_message_to_a_group_reaches_its_members_and_nobody_else(router: BroadcastRouter) -> None:
    async with client(router, "/ws/ann?group=news") as ann, client(router, "/ws/bob?group=sport") as bob:
        await router.processor.broadcast_to_group("news", {"n": 1})
        await router.processor.broadcast_to_group("sport", {"n": 2})
        assert await ann.receive_json() == {"n": 1}
        assert await bob.receive_json() == {"n": 2}


async def test_a_client_joins_and_leaves_by_message(router: BroadcastRouter) -> None:
    async with client(router) as ann:
        ann.send_json({"type": "join", "group": "news", "ref": 7})
        assert await ann.receive_json() == {"type": "joined", "group": "news", "ref": 7}
        await router.processor.broadcast_to_group("news", "hello")
        assert await ann.receive_json() == "hello"
        ann.send_json({"type": "leave", "group": "news"})
        assert await ann.receive_json() == {"type": "left", "group": "news"}
        await router.processor.broadcast_to_group("news", "unheard")
        await router.processor.send_to_client("ann", "heard")
        assert await ann.receive_json() == "heard"


async def test_nothing_overtakes_what_was_sent_before_it(router: BroadcastRouter) -> None:
    send = router.processor
    async with client(router, "/ws/ann?group=a&group=b") as ann:
        await send.broadcast_to_group("a", 1)
        await send.broadcast_to_group("a", 2)
        await send.broadcast_to_group("b", 3)
        await send.send_to_client("ann", 4)
        await send.broadcast_to_group("a", 5)
        await send.broadcast_all(6)
        await send.broadcast_to_group("a", 7)
        await send.leave("ann", "a")
        await send.broadcast_to_group("a", "unheard")
        await send.broadcast_to_group("b", 8)
        await send.remove_connection("ann")
        assert [await ann.receive_json() for _ in range(8)] == [1, 2, 3, 4, 5, 6, 7, 8]
        assert (await ann.next())["type"] == "websocket.close"


async def test_who_joins_hears_nothing_that_was_sent_before(router: BroadcastRouter) -> None:
    async with client(router) as ann, client(router, "/ws/bob?group=a"):
        await router.processor.broadcast_to_group("a", "before")
        await router.processor.join("ann", "a")
        await router.processor.broadcast_to_group("a", "after")
        assert await ann.receive_json() == "after"


async def test_a_long_burst_arrives_whole_and_in_order(router: BroadcastRouter) -> None:
    async with client(router, "/ws/ann?group=a") as ann:
        for n in range(200):
            await router.processor.broadcast_to_group("a", n)
        assert [await ann.receive_json() for _ in range(200)] == list(range(200))


async def test_all_connections_of_a_client_get_what_is_sent_to_it(router: BroadcastRouter) -> None:
    async with client(router, "/ws/ann") as desk, client(router, "/ws/ann") as phone, client(router, "/ws/bob") as bob:
        assert await router.processor.send_to_client("ann", [1])
        assert not await router.processor.send_to_client("eve", [2])
        await router.processor.broadcast_all([3])
        assert [await desk.receive_json(), await desk.receive_json()] == [[1], [3]]
        assert [await phone.receive_json(), await phone.receive_json()] == [[1], [3]]
        assert await bob.receive_json() == [3]


async def test_a_client_is_refused_before_it_is_accepted(processor: RealTimeStreamProcessor) -> None:
    router = BroadcastRouter(processor=processor, authenticate=lambda scope: None)
    async with WebSocket(router, websocket_scope("/ws/ann")) as socket:
        answer = await socket.refused()
        assert isinstance(answer, Response)
        assert answer.status == 401


async def test_authenticate_says_who_it_is(processor: RealTimeStreamProcessor) -> None:
    async def authenticate(scope: Any) -> str | Problem:
        return "ann" if scope["query_string"] == b"token=1" else Problem(403)

    router = BroadcastRouter(processor=processor, path="/live", authenticate=authenticate)
    async with client(router, "/live?token=1") as ann:
        assert await processor.send_to_client("ann", 1)
        assert await ann.receive_json() == 1


async def test_what_is_no_text_is_refused_and_costs_nobody_anything(router: BroadcastRouter) -> None:
    async with client(router, "/ws/ann?group=g") as ann:
        await router.processor.broadcast_to_group("g", 1)
        with pytest.raises(UnicodeDecodeError):
            await router.processor.broadcast_to_group("g", msgspec.Raw(b'"\xff"'))
        await router.processor.broadcast_to_group("g", 2)
        assert [await ann.receive_json(), await ann.receive_json()] == [1, 2]
