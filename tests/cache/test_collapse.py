"""One call for all who want the same; stale while it is renewed, stale if that fails; streams that are not held up."""

import asyncio
import contextlib
from typing import Any

import pytest

from asgi_enhance.asgi.types import Receive, Scope, Send
from asgi_enhance.cache import Cache, CacheMiddleware, CacheRule, MemoryCache, RedisCache, leases
from asgi_enhance.cache.request import Request, digest
from asgi_enhance.cache.valuecache import Claim
from asgi_enhance.errors import RedisUnavailable
from asgi_enhance.redis import RedisManager
from asgi_enhance.testing.driver import Driver, Response, http_scope, request
from asgi_enhance.testing.servers import RedisServer
from tests.cache.origin import Answer, Clock, Origin, fields, until

FRESH = "Cache-Control: max-age=60"


async def at_once(layer: CacheMiddleware, origin: Origin, *asked: list[str], calls: int = 1) -> list[Response]:
    """Ask all together, while the app is held up until `calls` of them have reached it."""
    origin.gate = asyncio.Event()
    tasks = [asyncio.create_task(request(layer, "/", headers=fields(lines))) for lines in asked]
    await until(lambda: origin.calls >= calls)
    for _ in range(20):  # whoever else could reach the app has had the time to
        await asyncio.sleep(0)
    origin.gate.set()
    return await asyncio.gather(*tasks)


async def test_fifty_cold_misses_make_one_call(cache: Cache[Any]) -> None:
    origin = Origin(Answer(FRESH, body=b"body"))
    layer = CacheMiddleware(origin, cache=cache)
    answers = await at_once(layer, origin, *[[] for _ in range(50)])
    assert {(answer.status, answer.body) for answer in answers} == {(200, b"body")}
    assert origin.calls == 1
    told = [answer.header("cache-status") for answer in answers]
    collapsed = sum(str(one).endswith("; collapsed") for one in told)
    late = sum("; hit" in str(one) for one in told)  # whose look into Redis was answered after the entry was there
    assert collapsed + late == 49, told
    assert not late or cache.remote
    assert layer.stats.collapsed == 49 - late


async def test_what_was_asked_for_with_head_is_waited_for(cache: Cache[Any]) -> None:
    origin = Origin(Answer(FRESH, body=b"body"))
    layer = CacheMiddleware(origin, cache=cache)
    await request(layer, "/", method="HEAD")
    await at_once(layer, origin, *[[] for _ in range(10)], calls=2)
    assert origin.calls == 2


@pytest.mark.parametrize(
    "lines", [["Cache-Control: no-store"], [FRESH, "Set-Cookie: a=1"], ["Cache-Control: private"], [], ["Vary: *"]]
)
async def test_what_is_not_for_sharing_is_not_shared_and_not_waited_for(cache: Cache[Any], lines: list[str]) -> None:
    origin = Origin(*[Answer(*lines, body=b"%d" % number) for number in range(20)])
    layer = CacheMiddleware(origin, cache=cache)
    answers = await at_once(layer, origin, *[[] for _ in range(10)])
    assert sorted(answer.body for answer in answers) == [b"%d" % number for number in range(10)]
    # From now on nobody waits: all ten are at the app together
    before = origin.calls
    await at_once(layer, origin, *[[] for _ in range(10)], calls=before + 10)


@pytest.mark.parametrize("cookie", ["Set-Cookie: a=1", "Cache-Control: no-store"])
async def test_what_was_not_for_sharing_is_kept_once_it_is(cache: Cache[Any], cookie: str) -> None:
    origin = Origin(Answer(cookie), Answer(cookie), Answer(FRESH, body=b"for all"))
    layer = CacheMiddleware(origin, cache=cache)
    assert [(await request(layer, "/")).body for _ in range(4)] == [b"", b"", b"for all", b"for all"]
    assert origin.calls == 3


async def test_a_clock_that_is_put_back_does_not_keep_requests_from_waiting(
    any_cache: Cache[Any], clock: Clock
) -> None:
    name = any_cache.flight_name(Request(http_scope("/")))
    any_cache.remember_pass(name)
    assert any_cache.passes(name)
    clock.step(-3600)
    assert not any_cache.passes(name)


