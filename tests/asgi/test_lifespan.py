import asyncio
import contextvars
import threading
from contextlib import AsyncExitStack
from typing import Any

import pytest

from asgi_enhance import Lifespan
from asgi_enhance.asgi.lifespan import Resource
from asgi_enhance.asgi.tasks import Tasks
from asgi_enhance.asgi.types import Message, Receive, Scope, Send
from asgi_enhance.testing.driver import Driver, Lifetime


class Room(Resource[object]):
    """A resource that writes down what happens to it."""

    def __init__(self, diary: list[str] | None = None, *, fails: str = "") -> None:
        super().__init__()
        self.diary: list[str] = [] if diary is None else diary
        self.fails = fails
        self.dropped: list[object] = []

    async def _start(self) -> object:
        await asyncio.sleep(0)
        if self.fails == "start":
            raise OSError("no room")
        self.diary.append("resource up")
        return object()

    async def _stop(self, value: object) -> None:
        if self.fails == "stop":
            raise OSError("door jammed")
        self.diary.append("resource down")

    def _drop(self, value: object) -> None:
        self.dropped.append(value)


def app_that_writes(diary: list[str]) -> Any:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for phase in ("startup", "shutdown"):
            await receive()
            diary.append(f"app {phase}")
            await send({"type": f"lifespan.{phase}.complete"})

    return app


async def silent_app(scope: Scope, receive: Receive, send: Send) -> None:
    """Returns from every scope it does not know."""


async def http_only_app(scope: Scope, receive: Receive, send: Send) -> None:
    assert scope["type"] == "http"


async def test_resources_are_up_before_the_app_and_down_after_it() -> None:
    diary: list[str] = []
    async with Lifetime(Lifespan(app_that_writes(diary), Room(diary))):
        assert diary == ["resource up", "app startup"]
    assert diary == ["resource up", "app startup", "app shutdown", "resource down"]


@pytest.mark.parametrize("app", [silent_app, http_only_app])
async def test_an_app_without_lifespan_gets_its_resources_all_the_same(app: Any) -> None:
    room = Room()
    async with Lifetime(Lifespan(app, room)):
        assert room.diary == ["resource up"]
    assert room.diary == ["resource up", "resource down"]


async def test_a_resource_that_does_not_start_fails_the_start_up_and_closes_the_others() -> None:
    first = Room()
    driver = Driver(
        Lifespan(silent_app, first, Room(fails="start")), {"type": "lifespan"}, [{"type": "lifespan.startup"}]
    )
    with pytest.raises(OSError, match="no room"):
        await driver.run()
    assert driver.sent == [{"type": "lifespan.startup.failed", "message": "OSError: no room"}]
    assert first.diary == ["resource up", "resource down"]


async def test_a_failed_start_up_is_told_when_all_is_closed_since_servers_cancel_the_rest() -> None:
    first = Room()
    up_when_told: list[object] = []

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        up_when_told.append(first.opened())

    with pytest.raises(OSError, match="no room"):
        await Lifespan(silent_app, first, Room(fails="start"))({"type": "lifespan"}, receive, send)
    assert up_when_told == [None]


async def test_a_resource_that_does_not_stop_fails_the_shutdown() -> None:
    incoming = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    driver = Driver(Lifespan(app_that_writes([]), Room(fails="stop")), {"type": "lifespan"}, incoming)
    with pytest.raises(OSError, match="door jammed"):
        await driver.run()
    assert driver.sent[-1] == {"type": "lifespan.shutdown.failed", "message": "OSError: door jammed"}


async def test_an_app_that_fails_its_start_up_is_reported_in_its_own_words() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    room = Room()
    driver = Driver(Lifespan(app, room), {"type": "lifespan"}, [{"type": "lifespan.startup"}])
    assert await driver.run() == [{"type": "lifespan.startup.failed", "message": "no database"}]
    assert room.diary == ["resource up", "resource down"]


async def test_an_app_that_breaks_in_its_start_up_is_not_taken_for_one_without_lifespan() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        raise ValueError("bug")

    room = Room()
    with pytest.raises(ValueError, match="bug"):
        await Driver(Lifespan(app, room), {"type": "lifespan"}, [{"type": "lifespan.startup"}]).run()
    assert room.diary == ["resource up", "resource down"]


async def test_a_shared_resource_starts_once_and_stops_with_its_last_user() -> None:
    room = Room()
    async with room:
        async with room:
            pass
        assert room.diary == ["resource up"]
    assert room.diary == ["resource up", "resource down"]


@pytest.mark.parametrize("fails", ["", "start", "stop"])
async def test_what_a_resource_needs_is_there_before_it_and_left_after_it_whatever_fails(fails: str) -> None:
    diary: list[str] = []
    ground, house = Room(diary), Room(diary, fails=fails)
    house.needs = (None, ground)
    if fails:
        with pytest.raises(OSError, match=r"room|door"):
            async with house:
                pass
    else:
        async with house:
            assert ground.opened() is not None
    assert diary == [
        "resource up",
        *([] if fails == "start" else ["resource up"]),
        *([] if fails else ["resource down"]),
        "resource down",
    ]
    assert ground.opened() is None


