"""The app that the tests run in processes of their own: a router, and HTTP to publish and to look inside.

POST /publish/{group}?key=…    the body is the message; 200 with its id, or 503 if Redis has not taken it
POST /send/{client_id} · POST /all
GET  /stats · GET /presence/{group}
any other WebSocket            accepted here and given to the processor
"""

import asyncio
import gc
import os
from dataclasses import asdict
from typing import Any
from urllib.parse import parse_qs

import msgspec

from asgi_enhance.asgi.types import Receive, Scope, Send
from asgi_enhance.broadcast import BroadcastRouter, History, RealTimeStreamProcessor
from asgi_enhance.errors import RedisUnavailable

processor = RealTimeStreamProcessor(
    redis=os.environ.get("REDIS_URL"),
    history={"kept*": History(size=1000, ttl=60)},
    slow_consumer=os.environ.get("SLOW_CONSUMER", "disconnect"),
)


async def control(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await processor.add_connection("own", (receive, send), groups=["kept"])
    if scope["type"] != "http":
        return
    _, verb, *rest = scope["path"].split("/")
    body = (await receive()).get("body", b"")
    status, answer = 200, None
    try:
        answer = await act(verb, rest[0] if rest else "", body, parse_qs(scope["query_string"].decode()))
    except RedisUnavailable as error:
        status, answer = 503, str(error)
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": msgspec.json.encode(answer)})


async def act(verb: str, name: str, body: bytes, query: dict[str, list[str]]) -> Any:
    match verb:
        case "publish":
            key = query["key"][0] if "key" in query else None
            return await processor.broadcast_to_group(name, msgspec.Raw(body), idempotency_key=key)
        case "send":
            return await processor.send_to_client(name, msgspec.Raw(body))
        case "all":
            return await processor.broadcast_all(msgspec.Raw(body))
        case "presence":
            return await processor.presence(name)
        case "stats":
            gc.collect()
            with open("/proc/self/statm") as file:  # noqa: ASYNC230 a file of the kernel
                pages = int(file.read().split()[1])
            return {
                **asdict(processor.stats),
                "tasks": len(asyncio.all_tasks()),
                "files": len(os.listdir("/proc/self/fd")),
                "memory": pages * os.sysconf("SC_PAGE_SIZE"),
            }
    return None


app = BroadcastRouter(control, processor=processor, drain_spread=float(os.environ.get("DRAIN_SPREAD", "0.2")))
