"""What is on its way to many, a turn of the event loop at a time.

Messages that come for one group one after the other make a round: it goes from connection to connection and gives each
all its messages, so that a burst runs through warm caches and few system calls. A turn of the loop makes so many
deliveries and no more, so that the loop serves others in between, and publishers wait while much is under way. Who is
to be told something else meanwhile, or comes or goes, is first given what waits for it, out of turn: every connection
has its messages in the order in which they came, and nobody waits for those of others.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING

from asgi_enhance.broadcast.connection import Connection, FanOut, Shared
from asgi_enhance.broadcast.wire import Encoding, Frame, Publication

if TYPE_CHECKING:
    from asgi_enhance.broadcast.hub import Group

BATCH = 64
"""Messages of a round at most; fewer in a group so large that they were more than MOST deliveries."""

TURN = 1000
"""Deliveries in one turn of the loop: some milliseconds."""

MOST = 64 * TURN
"""Deliveries of a round, which others wait for, at most; and under way where nobody can be made to wait: then they are
made at once."""

MANY = 256
"""Rounds under way at most, where nobody can be made to wait: each is looked at for everyone who is given his own."""


class Round:
    """Messages on their way through connections of one encoding, those that were there when it began."""

    __slots__ = ("_at", "_connections", "_early", "_frames", "_places", "group", "messages")

    def __init__(
        self, connections: Sequence[Connection], encoding: Encoding, messages: Sequence[Publication], group: str | None
    ) -> None:
        self.group = group  # of which the connections are members, if not everyone is meant
        self.messages = messages
        shared = encoding is not Encoding.EVENT_STREAM_CURSOR
        self._frames = [message.frame(encoding) for message in messages] if shared else None
        self._connections = connections
        self._at = 0  # the connections before this have had it
        self._places: dict[Connection, int] | None = None  # made once somebody cannot wait
        self._early: set[Connection] = set()  # those that could not

    def __len__(self) -> int:
        """Deliveries to come."""
        return (len(self._connections) - self._at) * len(self.messages)

    def next(self, deliveries: int) -> Sequence[Connection]:
        """Those whose turn it is now, for about so many deliveries."""
        begin = self._at
        self._at = min(begin + max(1, deliveries // len(self.messages)), len(self._connections))
        found = self._connections[begin : self._at]
        return [each for each in found if each not in self._early] if self._early else found

    def early(self, connection: Connection) -> bool:
        """Whether a connection is still to have it, which it is given now."""
        if self.group is not None and self.group not in connection.groups:
            return False
        if self._places is None:
            self._places = {each: place for place, each in enumerate(self._connections)}
        if self._places.get(connection, -1) < self._at or connection in self._early:
            return False
        self._early.add(connection)
        return True

    def deliveries(self, connections: Iterable[Connection]) -> Iterator[tuple[Connection, Frame]]:
        if self._frames is not None:
            return product(connections, self._frames)
        return ((each, frame_for(each, message)) for each in connections for message in self.messages)


class Rounds:
    """The rounds of one hub, first come, first served."""

    __slots__ = ("_batch", "_gate", "_group", "_left", "_messages", "_rounds", "_shared", "_turning", "_under_way")

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._messages: list[Publication] = []  # of the round that begins next,
        self._group: Group | None = None  # the group they are for,
        self._batch = BATCH  # and how many they may be
        self._rounds: deque[Round] = deque()
        self._left = 0  # deliveries to come in all rounds
        self._turning = False  # the next turn has been asked for
        self._under_way: Iterator[tuple[Connection, Frame]] | None = None  # what is being handed over just now
        self._gate = asyncio.Lock()  # publishers that wait, in the order in which they came

    @property
    def due(self) -> int:
        """Deliveries to come."""
        return self._left + len(self._messages) * len(self._group or ())

    # -- what comes

    def crowded(self, group: "Group | None") -> bool:
        """Whether a message for a group, or for everyone, would come behind more than a turn makes, or take the next
        round from somebody who waits for it."""
        return self._far(group) or (self._gate.locked() and not self._messages)

    async def room(self, group: "Group | None") -> None:
        """Wait while it is crowded."""
        if self.crowded(group):
            async with self._gate:
                while self._far(group):  # noqa: ASYNC110 it waits for turns
                    await asyncio.sleep(0)

    def limit(self) -> None:
        """Hand over what is under way if that is too much: for what cannot wait."""
        if self.due > MOST:
            self.flush()
        elif len(self._rounds) > MANY:
            self._take_turn()

    def to_group(self, group: "Group", message: Publication) -> None:
        """Hand a message to those who are members now, beginning at the end of this turn of the loop."""
        if not self._joins(group):
            self._begin()
        if not self._messages:
            self._group = group
            self._batch = max(1, min(BATCH, MOST // (len(group) or 1)))
        self._messages.append(message)
        self._ask_for_a_turn()

    def to_all(self, connections: Iterable[Connection], message: Publication) -> None:
        """Hand a message to those who are connected now."""
        self._begin()
        found: dict[Encoding, list[Connection]] = {}
        for connection in connections:
            found.setdefault(connection.encoding, []).append(connection)
        for encoding, members in found.items():
            self._add(Round(members, encoding, (message,), None))
        self._ask_for_a_turn()

    def close(self, group: "Group") -> None:
        """What has come for a group is for those who are members now: there will be another one."""
        if self._group is group:
            self._begin()

    def _far(self, group: "Group | None") -> bool:
        """Whether more than a turn makes would come before a message."""
        return not self._joins(group) and self.due > TURN

    def _joins(self, group: "Group | None") -> bool:
        """Whether a message for a group can be of the round that begins next."""
        return group is not None and (
            not self._messages or (self._group is group and len(self._messages) < self._batch)
        )

    def _begin(self) -> None:
        group, messages = self._group, self._messages
        if group is not None:
            self._group, self._messages = None, []
            for encoding, members in group.members.items():
                if members:
                    self._add(Round(tuple(members), encoding, messages, group.name))

    def _add(self, round: Round) -> None:
        self._rounds.append(round)
        self._left += len(round)

    # -- what goes

    def catch_up(self, connection: Connection) -> None:
        """Give a connection what waits for it, before it is told something else, or leaves."""
        self._finish()
        if self._group is not None and connection in self._group:
            self._begin()
        for each in tuple(self._rounds):
            if each.early(connection):
                self._hand_over(each, (connection,))

    def flush(self) -> None:
        """Hand everything over."""
        self._finish()
        while self._rounds or self._messages:
            self._take_turn()

    def _ask_for_a_turn(self) -> None:
        if not self._turning:
            self._turning = True
            self._shared.loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._turning = False
        self._take_turn()
        if self._rounds or self._messages:
            self._ask_for_a_turn()

    def _take_turn(self) -> None:
        to_make = TURN
        while to_make > 0:
            if not self._rounds:
                self._begin()
                if not self._rounds:
                    return
            round = self._rounds[0]
            left = len(round)
            connections = round.next(to_make)
            made = left - len(round)
            if made == left:
                self._rounds.popleft()
            self._left -= made
            to_make -= made
            self._hand_over(round, connections)

    def _hand_over(self, round: Round, connections: Sequence[Connection]) -> None:
        self._shared.stats.deliveries += len(connections) * len(round.messages)
        due = self._under_way = round.deliveries(connections)
        FanOut(due).run()
        self._under_way = None

    def _finish(self) -> None:
        """A `send` has something handed over in its turn: what is under way goes first."""
        if self._under_way is not None:
            FanOut(self._under_way).run()


def frame_for(connection: Connection, message: Publication) -> Frame:
    """The frame of a message for one connection, which moves on in its history."""
    if connection.positions is None or message.position is None:
        return message.frame(connection.encoding)
    assert message.group is not None
    connection.positions[message.group] = message.position
    return message.frame_at(connection.positions)
