"""Taking, watching and letting go of connections: limits, hooks, idle clients, drain, and what is left behind."""

import asyncio
import signal

import pytest

from asgi_enhance.asgi.types import Receive, Scope, Send
from asgi_enhance.broadcast import BroadcastRouter, History, Limits, RealTimeStreamProcessor, sigterm
from asgi_enhance.errors import WebSocketError
from asgi_enhance.testing.driver import Driver, Lifetime, Response, WebSocket, http_scope, request, websocket_scope
from tests.broadcast.helpers import client, until


async def refused(router: BroadcastRouter, path: str = "/ws/ann", **scope: object) -> int:
    async with WebSocket(router, websocket_scope(path, **scope)) as socket:  # type: ignore[arg-type]
        answer = await socket.refused()
        assert isinstance(answer, Response)
        await socket.ended()
        return answer.status


@pytest.mark.parametrize(
    ("limits", "path", "status"),
    [
        (Limits(connections=1), "/ws/bob", 503),
        (Limits(connections_per_client=1), "/ws/ann", 429),
        (Limits(groups_per_connection=1), "/ws/bob?group=a&group=b", 400),
        (Limits(groups=1), "/ws/bob?group=b", 503),
        (Limits(), "/ws/" + "x" * 201, 400),
        (Limits(), "/ws/bob?group=" + "x" * 201, 400),
    ],
)
async def test_beyond_its_limits_it_refuses_before_it_accepts(limits: Limits, path: str, status: int) -> None:
    async with RealTimeStreamProcessor(limits=limits) as processor:
        router = BroadcastRouter(processor=processor)
        async with client(router, "/ws/ann?group=a"):
            assert await refused(router, path) == status
            assert processor.stats.refused == 1
        async with client(router, "/ws/ann?group=a"):
            pass  # what was refused holds nothing


async def test_a_crowd_that_comes_at_once_is_held_to_the_limits_too() -> None:
    entered: list[str] = []
    go_on = asyncio.Event()

    async with RealTimeStreamProcessor(limits=Limits(connections=3, connections_per_client=1)) as processor:
        node = await processor.started()

        async def accept() -> None:
            entered.append("accepted")
            await go_on.wait()

        async def send(message: object) -> None: ...

        first = asyncio.create_task(node.connect("ann", send, {}, accept=accept))
        await until(lambda: entered)
        with pytest.raises(WebSocketError, match="this client"):
            await node.connect("ann", send, {})
        others = [asyncio.create_task(node.connect(name, send, {}, accept=accept)) for name in ("bob", "eve")]
        await until(lambda: len(entered) == 3)
        with pytest.raises(WebSocketError, match="too many connections"):
            await node.connect("joe", send, {})
        go_on.set()
        for connection in await asyncio.gather(first, *others):
            await node.disconnect(connection)
        await node.disconnect(await node.connect("joe", send, {}))


async def test_a_connection_that_is_cancelled_while_a_hook_runs_is_forgotten() -> None:
    called = asyncio.Event()

    async def on_connect(client_id: str) -> None:
        called.set()
        await asyncio.Event().wait()

    async with RealTimeStreamProcessor(on_connect=on_connect) as processor:
        async with WebSocket(BroadcastRouter(processor=processor), websocket_scope("/ws/ann?group=g")):
            await called.wait()
        assert (processor.stats.connections, processor.stats.groups) == (0, 0)


async def test_groups_per_connection_hold_for_those_joined_later_too() -> None:
    processor = RealTimeStreamProcessor(limits=Limits(groups_per_connection=1))
    async with processor, client(BroadcastRouter(processor=processor), "/ws/ann?group=a") as ann:
        ann.send_json({"type": "join", "group": "b"})
        assert (await ann.receive_json())["code"] == "bad-message"
        ann.send_json({"type": "join", "group": "a"})
        assert (await ann.receive_json())["type"] == "joined"


async def test_a_page_of_another_origin_is_refused() -> None:
    async with RealTimeStreamProcessor() as processor:
        router = BroadcastRouter(processor=processor)
        assert await refused(router, headers=[(b"origin", b"https://evil.example")]) == 403
        async with client(router, headers=[(b"origin", b"http://testserver")]):
            pass


