"""The balancer itself: chooses a backend, sends the request there, tries again where that is safe, and remembers.

`LoadBalancer` is what user code calls; `LoadBalanceApp` is the same by ASGI. It may change at run time: a backend that
stays keeps its connections, its requests in flight and everything that was learnt about it.
"""

import asyncio
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypedDict

from asgi_enhance.asgi.lifespan import Resource
from asgi_enhance.asgi.scope import header
from asgi_enhance.asgi.tasks import Tasks
from asgi_enhance.asgi.types import Receive, Scope
from asgi_enhance.balance.backend import Backend, Endpoint
from asgi_enhance.balance.body import Body
from asgi_enhance.balance.exchange import IDEMPOTENT, Answer, Exchange, Upstream
from asgi_enhance.balance.failure import ClientGone, Rejected, Unavailable, UpstreamFailure
from asgi_enhance.balance.headers import Forwarding, HeaderRules
from asgi_enhance.balance.health import Roster
from asgi_enhance.balance.options import Ejection, Limits, Retries, Timeouts
from asgi_enhance.balance.policy import POLICIES, IpHash, PeakEwma, Policy, SlowStart
from asgi_enhance.balance.retry import RetryBudget, backoff, may_retry
from asgi_enhance.balance.runtime import Runtime, Waiter
from asgi_enhance.balance.target import raw_target, strict_query
from asgi_enhance.balance.upstream.pool import Http1Upstream
from asgi_enhance.balance.upstream.websocket import WebSocketUpstream
from asgi_enhance.errors import ConfigError, LoadBalancerError

Algorithm = Literal["peak-ewma", "round-robin", "least-connections", "ip-hash"]


@dataclass(slots=True)
class Stats:
    """What the balancer has done, counted since it was made."""

    requests: int = 0
    websockets: int = 0
    retries: int = 0
    queued: int = 0
    backend_failures: int = 0
    ejections: int = 0
    clients_gone: int = 0
    rejected: int = 0
    unavailable: int = 0


class Options(TypedDict, total=False):
    """The keyword arguments of `LoadBalancer`, for whoever passes them on."""

    algorithm: Algorithm
    timeouts: Timeouts
    limits: Limits
    retries: Retries
    ejection: Ejection | None
    forwarding: Forwarding
    slow_start: float
    hash_key: Callable[[Scope], str | None] | None
    hash_bound: float
    strip_mount: bool
    strict_query: bool
    seed: int | None


