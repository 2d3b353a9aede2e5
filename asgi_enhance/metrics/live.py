"""The live page: one file, and a stream of snapshots that all who look at it share."""

import asyncio
import base64
import hashlib
import re
from contextlib import suppress
from importlib.resources import files
from time import monotonic, time
from typing import Any

import msgspec

from asgi_enhance.asgi.problem import Problem
from asgi_enhance.asgi.tasks import Tasks
from asgi_enhance.asgi.types import Headers, Receive, Scope, Send
from asgi_enhance.metrics.core import MetricsCollector
from asgi_enhance.metrics.sketch import quantiles
from asgi_enhance.metrics.snapshot import RANKS
from asgi_enhance.metrics.totals import Totals
from asgi_enhance.metrics.window import SLOT

INTERVAL = 1.0
"""Seconds between two snapshots."""

LONGEST = 30.0
"""Seconds a stream lasts; the browser comes back. A server that drains its connections waits no longer than that."""

SETTLED = 3.0
"""Seconds after which a slot that is still filling is shown: before that its rate is a guess."""

MOST = 16
"""Streams at a time."""


class LivePage:
    """The page, and its stream."""

    def __init__(self, collector: MetricsCollector) -> None:
        self._collector = collector
        self._page = files(__package__).joinpath("dashboard.html").read_bytes()
        self._headers = _headers(self._page)
        self._streams = 0
        self._latest: tuple[float, bytes] = (0.0, b"")
        self._making: dict[Tasks, asyncio.Task[bytes]] = {}

    async def page(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self._headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else self._page})

    async def events(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: Headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
        if scope["method"] == "HEAD":
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
            return
        if self._streams >= MOST:
            await Problem(503, detail="Too many are watching.", headers=[(b"retry-after", b"30")])(scope, receive, send)
            return
        self._streams += 1
        gone = asyncio.create_task(_until_gone(receive), name="asgi_enhance.metrics.live")
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            first = await self._snapshot(whole=True)
            await send({"type": "http.response.body", "body": b"retry: 500\n" + first, "more_body": True})
            end = monotonic() + LONGEST
            while monotonic() < end:
                await asyncio.wait({gone}, timeout=INTERVAL)
                if gone.done():
                    return
                await send({"type": "http.response.body", "body": await self._snapshot(), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._streams -= 1
            gone.cancel()
            with suppress(asyncio.CancelledError):
                await gone

    async def _snapshot(self, *, whole: bool = False) -> bytes:
        """One event. What is sent every second is made once for all; the whole history is for who has just come."""
        if whole:
            return await self._event(slots=90)
        made, event = self._latest
        if monotonic() - made < INTERVAL / 2:
            return event
        running = await self._collector.started()
        task = self._making.get(running)
        if task is None:
            task = self._making[running] = running.spawn(self._event(slots=3), name="asgi_enhance.metrics.snapshot")
            task.add_done_callback(lambda _: self._making.pop(running, None))
        event = await asyncio.shield(task)
        self._latest = (monotonic(), event)
        return event

    async def _event(self, *, slots: int) -> bytes:
        totals = await self._collector.gather()
        data = {**await self._collector.snapshot(totals), "history": history(totals, time(), slots)}
        return b"data: " + msgspec.json.encode(data) + b"\n\n"


def history(totals: Totals, now: float, count: int) -> list[dict[str, Any]]:
    """The last slots as points of a plot: rates per second, percentiles in milliseconds."""
    points = []
    for slot in totals.slots[-count:]:
        began = slot.number * SLOT
        if now - began < SETTLED:
            continue
        # Only the first slot may have begun before anybody counted: others have, in an older one.
        since = totals.began if slot is totals.slots[0] and began < totals.began < began + SLOT else began
        lasted = max(1.0, min(now, began + SLOT) - since)
        percentiles = quantiles(slot.sketch, list(RANKS.values()))
        points.append(
            {
                "t": began,
                "rate": sum(counts[0] for counts in slot.endpoints.values()) / lasted,
                "errors": sum(counts[1] for counts in slot.endpoints.values()) / lasted,
                **{
                    rank: None if seconds is None else seconds * 1000
                    for rank, seconds in zip(RANKS, percentiles, strict=True)
                },
            }
        )
    return points


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _headers(page: bytes) -> Headers:
    """The page may run its own script, use its own styles and listen to its own stream, and nothing else."""

    def source(tag: bytes) -> str:
        found = re.search(rb"<%s>(.*?)</%s>" % (tag, tag), page, re.DOTALL)
        assert found is not None
        return "'sha256-" + base64.b64encode(hashlib.sha256(found[1]).digest()).decode() + "'"

    policy = (
        f"default-src 'none'; script-src {source(b'script')}; style-src {source(b'style')}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    )
    return [
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-length", b"%d" % len(page)),
        (b"cache-control", b"no-cache"),
        (b"content-security-policy", policy.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
    ]
