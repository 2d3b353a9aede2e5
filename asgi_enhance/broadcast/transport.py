"""How a message gets from its publisher to the hubs that have listeners; here, to the one hub of this process."""

from typing import Protocol

from asgi_enhance.broadcast.hub import Group, Hub, publication
from asgi_enhance.broadcast.log import Entry, GroupLog, Position, Start, new_epoch
from asgi_enhance.broadcast.policy import HistoryRules
from asgi_enhance.broadcast.wire import Publication, pack
from asgi_enhance.errors import WebSocketError


class Transport(Protocol):
    """What the processor asks for. Names and messages have been checked; `data` is JSON."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def attach(self, group: Group, since: Start) -> None:
        """Make a group ready for a member who has been at `since`: it hears all from here on, its log is in place."""

    def detach(self, group: Group) -> None:
        """A group has lost its last member."""

    async def attach_client(self, client_id: str) -> None:
        """A connection of a client is about to be registered."""

    def detach_client(self, client_id: str) -> None:
        """A connection of a client has gone, or has not come after all."""

    def entered(self, group: Group, client_id: str) -> None:
        """A connection of a client has become a member."""

    def left(self, group: Group, client_id: str) -> None:
        """A connection of a client is no member any more."""

    async def publish(
        self, group: str, data: bytes, key: str | None, idempotency_key: str | None
    ) -> Position | None: ...

    async def direct(self, client_id: str, data: bytes, key: str | None) -> bool: ...

    async def everyone(self, data: bytes, key: str | None) -> None: ...

    async def history(self, group: str) -> tuple[Position, list[Entry]] | None: ...

    async def presence(self, group: str) -> list[str]: ...

    def sweep(self, now: float) -> None:
        """Called about once a second."""


class LocalTransport:
    """Everything in this process; histories too."""

    def __init__(self, hub: Hub, history: HistoryRules) -> None:
        self._hub = hub
        self._rules = history

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def attach(self, group: Group, since: Start) -> None:
        self._with_log(group)

    def detach(self, group: Group) -> None:
        if group.log is None:
            self._hub.forget(group)

    async def attach_client(self, client_id: str) -> None: ...

    def detach_client(self, client_id: str) -> None: ...

    def entered(self, group: Group, client_id: str) -> None: ...

    def left(self, group: Group, client_id: str) -> None: ...

    async def publish(self, group: str, data: bytes, key: str | None, idempotency_key: str | None) -> Position | None:
        await self._hub.rounds.room(self._hub.groups.get(group))
        found = self._hub.groups.get(group)
        if found is None:
            if self._rules(group) is None:
                return None  # nobody listens, and nothing is kept
            if len(self._hub.groups) >= self._hub.shared.limits.groups:
                raise WebSocketError("too many groups")
            found = self._hub.group(group)
        log = self._with_log(found)
        if log is None:
            self._hub.rounds.to_group(found, Publication(data, key, group))
            return None
        blob = pack(data, key)
        offset, new = log.publish(blob, self._hub.shared.loop.time(), idempotency_key)
        if new:
            self._hub.rounds.to_group(found, publication(found, Entry(offset, blob)))
        return Position(log.epoch, offset)

    async def direct(self, client_id: str, data: bytes, key: str | None) -> bool:
        return self._hub.to_client(client_id, Publication(data, key)) > 0

    async def everyone(self, data: bytes, key: str | None) -> None:
        await self._hub.rounds.room(None)
        self._hub.to_everyone(Publication(data, key))

    async def history(self, group: str) -> tuple[Position, list[Entry]] | None:
        found = self._hub.groups.get(group)
        if found is None or found.log is None:
            return None
        return found.log.position, found.log.entries(self._hub.shared.loop.time())

    async def presence(self, group: str) -> list[str]:
        found = self._hub.groups.get(group)
        return found.clients() if found is not None else []

    def sweep(self, now: float) -> None:
        for group in tuple(self._hub.groups.values()):
            if group.log is not None:
                group.log.trim(now)
                if group.users == 0 and group.log.expired(now):
                    self._hub.forget(group)

    def _with_log(self, group: Group) -> GroupLog | None:
        if group.log is None:
            rule = self._rules(group.name)
            if rule is not None:
                group.log = GroupLog(rule, new_epoch(), self._hub.shared.loop.time())
        return group.log