async def test_what_several_need_stays_until_the_last_of_them_has_stopped() -> None:
    ground = Room()
    first, second = Room(), Room()
    first.needs = second.needs = (ground,)
    async with first:
        async with second:
            pass
        assert ground.diary == ["resource up"]
    assert ground.diary == ["resource up", "resource down"]


async def test_users_who_arrive_at_once_share_one_start() -> None:
    room = Room()
    values = await asyncio.gather(*(room.started() for _ in range(10)))
    assert len(set(map(id, values))) == 1
    assert room.diary == ["resource up"]


async def test_a_cancelled_first_user_does_not_take_the_start_from_the_second() -> None:
    room = Room()
    first = asyncio.create_task(room.started())
    second = asyncio.create_task(room.started())
    await asyncio.sleep(0)
    first.cancel()
    assert await second is room.opened()


async def test_a_user_cancelled_on_the_way_in_does_not_leave_behind_what_others_have_left() -> None:
    room = Room()

    async def visit() -> None:
        async with room:
            pass

    async def visit_and_cancel_the_other() -> None:
        await visit()
        second.cancel()

    first = asyncio.create_task(visit_and_cancel_the_other())
    second = asyncio.create_task(visit())
    await asyncio.wait([first, second])
    assert second.cancelled()
    assert room.opened() is None
    assert room.diary == ["resource up", "resource down"]


async def test_the_first_use_starts_and_the_last_user_stops_what_it_started() -> None:
    room = Room()
    assert room.opened() is None
    value = await room.started()
    assert room.opened() is value
    async with room:
        assert room.opened() is value
    assert room.opened() is None
    assert room.diary == ["resource up", "resource down"]


async def test_closing_twice_closes_once_and_a_closed_resource_starts_again() -> None:
    room = Room()
    await room.started()
    await room.aclose()
    await room.aclose()
    assert room.diary == ["resource up", "resource down"]
    async with room:
        assert room.diary[-1] == "resource up"
    assert room.diary[-1] == "resource down"


async def test_who_leaves_after_a_forced_close_does_not_close_what_others_have_started_since() -> None:
    room = Room()
    async with AsyncExitStack() as first, AsyncExitStack() as second:
        await first.enter_async_context(room)
        await room.aclose()
        await second.enter_async_context(room)
        value = room.opened()
        await first.aclose()
        assert room.opened() is value
        await second.aclose()
        assert room.opened() is None


def test_a_loop_of_another_thread_may_begin_while_closed_loops_are_looked_for() -> None:
    room = Room()
    others = [threading.Thread(target=lambda: asyncio.run(room.started()))]

    class BusyLoop(asyncio.SelectorEventLoop):
        looked_for = False

        def is_closed(self) -> bool:
            while self.looked_for and others:
                other = others.pop()
                other.start()
                other.join()
            return super().is_closed()

    loop = BusyLoop()
    first = loop.run_until_complete(room.started())
    loop.close()
    loop.looked_for = True
    asyncio.run(room.started())
    assert room.dropped.count(first) == 1


async def test_the_second_door_is_a_lifespan_for_frameworks() -> None:
    room = Room()
    async with room.lifespan(object()):
        assert room.diary == ["resource up"]
    assert room.diary == ["resource up", "resource down"]


def test_what_belonged_to_a_closed_loop_is_dropped_never_reused() -> None:
    room = Room()
    first = asyncio.run(room.started())
    second = asyncio.run(room.started())
    assert first is not second
    assert room.dropped == [first]


def test_two_loops_do_not_share() -> None:
    room = Room()

    async def both() -> None:
        here = await room.started()
        there = await asyncio.to_thread(lambda: asyncio.run(room.started()))
        assert here is not there
        assert room.opened() is here

    asyncio.run(both())


user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")


async def test_a_task_does_not_go_on_as_the_user_whose_request_started_it() -> None:
    tasks = Tasks()
    user.set("alice")

    async def who() -> str:
        return user.get()

    assert await tasks.spawn(who(), name="who") == "nobody"


async def test_a_failed_task_is_logged_by_name_and_cancelling_waits(caplog: pytest.LogCaptureFixture) -> None:
    tasks = Tasks()
    ended: list[str] = []

    async def fails() -> None:
        raise ValueError("oops")

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append("waits")

    await asyncio.wait([tasks.spawn(fails(), name="probe of redis")])
    tasks.spawn(waits(), name="waits")
    await asyncio.sleep(0)
    await tasks.cancel()
    assert ended == ["waits"]
    assert len(tasks) == 0
    assert "probe of redis" in caplog.text
