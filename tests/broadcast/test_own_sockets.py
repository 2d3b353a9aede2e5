"""Sockets that the user's own framework has accepted."""

import asyncio
import gc
import warnings
from collections.abc import Awaitable

import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket as StarletteWebSocket
from starlette.websockets import WebSocketDisconnect

from asgi_enhance.asgi.types import Message, Receive, Scope, Send
from asgi_enhance.broadcast import RealTimeStreamProcessor
from asgi_enhance.errors import ConfigError, WebSocketError
from asgi_enhance.testing.driver import WebSocket, websocket_scope
from tests.broadcast.helpers import nothing, until


async def test_a_starlette_socket_lives_until_its_client_leaves() -> None:
    processor = RealTimeStreamProcessor()
    left: list[str] = []

    async def endpoint(websocket: StarletteWebSocket) -> None:
        client_id = websocket.path_params["client_id"]
        await websocket.accept()
        await processor.add_connection(client_id, websocket, groups=["project:123"])
        left.append(client_id)

    app = Starlette(routes=[WebSocketRoute("/ws/{client_id}", endpoint)])
    async with processor, WebSocket(app, websocket_scope("/ws/ann")) as ann:
        await ann.accepted()
        await until(lambda: processor.stats.connections == 1)
        await processor.broadcast_to_group("project:123", {"type": "update", "data": 1})
        assert await ann.receive_json() == {"type": "update", "data": 1}
        assert left == []
        ann.leave()
        await ann.ended()
        assert left == ["ann"]
        assert (processor.stats.connections, processor.stats.groups) == (0, 0)


async def test_remove_connection_closes_the_socket_it_serves() -> None:
    processor = RealTimeStreamProcessor()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        await processor.add_connection("ann", (receive, send))

    async with processor, WebSocket(app, websocket_scope("/")) as ann:
        await ann.accepted()
        await until(lambda: processor.stats.connections == 1)
        await processor.remove_connection("ann")
        await processor.send_to_client("ann", "too late")
        assert await ann.next() == {"type": "websocket.close", "code": 1000, "reason": ""}
        await ann.ended()
        assert processor.stats.connections == 0


async def test_one_removed_while_it_is_taken_is_closed_too() -> None:
    got: list[Message] = []

    async def ban(client_id: str) -> None:
        await processor.remove_connection(client_id)

    async def write(message: Message) -> None:
        got.append(message)

    async with RealTimeStreamProcessor(on_connect=ban) as processor:
        await processor.add_connection("ann", (nothing, write))
        await until(lambda: got == [{"type": "websocket.close", "code": 1000, "reason": ""}])
        await processor.add_connection("bob", (nothing, write), listen=False)
        assert processor.stats.connections == 0
    assert len(got) == 1  # the other socket is its owner's


async def test_a_socket_that_breaks_while_it_is_closed_ends_its_connection_without_a_cancellation() -> None:
    taken_so_far = asyncio.Event()

    async def unwinds_slowly() -> Message:
        try:
            return await nothing()
        finally:
            for _ in range(20):
                await asyncio.sleep(0)

    async def breaks(message: Message) -> None:
        await taken_so_far.wait()
        raise OSError

    async with RealTimeStreamProcessor() as processor:
        serving = asyncio.create_task(processor.add_connection("ann", (unwinds_slowly, breaks), groups=["g"]))
        await until(lambda: processor.stats.connections == 1)
        await processor.broadcast_to_group("g", 1)
        await processor.remove_connection("ann")  # says goodbye after what is on its way
        await asyncio.sleep(0)
        taken_so_far.set()
        await serving
        assert processor.stats.connections == 0


async def test_a_starlette_socket_that_was_not_accepted_is_an_error_and_not_a_member() -> None:
    async with RealTimeStreamProcessor() as processor:
        socket = StarletteWebSocket({"type": "websocket"}, nothing, discard)
        with pytest.raises(WebSocketError, match="accept the WebSocket"):
            await processor.add_connection("ann", socket, groups=["g"])
        assert processor.stats.groups == 0


async def test_one_string_is_no_list_of_groups() -> None:
    with pytest.raises(ConfigError, match="groups"):
        await RealTimeStreamProcessor().add_connection("ann", (nothing, discard), groups="group")