async def test_rules_hold_also_for_what_was_not_for_sharing(cache: Cache[Any]) -> None:
    origin = Origin(Answer("Set-Cookie: a=1"), Answer(body=b"for all"))
    layer = CacheMiddleware(origin, cache=cache, rules=[CacheRule("/", ttl=60)])
    assert [(await request(layer, "/")).body for _ in range(3)] == [b"", b"for all", b"for all"]
    assert origin.calls == 2


async def test_what_is_kept_is_found_though_an_answer_was_not_for_sharing(cache: Cache[Any]) -> None:
    origin = Origin(Answer("Set-Cookie: a=1"), Answer(FRESH, "Vary: X-A", body=b"kept"))
    layer = CacheMiddleware(origin, cache=cache)
    for _ in range(4):
        answer = await request(layer, "/")
    assert answer.body == b"kept"
    assert origin.calls == 2


async def test_followers_of_another_variant_go_on_their_own(cache: Cache[Any]) -> None:
    origin = Origin(Answer(FRESH, "Vary: X-Tenant"))
    layer = CacheMiddleware(origin, cache=cache)
    await at_once(layer, origin, *[[f"X-Tenant: {number % 3}"] for number in range(12)])
    assert origin.calls == 3


async def test_a_leader_that_is_cancelled_is_replaced(cache: Cache[Any]) -> None:
    origin = Origin(Answer(FRESH, body=b"body"))
    origin.gate = asyncio.Event()
    layer = CacheMiddleware(origin, cache=cache)
    leader = asyncio.create_task(request(layer, "/"))
    await origin.called.wait()
    followers = [asyncio.create_task(request(layer, "/")) for _ in range(5)]
    await asyncio.sleep(0)
    leader.cancel()
    await until(lambda: origin.calls == 2)
    origin.gate.set()
    assert {answer.body for answer in await asyncio.gather(*followers)} == {b"body"}
    assert origin.calls == 2


async def test_a_leader_whose_client_has_left_is_replaced(cache: Cache[Any]) -> None:
    origin = Origin(Answer(status=499), Answer(FRESH, body=b"body"))
    layer = CacheMiddleware(origin, cache=cache)
    answers = await at_once(layer, origin, *[[] for _ in range(5)])
    assert sorted(answer.status for answer in answers) == [200] * 4 + [499]
    assert origin.calls == 2
    assert (await request(layer, "/")).body == b"body"


async def test_nobody_waits_longer_than_he_should(clock: Clock) -> None:
    origin = Origin(Answer(FRESH))
    layer = CacheMiddleware(origin, cache=MemoryCache(collapse_timeout=0.01, clock=clock))
    await at_once(layer, origin, [], [], [], calls=3)
    assert origin.calls == 3


async def test_a_cache_inside_another_on_the_same_store_does_not_wait_for_itself(
    cache: Cache[Any], clock: Clock
) -> None:
    """As one round an app and one round what is mounted in it, or in two services in one process."""
    origin = Origin(Answer(FRESH, 'ETag: "a"', body=b"body"), Answer(FRESH, status=304))
    same = RedisCache(cache.manager, clock=clock) if isinstance(cache, RedisCache) else cache
    outer = CacheMiddleware(CacheMiddleware(origin, cache=cache), cache=same)
    async with same, asyncio.timeout(cache.collapse_timeout / 2):
        assert (await request(outer, "/")).body == b"body"
        clock.step(61)
        assert [(await request(outer, "/")).body for _ in range(2)] == [b"body"] * 2
    assert origin.calls == 2


async def test_collapsing_can_be_switched_off(cache: Cache[Any]) -> None:
    origin = Origin(Answer(FRESH))
    await at_once(CacheMiddleware(origin, cache=cache, collapse=False), origin, [], [], calls=2)


async def test_a_write_overtakes_what_is_being_fetched(cache: Cache[Any]) -> None:
    origin = Origin(Answer(FRESH, body=b"old"), Answer(), Answer(FRESH, body=b"new"))
    origin.gate = asyncio.Event()
    layer = CacheMiddleware(origin, cache=cache)
    reading = asyncio.create_task(request(layer, "/"))
    await origin.called.wait()
    gate, origin.gate = origin.gate, None
    await request(layer, "/", method="POST")
    gate.set()
    assert (await reading).body == b"old"
    assert (await request(layer, "/")).body == b"new"


