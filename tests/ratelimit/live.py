"""What the tests over real sockets serve: FastAPI with a router, a mount and a WebSocket, behind the limiter."""

import os

from fastapi import APIRouter, FastAPI, WebSocket

from asgi_enhance.ratelimit import RateLimitMiddleware
from asgi_enhance.redis import RedisManager

inner = FastAPI()
router = APIRouter(prefix="/v1")
mounted = FastAPI()


@inner.get("/")
@router.get("/items/{item}")
@mounted.get("/items/{item}")
async def item(item: str = "") -> dict[str, int]:
    return {"pid": os.getpid()}


@inner.websocket("/ws")
async def ws(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.close()


inner.include_router(router)
inner.mount("/sub", mounted)

redis = RedisManager(os.environ.get("LIVE_REDIS", "redis://127.0.0.1:1"), prefix=os.environ.get("LIVE_PREFIX", "live"))
app = RateLimitMiddleware(inner, default="25/minute", redis=redis)
