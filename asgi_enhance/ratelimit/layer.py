"""Puts limits in front of an app: HTTP requests, WebSocket handshakes and the messages that follow them.

A request is asked of all rules that match it in one decision. What is refused gets a 429 that says when to come back
(or the denial of its handshake, or the end of its connection) and has used up nothing.
"""

import random
from collections.abc import Awaitable, Callable, Sequence
from math import ceil
from typing import Any

from asgi_enhance.asgi.address import ClientAddress
from asgi_enhance.asgi.lifespan import run_lifespan
from asgi_enhance.asgi.problem import Problem
from asgi_enhance.asgi.types import ASGIApp, Headers, Message, Receive, Scope, Send
from asgi_enhance.errors import ConfigError
from asgi_enhance.options import checked
from asgi_enhance.ratelimit.bound import BoundRule, Exempt, bind, exemption
from asgi_enhance.ratelimit.core import RateLimiter
from asgi_enhance.ratelimit.decision import Decision, Demand, distinct
from asgi_enhance.ratelimit.headers import Serializer, draft10
from asgi_enhance.ratelimit.keys import LONGEST, by_client
from asgi_enhance.ratelimit.lease import Applied, Lease, delays, split, take_slots
from asgi_enhance.ratelimit.messages import LimitedMessages
from asgi_enhance.ratelimit.notation import Limits
from asgi_enhance.ratelimit.quick import quick_way
from asgi_enhance.ratelimit.rules import OnError, Rule

LIMITER = "limiter"
"""The default rule that is the limiter's own."""

RETRY_CONCURRENCY = 1.0
"""Seconds after which to come back when all slots are taken: nobody knows when one is freed."""

_TYPES = "https://iana.org/assignments/http-problem-types#"

# status, title and type of a refusal, by the reason of its decision
_REASONS = {
    "quota": (429, "Too many requests: the quota is used up", "quota-exceeded"),
    "cost": (429, "The request costs more than its quota can hold", "quota-exceeded"),
    "concurrency": (429, "Too many requests at the same time", "quota-exceeded"),
    "ban": (429, "Refused after too many refused requests", "abnormal-usage-detected"),
    "unavailable": (503, "The rate limit cannot be decided at the moment", "temporary-reduced-capacity"),
}

_Sending = Awaitable[None]

_OTHER_ANSWERS = {"websocket.accept", "websocket.http.response.start"}


