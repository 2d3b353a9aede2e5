"""How old is a response, and how long is it fresh (RFC 9111 4.2)?"""

from collections.abc import Sequence

from asgi_enhance.cache.policy.fields import INVALID, MAX_DELTA, Directives, delta_seconds, http_date

HEURISTICALLY_CACHEABLE = frozenset({200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501})
"""RFC 9110 15.1, without 206, which is never stored."""

MAX_HEURISTIC = 86400.0
"""Beyond a day a guess needs a warning (RFC 9111 4.2.2), so none goes further."""


def initial_age(
    age: Sequence[bytes], date: float, requested: float, received: float, *, strict: bool = False
) -> float | None:
    """RFC 9111 4.2.3: corrected_initial_age.

    5.1: of several members the first counts, and a field that cannot be read is ignored. `strict`: both are taken as
    a sign that the response might be of any age (None), and only a validation tells.
    """
    apparent = max(0.0, received - date)
    if not age:
        return apparent
    members = [member.strip() for line in age for member in line.split(b",")]
    seconds = delta_seconds(members[0])
    if strict and (seconds == INVALID or len(members) > 1):
        return None
    return max(apparent, max(0, seconds) + max(0.0, received - requested))


def explicit_lifetime(
    directives: Directives, expires: Sequence[bytes], date: float, now: float, *, shared: bool
) -> float | None:
    """RFC 9111 4.2.1, steps one to three; None if the response says nothing of its freshness."""
    for name in ("s-maxage", "max-age") if shared else ("max-age",):
        seconds = directives.get(name)
        if isinstance(seconds, int):
            return float(max(0, seconds))
    if expires:
        at = http_date(expires[0], now) if len(expires) == 1 else None
        return 0.0 if at is None else min(max(0.0, at - date), float(MAX_DELTA))
    return None


def heuristic_lifetime(fraction: float, status: int, public: bool, last_modified: float | None, date: float) -> float:
    """RFC 9111 4.2.2: a fraction of the time since the last modification."""
    if not fraction or last_modified is None or not (public or status in HEURISTICALLY_CACHEABLE):
        return 0.0
    return min(max(0.0, date - last_modified) * fraction, MAX_HEURISTIC)
