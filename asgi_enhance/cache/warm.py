"""Filling a cache before anybody asks: GET requests to the app, as a server would make them."""

import asyncio
import logging
from collections.abc import Iterable
from urllib.parse import unquote, urlsplit

from asgi_enhance.asgi.types import ASGIApp, Headers, Message, Scope
from asgi_enhance.errors import CacheError

logger = logging.getLogger("asgi_enhance.cache")


async def warm(app: ASGIApp, urls: Iterable[str], headers: Headers, at_once: int) -> dict[str, int]:
    """The status of each URL; 500 where the app has failed, which is logged."""
    room = asyncio.Semaphore(at_once)

    async def one(url: str) -> int:
        async with room:
            return await _get(app, _scope(url, headers))

    wanted = list(dict.fromkeys(urls))
    statuses = await asyncio.gather(*(one(url) for url in wanted))
    return dict(zip(wanted, statuses, strict=True))


async def _get(app: ASGIApp, scope: Scope) -> int:
    status, asked = 500, False

    async def receive() -> Message:
        nonlocal asked
        if asked:
            await asyncio.get_running_loop().create_future()
        asked = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]

    try:
        await app(scope, receive, send)
    except Exception:
        logger.exception("warming %s failed", scope["path"])
        return 500
    return status


def _scope(url: str, headers: Headers) -> Scope:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise CacheError(f"a URL to warm must be whole, like https://host/path, not {url!r}")
    path = parts.path or "/"
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": parts.scheme,
        "path": unquote(path),
        "raw_path": path.encode("ascii"),
        "query_string": parts.query.encode("ascii"),
        "root_path": "",
        "headers": [(b"host", parts.netloc.encode("ascii")), *headers],
        "client": None,
        "server": (parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)),
        "state": {},
    }
