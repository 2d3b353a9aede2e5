"""What waits for a connection that does not keep up: bounded, with a stated policy when it is full.

- `disconnect`: it is full; the caller closes the connection.
- `drop-oldest`: the oldest make room.
- `drop-newest`: the new one is not taken.
- `latest-per-key`: a message replaces the one with the same key that still waits; then as `drop-oldest`.
"""

from collections import OrderedDict

from asgi_enhance.broadcast.policy import SlowConsumer
from asgi_enhance.broadcast.wire import Frame


class OutboxFull(Exception):
    """The policy is to give the connection up."""


class Outbox:
    """The frames that wait for one connection, in order."""

    __slots__ = ("_count", "_frames", "_max_bytes", "_max_messages", "_policy", "size")

    def __init__(self, policy: SlowConsumer, max_messages: int, max_bytes: int) -> None:
        self._policy = policy
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._frames: OrderedDict[str | int, Frame] = OrderedDict()
        self._count = 0
        self.size = 0

    def __len__(self) -> int:
        return len(self._frames)

    def push(self, frame: Frame, *, bounded: bool = True) -> list[Frame]:
        """Take a frame. The frames that are dropped for it, which may be the frame itself."""
        dropped: list[Frame] = []
        if self._policy == "latest-per-key" and frame.key is not None and frame.key in self._frames:
            dropped.append(self._take(frame.key))
        if bounded and not self._fits(frame):
            if self._policy == "disconnect":
                raise OutboxFull
            if self._policy == "drop-newest":
                return [frame]
            while self._frames and not self._fits(frame):
                dropped.append(self._take(next(iter(self._frames))))
            if not self._fits(frame):
                return [*dropped, frame]
        self._count += 1
        keyed = self._policy == "latest-per-key" and frame.key is not None
        self._frames[frame.key if keyed else self._count] = frame  # type: ignore[index]
        self.size += frame.size
        return dropped

    def pop(self) -> Frame:
        """The frame that has waited longest."""
        return self._take(next(iter(self._frames)))

    def _fits(self, frame: Frame) -> bool:
        return len(self._frames) < self._max_messages and self.size + frame.size <= self._max_bytes

    def _take(self, key: str | int) -> Frame:
        frame = self._frames.pop(key)
        self.size -= frame.size
        return frame