async def test_authorize_is_asked_for_the_groups_in_the_address() -> None:
    processor = RealTimeStreamProcessor(authorize=lambda client_id, group, action: group != "secret")
    async with processor:
        assert await refused(BroadcastRouter(processor=processor), "/ws/ann?group=a&group=secret") == 403
        assert processor.stats.groups == 0


async def test_authorize_is_not_asked_about_more_groups_than_a_connection_may_be_in() -> None:
    asked: list[str] = []

    def authorize(client_id: str, group: str, action: str) -> bool:
        asked.append(group)
        return True

    async with RealTimeStreamProcessor(authorize=authorize, limits=Limits(groups_per_connection=2)) as processor:
        assert await refused(BroadcastRouter(processor=processor), "/ws/ann?group=a&group=b&group=c") == 400
    assert asked == []


async def test_an_identity_that_is_no_string_is_the_programmers_mistake_not_the_clients() -> None:
    router = BroadcastRouter(authenticate=lambda scope: 5)  # type: ignore[arg-type,return-value]
    with pytest.raises(TypeError, match="authenticate must give a str, None or a Problem, not 5"):
        await request(router, "/events/ann")
    await router.processor.aclose()


async def test_what_is_not_ours_is_404_without_an_app_of_its_own() -> None:
    router = BroadcastRouter()
    assert (await request(router, "/elsewhere")).status == 404
    assert await refused(router, "/elsewhere") == 404


async def test_hooks_hear_of_every_connection_once_and_may_fail() -> None:
    heard = []

    async def on_connect(client_id: str) -> None:
        heard.append(f"+{client_id}")
        raise RuntimeError("ignored")

    processor = RealTimeStreamProcessor(on_connect=on_connect, on_disconnect=lambda name: heard.append(f"-{name}"))
    async with processor:
        router = BroadcastRouter(processor=processor)
        async with client(router):
            await refused(router, headers=[(b"origin", b"https://evil.example")])
    assert heard == ["+ann", "-ann"]


async def test_a_client_that_has_pinged_and_falls_silent_is_closed() -> None:
    async with RealTimeStreamProcessor(idle_timeout=0.04) as processor:
        async with client(BroadcastRouter(processor=processor)) as ann:  # which pings once
            closed = await ann.next()
            assert (closed["type"], closed["code"]) == ("websocket.close", 1001)
            await ann.ended()
        assert processor.stats.idle_disconnects == 1


async def test_a_client_that_never_pings_is_left_to_the_server() -> None:
    processor = RealTimeStreamProcessor(idle_timeout=0.02, heartbeat=0.01)
    router = BroadcastRouter(processor=processor)
    events = Driver(router, http_scope("/events/bob"), [{"type": "http.request"}])
    async with processor, WebSocket(router, websocket_scope("/ws/ann")) as ann, events:
        await ann.accepted()
        await until(lambda: len(events.sent) > 10)  # the watch has gone round several times
        await processor.broadcast_all("still here")
        assert await ann.receive_json() == "still here"
        for each, leave in ((ann, "websocket.disconnect"), (events, "http.disconnect")):
            each.feed({"type": leave})
            await each.ended()


async def test_drain_sends_everybody_away_and_takes_nobody_new() -> None:
    async with RealTimeStreamProcessor() as processor:
        router = BroadcastRouter(processor=processor)
        scope = http_scope("/events/bob")
        async with client(router) as ann, Driver(router, scope, [{"type": "http.request"}]) as bob:
            await until(lambda: processor.stats.connections == 2)
            await processor.send_to_client("ann", "last words")
            await router.drain(spread=0.05)
            assert await ann.receive_json() == "last words"
            closed = await ann.next()
            assert (closed["type"], closed["code"]) == ("websocket.close", 1012)
            await bob.ended()
            last = bob.sent[-1]
            assert last["body"].startswith(b"retry: ")
            assert last["more_body"] is False
            assert await refused(router) == 503
            assert processor.stats.connections == 0


async def test_shutdown_drains() -> None:
    router = BroadcastRouter()
    async with Lifetime(router):
        ann = WebSocket(router, websocket_scope("/ws/ann"))
        await ann.__aenter__()
        await ann.accepted()
        await until(lambda: router.processor.stats.connections == 1)
    assert (await ann.next())["code"] == 1012
    await ann.ended()