@checked
class RateLimitMiddleware:
    """Limits what reaches `app`.

    rules:              `Rule`s; all that match a request apply to it. Default: none but `default`.
    limiter:            a `RateLimiter` to share with code of your own, instead of `redis` and `expected_workers`.
    redis:              a `RedisManager` or a URL: one count for all processes. Default: each process counts for itself.
    default:            the `Rule` (or limits by client) that applies to every request, whatever other rules say,
                        under the name `default`. `"limiter"`, the default: what the limiter has for `"default"` when
                        the layer is made, which is 100 a minute if nobody said otherwise. None: no such rule.
    client:             a `ClientAddress` that knows the proxies in front. Default: the peer of the connection.
    ipv6_prefix:        bits of an IPv6 address that make a client. Default: 64.
    exempt:             who is never limited: paths and networks (`"/health"`, `"OPTIONS /*"`, `"10.0.0.0/8"`) or
                        callables of the scope. Default: nobody.
    headers:            writes the header fields of a decision: one serializer or several (`headers.draft10`,
                        `headers.x_ratelimit`). Default: `draft10`. `()`: none.
    on_error:           for rules that do not say: `local`, `open` or `closed` (see `Rule`). Default: the limiter's.
    expected_workers:   processes that share a limit while Redis is away. Default: 1.
    retry_jitter:       Retry-After is up to this part later than needed, so that not all come back at once. Default:
                        0.1.
    message_close_code: closes a WebSocket whose messages are refused. Default: 1008.
    rng:                gives numbers from 0 to 1 for the jitter. Default: `random.random`.

    Raises ConfigError for an option or a rule that cannot work.
    """

    def __init__(
        self,
        app: ASGIApp,
        rules: Sequence[Rule] = (),
        *,
        limiter: RateLimiter | None = None,
        redis: Any = None,
        default: Rule | Limits | None = LIMITER,
        client: ClientAddress | None = None,
        ipv6_prefix: int = 64,
        exempt: Sequence[Exempt] | Exempt = (),
        headers: Serializer | Sequence[Serializer] = draft10,
        on_error: OnError | None = None,
        expected_workers: int = 1,
        retry_jitter: float = 0.1,
        message_close_code: int = 1008,
        rng: Callable[[], float] = random.random,
    ) -> None:
        if limiter is not None and (redis is not None or expected_workers != 1):
            raise ConfigError("limiter excludes redis and expected_workers: give those to the limiter")
        if on_error not in (None, "local", "open", "closed"):
            raise ConfigError(f"on_error must be 'local', 'open' or 'closed', not {on_error!r}")
        if not 0 <= retry_jitter <= 1:
            raise ConfigError(f"retry_jitter must be from 0 to 1, not {retry_jitter!r}")
        if not 1000 <= message_close_code <= 4999 or message_close_code in (1004, 1005, 1006, 1015):
            raise ConfigError(
                f"message_close_code must be one that can be sent, 1000 to 4999: not {message_close_code!r}"
            )
        self.app = app
        self.limiter = limiter or RateLimiter(redis=redis, expected_workers=expected_workers)
        memory = self.limiter.at_once
        self._at_once = memory.hit if memory is not None else None
        if default == LIMITER:
            default = self.limiter.limits["default"]
        key = by_client(client, ipv6_prefix=ipv6_prefix)
        bound = bind(rules, default, key, on_error or "", self.limiter)
        self._http = tuple(rule for rule in bound if rule.rule.covers("http"))
        self._websocket = tuple(rule for rule in bound if rule.rule.covers("websocket"))
        self._messages = tuple(rule for rule in bound if rule.rule.covers("message"))
        self._leases = not all(rule.plain for rule in self._http)
        self._exempt = exemption(
            (exempt,) if isinstance(exempt, str) or callable(exempt) else exempt, client or ClientAddress()
        )
        self._serialize = _joined((headers,) if callable(headers) else tuple(headers))
        self._quick = None if self._leases else quick_way(self._http, self._exempt, memory, self._serialize)
        self._jitter = retry_jitter
        self._close_code = message_close_code
        self._rng = rng

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._quick is not None and scope["type"] == "http":
            fields = self._quick(scope)
            if fields is not None:
                await self.app(scope, receive, announcing(fields, send))
                return
        if scope["type"] != "http" or self._leases:
            await self._elsewhere(scope, receive, send)
            return
        asked: tuple[Demand, ...] = ()
        if self._exempt is None or not self._exempt(scope):
            for rule in self._http:
                if rule.match is None or rule.match(scope):
                    identity = rule.key(scope)
                    if not (identity.__class__ is str and len(identity) <= LONGEST and identity > "\1"):
                        identity = await rule.identity(identity)  # all others are spelled as they are
                        if identity is None:
                            continue
                    asked += rule.demands(identity) if rule.demands else await rule.demands_of(scope, identity)
        if not asked:
            await self.app(scope, receive, send)
            return
        if len(asked) > 1:
            asked = distinct(asked)
        decision = self._at_once(asked) if self._at_once is not None else await self.limiter.acquire(asked)
        if decision.allowed:
            await self.app(scope, receive, announcing(self._serialize(decision), send))
        else:
            await self._refusal(decision)(scope, receive, send)

    async def _elsewhere(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "lifespan":
            await run_lifespan(self.app, scope, receive, send, (self.limiter,))
            return
        if kind not in ("http", "websocket") or (self._exempt is not None and self._exempt(scope)):
            await self.app(scope, receive, send)
            return
        if kind == "websocket" and self._messages:
            receive, send = await self._limit_messages(scope, receive, send)
        applied = await self._applied(self._http if kind == "http" else self._websocket, scope)
        if applied:
            await self._with_leases(applied, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _applied(self, rules: Sequence[BoundRule], scope: Scope) -> Applied:
        """The rules that apply to a request, whose it is for them, and what it asks for."""
        applied = []
        for rule in rules:
            if rule.match is None or rule.match(scope):
                identity = await rule.identity(rule.key(scope))
                if identity is not None:
                    applied.append((rule, identity, await rule.demands_of(scope, identity)))
        return applied

    async def _with_leases(self, applied: Applied, scope: Scope, receive: Receive, send: Send) -> None:
        """For rules that want more than a decision: slots, a delay, a bill, or only to be watched."""
        limiter = self.limiter
        wanted, watched = split(applied)
        full = take_slots(applied, limiter)
        if full is not None:
            limiter.stats.refused += 1
            decision = Decision(False, (), RETRY_CONCURRENCY, (full.name,), "concurrency")
            await self._refusal(decision)(scope, receive, send)
            return
        lease = Lease(applied, limiter, scope, send)
        try:
            decision = Decision(True)
            if wanted:
                decision = await limiter.acquire(wanted, delays=delays(applied))
            if not decision.allowed:
                await self._refusal(decision)(scope, receive, send)
                return
            if watched:
                await limiter.watch(watched)
            lease.owes(decision)
            await self.app(scope, receive, announcing(self._serialize(decision), lease.send))
        finally:
            await lease.end()

    async def _limit_messages(self, scope: Scope, receive: Receive, send: Send) -> tuple[Receive, Send]:
        """`receive` and `send` of a WebSocket whose messages are limited; the same ones if no rule is about it."""
        applied = await self._applied(self._messages, scope)
        wanted, watched = split(applied)
        if not wanted and not watched:
            return receive, send
        messages = LimitedMessages(self.limiter, wanted, watched, delays(applied), self._close_code, receive, send)
        return messages.receive, messages.send

    def _refusal(self, decision: Decision) -> Problem:
        headers: Headers = [*self._serialize(decision), (b"cache-control", b"no-store")]
        if decision.retry_after is not None:
            later = decision.retry_after * (1 + self._jitter * self._rng())
            headers.append((b"retry-after", b"%d" % max(1, ceil(later))))
        status, title, kind = _REASONS[decision.reason]
        return Problem(
            status,
            title,
            _TYPES + kind,
            extensions={"violated-policies": decision.violated},
            headers=headers,
            close_code=1013,
        )


def announcing(fields: Headers, send: Send) -> Send:
    """`send` that adds header fields to the answer."""
    if not fields:
        return send

    # Made for every request: its annotations are names, which cost nothing to look up.
    def send_with_fields(message: Message) -> _Sending:
        kind = message["type"]
        if kind == "http.response.start" or kind in _OTHER_ANSWERS:
            message = {**message, "headers": [*message.get("headers", ()), *fields]}
        return send(message)

    return send_with_fields


def _joined(serializers: Sequence[Serializer]) -> Serializer:
    if len(serializers) == 1:
        return serializers[0]
    return lambda decision: [field for serialize in serializers for field in serialize(decision)]
