"""A dictionary that remembers so many of its latest entries, and forgets the one that was put in the longest ago."""

from collections.abc import Hashable
from typing import TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(dict[K, V]):
    """Reading it is reading a dict, at a dict's price; `put` is how to write."""

    __slots__ = ("limit",)

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def put(self, key: K, value: V) -> V | None:
        """Remember this as the latest. Returns the value that had to be forgotten for it, if one had to."""
        self.pop(key, None)
        self[key] = value
        return self.pop(next(iter(self))) if len(self) > self.limit else None
