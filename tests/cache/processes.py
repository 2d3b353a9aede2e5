"""An app in a process of its own, for tests that need several: it counts its calls in Redis."""

import asyncio
import os

from asgi_enhance.asgi.types import Receive, Scope, Send
from asgi_enhance.cache import CacheMiddleware, RedisCache
from asgi_enhance.redis import RedisManager

# Patient, since what is tested is not how soon a busy machine is held to be a dead Redis
manager = RedisManager(
    os.environ["TEST_REDIS_URL"], prefix=os.environ["TEST_PREFIX"], connect_timeout=5, command_timeout=5
)


async def slow(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        raise RuntimeError("only HTTP")
    calls = await manager.execute("INCR", manager.key("calls"))
    await asyncio.sleep(0.3)
    line = b"no-store" if scope["path"] == "/private" else b"max-age=60"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", line)]})
    await send({"type": "http.response.body", "body": b"%d" % calls})


app = CacheMiddleware(slow, cache=RedisCache(manager))
