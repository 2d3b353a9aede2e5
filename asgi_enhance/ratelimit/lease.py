"""What a request holds until its response is finished: the slots of concurrency limits, and an unsettled bill."""

import logging
from collections.abc import Sequence

from msgspec.structs import replace

from asgi_enhance.asgi.messages import ResponseTracker
from asgi_enhance.asgi.types import Message, Scope, Send
from asgi_enhance.ratelimit.bound import BoundRule
from asgi_enhance.ratelimit.core import RateLimiter
from asgi_enhance.ratelimit.decision import TAKE, Decision, Demand, distinct
from asgi_enhance.ratelimit.policy import MAX_LIMIT

logger = logging.getLogger("asgi_enhance.ratelimit")

_HANDSHAKE = {"websocket.accept": 101, "websocket.close": 403}
"""The status that a WebSocket's handshake ends with, by the app's first word."""

Applied = Sequence[tuple[BoundRule, str, tuple[Demand, ...]]]


def split(applied: Applied) -> tuple[tuple[Demand, ...], tuple[Demand, ...]]:
    """What is asked for, and what is only watched."""
    wanted = tuple(demand for rule, _, demands in applied if not rule.rule.shadow for demand in demands)
    watched = tuple(demand for rule, _, demands in applied if rule.rule.shadow for demand in demands)
    return distinct(wanted), distinct(watched)


def delays(applied: Applied) -> dict[str, float]:
    """By the names of quotas, how long a request may wait for them."""
    return {demand.quota.name: rule.rule.max_delay for rule, _, demands in applied for demand in demands}


def take_slots(applied: Applied, limiter: RateLimiter) -> BoundRule | None:
    """Take a slot of every concurrency limit, or none: then the rule whose slots are all taken."""
    for rule, identity, _ in applied:
        most = rule.rule.concurrency
        if most is not None and not rule.rule.shadow and rule.in_flight.get(identity, 0) >= most:
            return rule
    for rule, identity, _ in applied:
        most = rule.rule.concurrency
        if most is not None:
            taken = rule.in_flight.get(identity, 0)
            rule.in_flight[identity] = taken + 1
            if taken >= most:
                limiter.shadowed((rule.name,))
    return None


class Lease:
    """The slots and the bill of one admitted request. `send` watches the response go by; `end` must be called."""

    __slots__ = ("_applied", "_decision", "_handshake", "_limiter", "_scope", "_send", "_slots", "_tracker")

    def __init__(self, applied: Applied, limiter: RateLimiter, scope: Scope, send: Send) -> None:
        self._applied = applied
        self._limiter = limiter
        self._scope = scope
        self._send = send
        self._tracker = ResponseTracker()
        self._slots = True
        self._handshake: int | None = None
        self._decision: Decision | None = None

    def owes(self, decision: Decision) -> None:
        """It was admitted by this decision; rules with a `charge` will be asked when the response is finished."""
        if any(rule.rule.charge is not None for rule, _, _ in self._applied):
            self._decision = decision

    async def send(self, message: Message) -> None:
        finished = self._tracker.feed(message)
        if self._handshake is None:
            self._handshake = _HANDSHAKE.get(message["type"])
        if finished:
            self.free()
        await self._send(message)
        if finished:
            await self._settle()

    async def end(self) -> None:
        """The app has returned or failed: what is still held is let go."""
        self.free()
        await self._settle()

    def free(self) -> None:
        if not self._slots:
            return
        self._slots = False
        for rule, identity, _ in self._applied:
            if rule.rule.concurrency is not None:
                left = rule.in_flight[identity] - 1
                if left:
                    rule.in_flight[identity] = left
                else:
                    del rule.in_flight[identity]

    async def _settle(self) -> None:
        decision, self._decision = self._decision, None
        if decision is None:
            return
        status = self._tracker.status or self._handshake or 500
        for rule, _, demands in self._applied:
            if rule.rule.charge is None:
                continue
            try:
                units = rule.rule.charge(self._scope, status)
            except Exception:  # the response has gone out: no failure of the app, nor of the other rules
                logger.exception("rule %r: charge failed; nothing is charged", rule.name)
                continue
            if not isinstance(units, int) or abs(units) > MAX_LIMIT:
                logger.error("rule %r: charge must be a whole number, not %r; nothing is charged", rule.name, units)
                continue
            taken = [demand for demand in demands if demand.role == TAKE]
            if units > 0:
                await self._limiter.charge(tuple(replace(demand, cost=units) for demand in taken))
            elif units < 0:
                back = tuple(replace(demand, cost=min(-units, demand.cost)) for demand in taken)
                await self._limiter.refund(back, decision)
