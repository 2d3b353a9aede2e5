"""Rate limiting: exact windows with bursts, in one process or over Redis."""

from asgi_enhance.ratelimit.core import RateLimiter
from asgi_enhance.ratelimit.decision import Decision, Demand, Standing
from asgi_enhance.ratelimit.keys import by_client, by_header, by_user
from asgi_enhance.ratelimit.layer import RateLimitMiddleware
from asgi_enhance.ratelimit.policy import Quota
from asgi_enhance.ratelimit.rules import Ban, Rule

__all__ = [
    "Ban",
    "Decision",
    "Demand",
    "Quota",
    "RateLimitMiddleware",
    "RateLimiter",
    "Rule",
    "Standing",
    "by_client",
    "by_header",
    "by_user",
]
