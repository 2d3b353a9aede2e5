"""Follows the log of one group in Redis: what was published anywhere reaches the members here once and in order.

Live messages carry their position. One that is not the next, a reconnect, or a position that lags behind Redis' own
means that something is missing. Then live messages are held back until the log has been read: what it has is
delivered; if it does not have all, the members get a reset first. They are held back too while more is under way to the
members than a turn of the loop delivers. Each message has a random mark: after a failover that lost the end of the log,
another message may have the number of one that was seen.
"""

import asyncio
import logging
import random
from collections import deque

from asgi_enhance.asgi.tasks import Tasks
from asgi_enhance.broadcast.hub import Group, Hub, publication
from asgi_enhance.broadcast.keys import GroupKeys
from asgi_enhance.broadcast.log import Entry, GroupLog, Position, Start, Verdict, new_epoch
from asgi_enhance.broadcast.policy import History
from asgi_enhance.errors import RedisUnavailable
from asgi_enhance.redis import RedisManager, Script

logger = logging.getLogger("asgi_enhance.broadcast")

HELD_BACK = 4096
"""Live messages kept while they cannot be delivered; the gap after more than that is found like any other."""

PATIENCE = 2.0
"""Seconds a first member waits until the log has been read once."""

RETRY = 0.1, 2.0
"""Seconds between attempts to read the log, at first and at most."""


class Follower:
    """One group's subscription and the copy of its log in this process."""

    __slots__ = (
        "_behind",
        "_held",
        "_history",
        "_hub",
        "_loop",
        "_mark",
        "_ready",
        "_rule",
        "_subscription",
        "_task",
        "_tasks",
        "group",
        "keys",
    )

    def __init__(
        self, group: Group, rule: History, *, manager: RedisManager, history: Script, hub: Hub, tasks: Tasks
    ) -> None:
        self.group = group
        self.keys = GroupKeys(manager, group.name)
        self._rule = rule
        self._history = history
        self._hub = hub
        self._tasks = tasks
        self._loop = hub.shared.loop
        self._ready = asyncio.Event()
        self._mark = b""  # of the last message in the copy, if that is known
        self._held: deque[tuple[Position, Entry]] | None = None  # None: live messages are delivered as they come
        self._behind = True  # the log is to be read: something may be missing
        self._task: asyncio.Task[None] | None = None
        self._subscription = manager.subscribe(self.keys.channel, self._on_message, self._on_gap, sharded=True)
        self._hold()

    async def ready(self, since: Start) -> None:
        """Return when the log has been read, and again if a client has been elsewhere and comes from further on.

        RedisUnavailable if the first reading takes too long (it goes on trying).
        """
        try:
            async with asyncio.timeout(PATIENCE):
                await self._ready.wait()
        except TimeoutError:
            raise RedisUnavailable(f"the history of group {self.group.name!r} cannot be read") from None
        log = self.group.log
        if isinstance(since, Position) and log is not None and (since.epoch != log.epoch or since.offset > log.offset):
            self._on_gap()
            if self._task is not None:
                await asyncio.wait({self._task}, timeout=PATIENCE)

    def check(self, position: Position) -> None:
        """Redis says where the log is: catch up if that is elsewhere."""
        if self._held is None and self.group.log is not None and self.group.log.position != position:
            self._on_gap()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        await self._subscription.close()

    def _on_message(self, payload: bytes) -> None:
        head, _, blob = payload.partition(b"\0")
        place, _, mark = head.partition(b"-")
        position = Position.parse(place.decode())
        if position is None:
            logger.warning("a message on %s is not ours", self.keys.channel)
            return
        entry = Entry(position.offset, blob, mark)
        if self._held is None and self._hub.rounds.crowded(self.group):
            self._hold()
        if self._held is not None:
            if len(self._held) == HELD_BACK:
                self._held.pop()  # not the one that has just come: it shows the gap, though it may be the last of all
            self._held.append((position, entry))
        elif not self._take(position, entry):
            self._on_gap()
            assert self._held is not None
            self._held.append((position, entry))

    def _on_gap(self) -> None:
        self._hub.shared.stats.gaps += 1
        self._behind = True
        if self._held is None:
            self._hold()

    def _take(self, position: Position, entry: Entry) -> bool:
        """Deliver a live message if it is the next one. False if there is a gap before it."""
        log = self.group.log
        assert log is not None
        verdict = log.judge(position)
        if verdict is Verdict.NEXT:
            self._deliver(log, entry)
        elif verdict is Verdict.SEEN:
            self._hub.shared.stats.duplicates += 1
        return verdict is not Verdict.GAP

    def _deliver(self, log: GroupLog, entry: Entry) -> None:
        log.append(entry.offset, entry.blob, self._loop.time())
        self._mark = entry.mark
        self._hub.rounds.to_group(self.group, publication(self.group, entry))

    def _hold(self) -> None:
        self._held = deque()
        self._task = self._tasks.spawn(self._catch_up(), name=f"broadcast catch-up {self.group.name}")

    async def _catch_up(self) -> None:
        """Read the log as long as something is missing, and deliver what was held back."""
        pause, longest = RETRY
        while self._held is not None:
            if not self._behind:
                await self._let_go(self._held)
                continue
            self._behind = False
            try:
                # only what is published after the subscription is there is sure to be heard
                await self._subscription.ready()
                covered = len(self._held)
                position, entries = await self._read()
            except RedisUnavailable:
                self._behind = True
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, longest)
                continue
            except Exception:
                logger.exception("the history of group %r cannot be read", self.group.name)
                self._behind = True
                await asyncio.sleep(longest)
                continue
            await self._apply(position, entries)
            for _ in range(covered):  # heard before the log was read, so it was in there
                self._held.popleft()
        self._task = None

    async def _read(self) -> tuple[Position, list[Entry]]:
        log = self.group.log
        seen = log.position if log is not None else Position("", 0)
        epoch, offset, rows = await self._history(
            keys=[self.keys.log, self.keys.meta],
            args=[seen.epoch, seen.offset, self._mark, new_epoch(), int(1000 * self._rule.meta_ttl)],
            idempotent=True,
        )
        return Position(epoch.decode(), offset), [entry_of(id, fields) for id, fields in rows]

    async def _apply(self, position: Position, entries: list[Entry]) -> None:
        """Bring the copy of the log, and the members, to where Redis is."""
        log = self.group.log
        first = entries[0].offset if entries else position.offset + 1
        if log is None:
            log = self.group.log = GroupLog(self._rule, position.epoch, self._loop.time())
            log.restart(position, entries, self._loop.time())
            self._mark = entries[-1].mark if entries else b""
            self._ready.set()
            return
        if log.epoch != position.epoch or first > log.offset + 1:
            await self._hub.rounds.room(None)  # the reset has all that is under way handed over before it
            start = Position(position.epoch, first - 1)
            log.restart(start, (), self._loop.time())
            self._mark = b""
            self._hub.reset(self.group, start)
        for entry in entries:
            await self._hub.rounds.room(self.group)
            if entry.offset == log.offset + 1:
                self._deliver(log, entry)

    async def _let_go(self, held: deque[tuple[Position, Entry]]) -> None:
        """Deliver what was held back, until something is missing again."""
        while held and not self._behind:
            await self._hub.rounds.room(self.group)
            if self._take(*held[0]):
                held.popleft()
            else:
                self._behind = True
        if not self._behind:
            self._held = None


def entry_of(id: bytes, fields: list[bytes]) -> Entry:
    """A message of the log as Redis gives it."""
    offset, _, mark = id.partition(b"-")
    return Entry(int(offset), fields[1], mark)
