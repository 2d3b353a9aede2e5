"""The example page in a real browser: a message, a restart of the server, and what was said meanwhile."""

import asyncio
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import httpx2
import pytest
from websockets.asyncio.client import ClientConnection, connect

from asgi_enhance.broadcast import History, RealTimeStreamProcessor
from asgi_enhance.redis import RedisManager
from asgi_enhance.testing.live import SERVERS, LiveServer
from tests.broadcast.helpers import until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

HISTORY = {"room": History(size=100, ttl=600)}  # as in the example

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


class Page:
    """A page in headless Chromium, spoken to over its debugging protocol."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = count(1)

    async def evaluate(self, expression: str) -> Any:
        number = next(self._numbers)
        params = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        await self._socket.send(json.dumps({"id": number, "method": "Runtime.evaluate", "params": params}))
        while (answer := json.loads(await self._socket.recv())).get("id") != number:
            pass
        return answer["result"]["result"].get("value")

    async def messages(self) -> list[str]:
        found: list[str] = await self.evaluate("[...document.querySelectorAll('#messages li')].map(e => e.textContent)")
        return found

    async def shows(self, *messages: str) -> bool:
        return await self.messages() == list(messages)

    async def is_open(self) -> bool:
        return bool(await self.evaluate("document.querySelector('#state').className === 'open'"))


@pytest.fixture(scope="module")
def browser() -> Iterator[str]:
    """The address of a running browser's debugger."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [
                str(CHROMIUM),
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--remote-debugging-port=0",
                f"--user-data-dir={profile}",
                "about:blank",
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        try:
            line = ""
            while not (found := re.search(r"ws://[\d.]+:(\d+)/", line)):
                line = process.stderr.readline()
                assert line, "Chromium did not start"
            yield f"127.0.0.1:{found[1]}"
        finally:
            process.terminate()
            process.wait()
            process.stderr.close()


@asynccontextmanager
async def opened(browser: str, url: str) -> AsyncIterator[Page]:
    async with httpx2.AsyncClient(base_url=f"http://{browser}") as http:
        target = (await http.put(f"/json/new?{url}")).json()
        async with connect(target["webSocketDebuggerUrl"], max_size=None) as socket:
            yield Page(socket)
        await http.get(f"/json/close/{target['id']}")


async def nobody_listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return True
    writer.close()
    return False


@pytest.mark.parametrize("transport", ["websocket", "events"])
@pytest.mark.parametrize("name", SERVERS)
async def test_the_page_shows_what_was_said_while_its_server_restarted(
    browser: str, name: str, transport: str, redis: RedisManager, redis_url: str
) -> None:
    server = LiveServer("docs.examples.broadcast:app", server=name, env={"REDIS_URL": redis_url})
    async with RealTimeStreamProcessor(redis=RedisManager(redis_url), history=HISTORY) as elsewhere:
        with server:
            async with opened(browser, f"{server.url}/?transport={transport}") as page:
                await until(page.is_open, seconds=10)
                await elsewhere.broadcast_to_group("room", {"from": "ann", "text": "1"})
                await until(lambda: page.shows("ann: 1"))
                server.kill()
                for text in ("2", "3"):
                    await elsewhere.broadcast_to_group("room", {"from": "ann", "text": text})
                await until(lambda: nobody_listens(server.port), seconds=10)  # its workers are gone too
                server.start()
                await until(lambda: page.shows("ann: 1", "ann: 2", "ann: 3"), seconds=20)
                await elsewhere.broadcast_to_group("room", {"from": "ann", "text": "4"})
                await until(lambda: page.shows("ann: 1", "ann: 2", "ann: 3", "ann: 4"))
