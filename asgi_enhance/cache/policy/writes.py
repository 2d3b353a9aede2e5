"""Which URLs have been written to since a response was asked for?

Writes are numbered, as purges are. Of each URL the number of its last write is remembered; what is forgotten, since
there is room for so many only, counts as written to when the last of the forgotten was. So a doubt never keeps a
response that was read before a write; it may cost one that was not.
"""

from typing import Final

from asgi_enhance.cache.recent import Recent
from asgi_enhance.cache.request import Key

MAX_WRITES: Final = 10_000
"""How many URLs are remembered."""


class Writes:
    """The writes to the URLs of one cache, as far as they passed here."""

    __slots__ = ("_forgotten", "_last", "number")

    def __init__(self, limit: int = MAX_WRITES) -> None:
        self.number = 0
        """How many there were."""
        self._forgotten = 0
        # By the hash of the key, which holds a whole URL; of two that share one both count as written to
        self._last: Recent[int, int] = Recent(limit)

    def add(self, key: Key) -> None:
        self.number += 1
        self._forgotten = self._last.put(hash(key), self.number) or self._forgotten

    def since(self, number: int, key: Key) -> bool:
        """Whether this URL was written to after so many writes."""
        return self.number != number and self._last.get(hash(key), self._forgotten) > number
