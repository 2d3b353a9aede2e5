"""A room that everybody who opens the page is in, over WebSocket or (`/?transport=events`) Server-Sent Events.

uvicorn docs.examples.broadcast:app
REDIS_URL=redis://localhost uvicorn docs.examples.broadcast:app --workers 4
"""

import os
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from asgi_enhance import BroadcastRouter, RealTimeStreamProcessor
from asgi_enhance.broadcast import History
from asgi_enhance.errors import RedisUnavailable

HERE = Path(__file__).parent

processor = RealTimeStreamProcessor(redis=os.environ.get("REDIS_URL"), history={"room": History(size=100, ttl=600)})


async def page(request: Request) -> Response:
    return FileResponse(HERE / "broadcast.html")


async def script(request: Request) -> Response:
    return FileResponse(HERE / "client.js")


async def say(request: Request) -> Response:
    message = await request.json()
    try:
        position = await processor.broadcast_to_group("room", {"from": message["from"], "text": message["text"]})
    except RedisUnavailable:
        return JSONResponse({"error": "not accepted, try again"}, status_code=503)
    return JSONResponse({"id": position})


app = BroadcastRouter(
    Starlette(routes=[Route("/", page), Route("/client.js", script), Route("/say", say, methods=["POST"])]),
    processor=processor,
)
