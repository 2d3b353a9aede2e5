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
    if not standings:
        return []
    policy, items = template10(tuple([standing.quota for standing in standings]))
    numbers: list[int] = []
    for standing in standings:
        numbers += (standing.remaining, ceil(standing.reset))
    return [policy, (b"ratelimit", items % tuple(numbers))]


@lru_cache(maxsize=1024)
def template10(quotas: tuple[Quota, ...]) -> tuple[tuple[bytes, bytes], bytes]:
    """What never changes of the fields of some quotas: the policy field, and `RateLimit` but for two numbers each."""
    names = [quota.name.replace("\\", "\\\\").replace('"', '\\"') for quota in quotas]
    policies = [f'"{name}";q={quota.limit};w={quota.seconds}' for name, quota in zip(names, quotas, strict=True)]
    items = [f'"{name.replace("%", "%%")}";r=%d;t=%d' for name in names]
    return (b"ratelimit-policy", ", ".join(policies).encode("ascii")), ", ".join(items).encode("ascii")


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
