"""What is served at the metrics' own addresses."""

import asyncio
from collections.abc import Callable

import msgspec

from asgi_enhance.asgi.problem import Problem
from asgi_enhance.asgi.scope import header_values
from asgi_enhance.asgi.tasks import Tasks
from asgi_enhance.asgi.types import Receive, Scope, Send
from asgi_enhance.metrics.core import MetricsCollector
from asgi_enhance.metrics.exposition import Format, negotiate, render
from asgi_enhance.metrics.live import LivePage

PIECES = 32
"""Families or series in one body message: some 200 kB."""


class Endpoint:
    """An ASGI app for each address. `allow` says who may read; None lets everybody."""

    def __init__(self, collector: MetricsCollector, *, allow: Callable[[Scope], bool] | None) -> None:
        self._collector = collector
        self._allow = allow
        self._live = LivePage(collector)
        self._renderings: dict[tuple[Tasks, Format, str], asyncio.Task[list[bytes]]] = {}

    async def dashboard(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The live page."""
        await (self._refusal(scope) or self._live.page)(scope, receive, send)

    async def events(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What the live page listens to."""
        await (self._refusal(scope) or self._live.events)(scope, receive, send)

    async def metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The exposition in the format that Accept asks for."""
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        form = negotiate(b",".join(header_values(scope["headers"], b"accept")).decode("latin-1"))
        reach = "process" if b"scope=process" in scope["query_string"].split(b"&") else "all"
        await respond(scope, send, form.value, await self._rendered(form, reach))

    async def _rendered(self, form: Format, reach: str) -> list[bytes]:
        """However many ask at a time, it is written once for all of them."""
        running = await self._collector.started()
        key = (running, form, reach)
        task = self._renderings.get(key)
        if task is None:
            name = f"asgi_enhance.metrics.render {form.name}"
            task = self._renderings[key] = running.spawn(self._render(form, reach), name=name)
            task.add_done_callback(lambda _: self._renderings.pop(key, None))
        return await asyncio.shield(task)

    async def _render(self, form: Format, reach: str) -> list[bytes]:
        collector = self._collector
        if form is Format.JSON:
            return [msgspec.json.encode(await collector.get_metrics(scope=reach))]
        pieces, failures = await render(await collector.gather(reach), collector.registry, form)
        collector.errors += failures
        return pieces

    def _refusal(self, scope: Scope) -> Problem | None:
        if scope["type"] != "http":
            return Problem(404)
        if scope["method"] not in ("GET", "HEAD"):
            return Problem(405, headers=[(b"allow", b"GET, HEAD")])
        if self._allow is not None and not self._allow(scope):
            return Problem(403, headers=[(b"cache-control", b"no-store")])
        return None


async def respond(scope: Scope, send: Send, kind: str, pieces: list[bytes]) -> None:
    headers = [
        (b"content-type", kind.encode("latin-1")),
        (b"content-length", b"%d" % sum(map(len, pieces))),
        (b"cache-control", b"no-store"),
        (b"vary", b"accept"),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if scope["method"] != "HEAD":
        for begin in range(0, len(pieces), PIECES):
            body = b"".join(pieces[begin : begin + PIECES])
            await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
