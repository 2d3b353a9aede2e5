"""Who is in which group, as the processes tell each other through Redis; what is not renewed expires."""

import asyncio
import logging

from asgi_enhance.broadcast.hub import Hub
from asgi_enhance.broadcast.keys import GroupKeys
from asgi_enhance.errors import RedisUnavailable
from asgi_enhance.redis import RedisManager, Script

logger = logging.getLogger("asgi_enhance.broadcast")

TTL = 30.0
"""Seconds after which the clients of a process that died are no longer present."""

BATCH = 1000


class Presence:
    """Writes down the clients of this process, in batches, and reads everybody's.

    A member is a client in one process, so that one process' goodbye does not hide the client's stay in another.
    """

    def __init__(self, hub: Hub, manager: RedisManager, node: str, write: Script, read: Script) -> None:
        self._hub = hub
        self._manager = manager
        self._suffix = "\0" + node
        self._write = write
        self._read = read
        self._changed: dict[str, dict[str, bool]] = {}  # group → client → is there
        self._wake = asyncio.Event()
        self._renew_at = 0.0

    def entered(self, group: str, client_id: str) -> None:
        self._changed.setdefault(group, {})[client_id] = True
        self._wake.set()

    def left(self, group: str, client_id: str) -> None:
        others = self._hub.clients.get(client_id, ())
        if not any(group in connection.groups for connection in others):
            self._changed.setdefault(group, {})[client_id] = False
            self._wake.set()

    async def clients(self, group: str) -> list[str]:
        """Everybody who is in a group; of this process only while Redis is away."""
        found = self._hub.groups.get(group)
        clients = dict.fromkeys(found.clients() if found is not None else ())
        try:
            members: list[bytes] = await self._read(keys=[GroupKeys(self._manager, group).presence], idempotent=True)
        except RedisUnavailable:
            self._hub.shared.stats.remote_failures += 1
            return list(clients)
        for member in members:
            client_id, _, node = member.decode().partition("\0")
            if "\0" + node != self._suffix:  # of this process we know better
                clients[client_id] = None
        return list(clients)

    def sweep(self, now: float) -> None:
        """Renew everything in time."""
        if now >= self._renew_at:
            self._renew_at = now + TTL / 3
            for group in self._hub.groups.values():
                for client_id in group.clients():
                    self.entered(group.name, client_id)

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self.flush()

    async def flush(self) -> None:
        """Write down what has changed. What cannot be written expires, or is renewed later."""
        changed, self._changed = self._changed, {}
        for group, clients in changed.items():
            marks = [("+" if there else "-") + client_id + self._suffix for client_id, there in clients.items()]
            key = GroupKeys(self._manager, group).presence
            for start in range(0, len(marks), BATCH):
                try:
                    await self._write(keys=[key], args=[int(1000 * TTL), *marks[start : start + BATCH]])
                except RedisUnavailable:
                    return
                except Exception:
                    logger.exception("the presence of group %r cannot be written", group)
