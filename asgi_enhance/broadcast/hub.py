"""Who is connected here, and in which groups; and the fan-out of one message to many of them.

All of it is synchronous: between two awaits of anybody else the registry is whole, and a message reaches every member
that was there when it came, in the order in which messages came.

Messages that come for one group in the same turn of the loop are handed over together, connection by connection: a
burst then runs through warm caches and few system calls. A large group takes several turns, so that the loop serves
others in between. Whatever else is to be delivered, and whoever comes or goes, has what waits handed over first, so
that nothing overtakes.
"""

from collections.abc import Iterable, Iterator
from itertools import chain, product

from asgi_enhance.broadcast.connection import Connection, FanOut, Shared
from asgi_enhance.broadcast.log import Entry, GroupLog, Position, Start
from asgi_enhance.broadcast.wire import Encoding, Frame, Publication, control, cursor_text, unpack

BATCH = 64
"""Messages handed over together at most."""

TURN = 1000
"""Deliveries in one turn of the loop, unless something else is not to overtake them: some milliseconds."""


class Group:
    """The members of a group in this process, by the encoding they share, and its log if it keeps a history."""

    __slots__ = ("empty_since", "log", "members", "name", "users")

    def __init__(self, name: str) -> None:
        self.name = name
        self.members: dict[Encoding, dict[Connection, None]] = {}
        self.log: GroupLog | None = None
        self.users = 0  # members, and joins on their way
        self.empty_since = 0.0

    def __len__(self) -> int:
        return sum(map(len, self.members.values()))

    def __contains__(self, connection: Connection) -> bool:
        return connection in self.members.get(connection.encoding, ())

    def connections(self) -> Iterable[Connection]:
        for members in self.members.values():
            yield from members

    def clients(self) -> list[str]:
        return list(dict.fromkeys(connection.client_id for connection in self.connections()))


