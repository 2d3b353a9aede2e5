"""Writes the header fields of a decision. The only place that knows their syntax.

`draft10` is draft-ietf-httpapi-ratelimit-headers-10: `RateLimit-Policy` and `RateLimit`, Lists of Structured Fields
(RFC 9651) whose Items are Strings. The draft is not an RFC yet; another serializer can take its place by
`RateLimitMiddleware(headers=...)`. `x_ratelimit` writes the `X-RateLimit-*` fields that were there before it.
"""

import time
from collections.abc import Callable
from functools import lru_cache
from math import ceil

from asgi_enhance.asgi.types import Headers
from asgi_enhance.ratelimit.decision import Decision
from asgi_enhance.ratelimit.policy import Quota

Serializer = Callable[[Decision], Headers]


def draft10(decision: Decision) -> Headers:
    standings = decision.standings
    if len(standings) == 1:
        standing = standings[0]
        policy, limit = _fixed(standing.quota)
        return [policy, (b"ratelimit", limit % (standing.remaining, ceil(standing.reset)))]
    if not standings:
        return []
    policies, limits = [], []
    for standing in standings:
        policy, limit = _fixed(standing.quota)
        policies.append(policy[1])
        limits.append(limit % (standing.remaining, ceil(standing.reset)))
    return [(b"ratelimit-policy", b", ".join(policies)), (b"ratelimit", b", ".join(limits))]


def x_ratelimit(decision: Decision) -> Headers:
    """Of the quota that is nearest to its end. Reset is the Unix time in seconds, as GitHub and slowapi have it."""
    if not decision.standings:
        return []
    nearest = min(decision.standings, key=lambda standing: standing.remaining)
    return [
        (b"x-ratelimit-limit", b"%d" % nearest.quota.limit),
        (b"x-ratelimit-remaining", b"%d" % nearest.remaining),
        (b"x-ratelimit-reset", b"%d" % ceil(time.time() + nearest.reset)),
    ]


@lru_cache(maxsize=1024)
def _fixed(quota: Quota) -> tuple[tuple[bytes, bytes], bytes]:
    """What never changes of a quota: its policy field, and its item of `RateLimit` but for two numbers."""
    name = quota.name.replace("\\", "\\\\").replace('"', '\\"')
    label = f'"{name}"'.encode("ascii")
    return (b"ratelimit-policy", b"%b;q=%d;w=%d" % (label, quota.limit, quota.seconds)), (
        label.replace(b"%", b"%%") + b";r=%d;t=%d"
    )
