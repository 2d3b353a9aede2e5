"""On a Cluster commands find their node, also while slots move and nodes are away."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from redis import Redis
from redis.asyncio import RedisCluster as Client
from redis.crc import key_slot
from redis.exceptions import ResponseError

from asgi_enhance.errors import RedisUnavailable
from asgi_enhance.redis import RedisManager
from asgi_enhance.redis.cluster import ClusterSession
from asgi_enhance.testing.servers import RedisCluster, RedisServer
from tests.redis.helpers import patient, until, until_true

KEYS = [f"key:{number}" for number in range(60)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    with RedisCluster() as cluster:
        yield cluster


@pytest.fixture
def redis_cluster(cluster: RedisCluster) -> RedisCluster:
    cluster.flush()
    return cluster


def manager_of(cluster: RedisCluster) -> RedisManager:
    return patient(cluster.url)


def elsewhere(cluster: RedisCluster, slot: int) -> RedisServer:
    owner = cluster.owner(slot)
    return next(node for node in cluster.nodes if node is not owner)


async def test_the_first_key_of_a_command_decides_its_node(redis_cluster: RedisCluster) -> None:
    async with manager_of(redis_cluster) as manager:
        await asyncio.gather(*(manager.execute("SET", key, key) for key in KEYS))
        replies = await asyncio.gather(*(manager.execute("GET", key) for key in KEYS))
        assert replies == [key.encode() for key in KEYS]
        assert all(node.call("DBSIZE") for node in redis_cluster.nodes)
        assert manager.stats.redirected == 0
        script = manager.script("return redis.call('GET', KEYS[1])")
        replies = await asyncio.gather(*(script(keys=[key]) for key in KEYS))
        assert replies == [key.encode() for key in KEYS]


async def test_one_seed_is_enough(redis_cluster: RedisCluster) -> None:
    async with patient(f"redis+cluster://127.0.0.1:1,127.0.0.1:{redis_cluster.nodes[2].port}") as manager:
        replies = await asyncio.gather(*(manager.execute("SET", key, key) for key in KEYS))
        assert replies == [b"OK"] * len(KEYS)


async def test_keys_of_two_slots_are_the_callers_mistake(redis_cluster: RedisCluster) -> None:
    async with manager_of(redis_cluster) as manager:
        with pytest.raises(ResponseError, match=r"(?i)slot"):
            await manager.execute("MGET", *KEYS)
        assert await manager.execute("MGET", "{a}1", "{a}2") == [None, None]


async def test_a_moved_slot_is_followed_and_then_known(redis_cluster: RedisCluster) -> None:
    async with manager_of(redis_cluster) as manager:
        await manager.execute("SET", "{moved}a", 1)
        slot = key_slot(b"{moved}a")
        redis_cluster.move_slot(slot, elsewhere(redis_cluster, slot))
        commands = [manager.execute("INCR", "{moved}a") for _ in range(20)]
        assert await asyncio.gather(*commands) == list(range(2, 22))
        followed = manager.stats.redirected
        assert 0 < followed <= 20
        assert await manager.execute("INCR", "{moved}a") == 22
        assert manager.stats.redirected == followed
        assert manager.stats.errors == 0


async def test_one_redirection_is_reason_to_read_the_map_anew(redis_cluster: RedisCluster) -> None:
    async with manager_of(redis_cluster) as manager:
        keys = [f"{{many:{number}}}" for number in range(30)]
        await asyncio.gather(*(manager.execute("SET", key, 1) for key in keys))
        for key in keys:
            slot = key_slot(key.encode())
            redis_cluster.move_slot(slot, elsewhere(redis_cluster, slot))
        unknown = iter(keys)

        async def known_before_it_was_asked_for() -> bool:
            before = manager.stats.redirected
            assert await manager.execute("GET", next(unknown)) == b"1"
            return manager.stats.redirected == before

        await until_true(known_before_it_was_asked_for)


async def test_a_slot_on_the_move_answers_for_old_and_new_keys(redis_cluster: RedisCluster) -> None:
    async with manager_of(redis_cluster) as manager:
        await manager.execute("SET", "{ask}old", "old")
        slot = key_slot(b"{ask}")
        target = elsewhere(redis_cluster, slot)
        redis_cluster.begin_move(slot, target)
        try:
            assert await manager.execute("SET", "{ask}new", "new") == b"OK"
            replies = await asyncio.gather(
                *(manager.execute("GET", f"{{ask}}{name}") for name in ("old", "new", "none") * 10)
            )
            assert replies == [b"old", b"new", None] * 10
            assert target.call("CLUSTER", "COUNTKEYSINSLOT", slot) == 1
        finally:
            redis_cluster.end_move(slot, target)
        assert await manager.execute("MGET", "{ask}old", "{ask}new") == [b"old", b"new"]


async def test_sharded_channels_are_spread_and_plain_ones_reach_everybody(redis_cluster: RedisCluster) -> None:
    got: Counter[str] = Counter()
    async with manager_of(redis_cluster) as manager:
        subscriptions = [
            manager.subscribe(key, lambda payload, key=key: got.update([key]), sharded=True)  # type: ignore[misc]
            for key in KEYS
        ]
        subscriptions.append(manager.subscribe("plain", lambda payload: got.update(["plain"])))
        for subscription in subscriptions:
            await subscription.ready()
        assert all(node.call("PUBSUB", "SHARDCHANNELS") for node in redis_cluster.nodes)
        assert await asyncio.gather(*(manager.execute("SPUBLISH", key, "x") for key in KEYS)) == [1] * len(KEYS)
        for node in redis_cluster.nodes:
            node.call("PUBLISH", "plain", "x")
        await until(lambda: got.total() == len(KEYS) + 3)
        assert set(got) == {*KEYS, "plain"}


async def test_a_sharded_channel_moves_with_its_slot_and_tells_the_gap(redis_cluster: RedisCluster) -> None:
    got: list[bytes] = []
    async with manager_of(redis_cluster) as manager:
        subscription = manager.subscribe("moving", got.append, lambda: got.append(b"gap"), sharded=True)
        stays = manager.subscribe("{other}", got.append, lambda: got.append(b"no gap"), sharded=True)
        await subscription.ready()
        await stays.ready()
        slot = key_slot(b"moving")
        target = elsewhere(redis_cluster, slot)
        redis_cluster.move_slot(slot, target)
        await until(lambda: got == [b"gap"] and subscription.is_ready)
        assert await manager.execute("SPUBLISH", "moving", "there") == 1
        await until(lambda: got == [b"gap", b"there"])
        assert target.call("PUBSUB", "SHARDNUMSUB", "moving") == [b"moving", 1]
        await subscription.close()


async def test_a_sharded_channel_whose_slot_went_away_and_came_back_is_on(redis_cluster: RedisCluster) -> None:
    got: list[bytes] = []
    async with manager_of(redis_cluster) as manager:
        subscription = manager.subscribe("returns", got.append, lambda: got.append(b"gap"), sharded=True)
        await subscription.ready()
        slot = key_slot(b"returns")
        owner = redis_cluster.owner(slot)
        redis_cluster.move_slot(slot, elsewhere(redis_cluster, slot))
        redis_cluster.move_slot(slot, owner)
        await until(lambda: got == [b"gap"] and subscription.is_ready)
        assert await manager.execute("SPUBLISH", "returns", "x") == 1
        await until(lambda: got == [b"gap", b"x"])


async def test_a_sharded_channel_finds_its_node_with_an_old_map_too(redis_cluster: RedisCluster) -> None:
    got: list[bytes] = []
    async with manager_of(redis_cluster) as manager:
        await manager.execute("GET", "x")
        slot = key_slot(b"late")
        redis_cluster.move_slot(slot, elsewhere(redis_cluster, slot))
        subscription = manager.subscribe("late", got.append, sharded=True)
        await subscription.ready()
        assert await manager.execute("SPUBLISH", "late", "x") == 1
        await until(lambda: got == [b"x"])


async def test_the_client_is_redis_pys_cluster_client(redis_cluster: RedisCluster) -> None:
    async with manager_of(redis_cluster) as manager:
        assert isinstance(manager.client, Client)
        await manager.execute("SET", "x", "1")
        assert await manager.client.get("x") == b"1"


async def test_a_dead_node_leaves_the_others_in_service_and_comes_back() -> None:
    with RedisCluster() as cluster:
        async with patient(cluster.url, max_probe_delay=0.2) as manager:
            await asyncio.gather(*(manager.execute("SET", key, key) for key in KEYS))
            dead = cluster.nodes[1]
            mine = [key for key in KEYS if cluster.owner(key_slot(key.encode())) is dead]
            others = [key for key in KEYS if key not in mine]
            assert mine
            dead.kill()
            for _ in range(10):
                lost = await asyncio.gather(*(manager.execute("GET", key) for key in mine), return_exceptions=True)
                assert all(isinstance(error, RedisUnavailable) for error in lost)
                replies = await asyncio.gather(*(manager.execute("GET", key) for key in others))
                assert replies == [key.encode() for key in others]
            assert manager.available
            assert manager.stats.opened == 1
            dead.start()

            async def back() -> bool:
                replies = await asyncio.gather(*(manager.execute("GET", key) for key in mine), return_exceptions=True)
                return replies == [None] * len(mine)

            await until_true(back, seconds=15)


async def test_when_another_node_takes_over_the_slots_of_a_dead_one_it_is_found() -> None:
    with RedisCluster() as cluster:
        async with patient(cluster.url) as manager:
            await manager.execute("SET", "x", 1)
            slot = key_slot(b"x")
            dead, heir = cluster.owner(slot), elsewhere(cluster, slot)
            name = heir.call("CLUSTER", "MYID")
            dead.kill()
            for node in cluster.nodes:
                if node is not dead:
                    node.call("CLUSTER", "SETSLOT", slot, "NODE", name)

            async def served() -> bool:
                try:
                    return bool(await manager.execute("SET", "x", 2) == b"OK")
                except RedisUnavailable:
                    return False

            await until_true(served)
            assert heir.call("GET", "x") == b"2"


async def test_a_dead_node_that_serves_nothing_any_more_is_left_alone_though_it_is_a_seed() -> None:
    with RedisCluster() as cluster:
        async with patient(cluster.url) as manager:
            await manager.execute("SET", "x", 1)
            slot = key_slot(b"x")
            dead, heir = cluster.owner(slot), elsewhere(cluster, slot)
            mine = [
                n
                for first, last, own, *_ in heir.call("CLUSTER", "SLOTS")
                if own[1] == dead.port
                for n in range(first, last + 1)
            ]
            name = heir.call("CLUSTER", "MYID")
            dead.kill()

            async def given_up() -> bool:
                with pytest.raises(RedisUnavailable):
                    await manager.execute("SET", "x", 1)
                return manager.stats.opened == 1

            await until_true(given_up)
            for node in cluster.nodes:
                if node is not dead:
                    with Redis.from_url(node.url) as client, client.pipeline(transaction=False) as pipeline:
                        for number in mine:
                            pipeline.execute_command("CLUSTER", "SETSLOT", number, "NODE", name)
                        pipeline.execute()
            session = manager.opened()
            assert isinstance(session, ClusterSession)

            async def nobody_is_probed() -> bool:
                with suppress(RedisUnavailable):
                    await manager.execute("SET", "x", 2)
                return not any(node.breaker.is_open for node in session._nodes.values())

            await until_true(nobody_is_probed)
            assert await manager.execute("SET", "x", 3) == b"OK"


async def test_a_sharded_channel_waits_for_a_cluster_that_comes_later() -> None:
    with RedisCluster() as cluster:
        for node in cluster.nodes:
            node.stop()
        async with RedisManager(cluster.url, max_probe_delay=0.2) as manager:
            subscription = manager.subscribe("c", print, sharded=True)
            with pytest.raises(RedisUnavailable):
                await subscription.ready()
            for node in cluster.nodes:
                node.start()
            await until(lambda: subscription.is_ready, seconds=20)


async def test_seeds_that_do_not_answer_hold_nobody_up_longer_than_one_server_would() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    servers = [await asyncio.start_server(silent, "127.0.0.1", 0) for _ in range(3)]
    hosts = ",".join(f"127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in servers)
    try:
        async with RedisManager(f"redis+cluster://{hosts}", connect_timeout=0.3, command_timeout=0.1) as manager:
            with pytest.raises(RedisUnavailable, match=r"none within 0\.4 s"):
                await manager.execute("GET", "x")
    finally:
        for server in servers:
            server.close()


async def test_a_cluster_that_is_away_is_refused_at_once_after_a_few_failures() -> None:
    async with RedisManager("redis+cluster://127.0.0.1:1,127.0.0.1:2") as manager:
        for _ in range(4):
            with pytest.raises(RedisUnavailable, match="no node of the redis cluster"):
                await manager.execute("GET", "x")
        assert not manager.available
        begun = asyncio.get_running_loop().time()
        with pytest.raises(RedisUnavailable):
            await manager.execute("GET", "x")
        assert asyncio.get_running_loop().time() - begun < 0.05


async def test_a_sharded_channel_waits_for_its_slot_to_be_served(redis_cluster: RedisCluster) -> None:
    slot = key_slot(b"unserved")
    owner = redis_cluster.owner(slot)
    async with manager_of(redis_cluster) as manager:
        await manager.execute("GET", "x")  # the map is known
        for node in redis_cluster.nodes:
            node.call("CLUSTER", "DELSLOTS", slot)
        try:
            refused = manager.subscribe("unserved", print, sharded=True)  # by the map, on its node
            await until(lambda: slot not in _places(manager))
            unplaced = manager.subscribe("unserved", print, sharded=True)  # by the map, nowhere
        finally:
            owner.call("CLUSTER", "ADDSLOTS", slot)
        await refused.ready()
        await unplaced.ready()


def _places(manager: RedisManager) -> dict[int, object]:
    session: Any = manager.opened()
    places: dict[int, object] = session._places
    return places
