"""The live page in a real browser: numbers that move, nothing refused, light and dark, on a desk and a phone."""

import os
from pathlib import Path

from asgi_enhance.testing.live import LiveServer
from tests.external.browser import Browser

TEXT = "document.getElementById('{}').textContent"
TOTAL = "last && last.requests.total"


async def test_the_page_shows_traffic_as_it_comes(traffic: LiveServer, tmp_path: Path) -> None:
    pictures = Path(os.environ.get("SCREENSHOTS", tmp_path))
    async with Browser() as browser:
        await browser.look(1280, 1180)
        await browser.open(f"{traffic.url}/metrics/dashboard")
        await browser.until("document.getElementById('link').textContent === 'live'")
        before = await browser.until(TOTAL)
        await browser.until(f"last.requests.total > {before} + 50")
        assert float((await browser.evaluate(TEXT.format("rate"))).split()[0]) > 1
        assert "ms" in await browser.evaluate(TEXT.format("p95"))
        routes = await browser.evaluate("[...document.querySelectorAll('#endpoints code')].map(one => one.textContent)")
        assert {"/items/{item}", "/page", "/lb/{path}", "<unmatched>"} <= set(routes)
        cards = await browser.evaluate("[...document.querySelectorAll('#sources h2')].map(one => one.textContent)")
        assert set(cards) == {"cache", "ratelimit", "balance", "backend", "broadcast", "redis"}
        assert "available" in await browser.evaluate("document.getElementById('sources').textContent")
        assert await browser.evaluate(TEXT.format("sockets")) in ("1", "2")
        await browser.until(
            "slots.length > 1 && document.querySelector('#rates path.s0').getAttribute('d').includes('L')"
        )
        await browser.screenshot(pictures / "dashboard.png")
        await browser.look(1280, 1180, dark=True)
        dark = await browser.evaluate("getComputedStyle(document.body).backgroundColor")
        await browser.screenshot(pictures / "dashboard-dark.png")
        await browser.look(390, 844, mobile=True)
        light = await browser.evaluate("getComputedStyle(document.body).backgroundColor")
        assert dark != light
        assert await browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (
            "it scrolls sideways"
        )
        await browser.screenshot(pictures / "dashboard-phone.png")
        assert browser.errors == []


async def test_the_page_comes_back_after_the_server_did(traffic: LiveServer) -> None:
    async with Browser() as browser:
        await browser.open(f"{traffic.url}/metrics/dashboard")
        await browser.until("document.getElementById('link').textContent === 'live'")
        traffic.kill()
        await browser.until("document.getElementById('link').textContent === 'reconnecting'")
        traffic.start()
        await browser.until("document.getElementById('link').textContent === 'live'")
