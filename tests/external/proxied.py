"""What stands behind the proxy: it tells who the client is, and has a limit and the broadcaster round it."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from asgi_enhance import BroadcastRouter, ClientAddress, RateLimitMiddleware, Rule
from asgi_enhance.asgi.types import ASGIApp

client = ClientAddress(trusted=["127.0.0.1"])


async def tell(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(client(request.scope)))


app: ASGIApp = Starlette(routes=[Route("/client", tell), Route("/limited", tell)])
app = RateLimitMiddleware(
    BroadcastRouter(app), [Rule("2/minute", name="limited", path="/limited")], default=None, client=client
)
