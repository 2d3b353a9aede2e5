"""A program that uses each core on its own, as users write it, served by the tests."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from os import environ
from typing import Any

from fastapi import FastAPI, Request, WebSocket

from asgi_enhance import LoadBalancer, RateLimiter, RealTimeStreamProcessor, RedisCache

lb = LoadBalancer([environ["PROGRAM_BACKEND"]])
cache = RedisCache(redis_url=environ["PROGRAM_REDIS"])
limiter = RateLimiter(redis_url=environ["PROGRAM_REDIS"])
processor = RealTimeStreamProcessor()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    cache.ttl = 300
    cache.max_connections = 10
    limiter.limits = {"default": {"requests": 100, "window": 60}, "api": {"requests": 3, "window": 60}}
    processor.register_processor("update", handler)
    await cache.connect()
    await limiter.connect()
    yield
    await limiter.disconnect()
    await cache.disconnect()
    await lb.close()


app = FastAPI(lifespan=lifespan)


async def handler(client_id: str, message: dict[str, Any]) -> None:
    await processor.send_to_client(client_id, {"seen": message["n"]})


@app.get("/cached")
async def cached(request: Request) -> dict[str, Any]:
    key = cache.generate_cache_key(request)
    if await cache.exists(key):
        return {"value": await cache.get(key), "new": False}
    await cache.set(key, "value", ttl=300)
    return {"value": await cache.get(key), "new": True}


@app.delete("/cached")
async def forget(key: str) -> None:
    await cache.delete(key)


@app.get("/limited/{client_id}")
async def limited(client_id: str) -> dict[str, Any]:
    allowed = await limiter.is_allowed(client_id, endpoint_type="api")
    return {"allowed": allowed, "left": await limiter.get_remaining_requests(client_id, endpoint_type="api")}


@app.get("/backends")
async def backends() -> dict[str, Any]:
    return {"next": await lb.get_backend_url(), "health": await lb.health_check()}


@app.post("/read/{how}")
async def read(how: str, request: Request) -> Any:
    if how == "whole":
        await request.body()
    elif how == "streamed":
        async for _ in request.stream():
            pass
    return await lb.forward_request(request)


@app.post("/events/{kind}")
async def publish(kind: str, request: Request) -> None:
    message = await request.json()
    if kind == "group":
        await processor.broadcast_to_group("project:123", message)
    else:
        await processor.broadcast_all(message)


@app.delete("/clients/{client_id}")
async def remove(client_id: str) -> None:
    await processor.remove_connection(client_id)


@app.websocket("/ws/{client_id}")
async def websocket(websocket: WebSocket, client_id: str) -> None:
    await websocket.accept()
    await processor.add_connection(client_id, websocket, groups=["project:123"] if client_id == "ada" else [])