async def test_a_server_that_does_not_ask_for_sigterm_may_write_its_last_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[object] = []
    monkeypatch.setattr(sigterm, "PARTING", 0.05)
    monkeypatch.setattr("os.kill", lambda *arguments: killed.append(arguments))
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        async with RealTimeStreamProcessor() as processor, sigterm.DrainOnSigterm(processor, 0.0):
            signal.raise_signal(signal.SIGTERM)
            node = await processor.started()
            await until(lambda: node.draining)
            for _ in range(5):
                await asyncio.sleep(0)
            assert killed == []
            await until(lambda: killed)
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_without_lifespan_the_first_connection_starts_it() -> None:
    router = BroadcastRouter()
    async with client(router) as ann:
        await router.processor.broadcast_all(1)
        assert await ann.receive_json() == 1
    await router.processor.aclose()


async def test_a_client_whose_send_fails_is_forgotten_though_no_disconnect_comes() -> None:
    async with RealTimeStreamProcessor() as processor:
        router = BroadcastRouter(processor=processor)
        async with WebSocket(router, websocket_scope("/ws/ann?group=g")) as ann:
            await ann.accepted()
            await until(lambda: processor.stats.connections == 1)
            ann._send_error = OSError("gone")
            await processor.broadcast_to_group("g", 1)
            await ann.ended()
        assert processor.stats.send_errors == 1
        assert (processor.stats.connections, processor.stats.groups) == (0, 0)


async def test_the_task_of_a_connection_that_is_let_go_is_not_left_cancelled() -> None:
    processor = RealTimeStreamProcessor()
    requests: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await processor.add_connection("ann", (receive, send))
        task = asyncio.current_task()
        assert task is not None
        requests.append(task.cancelling())

    async with processor, WebSocket(app, websocket_scope("/")) as ann:
        await ann.accepted()
        await until(lambda: processor.stats.connections == 1)
        await processor.remove_connection("ann")
        await ann.ended()
    assert requests == [0]


async def test_joining_twice_is_left_once() -> None:
    async with RealTimeStreamProcessor() as processor, client(BroadcastRouter(processor=processor)) as ann:
        for type in ("join", "join", "leave"):
            ann.send_json({"type": type, "group": "g"})
            await ann.receive_json()
        assert processor.stats.groups == 0


async def test_a_connection_that_is_refused_half_way_holds_none_of_its_groups() -> None:
    async with RealTimeStreamProcessor(limits=Limits(groups=1)) as processor:
        assert await refused(BroadcastRouter(processor=processor), "/ws/ann?group=a&group=b") == 503
        assert processor.stats.groups == 0


async def test_publishing_makes_no_more_groups_than_allowed() -> None:
    history, limits = {"*": History()}, Limits(groups=2)
    async with RealTimeStreamProcessor(history=history, limits=limits, authorize=lambda *asked: True) as processor:
        async with client(BroadcastRouter(processor=processor)) as ann:
            for group in ("a", "b", "c", "a"):
                ann.send_json({"type": "publish", "group": group, "data": 1})
            answers = [await ann.receive_json() for _ in range(4)]
        assert [answer.get("code") for answer in answers] == [None, None, "unavailable", None]
        assert processor.stats.groups == 2


async def test_connections_that_come_and_go_leave_nothing() -> None:
    async with RealTimeStreamProcessor() as processor:
        router = BroadcastRouter(processor=processor)
        before = len(asyncio.all_tasks())
        for _ in range(20):
            async with client(router, "/ws/ann?group=a&group=b"), client(router, "/ws/bob?group=b"):
                await processor.broadcast_to_group("b", 1)
        assert (processor.stats.connections, processor.stats.groups) == (0, 0)
        node = await processor.started()
        assert (node.hub.clients, node.hub.connections, node.hub.groups) == ({}, {}, {})
        await until(lambda: len(asyncio.all_tasks()) == before)


async def test_a_cancelled_request_is_cleaned_up_and_stays_cancelled() -> None:
    async with RealTimeStreamProcessor() as processor:
        ann = WebSocket(BroadcastRouter(processor=processor), websocket_scope("/ws/ann?group=g"))
        await ann.__aenter__()
        await ann.accepted()
        await until(lambda: processor.stats.connections == 1)
        assert ann.task is not None
        ann.task.cancel()
        await asyncio.wait([ann.task])
        assert ann.task.cancelled()
        assert (processor.stats.connections, processor.stats.groups) == (0, 0)
