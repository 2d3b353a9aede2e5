"""Programs as users write them, served by the tests."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from os import environ
from typing import Any

from fastapi import FastAPI, Request, WebSocket

from asgi_enhance import EnhancedAPI, EnhancedAPIMiddleware

api = EnhancedAPI(redis_url=environ.get("PROGRAM_REDIS"))


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    await api.initialize(backend_urls=[environ["PROGRAM_BACKEND"]])
    yield
    await api.shutdown()


app = FastAPI(lifespan=lifespan)
app.add_middleware(EnhancedAPIMiddleware, metrics_collector=api.metrics_collector)


@app.get("/_stats")
async def stats() -> dict[str, Any]:
    metrics: dict[str, Any] = api.get_metrics()
    return metrics


@app.post("/_events")
async def event(request: Request) -> dict[str, bool]:
    await api.broadcast_event("news", await request.json(), group="project:123")
    return {"sent": True}


@app.api_route("/{path:path}", methods=["GET", "POST", "PUT", "DELETE"])
async def gateway(request: Request, path: str):  # type: ignore[no-untyped-def]
    return await api.handle_request(request)


@app.websocket("/ws/{client_id}")
async def websocket_endpoint(websocket: WebSocket, client_id: str) -> None:
    await websocket.accept()
    await api.add_websocket_connection(client_id, websocket, groups=["project:123"])
