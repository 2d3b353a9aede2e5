"""The shared list of backends over a real Redis or Valkey, and what happens without it."""

import asyncio

import pytest

from asgi_enhance.balance import Backend, HealthCheck, LoadBalanceApp, LoadBalancer
from asgi_enhance.errors import ConfigError, RedisUnavailable
from asgi_enhance.redis import RedisManager
from asgi_enhance.testing.live import free_port
from asgi_enhance.testing.servers import RedisServer
from tests.balance.wire import ScriptedBackend, ask, get, serve, until


def names(balancer: LoadBalancer) -> list[str]:
    return sorted(endpoint.name for endpoint in balancer.endpoints)


async def test_a_backend_registered_at_one_gateway_serves_at_all_of_them_at_once(redis: RedisManager) -> None:
    """By the published hint: the poll would take an hour."""
    async with ScriptedBackend() as backend:
        one, two = (LoadBalancer([], redis=redis, poll=3600) for _ in range(2))
        async with one, two, serve(LoadBalanceApp(balancer=two)) as port:
            await asyncio.sleep(0.05)
            await one.register(Backend(backend.url, weight=2))
            await until(lambda: names(one) == names(two) == [backend.url])
            assert two.endpoints[0].weight == 2
            assert (await ask(port, get())).status == 200
            await one.deregister(backend.url)
            await until(lambda: names(two) == [])


async def test_a_gateway_cancelled_while_it_starts_leaves_its_redis_and_no_task(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolving = asyncio.Event()

    async def resolve(*_: object, **__: object) -> None:
        resolving.set()
        await asyncio.Event().wait()

    redis = RedisManager(redis_url)
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    starting = asyncio.create_task(LoadBalancer("dns+http://backends.invalid:80", redis=redis).__aenter__())
    await resolving.wait()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert redis.opened() is None
    assert [task for task in asyncio.all_tasks() if task.get_name().startswith("balance")] == []


async def test_without_a_hint_the_poll_finds_the_change(redis: RedisManager) -> None:
    async with LoadBalancer([], redis=redis, poll=0.05) as balancer:
        keys = [redis.key("balance", "{default}", part) for part in ("backends", "version")]
        await redis.execute("HSET", keys[0], "http://127.0.0.1:9", b"{}")
        await redis.execute("INCR", keys[1])
        await until(lambda: names(balancer) == ["http://127.0.0.1:9"])


async def test_configured_backends_stay_beside_the_shared_ones(redis: RedisManager) -> None:
    async with LoadBalancer(["http://10.0.0.1"], redis=redis, poll=0.05) as balancer:
        await balancer.register("http://10.0.0.2")
        await until(lambda: names(balancer) == ["http://10.0.0.1", "http://10.0.0.2"])
        await balancer.deregister("http://10.0.0.2")
        await until(lambda: names(balancer) == ["http://10.0.0.1"])


@pytest.mark.parametrize(
    ("url", "description"),
    [
        ("http://8.8.8.8", b"{}"),
        ("http://metadata.internal", b"{}"),
        ("http://[2001:db8::1]", b"{}"),
        ("file:///etc/passwd", b"{}"),
        ("http://10.0.0.9", b'{"weight": -1}'),
        ("http://10.0.0.9", b'{"surprise": 1}'),
        ("http://10.0.0.9", b"\xff"),
    ],
)
async def test_what_is_outside_the_allowed_networks_or_no_backend_is_never_taken(
    redis: RedisManager, url: str, description: bytes
) -> None:
    async with LoadBalancer([], redis=redis, poll=0.05) as balancer:
        keys = [redis.key("balance", "{default}", part) for part in ("backends", "version")]
        await redis.execute("HSET", keys[0], url, description, "http://10.0.0.1", b"{}")
        await redis.execute("INCR", keys[1])
        await until(lambda: names(balancer) == ["http://10.0.0.1"])


async def test_what_others_would_not_take_is_not_registered(redis: RedisManager) -> None:
    async with LoadBalancer([], redis=redis) as balancer:
        with pytest.raises(ConfigError, match="registry_networks"):
            await balancer.register("http://8.8.8.8")


async def test_what_cannot_be_shared_is_not_registered(redis: RedisManager) -> None:
    async with LoadBalancer([], redis=redis) as balancer:
        with pytest.raises(ConfigError, match="only url, weight and priority"):
            await balancer.register(Backend("http://127.0.0.1:1", host="a.example"))


async def test_sharing_needs_redis() -> None:
    with pytest.raises(ConfigError, match="redis"):
        await LoadBalancer([]).register("http://10.0.0.1")


async def test_while_redis_is_away_the_last_list_serves_and_changes_are_found_after(
    private_redis: RedisServer,
) -> None:
    manager = RedisManager(private_redis.url)
    async with ScriptedBackend() as backend, manager:
        balancer = LoadBalancer([], redis=manager, poll=0.05)
        async with balancer, serve(LoadBalanceApp(balancer=balancer)) as port:
            await balancer.register(backend.url)
            await until(lambda: names(balancer) == [backend.url])
            private_redis.kill()
            with pytest.raises(RedisUnavailable):
                await balancer.register("http://10.0.0.1")
            for _ in range(5):
                assert (await ask(port, get())).status == 200
            private_redis.start()  # empty: whoever forgot the list does not take the backends along
            await asyncio.sleep(0.2)
            assert names(balancer) == [backend.url]

            async def registered() -> bool:
                try:
                    await balancer.register("http://127.0.0.1:9")
                except RedisUnavailable:
                    return False
                return True

            async with asyncio.timeout(10):
                while not await registered():  # noqa: ASYNC110 the breaker opens by its own clock
                    await asyncio.sleep(0.05)
            await until(lambda: names(balancer) == ["http://127.0.0.1:9"])


async def test_a_gateway_starts_and_serves_with_redis_away() -> None:
    async with ScriptedBackend() as backend:
        app = LoadBalanceApp([backend.url], redis=f"redis://127.0.0.1:{free_port()}")
        async with serve(app) as port:
            assert (await ask(port, get())).status == 200
        await app.balancer.close()


async def test_one_gateway_asks_a_backend_for_all_and_its_verdict_reaches_the_others(redis: RedisManager) -> None:
    check = HealthCheck(interval=0.05, fast=0.05, rise=1, fall=2)
    async with ScriptedBackend() as backend, ScriptedBackend() as other:
        gateways = [LoadBalancer([backend.url, other.url], redis=redis, health=check) for _ in range(4)]
        for gateway in gateways:
            await gateway.__aenter__()
        await until(lambda: len(backend.requests) >= 10)
        before = len(backend.requests)
        await asyncio.sleep(0.5)
        assert len(backend.requests) - before < 20  # one of four: about ten, not forty
        await backend.stop()
        await until(lambda: all(not gateway.endpoints[0].checked for gateway in gateways))
        await backend.start()
        await until(lambda: all(gateway.endpoints[0].checked for gateway in gateways))
        for gateway in gateways:
            await gateway.aclose()


async def test_checks_go_on_when_redis_goes_away(private_redis: RedisServer) -> None:
    check = HealthCheck(interval=0.05, fast=0.02, rise=1, fall=1)
    balancer = LoadBalancer(redis=private_redis.url, health=check)
    async with ScriptedBackend() as backend, balancer:
        balancer.add_backend(backend.url)
        await until(lambda: len(backend.requests) > 2)
        private_redis.kill()
        await backend.stop()
        await until(lambda: not balancer.endpoints[0].checked)
        await backend.start()
        await until(lambda: balancer.endpoints[0].checked)
