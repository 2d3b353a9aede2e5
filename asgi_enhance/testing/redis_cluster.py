"""Several Redis or Valkey servers that know each other: a Sentinel and its primary, a Cluster of three."""

from types import TracebackType
from typing import Any, Self

from asgi_enhance.testing.redis_server import RedisServer, ServerError, wait_until


class SentinelServer(RedisServer):
    """A Sentinel that watches `primary` under the name `service`; one alone decides (quorum 1)."""

    def __init__(self, primary: RedisServer, *, service: str = "main", down_after: float = 0.5) -> None:
        watch = f"monitor {service} 127.0.0.1 {primary.port} 1"
        pace = f"down-after-milliseconds {service} {int(down_after * 1000)}"
        patience = f"failover-timeout {service} 2000"
        super().__init__(config={})
        self._config = {"sentinel": f"{watch}\nsentinel {pace}\nsentinel {patience}"}
        self.service = service

    @property
    def sentinel_url(self) -> str:
        return f"redis+sentinel://127.0.0.1:{self.port}/{self.service}/0"

    def _mode(self) -> list[str]:
        return ["--sentinel"]


class RedisCluster:
    """Three nodes that share the slots, without replicas; a node's death leaves the other slots in service."""

    SLOTS = 16384

    def __init__(self) -> None:
        config = {"cluster-enabled": "yes", "cluster-node-timeout": "1500", "cluster-require-full-coverage": "no"}
        self.nodes = [RedisServer(config=config) for _ in range(3)]

    @property
    def url(self) -> str:
        return f"redis+cluster://{','.join(f'127.0.0.1:{node.port}' for node in self.nodes)}/0"

    def start(self) -> Self:
        """Start all nodes and make them one cluster; returns when each of them sees all slots served."""
        for node in self.nodes:
            node.start()
        share = self.SLOTS // len(self.nodes) + 1
        for number, node in enumerate(self.nodes):
            node.call("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            first, last = number * share, min((number + 1) * share, self.SLOTS) - 1
            node.call("CLUSTER", "ADDSLOTSRANGE", first, last)
        for node in self.nodes[1:]:
            node.call("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port)
        wait_until(self._agreed, what="a cluster of three nodes", timeout=20.0)
        return self

    def close(self) -> None:
        for node in self.nodes:
            node.close()

    def flush(self) -> None:
        for node in self.nodes:
            node.flush()

    def owner(self, slot: int) -> RedisServer:
        """The node that serves `slot`, by the nodes' own account."""
        for first, last, (_, port, *_), *_ in self._slots(self.nodes[0]):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == port)
        raise ServerError(f"slot {slot} is not served")

    def begin_move(self, slot: int, target: RedisServer) -> None:
        """Open `slot` for migration: its owner now answers ASK for the keys it does not have."""
        source = self.owner(slot)
        target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", self._id(source))
        source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", self._id(target))

    def end_move(self, slot: int, target: RedisServer) -> None:
        """Take the keys of `slot` along and make `target` its owner: the old owner now answers MOVED."""
        source = self.owner(slot)
        while keys := source.call("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.call("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        name = self._id(target)
        for node in (target, *(node for node in self.nodes if node is not target)):
            node.call("CLUSTER", "SETSLOT", slot, "NODE", name)

    def move_slot(self, slot: int, target: RedisServer) -> None:
        self.begin_move(slot, target)
        self.end_move(slot, target)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _agreed(self) -> bool:
        return all(
            sum(last - first + 1 for first, last, *_ in self._slots(node)) == self.SLOTS for node in self.nodes
        ) and all(self._state_ok(node) for node in self.nodes)

    @staticmethod
    def _state_ok(node: RedisServer) -> bool:
        return b"cluster_state:ok" in node.call("CLUSTER", "INFO")

    @staticmethod
    def _slots(node: RedisServer) -> Any:
        return node.call("CLUSTER", "SLOTS")

    @staticmethod
    def _id(node: RedisServer) -> str:
        return str(node.call("CLUSTER", "MYID").decode())
