"""Server-Sent Events: the same groups, with a cursor that a client brings back."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from asgi_enhance.broadcast import BroadcastRouter, History, RealTimeStreamProcessor
from asgi_enhance.broadcast.log import Position
from asgi_enhance.testing.driver import Driver, http_scope, request
from tests.broadcast.helpers import client, until


class Stream(Driver):
    """An event stream as a browser reads it."""

    async def opened(self) -> dict[str, str]:
        start = await self.next()
        assert start["status"] == 200
        assert (await self.next())["body"] == b"retry: 2000\n\n"
        return {name.decode(): value.decode() for name, value in start["headers"]}

    async def event(self) -> tuple[str | None, str]:
        """The id and the data of the next event."""
        text = (await self.next())["body"].decode()
        assert text.endswith("\n\n")
        fields = dict(line.split(": ", 1) for line in text.strip().split("\n"))
        return fields.get("id"), fields["data"]


@asynccontextmanager
async def stream(router: BroadcastRouter, query: str, last_event_id: str | None = None) -> AsyncIterator[Stream]:
    headers = [(b"last-event-id", last_event_id.encode())] if last_event_id else []
    async with Stream(router, http_scope(f"/events/ann?{query}", headers=headers), [{"type": "http.request"}]) as found:
        yield found
        if found.task is not None and not found.task.done():
            found.feed({"type": "http.disconnect"})
            await found.ended()


@pytest.fixture
async def router() -> AsyncIterator[BroadcastRouter]:
    history = {"room": History(size=3), "hall": History(size=3)}
    async with RealTimeStreamProcessor(history=history) as processor:
        yield BroadcastRouter(processor=processor)


async def test_a_stream_says_what_it_is_and_keeps_proxies_from_holding_it_back(router: BroadcastRouter) -> None:
    async with stream(router, "group=plain") as ann:
        headers = await ann.opened()
        assert headers["content-type"] == "text/event-stream"
        assert headers["cache-control"] == "no-store"
        assert headers["x-accel-buffering"] == "no"


async def test_its_cursor_names_places_only_also_while_it_begins_with_the_last_messages(
    router: BroadcastRouter,
) -> None:
    for group in ("room", "hall"):
        await router.processor.broadcast_to_group(group, 1)
    async with stream(router, "group=room&group=hall&last=1") as ann:
        await ann.opened()
        seen = [await ann.event() for _ in range(4)]
        assert [msgspec.json.decode(data)["type"] for _, data in seen] == ["joined", "message"] * 2
        for cursor, _ in seen:
            assert cursor is not None
            places = dict(place.split("=") for place in cursor.split("&"))
            assert all(Position.parse(place) is not None for place in places.values())
        assert set(places) == {"room", "hall"}


async def test_groups_are_the_same_over_both_transports(router: BroadcastRouter) -> None:
    async with stream(router, "group=plain") as ann, client(router, "/ws/bob?group=plain") as bob:
        await ann.opened()
        await until(lambda: router.processor.stats.connections == 2)
        await router.processor.broadcast_to_group("plain", {"n": 1})
        await router.processor.send_to_client("ann", "direct")
        assert await ann.event() == (None, '{"n":1}')
        assert await ann.event() == (None, '"direct"')
        assert await bob.receive_json() == {"n": 1}


async def test_json_on_several_lines_is_one_event(router: BroadcastRouter) -> None:
    async with stream(router, "group=plain") as ann:
        await ann.opened()
        await until(lambda: router.processor.stats.connections == 1)
        await router.processor.broadcast_to_group("plain", msgspec.Raw(b'{\r\n"n":\n\n1}'))
        assert await ann.event() == (None, '{  "n":  1}')


async def test_a_stream_continues_after_its_last_event_id(router: BroadcastRouter) -> None:
    async with stream(router, "group=room") as ann:
        await ann.opened()
        cursor, joined = await ann.event()
        assert '"type":"joined"' in joined
    for n in (1, 2):
        await router.processor.broadcast_to_group("room", n)
    async with stream(router, "group=room", cursor) as ann:
        await ann.opened()
        assert (await ann.event())[0] == cursor  # joined, at the old place
        cursor, data = await ann.event()
        assert '"data":1' in data
    async with stream(router, f"group=room&last_event_id={cursor}".replace("=room=", "=room%3D")) as ann:
        await ann.opened()
        await ann.event()
        assert '"data":2' in (await ann.event())[1]


async def test_a_cursor_tells_the_place_in_every_group(router: BroadcastRouter) -> None:
    both = "group=room&group=hall&group=plain"
    async with stream(router, both) as ann:
        await ann.opened()
        await ann.event()
        await ann.event()
        await router.processor.broadcast_to_group("room", 1)
        cursor, _ = await ann.event()
    await router.processor.broadcast_to_group("hall", 2)
    await router.processor.broadcast_to_group("room", 3)
    async with stream(router, both, cursor) as ann:
        await ann.opened()
        first, joined_room = await ann.event()
        assert '"type":"joined","group":"room"' in joined_room
        assert first is not None
        assert "hall=" in first  # also the very first event has all of it, lest the connection end after it
        assert '"data":3' in (await ann.event())[1]
        assert '"type":"joined","group":"hall"' in (await ann.event())[1]
        assert '"data":2' in (await ann.event())[1]


async def test_a_second_history_joined_later_is_in_the_cursor(router: BroadcastRouter) -> None:
    async with stream(router, "group=room") as ann:
        await ann.opened()
        await ann.event()
        await router.processor.broadcast_to_group("room", 1)
        await ann.event()
        await router.processor.join("ann", "hall")
        cursor, _ = await ann.event()
        assert cursor is not None
        assert cursor.startswith("room=")
        assert ":1&hall=" in cursor
        await router.processor.broadcast_to_group("room", 2)
        cursor, data = await ann.event()
        assert '"data":2' in data
        assert cursor is not None
        assert ":2&hall=" in cursor


@pytest.mark.parametrize("place", ["x%0A%0Adata: forged%0A%0A:1", "nonsense"])
async def test_a_place_that_cannot_be_read_is_a_reset_and_never_echoed(router: BroadcastRouter, place: str) -> None:
    async with stream(router, "group=room&group=hall", f"hall={place}") as ann:
        await ann.opened()
        for type, group in (("joined", "room"), ("reset", "hall"), ("joined", "hall")):
            _, data = await ann.event()
            assert data.startswith(f'{{"type":"{type}","group":"{group}"')


async def test_a_lost_place_is_a_reset(router: BroadcastRouter) -> None:
    async with stream(router, "group=room", "room=gone:5") as ann:
        await ann.opened()
        assert '"type":"reset"' in (await ann.event())[1]
        assert '"type":"joined"' in (await ann.event())[1]


async def test_an_idle_stream_is_kept_open_by_comments() -> None:
    processor = RealTimeStreamProcessor(heartbeat=0.02)
    async with processor, stream(BroadcastRouter(processor=processor), "group=plain") as ann:
        await ann.opened()
        assert (await ann.next())["body"] == b":\n\n"
        assert (await ann.next())["body"] == b":\n\n"


async def test_a_stream_that_ends_leaves_nothing(router: BroadcastRouter) -> None:
    async with stream(router, "group=plain") as ann:
        await ann.opened()
        assert router.processor.stats.connections == 1
    assert (router.processor.stats.connections, router.processor.stats.groups) == (0, 0)


async def test_a_stream_can_only_be_read(router: BroadcastRouter) -> None:
    answer = await request(router, "/events/ann", method="POST")
    assert answer.status == 405
    assert answer.header("allow") == "GET"


async def test_a_page_of_a_listed_origin_may_read_the_stream() -> None:
    async with RealTimeStreamProcessor() as processor:
        router = BroadcastRouter(processor=processor, origins=["https://a.example:443"])
        scope = http_scope("/events/ann", headers=[(b"origin", b"https://a.example")])
        async with Stream(router, scope, [{"type": "http.request"}]) as ann:
            headers = await ann.opened()
            assert headers["access-control-allow-origin"] == "https://a.example"
            assert headers["vary"] == "Origin"
        refused = await request(router, "/events/ann", headers=[(b"origin", b"https://evil.example")])
        assert refused.status == 403
