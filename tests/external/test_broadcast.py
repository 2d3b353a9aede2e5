"""The example page in a real browser: what was said before, a message, a restart, and what was said meanwhile."""

import asyncio
import json
from collections.abc import Callable

import pytest

from asgi_enhance.broadcast import History, RealTimeStreamProcessor
from asgi_enhance.redis import RedisManager
from asgi_enhance.testing.live import SERVERS, LiveServer
from tests.broadcast.helpers import until
from tests.external.browser import Browser

HISTORY = {"room": History(size=100, ttl=600)}  # as in the example

MESSAGES = "[...document.querySelectorAll('#messages li')].map(one => one.textContent)"


async def shows(browser: Browser, *messages: str) -> None:
    await browser.until(f"JSON.stringify({MESSAGES}) === JSON.stringify({json.dumps(messages)})")


async def nobody_listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return True
    writer.close()
    return False


@pytest.mark.parametrize("end", [LiveServer.stop, LiveServer.kill])
@pytest.mark.parametrize("transport", ["websocket", "events"])
@pytest.mark.parametrize("name", SERVERS)
async def test_the_page_shows_what_was_said_while_its_server_restarted(
    name: str, transport: str, end: Callable[[LiveServer], object], redis_url: str
) -> None:
    server = LiveServer("docs.examples.broadcast:app", server=name, env={"REDIS_URL": redis_url})
    elsewhere = RealTimeStreamProcessor(redis=RedisManager(redis_url), history=HISTORY)
    async with elsewhere, Browser() as browser:
        await elsewhere.broadcast_to_group("room", {"from": "bob", "text": "0"})
        with server:
            await browser.open(f"{server.url}/?transport={transport}")
            await browser.until("document.querySelector('#state').className === 'open'")
            await elsewhere.broadcast_to_group("room", {"from": "ann", "text": "1"})
            await shows(browser, "bob: 0", "ann: 1")
            await asyncio.to_thread(end, server)
            for text in ("2", "3"):
                await elsewhere.broadcast_to_group("room", {"from": "ann", "text": text})
            await until(lambda: nobody_listens(server.port), seconds=10)  # its workers are gone too
            server.start()
            await shows(browser, "bob: 0", "ann: 1", "ann: 2", "ann: 3")
            await elsewhere.broadcast_to_group("room", {"from": "ann", "text": "4"})
            await shows(browser, "bob: 0", "ann: 1", "ann: 2", "ann: 3", "ann: 4")


LEAVES_WHILE_CONNECTING = """import("./client.js").then(({ BroadcastClient }) => {
  const client = new BroadcastClient({ websocket: "/ws/ann", groups: ["hall", "room"] });
  queueMicrotask(() => client.leave("hall")); // its first address has the group in it
})"""


async def test_a_group_that_is_left_while_the_line_is_made_is_left(redis_url: str) -> None:
    elsewhere = RealTimeStreamProcessor(redis=RedisManager(redis_url), history=HISTORY)

    async def ann_is_in_the_room_only() -> bool:
        return "ann" in await elsewhere.presence("room") and "ann" not in await elsewhere.presence("hall")

    with LiveServer("docs.examples.broadcast:app", env={"REDIS_URL": redis_url}) as server:
        async with elsewhere, Browser() as browser:
            await browser.open(f"{server.url}/")
            await browser.evaluate(LEAVES_WHILE_CONNECTING)
            await until(ann_is_in_the_room_only, seconds=10)