class Hub:
    """The connections, clients and groups of one processor on one event loop."""

    __slots__ = (
        "_batch",
        "_batch_group",
        "_parts",
        "_turning",
        "_under_way",
        "clients",
        "connections",
        "groups",
        "shared",
    )

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.connections: dict[Connection, None] = {}
        self.clients: dict[str, tuple[Connection, ...]] = {}
        self.groups: dict[str, Group] = {}
        self._batch: list[Publication] = []
        self._batch_group: Group | None = None
        self._under_way: Iterator[tuple[Connection, Frame]] = iter(())  # the part that is being handed over
        self._parts: Iterator[Iterable[tuple[Connection, Frame]]] = iter(())  # those that follow it
        self._turning = False  # the next turn has been asked for

    # -- who is here

    def add(self, connection: Connection) -> None:
        self.clients[connection.client_id] = (*self.clients.get(connection.client_id, ()), connection)
        self.connections[connection] = None
        self.shared.stats.connections = len(self.connections)

    def remove(self, connection: Connection) -> bool:
        """Forget a connection that has left its groups. False if it is not known."""
        if connection not in self.connections:
            return False
        del self.connections[connection]
        self.shared.stats.connections = len(self.connections)
        others = tuple(each for each in self.clients[connection.client_id] if each is not connection)
        if others:
            self.clients[connection.client_id] = others
        else:
            del self.clients[connection.client_id]
        return True

    def group(self, name: str) -> Group:
        group = self.groups.get(name)
        if group is None:
            group = self.groups[name] = Group(name)
            self.shared.stats.groups = len(self.groups)
        return group

    def forget(self, group: Group) -> None:
        if self.groups.get(group.name) is group:
            del self.groups[group.name]
            self.shared.stats.groups = len(self.groups)

    # -- in and out of groups

    def enter(
        self,
        connection: Connection,
        group: Group,
        since: Start = None,
        *,
        asked: bool = False,
        ref: object = None,
    ) -> None:
        """Make a connection a member, and give it what it missed since `since`, or say that this is impossible.

        `asked`: the client waits for an answer, also where there is no position to tell.
        """
        self.flush()
        if group.log is not None:
            self._resume(connection, group, group.log, since, ref)
        elif asked:
            connection.deliver(control(connection.encoding, "joined", group=group.name, ref=ref), bounded=False)
        connection.groups[group.name] = group
        group.members.setdefault(connection.encoding, {})[connection] = None

    def leave(self, connection: Connection, group: Group) -> bool:
        """True if the connection was a member."""
        self.flush()
        connection.groups.pop(group.name, None)
        if connection.positions is not None:
            connection.positions.pop(group.name, None)
        members = group.members.get(connection.encoding, {})
        if connection not in members:
            return False
        del members[connection]
        return True

    # -- fan-out

    def to_group(self, group: Group, message: Publication) -> None:
        """Hand a message to all members here, beginning at the end of this turn of the loop."""
        self.make_way(group)
        if not self._batch:
            self._batch_group = group
            if not self._turning:
                self._turning = True
                self.shared.loop.call_soon(self._turn)
        self._batch.append(message)

    def make_way(self, group: Group) -> None:
        """Hand over what the next message of a group cannot wait with. Before it is numbered: a `send` in there may
        publish, or join, in its turn.
        """
        if self._batch and (self._batch_group is not group or len(self._batch) >= BATCH):
            self.flush()

    def flush(self) -> None:
        """Hand over what waits. A `send` that publishes gets here in the middle of it: what is under way goes first."""
        while True:
            self._hand_over(chain(self._under_way, chain.from_iterable(self._parts)))
            if not self._batch:
                return
            self._parts = self._take_batch()

    def _turn(self) -> None:
        """Hand over a part of what waits, and the next one in the next turn."""
        part = next(self._parts, None)
        if part is None and self._batch:
            self._parts = self._take_batch()
            part = next(self._parts, None)
        self._turning = part is not None
        if part is not None:
            self.shared.loop.call_soon(self._turn)
            self._hand_over(iter(part))

    def _hand_over(self, due: Iterator[tuple[Connection, Frame]]) -> None:
        self._under_way = due
        FanOut(due).run()

    def _take_batch(self) -> Iterator[Iterable[tuple[Connection, Frame]]]:
        batch, group = self._batch, self._batch_group
        assert group is not None
        self._batch = []
        return self._deliveries(tuple((encoding, tuple(members)) for encoding, members in group.members.items()), batch)

    def _deliveries(
        self, members: Iterable[tuple[Encoding, tuple[Connection, ...]]], batch: list[Publication]
    ) -> Iterator[Iterable[tuple[Connection, Frame]]]:
        together = max(1, TURN // len(batch))
        for encoding, connections in members:
            frames = [] if encoding is Encoding.EVENT_STREAM_CURSOR else [each.frame(encoding) for each in batch]
            for start in range(0, len(connections), together):
                part = connections[start : start + together]
                self.shared.stats.deliveries += len(part) * len(batch)
                yield product(part, frames) if frames else self._with_cursors(part, batch)

    def _with_cursors(
        self, members: Iterable[Connection], batch: list[Publication]
    ) -> Iterator[tuple[Connection, Frame]]:
        for connection in members:
            for message in batch:
                yield connection, self._frame(connection, message)

    def to_client(self, client_id: str, message: Publication) -> int:
        """Hand a message to all connections of a client here. Their number."""
        return self._to_all(self.clients.get(client_id, ()), message)

    def to_everyone(self, message: Publication) -> int:
        """Hand a message to all connections here. Their number."""
        return self._to_all(tuple(self.connections), message)

    def reset(self, group: Group, position: Position) -> None:
        """Tell all members that messages may be lost, and where the group goes on."""
        self.flush()
        for connection in tuple(group.connections()):
            self.shared.stats.resets += 1
            if connection.positions is not None:
                connection.positions[group.name] = position
            connection.deliver(self._control(connection, group, "reset", position), bounded=False)

    def _to_all(self, connections: tuple[Connection, ...], message: Publication) -> int:
        self.flush()
        self._hand_over((connection, message.frame(connection.encoding)) for connection in connections)
        self.shared.stats.deliveries += len(connections)
        return len(connections)

    def _resume(self, connection: Connection, group: Group, log: GroupLog, since: Start, ref: object) -> None:
        now = self.shared.loop.time()
        missed: list[Entry] | None = []
        start = log.position
        if isinstance(since, Position):
            missed = log.since(since, now)
            if missed is not None:
                start = since
                self.shared.stats.resumed += 1
        elif since is not None:
            missed = log.entries(now)[-since:]
            start = Position(log.epoch, log.offset - len(missed))
        self._settle(connection, group, start)
        if missed is None:
            self.shared.stats.resets += 1
            connection.deliver(self._control(connection, group, "reset", start), bounded=False)
        connection.deliver(self._control(connection, group, "joined", start, ref), bounded=False)
        for entry in missed or ():
            connection.deliver(self._frame(connection, publication(group, entry)), bounded=False)

    def _frame(self, connection: Connection, message: Publication) -> Frame:
        if connection.positions is None or message.position is None:
            return message.frame(connection.encoding)
        assert message.group is not None
        connection.positions[message.group] = message.position
        return message.frame_at(connection.positions)

    def _control(
        self, connection: Connection, group: Group, type: str, position: Position, ref: object = None
    ) -> Frame:
        cursor = None
        if connection.encoding is not Encoding.WEBSOCKET:
            cursor = cursor_text(connection.positions or {group.name: position})
        return control(connection.encoding, type, cursor, group=group.name, id=str(position), ref=ref)

    def _settle(self, connection: Connection, group: Group, position: Position) -> None:
        """Note where an event stream stands; from its second history on its ids are its own."""
        if connection.encoding is Encoding.EVENT_STREAM:
            others = [other for other in connection.groups.values() if other.log is not None and other is not group]
            if not others:
                return
            for other in connection.groups.values():
                self._move(connection, other, Encoding.EVENT_STREAM_CURSOR)
            connection.encoding = Encoding.EVENT_STREAM_CURSOR
            connection.positions = {other.name: other.log.position for other in others if other.log is not None}
        if connection.positions is not None:
            connection.positions[group.name] = position

    def _move(self, connection: Connection, group: Group, encoding: Encoding) -> None:
        del group.members[connection.encoding][connection]
        group.members.setdefault(encoding, {})[connection] = None


def publication(group: Group, entry: Entry) -> Publication:
    """A message of a group's log, ready for its members."""
    assert group.log is not None
    data, key = unpack(entry.blob)
    return Publication(data, key, group.name, Position(group.log.epoch, entry.offset))
