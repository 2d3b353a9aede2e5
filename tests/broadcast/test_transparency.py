"""Round another app the router is invisible to all that is not its business."""

from asgi_enhance.broadcast import BroadcastRouter
from asgi_enhance.testing.conformance import assert_transparent


async def test_the_router_is_transparent_to_the_app_it_wraps() -> None:
    # the kit speaks on paths of its own, none of them the router's
    await assert_transparent(
        lambda app: BroadcastRouter(app, path="/-/ws/{client_id}", sse_path="/-/events/{client_id}")
    )
