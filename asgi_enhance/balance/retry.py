"""May this request be tried again? Pure.

- Connect failures: any method, as long as no byte of the body has been read that is not kept.
- A kept-alive connection that ended before it answered a byte: once, for idempotent methods, and outside the budget:
  that is the backend's idle timer, not an overload.
- Everything else: idempotent methods (RFC 9110, 9.2.2) with a body that is still here.
- Never after the first byte of a response, never beyond `attempts`, and, so that retries cannot multiply an overload,
  only while fewer than a fifth of the requests in flight are retries (at least three may be).
- Outside the budget, since they double nobody's load: what never reached a backend, and what a backend had in flight
  when it began to fail. A backend that is killed loses all of that at once, and no client should notice.
"""

from asgi_enhance.balance.exchange import IDEMPOTENT
from asgi_enhance.balance.failure import UpstreamFailure
from asgi_enhance.balance.options import Retries


class RetryBudget:
    """How many retries and hedges are under way, and whether there may be one more."""

    __slots__ = ("_floor", "_share", "active")

    def __init__(self, retries: Retries) -> None:
        self._share = retries.budget
        self._floor = retries.min_budget
        self.active = 0

    def allows(self, in_flight: int) -> bool:
        return self.active < max(self._floor, self._share * in_flight)


def may_retry(failure: UpstreamFailure, method: str, *, replayable: bool) -> bool:
    """Whether sending the request again is safe, whatever attempts and budget say."""
    if not replayable:
        return False
    if failure.unsent:
        return True
    return method in IDEMPOTENT


def backoff(base: float, attempt: int, jitter: float) -> float:
    """Seconds before try number `attempt` (2, 3, …) at a backend that was tried before; `jitter` is in [0, 1)."""
    return min(base * 10, base * 2.0 ** (attempt - 2)) * jitter
