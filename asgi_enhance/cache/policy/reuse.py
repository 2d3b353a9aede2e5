"""May this stored response answer this request (RFC 9111 4, 5.2.1; RFC 5861)?"""

from collections.abc import Callable
from enum import Enum
from math import log
from typing import Final

from asgi_enhance.cache.entry import Entry
from asgi_enhance.cache.request import Request

CLIENT_VALIDATION_INTERVAL: Final = 1.0
"""A client that insists on a validation gets one, but no stored response is validated more often for that."""

DIRECTIVES: Final = frozenset({"max-age", "max-stale", "min-fresh", "no-cache", "no-store", "only-if-cached"})


class Use(Enum):
    FRESH = "fresh"
    """Answer with it."""
    REFRESH = "refresh"
    """Answer with it, and ask the app for a new one behind the client's back."""
    VALIDATE = "validate"
    """Ask the app first."""


def decide(request: Request, entry: Entry, now: float, honour: frozenset[str] = frozenset()) -> Use:
    """What the entry is good for. `honour`: the request directives that are listened to."""
    purged = entry.purged
    fresh = now < entry.fresh_until and not purged
    directives = request.directives
    if directives and honour and not honour.isdisjoint(directives):
        wanted = _wanted(request, entry, now, honour)
        if wanted is not None:
            fresh_enough, tolerated = wanted
            if not fresh_enough:
                return Use.VALIDATE
            if not fresh and not purged and now < entry.fresh_until + tolerated:
                return Use.FRESH
    if fresh:
        return Use.FRESH
    if entry.stale_while_revalidate and now < entry.fresh_until + entry.stale_while_revalidate:
        return Use.REFRESH
    return Use.VALIDATE


def _wanted(request: Request, entry: Entry, now: float, honour: frozenset[str]) -> tuple[bool, float] | None:
    """Whether the entry is fresh enough for the client, and how many seconds of staleness it puts up with."""
    asked = {name: value for name, value in request.directives.items() if name in honour}
    age = entry.age(now)
    fresh_enough = True
    if "no-cache" in asked or _exceeds(age, asked.get("max-age")) or _short_of(entry, now, asked.get("min-fresh")):
        fresh_enough = now - entry.received < CLIENT_VALIDATION_INTERVAL
    tolerated = asked.get("max-stale")
    if isinstance(tolerated, int) and tolerated > 0 and not (entry.must_revalidate or entry.no_cache):
        return fresh_enough, float(tolerated)
    return fresh_enough, 0.0


def _exceeds(age: int, limit: object) -> bool:
    return isinstance(limit, int) and age > max(limit, 0) - (limit == 0)


def _short_of(entry: Entry, now: float, limit: object) -> bool:
    return isinstance(limit, int) and entry.fresh_until - now < limit


def on_error(entry: Entry, now: float) -> bool:
    """stale-if-error: whether it may be used where the app has failed. A veto was turned into 0 when it was stored."""
    return entry.stale_if_error > 0 and now < entry.born + entry.lifetime + entry.stale_if_error


def early(entry: Entry, now: float, beta: float, rng: Callable[[], float]) -> bool:
    """XFetch (Vattani, Chierichetti, Lowenstein: Optimal Probabilistic Cache Stampede Prevention, 2015).

    The nearer the end of freshness and the dearer the response, the likelier one request renews it ahead of time.
    """
    return now - entry.render_time * beta * log(max(rng(), 1e-12)) >= entry.fresh_until
