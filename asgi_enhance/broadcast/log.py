"""The numbered messages of one group: what came last, what a returning client missed, when something is missing.

The rules, as in Centrifugo:

- A position is an offset within an epoch. Offsets grow by one; an epoch is one unbroken life of the log.
- The next message is offset + 1 of the same epoch. What is not above the offset has been seen. Anything else is a gap.
- A returning client gets all messages after its position or, when one of them is no longer there or the epoch is
  another, a reset. Never a part of them without saying so.
"""

import secrets
from collections import OrderedDict, deque
from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple, TypeAlias

from asgi_enhance.broadcast.policy import History


class Position(NamedTuple):
    """A place in the log of a group; written `epoch:offset`."""

    epoch: str
    offset: int

    def __str__(self) -> str:
        return f"{self.epoch}:{self.offset}"

    @classmethod
    def parse(cls, text: str) -> "Position | None":
        epoch, _, offset = text.rpartition(":")
        # a client's position is written into event streams: no line end may come with it
        if (
            len(epoch) > 32
            or not (epoch.isascii() and epoch.isalnum())
            or not (offset.isascii() and offset.isdigit())
            or len(offset) > 18
        ):
            return None
        return cls(epoch, int(offset))


Start: TypeAlias = Position | int | None
"""Where somebody begins in a log: after a position, with the last so many messages, or with the next one."""


def new_epoch() -> str:
    return secrets.token_hex(4)


class Entry(NamedTuple):
    """One message of the log: its offset, its bytes as they were published, and, if it comes from Redis, its mark."""

    offset: int
    blob: bytes
    mark: bytes = b""


class Verdict(Enum):
    """What to do with a message that says it stands at some position."""

    NEXT = "next"
    SEEN = "seen"
    GAP = "gap"


class GroupLog:
    """The last messages of one group, bounded in number and, after the last of them, in time."""

    __slots__ = ("_entries", "_keys", "_last", "epoch", "offset", "rule")

    def __init__(self, rule: History, epoch: str, now: float, offset: int = 0) -> None:
        self.rule = rule
        self.epoch = epoch
        self.offset = offset
        self._entries: deque[Entry] = deque(maxlen=rule.size)
        self._keys: OrderedDict[str, int] = OrderedDict()
        self._last = now

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.offset)

    def publish(self, blob: bytes, now: float, key: str | None = None) -> tuple[int, bool]:
        """Number a new message. Its offset, and whether it is new: a known idempotency key gives the old offset."""
        if key is not None:
            known = self._keys.get(key)
            if known is not None and not self._forgotten(now):
                return known, False
        self.append(self.offset + 1, blob, now)
        if key is not None:
            self._keys[key] = self.offset
            while len(self._keys) > self.rule.size:
                self._keys.popitem(last=False)
        return self.offset, True

    def judge(self, position: Position) -> Verdict:
        if position.epoch != self.epoch or position.offset > self.offset + 1:
            return Verdict.GAP
        return Verdict.NEXT if position.offset == self.offset + 1 else Verdict.SEEN

    def append(self, offset: int, blob: bytes, now: float) -> None:
        self.trim(now)
        self._entries.append(Entry(offset, blob))
        self.offset = offset
        self._last = now

    def restart(self, position: Position, entries: Iterable[Entry], now: float) -> None:
        """Begin again at what somebody who knows says the log is."""
        self.epoch, self.offset = position
        self._entries.clear()
        self._entries.extend(entries)
        self._last = now

    def since(self, position: Position, now: float) -> list[Entry] | None:
        """All messages after `position`; None if they are not all there any more."""
        if position.epoch != self.epoch or position.offset > self.offset:
            return None
        missed = self.offset - position.offset
        if missed == 0:
            return []
        kept = self.entries(now)
        return kept[-missed:] if missed <= len(kept) else None

    def entries(self, now: float) -> list[Entry]:
        return [] if self._forgotten(now) else list(self._entries)

    def trim(self, now: float) -> None:
        """Let go of messages that are forgotten."""
        if self._forgotten(now):
            self._entries.clear()
            self._keys.clear()

    def expired(self, now: float) -> bool:
        """Whether even the count may be forgotten: nobody can ask for what came after nothing."""
        return self.offset == 0 or now - self._last > self.rule.meta_ttl

    def _forgotten(self, now: float) -> bool:
        return now - self._last > self.rule.ttl
