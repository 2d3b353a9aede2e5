"""Who is connected here, and in which groups.

All of it is synchronous: between two awaits of anybody else the registry is whole, and a message reaches every member
that was there when it came, in the order in which messages came (see `rounds`).
"""

from collections.abc import Iterable

from asgi_enhance.broadcast.connection import Connection, Shared
from asgi_enhance.broadcast.log import Entry, GroupLog, Position, Start
from asgi_enhance.broadcast.rounds import Rounds, frame_for
from asgi_enhance.broadcast.wire import Encoding, Frame, Publication, control, cursor_text, unpack


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
        "clients",
        "connections",
        "groups",
        "rounds",
        "shared",
    )

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.connections: dict[Connection, None] = {}
        self.clients: dict[str, tuple[Connection, ...]] = {}
        self.groups: dict[str, Group] = {}
        self.rounds = Rounds(shared)

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
    ) -> bool:
        """Make a connection a member, and give it what it missed since `since`, or say that this is impossible.

        False if it is one already: a `send` of what it is given first may have had it join.

        `asked`: the client waits for an answer, also where there is no position to tell.
        """
        self.rounds.catch_up(connection)
        self.rounds.close(group)
        frames: list[Frame] = []
        if group.log is not None:
            frames = self._resume(connection, group, group.log, since, ref)
        elif asked:
            frames = [control(connection.encoding, "joined", group=group.name, ref=ref)]
        connection.groups[group.name] = group
        members = group.members.setdefault(connection.encoding, {})
        new = connection not in members
        members[connection] = None
        for frame in frames:
            connection.deliver(frame, bounded=False)
        return new

    def leave(self, connection: Connection, group: Group) -> bool:
        """True if the connection was a member."""
        if not connection.closing:
            self.rounds.catch_up(connection)
        connection.groups.pop(group.name, None)
        if connection.positions is not None:
            connection.positions.pop(group.name, None)
        members = group.members.get(connection.encoding, {})
        if connection not in members:
            return False
        del members[connection]
        return True

    # -- messages

    def to_client(self, client_id: str, message: Publication) -> int:
        """Hand a message to all connections of a client here. Their number."""
        connections = self.clients.get(client_id, ())
        for connection in connections:
            self.rounds.catch_up(connection)
            connection.deliver(message.frame(connection.encoding))
        self.shared.stats.deliveries += len(connections)
        return len(connections)

    def to_everyone(self, message: Publication) -> None:
        """Hand a message to all connections here."""
        self.rounds.to_all(self.connections, message)

    def reset(self, group: Group, position: Position) -> None:
        """Tell all members that messages may be lost, and where the group goes on."""
        self.rounds.flush()
        for connection in tuple(group.connections()):
            self.shared.stats.resets += 1
            if connection.positions is not None:
                connection.positions[group.name] = position
            connection.deliver(self._control(connection, group, "reset", position), bounded=False)

    def _resume(self, connection: Connection, group: Group, log: GroupLog, since: Start, ref: object) -> list[Frame]:
        """What a connection that joins is told: that it may have lost something, that it is in, what it has missed."""
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
        frames = []
        if missed is None:
            self.shared.stats.resets += 1
            frames.append(self._control(connection, group, "reset", start))
        frames.append(self._control(connection, group, "joined", start, ref))
        frames += [frame_for(connection, publication(group, entry)) for entry in missed or ()]
        return frames

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
