"""Probes: who is alive, who is ready, what is told to whom, and how often anybody is asked."""

import asyncio
import threading
from typing import Any

import pytest

from asgi_enhance.asgi.types import Receive, Scope, Send
from asgi_enhance.errors import ConfigError
from asgi_enhance.health import Check, Health, HealthApp, HealthMiddleware, Phase, Result, Status, checks
from asgi_enhance.redis import RedisManager
from asgi_enhance.testing.conformance import assert_transparent
from asgi_enhance.testing.driver import Lifetime, Response, request
from asgi_enhance.testing.servers import RedisServer

HERE: dict[str, Any] = {"client": ("127.0.0.1", 1)}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": b"the app"})


def good() -> bool:
    return True


def bad() -> bool:
    return False


def warns() -> Result:
    return Result(Status.WARN, 0.9, "of the limit", "nearly full")


async def raises() -> None:
    raise LookupError("the password is secret")


async def probe(check: Check, **options: Any) -> Response:
    async with Health([check]) as health:
        return await request(HealthApp(health=health), "/readyz", **{**HERE, **options})


async def test_every_line_of_the_contract_is_kept() -> None:
    await assert_transparent(HealthMiddleware)


async def test_alive_is_who_answers_whatever_its_checks_say() -> None:
    answer = await request(HealthApp(checks=[Check(bad, name="bad", critical=True)]), "/livez")
    assert (answer.status, answer.json()) == (200, {"status": "pass"})
    assert answer.header("content-type") == "application/health+json"
    assert answer.header("cache-control") == "no-store"


@pytest.mark.parametrize(
    ("look", "critical", "status", "said"),
    [
        (good, True, 200, "pass"),
        (warns, True, 200, "warn"),
        (bad, False, 200, "warn"),
        (bad, True, 503, "fail"),
        (raises, False, 200, "warn"),
        (raises, True, 503, "fail"),
    ],
)
async def test_only_a_critical_failure_takes_the_process_out(look: Any, critical: bool, status: int, said: str) -> None:
    answer = await probe(Check(look, name="it", critical=critical))
    assert (answer.status, answer.json()["status"]) == (status, said)


async def test_details_are_in_the_form_of_the_draft() -> None:
    answer = (await probe(Check(warns, name="disk:utilization", kind="system"))).json()
    (entry,) = answer["checks"]["disk:utilization"]
    time = entry.pop("time")
    assert entry == {
        "componentType": "system",
        "status": "warn",
        "observedValue": 0.9,
        "observedUnit": "of the limit",
        "output": "nearly full",
    }
    assert time.endswith("Z")


async def test_what_was_observed_may_be_anything() -> None:
    answer = await probe(Check(lambda: Result(observed=1 + 2j), name="it", critical=True))
    assert answer.status == 200
    assert answer.json()["checks"]["it"][0]["observedValue"] == "(1+2j)"


async def test_an_exception_is_named_and_its_text_is_kept_in() -> None:
    body = (await probe(Check(raises, name="it"))).body
    assert b"LookupError" in body
    assert b"secret" not in body


@pytest.mark.parametrize(
    "caller",
    [
        {"client": ("192.0.2.7", 1)},
        {"client": None},
        {"client": ("127.0.0.1", 1), "headers": [(b"x-forwarded-for", b"127.0.0.1")]},
    ],
)
async def test_a_stranger_learns_the_status_and_nothing_else(caller: dict[str, Any]) -> None:
    health = HealthApp(checks=[Check(warns, name="disk")], about={"version": "1.2"})
    assert (await request(health, "/readyz?exclude=disk", **caller)).json() == {"status": "warn"}
    assert (await request(health, "/livez", **caller)).json() == {"status": "pass"}
    assert (await request(health, "/readyz/disk", **caller)).status == 404


async def test_who_may_see_details_can_ask_for_one_check_or_leave_one_out() -> None:
    health = HealthApp(checks=[Check(bad, name="bad", critical=True), Check(good, name="good")], about={"version": "1"})
    assert (await request(health, "/readyz", **HERE)).status == 503
    assert (await request(health, "/readyz?exclude=bad", **HERE)).json()["version"] == "1"
    assert (await request(health, "/readyz/good", **HERE)).status == 200
    assert (await request(health, "/readyz/bad", **HERE)).status == 503
    assert (await request(health, "/readyz/unknown", **HERE)).status == 404


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("POST", 405)])
async def test_probes_are_only_read(method: str, status: int) -> None:
    answer = await request(HealthApp(), "/readyz", method=method)
    assert answer.status == status
    assert method != "HEAD" or answer.body == b""


async def test_the_app_answers_everything_else() -> None:
    layer = HealthMiddleware(app)
    assert (await request(layer, "/other")).body == b"the app"
    assert (await request(layer, "/readyz/nothing")).body == b"the app"
    assert (await request(HealthApp(), "/other")).status == 404


async def test_below_a_mount_the_probes_are_found() -> None:
    assert (await request(HealthMiddleware(app), "/api/livez", root_path="/api")).json() == {"status": "pass"}


async def test_not_ready_while_starting_and_again_when_draining() -> None:
    seen: list[tuple[Phase, int]] = []

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        for answer in ("startup", "shutdown"):
            await receive()
            seen.append((layer.health.phase, (await request(layer, "/readyz")).status))
            await send({"type": f"lifespan.{answer}.complete"})

    layer = HealthMiddleware(slow)
    async with Lifetime(layer):
        assert (await request(layer, "/readyz")).status == 200
        layer.health.drain()
        assert (await request(layer, "/readyz", **HERE)).json()["notes"] == ["draining"]
        assert (await request(layer, "/livez")).status == 200
        layer.health.serve()
    assert seen == [(Phase.STARTING, 503), (Phase.DRAINING, 503)]