async def test_one_whom_nobody_removes_is_forgotten_when_a_message_cannot_be_sent() -> None:
    async def gone(message: Message) -> None:
        raise OSError("gone")

    async with RealTimeStreamProcessor(heartbeat=0.02) as processor:  # which is looked after as often
        await processor.add_connection("ann", (nothing, gone), groups=["g"], listen=False)
        await processor.broadcast_to_group("g", 1)
        await until(lambda: (processor.stats.connections, processor.stats.groups) == (0, 0))


async def test_from_another_event_loop_its_connections_cannot_be_reached() -> None:
    async with RealTimeStreamProcessor() as processor:
        with pytest.raises(WebSocketError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, processor.broadcast_to_group("g", 1))
    await asyncio.to_thread(asyncio.run, processor.broadcast_to_group("g", 1))  # where it is not running


async def test_who_reads_the_socket_himself_removes_it_himself() -> None:
    processor = RealTimeStreamProcessor()
    heard: list[str] = []

    async def endpoint(websocket: StarletteWebSocket) -> None:
        await websocket.accept()
        await processor.add_connection("ann", websocket, groups=["g"], listen=False)
        try:
            while True:
                heard.append(await websocket.receive_text())
        except WebSocketDisconnect:
            await processor.remove_connection("ann", websocket)

    app = Starlette(routes=[WebSocketRoute("/", endpoint)])
    async with processor, WebSocket(app, websocket_scope("/")) as ann:
        await ann.accepted()
        ann.send_text("hello")
        await until(lambda: heard == ["hello"])
        await processor.broadcast_to_group("g", 1)
        assert await ann.receive_json() == 1
        ann.leave()
        await ann.ended()
        assert processor.stats.connections == 0


async def discard(message: Message) -> None: ...


async def raises(message: Message) -> None:
    raise OSError


def raises_at_once(message: Message) -> Awaitable[None]:
    raise OSError


async def awaits_something_cancelled(message: Message) -> None:
    cancelled = asyncio.get_running_loop().create_future()
    cancelled.cancel()
    await cancelled


async def awaits_something_that_is_cancelled(message: Message) -> None:
    waiting = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(waiting.cancel)
    await waiting


@pytest.mark.parametrize(
    "send", [raises, raises_at_once, awaits_something_cancelled, awaits_something_that_is_cancelled]
)
async def test_a_send_that_fails_ends_its_own_connection_only(send: Send) -> None:
    got: list[str] = []

    async def write(message: Message) -> None:
        got.append(message["text"])

    async with RealTimeStreamProcessor() as processor:
        serving = asyncio.create_task(processor.add_connection("ann", (nothing, send), ["g"]))
        await until(lambda: processor.stats.connections == 1)
        await processor.add_connection("bob", (nothing, write), ["g"], listen=False)
        await processor.broadcast_to_group("g", 1)
        await processor.broadcast_all(2)
        await asyncio.wait_for(serving, 5)
        assert got == ["1", "2"]
        assert processor.stats.connections == 1
        await processor.remove_connection("bob")


async def test_a_send_that_gives_a_future_may_be_let_go_before_anybody_waits_for_it() -> None:
    def begins_by_itself(message: Message) -> Awaitable[None]:
        return asyncio.get_running_loop().create_future()

    async with RealTimeStreamProcessor() as processor:
        await processor.add_connection("ann", (nothing, begins_by_itself), listen=False)
        await processor.send_to_client("ann", 1)
        await processor.remove_connection("ann")
        assert processor.stats.connections == 0
        with warnings.catch_warnings():  # a coroutine that was never awaited says so as it is collected
            warnings.simplefilter("error")
            gc.collect()


async def test_a_send_that_waits_hears_of_what_it_waited_for_and_of_its_end() -> None:
    heard: list[str] = []
    waiting: list[asyncio.Future[None]] = []

    async def wait() -> None:
        waiting.append(asyncio.get_running_loop().create_future())
        await waiting[-1]

    async def tries_again(message: Message) -> None:
        try:
            await wait()
        except OSError:
            heard.append("failed")
        try:
            await wait()
        except asyncio.CancelledError:
            heard.append("cancelled")
            raise

    async with RealTimeStreamProcessor() as processor:
        await processor.add_connection("ann", (nothing, tries_again), listen=False)
        await processor.send_to_client("ann", 1)
        await asyncio.sleep(0)
        waiting[0].set_exception(OSError())
        await until(lambda: len(waiting) == 2)
        await processor.remove_connection("ann")
    assert heard == ["failed", "cancelled"]
