"""The middleware as a layer: invisible to what is not its business, and a part of the app's life."""

import asyncio
from typing import Any

from asgi_enhance.asgi.types import Receive, Scope, Send
from asgi_enhance.cache import Cache, CacheMiddleware, CacheRule, MemoryCache
from asgi_enhance.testing.conformance import assert_transparent
from asgi_enhance.testing.driver import Driver, Lifetime, Response, http_scope, request
from tests.cache.origin import Answer, Origin, fields

FRESH = "Cache-Control: max-age=60"


async def test_it_is_transparent(any_cache: Cache[Any]) -> None:
    await assert_transparent(lambda app: CacheMiddleware(app, cache=any_cache))


async def test_it_is_transparent_where_everything_is_stored() -> None:
    await assert_transparent(lambda app: CacheMiddleware(app, rules=[CacheRule("*", ttl=60)]))


async def test_the_cache_starts_and_stops_with_the_app() -> None:
    cache = MemoryCache()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for phase in ("startup", "shutdown"):
            await receive()
            assert cache.opened() is not None
            await send({"type": f"lifespan.{phase}.complete"})

    async with Lifetime(CacheMiddleware(app, cache=cache)):
        assert cache.opened() is not None
    assert cache.opened() is None


async def test_what_is_replayed_belongs_to_the_one_who_gets_it() -> None:
    layer = CacheMiddleware(Origin(Answer(FRESH, body=b"body")))
    await request(layer, "/")
    first = Driver(layer, http_scope("/"), [{"type": "http.request"}])
    (await first.run())[0]["headers"].append((b"x-added", b"by an outer layer"))
    assert (await request(layer, "/")).header("x-added") is None


async def test_what_is_stored_does_not_change_with_the_apps_own_list() -> None:
    answer = Answer(FRESH, body=b"body")
    layer = CacheMiddleware(Origin(answer))
    await request(layer, "/")
    answer.start["headers"].append((b"x-later", b"1"))
    assert (await request(layer, "/")).header("x-later") is None


async def test_two_layers_on_one_cache_each_speak_for_themselves() -> None:
    origin, cache = Origin(Answer(FRESH)), MemoryCache()
    one, other = (CacheMiddleware(origin, cache=cache, cache_status=name) for name in ("one", "other"))
    await request(one, "/")
    told = [(await request(layer, "/")).header("cache-status") for layer in (one, other, one)]
    assert [text.partition(";")[0] for text in told if text] == ["one", "other", "one"]


async def test_two_namespaces_share_nothing() -> None:
    origin, cache = Origin(Answer(FRESH)), MemoryCache()
    for namespace in ("a", "b", "a"):
        await request(CacheMiddleware(origin, cache=cache, namespace=namespace), "/")
    assert origin.calls == 2


async def test_a_request_with_two_hosts_is_not_answered_as_one_of_them() -> None:
    origin = Origin(Answer(FRESH, body=b"one"), Answer(FRESH, body=b"both"))
    layer = CacheMiddleware(origin)
    scope = {**http_scope("/"), "headers": fields(["Host: a.test"])}
    await Driver(layer, scope, [{"type": "http.request"}]).run()
    scope = {**scope, "headers": fields(["Host: a.test", "Host: b.test"])}
    assert Response(await Driver(layer, scope, [{"type": "http.request"}]).run()).body == b"both"


async def test_a_cache_is_used_on_one_event_loop_after_the_other() -> None:
    """As test clients do, which make a loop for every request."""
    origin = Origin(Answer("Cache-Control: max-age=0, stale-while-revalidate=60", body=b"body"))
    layer = CacheMiddleware(origin)

    def on_a_loop_of_its_own() -> bytes:
        return asyncio.run(request(layer, "/")).body

    for _ in range(3):
        assert await asyncio.to_thread(on_a_loop_of_its_own) == b"body"
