"""On a Redis Cluster: groups, clients and everyone live on different nodes, and a group moves with its slot."""

from collections.abc import AsyncIterator, Iterator

import pytest

from asgi_enhance.broadcast import BroadcastRouter, History, RealTimeStreamProcessor
from asgi_enhance.redis import RedisManager
from asgi_enhance.testing.servers import RedisCluster
from tests.broadcast.helpers import client

GROUPS = [f"room-{number}" for number in range(12)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    with RedisCluster() as found:
        yield found


@pytest.fixture
async def processors(cluster: RedisCluster) -> AsyncIterator[tuple[BroadcastRouter, RealTimeStreamProcessor]]:
    options = {"room-*": History()}
    async with (
        RealTimeStreamProcessor(redis=RedisManager(cluster.url), history=options) as here,
        RealTimeStreamProcessor(redis=RedisManager(cluster.url), history=options) as there,
    ):
        yield BroadcastRouter(processor=here), there


async def test_groups_with_and_without_history_and_clients_are_reached_on_all_nodes(
    processors: tuple[BroadcastRouter, RealTimeStreamProcessor], cluster: RedisCluster
) -> None:
    router, there = processors
    query = "&".join(f"group={group}&group=plain-{group}" for group in GROUPS)
    async with client(router, f"/ws/ann?{query}") as ann:
        for group in GROUPS:
            await there.broadcast_to_group(group, 1)
            assert (await ann.receive_json())["group"] == group
            await there.broadcast_to_group(f"plain-{group}", group)
            assert await ann.receive_json() == group
        assert await there.send_to_client("ann", "direct")
        assert await ann.receive_json() == "direct"
        await there.broadcast_all("all")  # another channel, maybe on another node: in no order with the one before
        assert await ann.receive_json() == "all"
        assert await there.presence("room-0") == ["ann"]
    used = [node for node in cluster.nodes if node.call("DBSIZE")]
    assert len(used) == 3


async def test_a_group_goes_on_when_its_slot_moves(
    processors: tuple[BroadcastRouter, RealTimeStreamProcessor], cluster: RedisCluster
) -> None:
    router, there = processors
    async with client(router, "/ws/ann?group=room-moving") as ann:
        await there.broadcast_to_group("room-moving", 0)
        assert (await ann.receive_json())["data"] == 0
        slot = cluster.nodes[0].call("CLUSTER", "KEYSLOT", "{group:room-moving}")
        owner = cluster.owner(slot)
        cluster.move_slot(slot, next(node for node in cluster.nodes if node is not owner))
        for number in range(1, 6):
            await there.broadcast_to_group("room-moving", number)
        assert [(await ann.receive_json())["data"] for _ in range(5)] == [1, 2, 3, 4, 5]
