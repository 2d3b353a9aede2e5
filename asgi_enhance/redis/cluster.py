"""A Cluster on one event loop: a node for each primary, and the map that says which of them serves a slot.

The map comes from CLUSTER SLOTS. It is asked for at first use, and again whenever a node says MOVED, cannot be reached,
or drops a sharded channel. A redirected command has not run, so it is sent on without a second thought.
"""

import asyncio
import random
from collections.abc import Coroutine, Iterable
from typing import Any

import redis.asyncio
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import AbstractConnection
from redis.crc import key_slot
from redis.exceptions import AskError, MovedError, RedisError, TryAgainError

from asgi_enhance.asgi.tasks import Tasks
from asgi_enhance.errors import RedisUnavailable
from asgi_enhance.redis.address import Address
from asgi_enhance.redis.commands import first_key
from asgi_enhance.redis.dial import Dialer
from asgi_enhance.redis.node import Node
from asgi_enhance.redis.session import Client, Connect, Plan, close_client
from asgi_enhance.redis.subscribe import Subscription
from asgi_enhance.redis.subscriber import Subscriber
from asgi_enhance.redis.wire import pack

Place = tuple[str, int]  # host, port

_SLOTS = pack(("CLUSTER", "SLOTS"))
_PAUSE = 0.05  # seconds between two looks at the map, and before a command that was told to try again