async def test_a_flood_of_probes_asks_once() -> None:
    asked = 0
    begun, proceed = asyncio.Event(), asyncio.Event()

    async def look() -> bool:
        nonlocal asked
        asked += 1
        begun.set()
        await proceed.wait()
        return True

    async with Health([Check(look, name="slow", ttl=60)]) as health:
        probes = [asyncio.create_task(request(HealthApp(health=health), "/readyz")) for _ in range(50)]
        await begun.wait()
        proceed.set()
        assert {answer.status for answer in await asyncio.gather(*probes)} == {200}
        await request(HealthApp(health=health), "/readyz")
    assert asked == 1


async def test_a_probe_that_leaves_takes_the_answer_from_nobody() -> None:
    proceed = asyncio.Event()

    async def look() -> bool:
        await proceed.wait()
        return True

    async with Health([Check(look, name="slow", critical=True)]) as health:
        first = asyncio.create_task(request(HealthApp(health=health), "/readyz"))
        second = asyncio.create_task(request(HealthApp(health=health), "/readyz"))
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.wait([first])
        proceed.set()
        assert (await second).status == 200


async def test_an_answer_holds_for_its_ttl_and_no_longer() -> None:
    asked = 0

    def look() -> None:
        nonlocal asked
        asked += 1

    async with Health([Check(look, name="each time", ttl=0)]) as health:
        for _ in range(3):
            await request(HealthApp(health=health), "/readyz")
    assert asked == 3


async def test_a_check_that_does_not_answer_is_a_failure_at_its_deadline() -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    answer = await probe(Check(never, name="never", timeout=0.02, critical=True))
    assert answer.status == 503
    assert answer.json()["checks"]["never"][0]["output"] == "no answer in 0.02 s"


async def test_a_function_that_hangs_keeps_one_thread_and_not_the_loop() -> None:
    release, started = threading.Event(), 0

    def hangs() -> None:
        nonlocal started
        started += 1
        release.wait(5)

    async with Health([Check(hangs, name="hangs", timeout=0.02, ttl=0)]) as health:
        try:
            for _ in range(3):
                assert (await request(HealthApp(health=health), "/readyz")).json() == {"status": "warn"}
        finally:
            release.set()
    assert started == 1


async def test_redis_away_warns_and_serves_on(private_redis: RedisServer) -> None:
    layer = HealthMiddleware(app, redis=private_redis.url)
    async with layer.health:
        answer = await request(layer, "/readyz", **HERE)
        assert (answer.status, answer.json()["status"]) == (200, "pass")
        assert answer.json()["checks"]["redis:responseTime"][0]["observedUnit"] == "ms"
    private_redis.stop()
    layer = HealthMiddleware(app, redis=RedisManager(private_redis.url))
    async with layer.health:
        assert (await request(layer, "/livez")).status == 200
        answer = await request(layer, "/readyz", **HERE)
        assert (answer.status, answer.json()["status"]) == (200, "warn")
        assert answer.json()["checks"]["redis:responseTime"][0]["output"] == "RedisUnavailable"


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ({"a": True, "b": True}, "pass"),
        ({"a": True, "b": False}, "warn"),
        ({"a": False, "b": False}, "fail"),
        ({}, "fail"),
    ],
)
async def test_backends_fail_together_or_not_at_all(states: dict[str, bool], said: str) -> None:
    answer = await probe(checks.backends(lambda: states, critical=True))
    assert answer.json()["status"] == said


async def test_tcp_and_dns_are_asked_over_the_network() -> None:
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    assert (await probe(checks.tcp("127.0.0.1", port))).json()["status"] == "pass"
    server.close()
    await server.wait_closed()
    assert (await probe(checks.tcp("127.0.0.1", port, critical=True))).status == 503
    assert (await probe(checks.dns("localhost"))).json()["status"] == "pass"
    assert (await probe(checks.dns("no-such-host.invalid", critical=True, timeout=3))).status == 503


@pytest.mark.parametrize(
    ("check", "said"),
    [
        (checks.memory(warn=0.999), "pass"),
        (checks.memory(warn=0.0), "warn"),
        (checks.memory(warn=0.0, fail=0.0), "fail"),
        (checks.cpu(warn=1000), "pass"),
        (checks.event_loop(warn=60, fail=120), "pass"),
        (checks.event_loop(warn=-1, fail=120), "warn"),
    ],
)
async def test_the_process_is_held_against_its_limits(check: Check, said: str) -> None:
    assert (await probe(check)).json()["status"] == said


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: HealthApp(livez="livez"), "livez"),
        (lambda: HealthApp(readyz="/readyz/"), "readyz"),
        (lambda: HealthApp(health=Health(), checks=[Check(good, name="a")]), "checks"),
        (lambda: Health([Check(good, name="a"), Check(bad, name="a")]), "checks"),
        (lambda: Check(good, name="a/b"), "name"),
        (lambda: Check(good, name="a", timeout=0), "timeout"),
        (lambda: Check(good, name="a", ttl=-1), "ttl"),
    ],
)
def test_what_cannot_work_is_refused_by_name(make: Any, argument: str) -> None:
    with pytest.raises(ConfigError, match=argument):
        make()
