"""What a cache counts: plain integers, read by whoever wants to know."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(slots=True)
class CacheStats:
    """Counters since the start, and two gauges: `entries` and `bytes`."""

    GAUGES: ClassVar = ("entries", "bytes")

    hits: int = 0
    """Answered from the store, without the app."""
    stale_hits: int = 0
    """Those of the hits that were stale (stale-while-revalidate, stale-if-error, max-stale)."""
    misses: int = 0
    """Not in the store: the app was asked."""
    validations: int = 0
    """In the store, but the app had to be asked whether it still holds."""
    not_modified: int = 0
    """Those of the validations that the app answered with 304."""
    collapsed: int = 0
    """Waited for somebody else's answer instead of asking the app."""
    refreshes: int = 0
    """Renewed behind a client's back."""
    bypasses: int = 0
    """Not the cache's business: a body, a rule."""
    stored: int = 0
    refused: int = 0
    """Responses that may not or should not be stored."""
    too_large: int = 0
    """Bodies that said they were larger than `max_body`, and copies given up because they outgrew it."""
    invalidations: int = 0
    purges: int = 0
    evictions: int = 0
    store_errors: int = 0
    """The store was away or failed: the cache did without."""
    corrupt: int = 0
    """Stored bytes that could not be read; deleted."""
    value_hits: int = 0
    value_misses: int = 0
    computations: int = 0
    entries: int = 0
    bytes: int = 0