class ClusterSession:
    """Commands go to the node of their first key, or to any; sharded channels to the node of their slot."""

    def __init__(self, plan: Plan, address: Address, dialer: Dialer) -> None:
        self._plan = plan
        self._address = address
        self._dialer = dialer
        self._tasks = Tasks()
        self._nodes: dict[Place, Node] = {}
        self._places: dict[int, Place] = {}  # by slot
        self._primaries: tuple[Place, ...] = address.seeds
        self._looking: asyncio.Task[str] | None = None
        self._plain = plan.subscriber(self._connect_anywhere, "the cluster", self._tasks)
        self._shards: dict[Place, Subscriber] = {}
        self._sharded: dict[Subscription, Place | None] = {}
        self._client: redis.asyncio.RedisCluster | None = None
        for place in address.seeds:
            self._node(place)

    @property
    def available(self) -> bool:
        return any(not node.breaker.is_open for node in self._nodes.values())

    @property
    def client(self) -> Client:
        if self._client is None:
            seeds = [ClusterNode(host, port) for host, port in self._address.seeds]
            options = self._dialer.client_options(self._plan.client_timeout)
            self._client = redis.asyncio.RedisCluster(startup_nodes=seeds, **options)
        return self._client

    async def call(self, command: tuple[Any, ...], packed: bytes, idempotent: bool) -> Any:
        if not self._places:
            await self._mapped()
        key = first_key(command)
        place = self._anywhere() if key is None else self._places.get(key_slot(key))
        asking = False
        deadline = asyncio.get_running_loop().time() + self._plan.patience
        if place is None:
            self._look_soon()
            raise RedisUnavailable(f"no node of the cluster serves the slot of {key!r}")
        while True:
            try:
                return await self._node(place).call(packed, idempotent=idempotent, asking=asking)
            except MovedError as moved:
                place, asking = (moved.host or place[0], moved.port), False
                self._places[moved.slot_id] = place
                self._look_soon()
            except AskError as ask:
                place, asking = (ask.host or place[0], ask.port), True
            except TryAgainError:
                await asyncio.sleep(_PAUSE)
            except RedisUnavailable:
                self._look_soon()
                raise
            self._plan.stats.redirected += 1
            if asyncio.get_running_loop().time() > deadline:
                raise RedisUnavailable(f"the cluster sent a command from node to node for {self._plan.patience:g} s")

    def subscribe(self, subscription: Subscription) -> None:
        if not subscription.sharded:
            self._plain.add(subscription)
            return
        self._sharded[subscription] = None
        if self._places:
            self._place(subscription)
        else:
            self._look_soon()

    def unsubscribe(self, subscription: Subscription) -> None:
        if not subscription.sharded:
            self._plain.remove(subscription)
        elif (place := self._sharded.pop(subscription, None)) is not None:
            self._shards[place].remove(subscription)

    def spawn(self, coroutine: Coroutine[Any, Any, Any], *, name: str) -> None:
        self._tasks.spawn(coroutine, name=name)

    async def aclose(self) -> None:
        await self._tasks.cancel()
        for node in self._nodes.values():
            await node.aclose()
        if self._client is not None:
            await close_client(self._client)

    def drop(self) -> None:
        for node in self._nodes.values():
            node.drop()
        for subscriber in (*self._shards.values(), self._plain):
            subscriber.drop()

    # nodes

    def _node(self, place: Place) -> Node:
        node = self._nodes.get(place)
        if node is None:
            dialer = self._dialer.at(*place)
            node = self._nodes[place] = self._plan.node(dialer.connect, dialer.label, self._tasks)
        return node

    def _anywhere(self) -> Place:
        """A node that answers, if there is one."""
        good = [place for place in self._primaries if not self._node(place).breaker.is_open]
        return random.choice(good or self._primaries)

    async def _connect_anywhere(self) -> AbstractConnection:
        return await self._dialer.at(*self._anywhere()).connect()

    # the map

    async def _mapped(self) -> None:
        """Join the one look at the map, or begin it; `RedisUnavailable` if there is none after that."""
        look = self._look_soon()
        await asyncio.wait((look,), timeout=self._plan.patience)
        if self._places:
            return
        reason = f"none within {self._plan.patience:g} s"
        if look.done():
            reason = "the manager was closed" if look.cancelled() else look.result()
        raise RedisUnavailable(f"no node of the redis cluster tells its slots: {reason}")

    def _look_soon(self) -> asyncio.Task[str]:
        if self._looking is None:
            self._looking = self._tasks.spawn(self._look(), name="redis cluster map")
        return self._looking

    async def _look(self) -> str:
        """Have a new map from a node that tells; why there is none, else."""
        try:
            await asyncio.sleep(_PAUSE if self._places else 0)
            failed = await self._ask()
        finally:
            self._looking = None
        if None in self._sharded.values():  # somebody waits for a place
            self._tasks.spawn(self._look_again(), name="redis cluster map, again")
        return failed

    async def _look_again(self) -> None:
        await asyncio.sleep(self._plan.probe_delay * (1 + random.random()))
        self._look_soon()

    async def _ask(self) -> str:
        """Ask the nodes, the good ones first, until one tells."""
        failed: list[str] = []
        nodes = sorted(
            self._nodes.items(), key=lambda item: (item[1].breaker.is_open, item[1].pipeline is None, random.random())
        )
        for place, node in nodes:
            try:
                said = await node.call(_SLOTS, idempotent=True)
            except (RedisUnavailable, RedisError) as error:
                failed.append(str(error))
                continue
            if said:
                self._take(said, place)
                return ""
        return "; ".join(failed) or "they serve none"

    def _take(self, said: Iterable[Any], source: Place) -> None:
        places: dict[int, Place] = {}
        for first, last, primary, *_ in said:
            host = (primary[0] or b"").decode() or source[0]  # empty: the address it was asked at
            places.update(dict.fromkeys(range(first, last + 1), (host, int(primary[1]))))
        self._places = places
        self._primaries = tuple(set(places.values()))
        kept = {*self._primaries, *self._address.seeds}
        for place in [place for place in self._nodes if place not in self._primaries]:
            self._tasks.spawn(self._nodes.pop(place).aclose(), name="redis node leaves")
        for place in self._address.seeds:
            self._node(place)  # a new one, if it serves nothing: it is not called again before all others have failed
        for subscription in self._sharded:
            self._place(subscription)
        for place in [place for place in self._shards if place not in kept]:
            self._tasks.spawn(self._shards.pop(place).aclose(), name="redis node leaves")

    # sharded channels

    def _place(self, subscription: Subscription) -> None:
        """Have it on the node that serves its slot now."""
        wanted = self._places.get(key_slot(subscription.channel))
        placed = self._sharded[subscription]
        if placed is not None and (placed != wanted or not self._shards[placed].holds(subscription)):
            self._shards[placed].remove(subscription)
            subscription.unconfirm()
            placed = None
        if wanted is not None and placed is None:
            shard = self._shards.get(wanted)
            if shard is None:
                dialer = self._dialer.at(*wanted)
                shard = self._plan.subscriber(self._connector(dialer), dialer.label, self._tasks, on_moved=self._moved)
                self._shards[wanted] = shard
            shard.add(subscription)
        self._sharded[subscription] = wanted

    def _connector(self, dialer: Dialer) -> Connect:
        async def connect() -> AbstractConnection:
            try:
                return await dialer.connect()
            except RedisUnavailable:
                self._look_soon()  # its slots may have a new owner
                raise

        return connect

    def _moved(self) -> None:
        self._look_soon()