async def test_who_asks_after_a_write_in_another_process_does_not_get_what_was_asked_for_before(
    redis: RedisManager,
) -> None:
    origin = Origin(Answer(FRESH, body=b"old"), Answer(FRESH, body=b"new"))
    async with RedisCache(redis) as here, RedisCache(redis) as there:
        layer = CacheMiddleware(origin, cache=here)
        origin.gate = asyncio.Event()
        first = asyncio.create_task(request(layer, "/"))
        await origin.called.wait()
        await request(CacheMiddleware(Origin(Answer()), cache=there), "/", method="POST")
        looked = here.fetch((b"", "http", b"testserver", b"/", b""))
        second = asyncio.create_task(request(layer, "/"))
        await here.fence(looked)  # one round trip later the second waits for the first
        origin.gate.set()
        assert [(await first).body, (await second).body] == [b"old", b"new"]


async def test_one_call_does_for_all_in_a_process_whose_redis_is_away(private_redis: RedisServer) -> None:
    origin = Origin(Answer(FRESH, body=b"body"))
    async with RedisCache(private_redis.url) as cache:
        private_redis.stop()
        layer = CacheMiddleware(origin, cache=cache)
        while cache.stats.store_errors < 20:  # until Redis is known to be away, and all are quick to find it so
            await request(layer, "/known")
        before = origin.calls
        await at_once(layer, origin, *[[] for _ in range(20)], calls=before + 1)
        assert origin.calls == before + 1
        await request(layer, "/")
        assert origin.calls == before + 2, "what nobody could tell of whether it was written to is not kept"


