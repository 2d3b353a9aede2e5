import asyncio
from typing import Any

import pytest

from asgi_enhance.asgi.messages import BodyCopy, ResponseTracker, SharedReceive
from asgi_enhance.asgi.types import Message


def start(**more: Any) -> Message:
    return {"type": "http.response.start", "status": 200, **more}


def body(*, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": b"", "more_body": more}


@pytest.mark.parametrize(
    ("messages", "finished_at"),
    [
        ([start(), body()], 1),
        ([start(), {"type": "http.response.body"}], 1),
        ([start(), body(more=True), body()], 2),
        ([{"type": "http.response.early_hint", "links": []}, start(), body()], 2),
        ([start(trailers=True), body(), {"type": "http.response.trailers"}], 2),
        (
            [
                start(trailers=True),
                body(),
                {"type": "http.response.trailers", "more_trailers": True},
                {"type": "http.response.trailers"},
            ],
            3,
        ),
        ([start(), {"type": "http.response.pathsend", "path": "/x"}], 1),
        ([start(), {"type": "http.response.zerocopysend", "file": 3}], 1),
        ([start(), {"type": "http.response.zerocopysend", "file": 3, "more_body": True}, body()], 2),
        ([{"type": "websocket.http.response.start", "status": 403}, {"type": "websocket.http.response.body"}], 1),
    ],
)
def test_a_response_is_finished_at_its_last_message_and_not_before(messages: list[Message], finished_at: int) -> None:
    tracker = ResponseTracker()
    assert [tracker.feed(message) for message in messages].index(True) == finished_at
    assert tracker.started
    assert tracker.finished


def test_a_response_has_not_started_before_its_start() -> None:
    tracker = ResponseTracker()
    tracker.feed({"type": "http.response.early_hint", "links": []})
    assert not tracker.started
    assert tracker.status is None


class Client:
    """What the server's `receive` gives, one message at a time."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Message] = asyncio.Queue()
        self.calls = 0
        self.waiting = 0

    async def receive(self) -> Message:
        self.calls += 1
        self.waiting += 1
        assert self.waiting == 1, "two callers wait in receive at once"
        try:
            return await self.queue.get()
        finally:
            self.waiting -= 1


async def test_the_app_gets_what_the_watcher_came_across() -> None:
    client = Client()
    shared = SharedReceive(client.receive)
    watcher = asyncio.create_task(shared.disconnected())
    for part in (b"a", b"b"):
        client.queue.put_nowait({"type": "http.request", "body": part})
        assert (await shared())["body"] == part
    assert not watcher.done()
    client.queue.put_nowait({"type": "http.disconnect"})
    await watcher


async def test_the_watcher_reads_no_more_than_one_message_ahead() -> None:
    client = Client()
    shared = SharedReceive(client.receive)
    for _ in range(10):
        client.queue.put_nowait({"type": "http.request", "body": b"x"})
    watcher = asyncio.create_task(shared.disconnected())
    for _ in range(20):
        await asyncio.sleep(0)
    assert client.calls == 1
    watcher.cancel()
    await asyncio.wait([watcher])
    assert (await shared())["body"] == b"x"


async def test_after_the_client_has_left_the_server_is_not_asked_again() -> None:
    client = Client()
    shared = SharedReceive(client.receive)
    client.queue.put_nowait({"type": "http.disconnect"})
    assert (await shared())["type"] == "http.disconnect"
    assert (await shared())["type"] == "http.disconnect"
    await shared.disconnected()
    assert client.calls == 1


async def test_app_and_watcher_both_learn_that_the_client_has_left() -> None:
    client = Client()
    shared = SharedReceive(client.receive)
    watcher = asyncio.create_task(shared.disconnected())
    app = asyncio.create_task(shared())
    await asyncio.sleep(0)
    client.queue.put_nowait({"type": "websocket.disconnect", "code": 1000})
    await watcher
    assert (await app)["code"] == 1000


async def test_a_cancelled_watcher_loses_nothing() -> None:
    client = Client()
    shared = SharedReceive(client.receive)
    watcher = asyncio.create_task(shared.disconnected())
    await asyncio.sleep(0)
    watcher.cancel()
    await asyncio.wait([watcher])
    client.queue.put_nowait({"type": "http.request", "body": b"kept"})
    assert (await shared())["body"] == b"kept"


def test_a_copy_is_given_up_when_it_grows_too_large() -> None:
    copy = BodyCopy(4)
    assert copy.add(b"ab")
    assert copy.add(b"cd")
    assert copy.body() == b"abcd"
    assert not copy.add(b"e")
    assert copy.given_up
    assert copy.body() is None
    assert not copy.add(b"")