class LoadBalancer(Resource[Runtime]):
    """Spreads requests over backends. Every option has a safe default; a list of URLs is enough.

    backends:     URLs or `Backend`s, or one comma-separated string.
    algorithm:    `"peak-ewma"` (default), `"round-robin"`, `"least-connections"` or `"ip-hash"`; see `policy`.
    timeouts:     `Timeouts`, seconds for each step.
    limits:       `Limits`, connections, queue, bodies and heads.
    retries:      `Retries`, when a request is tried again.
    ejection:     `Ejection`, passive health; None turns it off.
    forwarding:   `Forwarding`, what backends are told about the client.
    slow_start:   seconds until a backend that was added or came back has its full weight. Default: 10 (HAProxy).
    hash_key:     for `ip-hash`: what to hash of a scope. Default: the client's address.
    hash_bound:   for `ip-hash`: times its share of the load a backend carries at most. Default: 1.25 (HAProxy).
    strip_mount:  backends see the path below the mount. Default: True.
    strict_query: drop query pairs that parsers read differently (`;`, broken `%`). Default: False.
    seed:         of the random choices, for tests. Default: none.
    """

    def __init__(
        self,
        backends: Iterable[Backend | str] | str = (),
        *,
        algorithm: Algorithm = "peak-ewma",
        timeouts: Timeouts | None = None,
        limits: Limits | None = None,
        retries: Retries | None = None,
        ejection: Ejection | None = Ejection(),  # noqa: B008 frozen
        forwarding: Forwarding | None = None,
        slow_start: float = 10.0,
        hash_key: Callable[[Scope], str | None] | None = None,
        hash_bound: float = 1.25,
        strip_mount: bool = True,
        strict_query: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if algorithm not in POLICIES:
            raise ConfigError(f"algorithm must be one of {', '.join(POLICIES)}, not {algorithm!r}")
        self.timeouts = timeouts or Timeouts()
        self.limits = limits or Limits()
        self.retries = retries or Retries()
        self.rules = HeaderRules(forwarding or Forwarding())
        self.stats = Stats()
        self.roster = Roster(ejection)
        self.policy: Policy = _policy(algorithm, SlowStart(slow_start), hash_bound)
        self._penalty = ejection.penalty if ejection is not None else Ejection().penalty
        self._budget = RetryBudget(self.retries)
        self._hash_key = hash_key or self.rules.client_address
        self._hashes = algorithm == "ip-hash"
        self._strip_mount = strip_mount
        self._strict_query = strict_query
        self._rng = random.Random(seed)
        self._in_flight = 0
        self._full = 0
        for backend in Backend.all_of(backends):
            self.roster.endpoints.append(self._endpoint(backend))

    def __repr__(self) -> str:
        return f"<LoadBalancer {len(self.roster.endpoints)} backends, {self._in_flight} in flight>"

    @property
    def in_flight(self) -> int:
        """Requests and WebSockets that hold a backend now."""
        return self._in_flight

    # One request

    def exchange(self, scope: Scope, receive: Receive, runtime: Runtime) -> Exchange:
        """A request as the backends will get it. Raises Rejected for one that must not be forwarded."""
        self.stats.requests += 1
        head = self.rules.request(scope)
        path, query = raw_target(scope, strip_mount=self._strip_mount, max_length=self.limits.max_target)
        if self._strict_query and query:
            query = strict_query(query)
        limits, timeouts = self.limits, self.timeouts
        if limits.max_body is not None and head.length is not None and head.length > limits.max_body:
            raise Rejected(413, "The request body is too large.")
        total = timeouts.total
        return Exchange(
            runtime,
            method=scope["method"],
            path=path,
            query=query,
            head=head,
            body=Body(receive, length=head.length, limit=limits.max_body, replay=limits.replay),
            key=self._key(scope) if self._hashes else b"",
            idle=timeouts.idle,
            limit=float("inf") if total is None else runtime.loop.time() + total,
        )

    def websocket_exchange(self, scope: Scope, receive: Receive, runtime: Runtime) -> Exchange:
        """The handshake of a WebSocket as the backends will get it. Raises Rejected."""
        self.stats.websockets += 1
        head = self.rules.request(scope)
        head.fields = [pair for pair in head.fields if not pair[0].startswith(b"sec-websocket-")]
        path, query = raw_target(scope, strip_mount=self._strip_mount, max_length=self.limits.max_target)
        idle = self.timeouts.websocket_idle
        return Exchange(
            runtime,
            method="GET",
            path=path,
            query=query,
            head=head,
            body=Body(receive, length=None, limit=None, replay=0),
            key=self._key(scope) if self._hashes else b"",
            idle=float("inf") if idle is None else idle,
            limit=float("inf"),
            websocket=True,
            subprotocols=scope.get("subprotocols") or (),
        )

    async def forward(self, exchange: Exchange, runtime: Runtime) -> Answer:
        """Send the request to a backend and wait for the head of its answer, which stays the exchange's.

        Raises UpstreamFailure when the backends asked have failed, Unavailable when none could be asked, ClientGone
        when there is nobody left to ask for.
        """
        if exchange.head.expects_continue and not self.roster.candidates(runtime.loop.time(), self._rng):
            raise self._none_available()  # before the client is told to go on and send its body
        if not exchange.websocket:
            await exchange.body.begin()
        exchange.on_end = self._ended
        tried: list[Endpoint] = []
        fresh = False
        try:
            while True:
                endpoint = await self._acquire(exchange, runtime, tried)
                exchange.upstream = upstream = runtime.upstream(endpoint, websocket=exchange.websocket)
                began = runtime.loop.time()
                try:
                    answer = exchange.answer = await upstream.open(exchange, fresh=fresh)
                except UpstreamFailure as failure:
                    upload = exchange.upload
                    exchange.let_go(None if failure.stale else failure)
                    if not may_retry(failure, exchange.method, replayable=exchange.body.replayable):
                        raise
                    if upload is not None and not exchange.websocket:
                        await asyncio.wait([upload])  # one reader of `receive` at a time
                    if failure.stale:
                        fresh = True
                        exchange.body.rewind()
                        continue
                    if not self._another(len(tried) + 1):
                        raise
                else:
                    self._observe(endpoint, answer, exchange, began, runtime.loop.time())
                    if not self._unwelcome(answer, exchange, len(tried) + 1):
                        return answer
                    exchange.let_go()
                self.stats.retries += 1
                if not tried:
                    self._budget.active += 1
                tried.append(endpoint)
                exchange.body.rewind()
                if all(one in tried for one in self.roster.all_candidates(runtime.loop.time())):
                    await asyncio.sleep(backoff(self.retries.backoff, len(tried) + 1, self._rng.random()))
        finally:
            if tried:
                self._budget.active -= 1

    def _another(self, attempt: int) -> bool:
        """Whether there may be a try after this one. A request that has begun to retry is in the budget already."""
        return attempt < self.retries.attempts and (attempt > 1 or self._budget.allows(self._in_flight))

    def _unwelcome(self, answer: Answer, exchange: Exchange, attempt: int) -> bool:
        """Whether this response is one to try again instead of handing it on."""
        return (
            answer.status in self.retries.statuses
            and exchange.method in IDEMPOTENT
            and exchange.body.replayable
            and not exchange.body.more
            and self._another(attempt)
        )

    def _observe(self, endpoint: Endpoint, answer: Answer, exchange: Exchange, began: float, now: float) -> None:
        """Remember how the backend did: the time to its first byte, or a penalty if it failed."""
        assert answer.status is not None
        if answer.status >= 500:
            self._failed(endpoint, now, retry_after=header(answer.headers, b"retry-after"))
            return
        self.roster.served(endpoint, now)
        if exchange.upload is None:  # the time of an upload is the client's, not the backend's
            self.policy.observe(endpoint, now - began, now)

    def _failed(self, endpoint: Endpoint, now: float, *, retry_after: bytes | None = None) -> None:
        self.stats.backend_failures += 1
        seconds = self._penalty
        if retry_after is not None and retry_after.isdigit():
            seconds = max(seconds, min(float(retry_after[:4]), 10 * self._penalty))
        self.policy.observe(endpoint, seconds, now)
        if self.roster.failed(endpoint, now):
            self.stats.ejections += 1

    # Slots

    async def _acquire(self, exchange: Exchange, runtime: Runtime, tried: list[Endpoint]) -> Endpoint:
        """A backend and a slot on it, now or after a while in the queue."""
        endpoint = self._choose(exchange, tried, runtime.loop.time())
        if endpoint is None:
            endpoint = await self._queue(exchange, runtime, tried)
        else:
            self._take(endpoint)
        exchange.endpoint = endpoint
        return endpoint

    def _choose(self, exchange: Exchange, tried: list[Endpoint], now: float) -> Endpoint | None:
        """The backend for a request, or None if all that could serve it are busy. Raises Unavailable if none could."""
        candidates = self.roster.candidates(now, self._rng)
        if tried or self._full or exchange.sticky:
            everybody = self.roster.all_candidates(now)
            free = [one for one in candidates if one.in_flight < one.full_at and one not in tried]
            if not free:
                free = [one for one in everybody if one.in_flight < one.full_at and one not in tried]
            if not free:
                free = [one for one in everybody if one.in_flight < one.full_at]
            if exchange.sticky:
                for one in everybody:
                    if one.id == exchange.sticky and one in free:
                        return one
            if not free and everybody:
                return None
            candidates = free
        if not candidates:
            raise self._none_available()
        return self.policy.pick(candidates, now, self._rng, exchange.key)

    async def _queue(self, exchange: Exchange, runtime: Runtime, tried: list[Endpoint]) -> Endpoint:
        if len(runtime.queue) >= self.limits.max_queue:
            self.stats.unavailable += 1
            raise Unavailable("all backends are busy and the queue is full", error="connection_limit_reached")
        self.stats.queued += 1
        waiter = Waiter(runtime.loop.create_future(), exchange, tried)
        runtime.queue.append(waiter)
        try:
            async with asyncio.timeout(self.timeouts.queue):
                return await waiter.future
        except BaseException as error:
            if waiter in runtime.queue:
                runtime.queue.remove(waiter)
            if waiter.future.done() and not waiter.future.cancelled():
                self._give_back(waiter.future.result(), runtime)  # it came in the very moment of the end
            if isinstance(error, TimeoutError):
                self.stats.unavailable += 1
                text = "all backends were busy for too long"
                raise Unavailable(text, error="connection_limit_reached") from None
            raise

    def _take(self, endpoint: Endpoint) -> None:
        endpoint.requests += 1
        endpoint.in_flight += 1
        self._in_flight += 1
        if endpoint.in_flight == endpoint.full_at:
            self._full += 1

    def _give_back(self, endpoint: Endpoint, runtime: Runtime | None) -> None:
        if endpoint.in_flight == endpoint.full_at:
            self._full -= 1
        endpoint.in_flight -= 1
        self._in_flight -= 1
        if runtime is not None and runtime.queue:
            self._serve_queue(runtime)

    def _serve_queue(self, runtime: Runtime) -> None:
        """Give free slots to those who have waited longest."""
        now = runtime.loop.time()
        while runtime.queue:
            waiter = runtime.queue[0]
            if waiter.future.done():
                runtime.queue.popleft()
                continue
            try:
                endpoint = self._choose(waiter.exchange, waiter.tried, now)
            except Unavailable as error:
                runtime.queue.popleft()
                waiter.future.set_exception(error)
                continue
            if endpoint is None:
                return
            runtime.queue.popleft()
            self._take(endpoint)
            waiter.future.set_result(endpoint)

    def _ended(self, exchange: Exchange, error: BaseException | None) -> None:
        endpoint = exchange.endpoint
        assert endpoint is not None
        runtime = self.opened()
        if isinstance(error, UpstreamFailure) and runtime is not None:
            self._failed(endpoint, runtime.loop.time())
        elif isinstance(error, ClientGone):
            self.stats.clients_gone += 1
        self._give_back(endpoint, runtime)

    def _none_available(self) -> Unavailable:
        self.stats.unavailable += 1
        return Unavailable("no backend is available")

    def _key(self, scope: Scope) -> bytes:
        return (self._hash_key(scope) or "").encode("utf-8", "surrogateescape")

    # Resource

    def _endpoint(self, backend: Backend) -> Endpoint:
        return Endpoint(backend, max_connections=self.limits.max_connections)

    def _upstream(self, endpoint: Endpoint, tasks: Tasks, websocket: bool) -> Upstream:
        rewrite = self.rules.forwarding.host == "rewrite"
        if websocket:
            return WebSocketUpstream(endpoint.backend, timeouts=self.timeouts, limits=self.limits, rewrite_host=rewrite)
        return Http1Upstream(endpoint.backend, tasks, timeouts=self.timeouts, limits=self.limits, rewrite_host=rewrite)

    async def _start(self) -> Runtime:
        return Runtime(self._upstream)

    async def _stop(self, value: Runtime) -> None:
        await value.aclose()

    async def close(self) -> None:
        """Close every connection and stop every task on this event loop. Idempotent; a later request starts anew."""
        await self.aclose()


def _policy(algorithm: Algorithm, slow_start: SlowStart, bound: float) -> Policy:
    if algorithm == "ip-hash":
        return IpHash(slow_start, bound=bound)
    return POLICIES[algorithm](slow_start)


__all__ = ["LoadBalancer", "LoadBalancerError", "Options", "PeakEwma", "Stats"]
