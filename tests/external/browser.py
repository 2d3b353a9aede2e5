"""A headless Chromium, spoken to over its DevTools protocol."""

import asyncio
import base64
import json
import re
import shutil
import subprocess
import tempfile
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect


class Browser:
    """`async with Browser() as browser: await browser.open(url); await browser.evaluate("document.title")`."""

    def __init__(self, program: str = "chromium") -> None:
        path = shutil.which(program)
        if path is None:
            raise RuntimeError(f"{program} is not installed: apt-get install chromium")
        self._program = path
        # processes of its own may still write while the home is cleared away
        self._home = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._numbers = count(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: ClientConnection | None = None
        self.errors: list[str] = []
        """What the page has logged as an error, violations of its policy among them."""

    async def __aenter__(self) -> Self:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--hide-scrollbars"]
        command = [self._program, *options, f"--user-data-dir={self._home.name}", "about:blank"]
        log = Path(self._home.name, "log")
        with log.open("wb") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output)
        async with asyncio.timeout(30):
            while not (found := re.search(r"DevTools listening on ws://([^/]+)/", log.read_text(errors="replace"))):
                assert self._process.poll() is None, log.read_text(errors="replace")
                await asyncio.sleep(0.05)
        self._socket = await connect(await self._page(found[1]), max_size=None)
        await self.call("Page.enable")
        await self.call("Runtime.enable")
        await self.call("Log.enable")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        if self._socket is not None:
            await self._socket.close()
        self._process.terminate()
        await asyncio.to_thread(self._process.wait)
        self._home.cleanup()

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        assert self._socket is not None
        number = next(self._numbers)
        await self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        async with asyncio.timeout(20):
            while True:
                message = json.loads(await self._socket.recv())
                self._note(message)
                if message.get("id") == number:
                    assert "error" not in message, message["error"]
                    answer: dict[str, Any] = message["result"]
                    return answer

    async def open(self, url: str) -> None:
        await self.call("Page.navigate", url=url)
        await self.until(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")

    async def evaluate(self, script: str) -> Any:
        answer = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, script: str, *, timeout: float = 20) -> Any:
        """The first true value of `script`."""
        async with asyncio.timeout(timeout):
            while not (value := await self.evaluate(script)):
                await asyncio.sleep(0.1)
        return value

    async def look(self, width: int, height: int, *, dark: bool = False, mobile: bool = False) -> None:
        scale = 2 if mobile else 1
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile
        )
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        await self.call("Emulation.setEmulatedMedia", features=features)

    async def screenshot(self, path: Path, *, whole: bool = False) -> None:
        answer = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))

    def _note(self, message: dict[str, Any]) -> None:
        if message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
            self.errors.append(message["params"]["entry"]["text"])
        elif message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(str(message["params"]["exceptionDetails"].get("exception", {}).get("description")))

    async def _page(self, address: str) -> str:
        import httpx2

        async with httpx2.AsyncClient() as client, asyncio.timeout(20):
            while True:
                pages = (await client.get(f"http://{address}/json")).json()
                for page in pages:
                    if page["type"] == "page":
                        return str(page["webSocketDebuggerUrl"])
                await asyncio.sleep(0.05)