@pytest.mark.parametrize("lost", ["claim", "release"])
async def test_a_lease_nobody_knows_of_since_redis_was_not_heard_holds_nobody_up(
    redis: RedisManager, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    origin = Origin(Answer("Cache-Control: no-store"))
    async with RedisCache(redis, hit_for_miss=0) as cache:
        layer = CacheMiddleware(origin, cache=cache)
        execute = redis.execute

        async def unheard(command: str, *arguments: Any, **options: Any) -> Any:
            script = cache._leases._claim if lost == "claim" else cache._leases._release
            is_it = command in ("EVAL", "EVALSHA") and arguments[0] in (script.sha, script.text)
            reply = None if is_it and lost == "release" else await execute(command, *arguments, **options)
            if is_it:
                raise RedisUnavailable("no answer", maybe_executed=True)
            return reply

        monkeypatch.setattr(redis, "execute", unheard)
        await request(layer, "/")
        monkeypatch.setattr(redis, "execute", execute)
        await asyncio.wait_for(request(layer, "/"), 2)
        assert origin.calls == 2


async def test_a_write_overtakes_even_if_all_trace_of_the_one_before_has_expired(redis: RedisManager) -> None:
    origin = Origin(Answer(FRESH, body=b"old"), Answer(FRESH, body=b"new"))
    async with RedisCache(redis) as here, RedisCache(redis) as there:
        layer = CacheMiddleware(origin, cache=here)
        url = Request(http_scope("/")).url
        await there.invalidate([url])
        origin.gate = asyncio.Event()
        task = asyncio.create_task(request(layer, "/"))
        await origin.called.wait()
        await redis.execute("DEL", there._key(digest(url)))
        await there.invalidate([url])
        origin.gate.set()
        await task
        assert (await request(layer, "/")).body == b"new"


async def test_a_purge_overtakes_what_is_being_fetched(cache: Cache[Any]) -> None:
    origin = Origin(Answer(FRESH, "Surrogate-Key: a", body=b"old"), Answer(FRESH, body=b"new"))
    origin.gate = asyncio.Event()
    layer = CacheMiddleware(origin, cache=cache)
    reading = asyncio.create_task(request(layer, "/"))
    await origin.called.wait()
    await cache.purge(tags=["a"])
    origin.gate.set()
    await reading
    assert (await request(layer, "/")).body == b"new"


# -- streams ----------------------------------------------------------------------------------------------------------


async def test_bytes_pass_as_they_come(cache: Cache[Any]) -> None:
    step = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": fields(FRESH)})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await step.wait()
        await send({"type": "http.response.body", "body": b"two"})

    layer = CacheMiddleware(app, cache=cache)
    async with Driver(layer, http_scope("/"), [{"type": "http.request"}]) as client:
        assert (await client.next())["type"] == "http.response.start"
        assert (await client.next())["body"] == b"one"
        step.set()
        assert (await client.next())["body"] == b"two"


async def test_the_entry_is_stored_before_the_last_message_is_sent(cache: Cache[Any]) -> None:
    order: list[str] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            order.append(f"last message, {layer.stats.stored} stored")

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    layer = CacheMiddleware(Origin(Answer(FRESH, body=[b"a", b"b"])), cache=cache)
    await layer(http_scope("/"), receive, send)
    assert order == ["last message, 1 stored"]


async def test_a_body_that_is_too_large_passes_and_is_not_kept(cache: Cache[Any]) -> None:
    origin = Origin(Answer(FRESH, body=[b"x" * 600, b"y" * 600]))
    layer = CacheMiddleware(origin, cache=cache, max_body=1000)
    for _ in range(2):
        assert len((await request(layer, "/")).body) == 1200
    assert origin.calls == 2
    assert layer.stats.too_large == 2


async def test_a_body_that_says_it_is_too_large_is_not_said_to_be_stored(cache: Cache[Any]) -> None:
    layer = CacheMiddleware(Origin(Answer(FRESH, "Content-Length: 1200", body=b"x" * 1200)), cache=cache, max_body=1000)
    answer = await request(layer, "/")
    assert (answer.header("cache-status") or "").endswith("detail=too-large")
    assert layer.stats.too_large == 1


@pytest.mark.parametrize("lines", [[FRESH], ["Content-Type: text/event-stream", "Cache-Control: no-store"]])
async def test_an_endless_stream_is_not_held_up(cache: Cache[Any], lines: list[str]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": fields(lines)})
        while True:
            await send({"type": "http.response.body", "body": b"data: x\n\n" * 1000, "more_body": True})
            await asyncio.sleep(0)

    async with Driver(CacheMiddleware(app, cache=cache, max_body=100_000), http_scope("/"), capacity=4) as client:
        for _ in range(50):
            await client.next()


async def test_a_body_is_too_large_if_the_cache_cannot_hold_it() -> None:
    layer = CacheMiddleware(Origin(Answer(FRESH, body=b"x" * 1200)), cache=MemoryCache(max_bytes=1000))
    await request(layer, "/")
    assert (layer.stats.too_large, layer.stats.stored) == (1, 0)


async def test_what_a_write_has_overtaken_is_not_said_to_be_stored(cache: Cache[Any]) -> None:
    origin = Origin(Answer(FRESH))
    origin.gate = asyncio.Event()
    overtaken = asyncio.create_task(request(CacheMiddleware(origin, cache=cache), "/"))
    await origin.called.wait()
    await request(CacheMiddleware(Origin(Answer()), cache=cache), "/", method="POST")
    origin.gate.set()
    told = (await overtaken).header("cache-status")
    assert told == "asgi-enhance; fwd=uri-miss; fwd-status=200; detail=overtaken"
    assert cache.stats.stored == 0


async def test_a_validation_that_a_write_has_overtaken_is_not_said_to_be_stored(
    cache: Cache[Any], clock: Clock
) -> None:
    origin = Origin(Answer(FRESH, 'ETag: "a"'), Answer(status=304))
    layer = CacheMiddleware(origin, cache=cache)
    await request(layer, "/")
    clock.step(61)
    origin.called.clear()
    origin.gate = asyncio.Event()
    overtaken = asyncio.create_task(request(layer, "/"))
    await origin.called.wait()
    await request(CacheMiddleware(Origin(Answer()), cache=cache), "/", method="POST")
    origin.gate.set()
    assert (await overtaken).header("cache-status") == "asgi-enhance; fwd=stale; fwd-status=304"


@pytest.mark.parametrize("when", ["always", "while it is looked for", "while the app is at it"])
async def test_nothing_is_said_to_be_stored_while_redis_is_away(private_redis: RedisServer, when: str) -> None:
    async def app(*asked: Any) -> None:
        if when == "while it is looked for":
            private_redis.start()
            await until(lambda: cache.manager.available)
        elif when == "while the app is at it":
            private_redis.stop()
            while cache.manager.available:
                with contextlib.suppress(RedisUnavailable):
                    await cache.manager.ping()
        await Origin(Answer(FRESH))(*asked)

    async with RedisCache(private_redis.url) as cache:
        if when != "while the app is at it":
            private_redis.stop()
        told = (await request(CacheMiddleware(app, cache=cache), "/")).header("cache-status")
    assert told == "asgi-enhance; fwd=uri-miss; fwd-status=200; detail=store-away"


async def test_a_response_that_breaks_off_is_not_kept(cache: Cache[Any]) -> None:
    calls = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal calls
        calls += 1
        await send({"type": "http.response.start", "status": 200, "headers": fields(FRESH)})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError("broken")

    layer = CacheMiddleware(app, cache=cache)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="broken"):
            await request(layer, "/")
    assert calls == 2


async def test_files_are_asked_for_as_bytes_where_they_can_be_kept(cache: Cache[Any]) -> None:
    origin = Origin(Answer(FRESH))
    layer = CacheMiddleware(origin, cache=cache)
    await request(layer, "/")
    assert "http.response.pathsend" not in origin.asked[0]["extensions"]
    await request(layer, "/x", headers=fields("Range: bytes=0-1"))
    assert "http.response.pathsend" in origin.asked[1]["extensions"]


# -- stale responses --------------------------------------------------------------------------------------------------


async def test_a_stale_response_is_served_while_it_is_renewed_once(cache: Cache[Any], clock: Clock) -> None:
    line = "Cache-Control: max-age=60, stale-while-revalidate=30"
    origin = Origin(Answer(line, 'ETag: "a"', body=b"old"), Answer(line, 'ETag: "b"', body=b"new"))
    layer = CacheMiddleware(origin, cache=cache)
    await request(layer, "/")
    clock.step(70)
    origin.gate = asyncio.Event()
    for _ in range(5):
        answer = await request(layer, "/", headers=fields('If-None-Match: "x"'))
        assert answer.body == b"old"
        assert answer.header("cache-status") == "asgi-enhance; hit; ttl=-10"
    await until(lambda: origin.calls == 2)
    origin.gate.set()
    await until(lambda: layer.stats.stored == 2)
    assert (await request(layer, "/")).body == b"new"
    assert origin.calls == 2
    assert origin.sent("if-none-match") == '"a"', "the renewal asks with the cache's validator, not with the client's"


async def test_stale_while_revalidate_ends(cache: Cache[Any], clock: Clock) -> None:
    line = "Cache-Control: max-age=60, stale-while-revalidate=30"
    origin = Origin(Answer(line, body=b"old"), Answer(line, body=b"new"))
    layer = CacheMiddleware(origin, cache=cache)
    await request(layer, "/")
    clock.step(91)
    assert (await request(layer, "/")).body == b"new"


async def test_a_renewal_has_a_receive_that_blocks_and_is_ended_with_the_cache() -> None:
    ended: list[str] = []
    line = "Cache-Control: max-age=60, stale-while-revalidate=30"
    clock, calls = Clock(), 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal calls
        calls += 1
        await receive()
        if calls > 1:
            try:
                await receive()
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise
        await send({"type": "http.response.start", "status": 200, "headers": fields(line)})
        await send({"type": "http.response.body"})

    cache = MemoryCache(clock=clock)
    async with cache:
        layer = CacheMiddleware(app, cache=cache)
        await request(layer, "/")
        clock.step(70)
        await request(layer, "/")
        await until(lambda: calls == 2)
    assert ended == ["cancelled"]


@pytest.mark.parametrize("failure", [RuntimeError("down"), *(Answer(status=code) for code in (500, 502, 503, 504))])
async def test_a_stale_response_stands_in_for_an_error(cache: Cache[Any], clock: Clock, failure: Any) -> None:
    origin = Origin(Answer("Cache-Control: max-age=60, stale-if-error=30", body=b"old"), failure)
    layer = CacheMiddleware(origin, cache=cache)
    await request(layer, "/")
    clock.step(70)
    answer = await request(layer, "/")
    assert (answer.status, answer.body) == (200, b"old")
    assert "detail=stale-if-error" in (answer.header("cache-status") or "")
    clock.step(30)
    if isinstance(failure, Exception):
        with pytest.raises(RuntimeError, match="down"):
            await request(layer, "/")
    else:
        assert (await request(layer, "/")).status == failure.start["status"]


@pytest.mark.parametrize("veto", ["must-revalidate", "proxy-revalidate", "s-maxage=60", "no-cache"])
async def test_a_veto_beats_staleness(cache: Cache[Any], clock: Clock, veto: str) -> None:
    line = f"Cache-Control: max-age=60, stale-if-error=300, stale-while-revalidate=300, {veto}"
    origin = Origin(Answer(line, 'ETag: "a"', body=b"old"), Answer(status=503))
    layer = CacheMiddleware(origin, cache=cache, honour=["max-stale"])
    await request(layer, "/")
    clock.step(70)
    assert (await request(layer, "/", headers=fields("Cache-Control: max-stale"))).status == 503


@pytest.mark.parametrize(
    ("line", "after", "calls"),
    [
        ("no-cache", 5, 2),
        ("max-age=0", 5, 2),
        ("max-age=10", 5, 1),
        ("max-age=5", 5, 1),
        ("max-age=4", 5, 2),
        ("min-fresh=55", 5, 1),
        ("min-fresh=56", 5, 2),
        ("max-stale", 70, 1),
        ("max-stale=11", 70, 1),
        ("max-stale=5", 70, 2),
        ("no-cache", 0, 1),  # it came this very moment: no client needs it newer
    ],
)
async def test_directives_of_requests_can_be_honoured(
    cache: Cache[Any], clock: Clock, line: str, after: int, calls: int
) -> None:
    origin = Origin(Answer(FRESH, 'ETag: "a"'))
    layer = CacheMiddleware(origin, cache=cache, honour=["no-cache", "max-age", "min-fresh", "max-stale"])
    await request(layer, "/")
    clock.step(after)
    await request(layer, "/", headers=fields(f"Cache-Control: {line}"))
    assert origin.calls == calls


async def test_only_if_cached_is_answered_without_the_app(cache: Cache[Any]) -> None:
    origin = Origin(Answer(FRESH))
    layer = CacheMiddleware(origin, cache=cache)
    assert (await request(layer, "/", headers=fields("Cache-Control: only-if-cached"))).status == 504
    await request(layer, "/")
    assert (await request(layer, "/", headers=fields("Cache-Control: only-if-cached"))).status == 200
    assert origin.calls == 1


async def test_an_early_refresh_renews_what_is_about_to_expire(cache: Cache[Any], clock: Clock) -> None:
    origin = Origin(Answer(FRESH, body=b"old"), Answer(FRESH, body=b"new"))
    layer = CacheMiddleware(origin, cache=cache, early=1.0, rng=lambda: 1e-9)
    await request(layer, "/")
    await request(layer, "/")
    assert origin.calls == 1, "it is far from expiring"
    clock.step(59.9999)
    assert (await request(layer, "/")).body == b"old"
    await until(lambda: layer.stats.stored == 2)
    assert (await request(layer, "/")).body == b"new"


async def test_a_rule_grants_staleness_tags_and_a_vary(cache: Cache[Any], clock: Clock) -> None:
    granted = CacheRule("/", ttl=60, stale_if_error=30, vary=["X-Tenant"], tags=["page"])
    origin = Origin(Answer(body=b"old"), Answer(status=503), Answer(body=b"other"), Answer(body=b"new"))
    layer = CacheMiddleware(origin, cache=cache, rules=[granted])
    await request(layer, "/")
    clock.step(70)
    assert (await request(layer, "/")).body == b"old"
    assert (await request(layer, "/", headers=fields("X-Tenant: b"))).body == b"other"
    await cache.purge(tags=["page"])
    assert (await request(layer, "/")).body == b"new"


# -- what has landed is waited for no more ----------------------------------------------------------------------------


def slow_client(layer: CacheMiddleware) -> Driver:
    """One that reads nothing but the start."""
    return Driver(layer, http_scope("/"), [{"type": "http.request"}], capacity=1)


@pytest.mark.parametrize("how", ["write", "purge"])
async def test_what_a_slow_client_still_reads_is_for_nobody_once_it_is_outdated(cache: Cache[Any], how: str) -> None:
    origin = Origin(Answer(FRESH, body=b"old"), Answer(FRESH, body=b"new"))
    layer = CacheMiddleware(origin, cache=cache)
    async with slow_client(layer):
        await until(lambda: layer.stats.stored == 1)
        if how == "write":
            await cache.invalidate([Request(http_scope("/")).url])
        else:
            await cache.purge(everything=True)
        assert (await request(layer, "/")).body == b"new"


@pytest.mark.parametrize("soft", [True, False])
async def test_who_asks_after_a_purge_does_not_get_what_was_asked_for_before(cache: Cache[Any], soft: bool) -> None:
    origin = Origin(*[Answer(FRESH, "Cache-Tag: news", body=b"%d" % number) for number in range(3)])
    origin.gate = asyncio.Event()
    layer = CacheMiddleware(origin, cache=cache)
    before = asyncio.create_task(request(layer, "/"))
    await origin.called.wait()
    await cache.purge(tags=["news"], soft=soft)
    after = [asyncio.create_task(request(layer, "/")) for _ in range(5)]
    for _ in range(20):
        await asyncio.sleep(0)
    origin.gate.set()
    assert (await before).body == b"0"
    answers = [answer.body for answer in await asyncio.gather(*after)]
    assert b"0" not in answers
    if not cache.remote:  # who is late in Redis may come to an empty place between two turns
        assert answers == [b"1"] * 5, "one of them asks for all"


async def test_a_stream_that_is_not_for_sharing_holds_nobody_up_in_another_process(redis: RedisManager) -> None:
    async def events(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": fields("Cache-Control: no-store")})
        await send({"type": "http.response.body", "body": b"data: x\n\n", "more_body": True})
        await asyncio.Event().wait()

    def client(cache: Cache[Any]) -> Driver:
        return Driver(CacheMiddleware(events, cache=cache), http_scope("/"), [{"type": "http.request"}])

    async with RedisCache(redis) as here, RedisCache(redis) as there, client(here) as one:
        assert (await one.next())["type"] == "http.response.start"
        async with client(there) as two, asyncio.timeout(2):
            assert (await two.next())["type"] == "http.response.start"


async def test_a_slow_client_holds_nobody_up_in_another_process(redis: RedisManager) -> None:
    origin = Origin(Answer(FRESH, body=b"body"))
    async with RedisCache(redis) as here, RedisCache(redis) as there:
        origin.gate = asyncio.Event()
        async with slow_client(CacheMiddleware(origin, cache=here)):
            await origin.called.wait()
            waiting = asyncio.create_task(request(CacheMiddleware(origin, cache=there), "/"))
            await until(lambda: bool(there._leases._waiting))
            origin.gate.set()
            async with asyncio.timeout(2):
                assert (await waiting).body == b"body"
    assert origin.calls == 1


async def test_all_wait_for_what_another_process_validates_however_long_that_takes(
    redis: RedisManager, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "POLL", 0.001)
    origin = Origin(Answer(FRESH, 'ETag: "a"', body=b"body"), Answer(FRESH, status=304))
    async with RedisCache(redis, clock=clock) as here, RedisCache(redis, clock=clock) as there:
        await request(CacheMiddleware(origin, cache=here), "/")
        clock.step(61)
        origin.called.clear()
        origin.gate = asyncio.Event()
        validating = asyncio.create_task(request(CacheMiddleware(origin, cache=there), "/"))
        await origin.called.wait()
        claims, claim = 0, here.claim

        async def counted(*asked: Any) -> Claim:
            nonlocal claims
            claims += 1
            return await claim(*asked)

        monkeypatch.setattr(here, "claim", counted)
        layer = CacheMiddleware(origin, cache=here)
        waiting = [asyncio.create_task(request(layer, "/")) for _ in range(6)]
        await until(lambda: claims > 20)
        origin.gate.set()
        assert {answer.body for answer in [await validating, *await asyncio.gather(*waiting)]} == {b"body"}
    assert origin.calls == 2
