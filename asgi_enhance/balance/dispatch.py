"""One request's way to a backend: who gets it, how long it waits for a slot, and what happens when it fails there.

Slots are taken and given back synchronously and nowhere else than here; whoever waits in the queue is handed a slot
that is already his, so that nobody overtakes him.

There is one queue before all backends, not one a backend: who waits is not yet bound to a backend, and gets whichever
is free first. A line of its own before each could only be worse (somebody waits there while another backend idles).
"""

import asyncio
import logging
import random
from dataclasses import dataclass
from time import monotonic

from asgi_enhance.asgi.scope import header
from asgi_enhance.balance.backend import Backend, Endpoint
from asgi_enhance.balance.exchange import IDEMPOTENT, Answer, Exchange
from asgi_enhance.balance.failure import ClientGone, Unavailable, UpstreamFailure
from asgi_enhance.balance.health import Roster
from asgi_enhance.balance.hedge import Hedge, Hedger, open_hedged
from asgi_enhance.balance.options import Limits, Retries, Timeouts
from asgi_enhance.balance.policy import Policy
from asgi_enhance.balance.retry import RetryBudget, backoff, may_retry
from asgi_enhance.balance.runtime import Runtime, Waiter

logger = logging.getLogger("asgi_enhance.balance")


@dataclass(slots=True)
class Stats:
    """What the balancer has done, counted since it was made."""

    requests: int = 0
    websockets: int = 0
    retries: int = 0
    hedges: int = 0
    queued: int = 0
    backend_failures: int = 0
    ejections: int = 0
    clients_gone: int = 0
    rejected: int = 0
    unavailable: int = 0


class Dispatcher:
    """Chooses, waits, sends, tries again, and remembers how it went."""

    def __init__(
        self,
        roster: Roster,
        policy: Policy,
        *,
        retries: Retries,
        timeouts: Timeouts,
        hedge: Hedge | None,
        penalty: float,
        rng: random.Random,
    ) -> None:
        self.stats = Stats()
        self.in_flight = 0
        self.budget = RetryBudget(retries)
        self._roster = roster
        roster.on_eject = self._ejected
        self._policy = policy
        self._retries = retries
        self._queue_timeout = timeouts.queue
        self._hedger = Hedger(hedge) if hedge is not None else None
        self._penalty = penalty
        self._rng = rng
        self._full = 0

    async def forward(self, exchange: Exchange, runtime: Runtime) -> Answer:
        """Send the request to a backend and wait for the head of its answer, which stays the exchange's.

        Raises UpstreamFailure when the backends asked have failed, Unavailable when none could be asked, ClientGone
        when there is nobody left to ask for.
        """
        if exchange.head.expects_continue and not self._roster.candidates(monotonic(), self._rng):
            raise self.none_available()  # before the client is told to go on and send its body
        if exchange.body.more and not exchange.websocket:
            await exchange.body.begin()
            exchange.progress()
        clock = monotonic  # uvloop's own time stands still within a millisecond
        tried: list[Endpoint] = []
        fresh = counted = False
        try:
            while True:
                if runtime.queue:
                    self.serve_queue(runtime)  # a backend that has come back since gives slots that nobody gave back
                began = asked = clock()
                chosen = self.choose(exchange, tried, began)
                if chosen is None:
                    endpoint = await self._queue(exchange, runtime, tried)
                    began = asked = clock()
                else:
                    endpoint = chosen
                    self.take(endpoint)
                exchange.endpoint = endpoint
                exchange.upstream = upstream = runtime.upstream(endpoint, exchange.websocket)
                try:
                    if self._hedger is not None and not tried and self._hedger.suits(exchange):
                        answer, asked = await open_hedged(self, self._hedger, exchange, runtime)
                        assert exchange.endpoint is not None
                        endpoint = exchange.endpoint
                    else:
                        answer = exchange.answer = await upstream.open(exchange, fresh=fresh)
                except asyncio.CancelledError:  # most often the client has left
                    if exchange.upload is None:
                        self.outrun(endpoint, clock() - asked)
                    raise
                except UpstreamFailure as failure:
                    upload = exchange.upload
                    exchange.let_go(failure)
                    if not may_retry(failure, exchange.method, replayable=exchange.body.replayable):
                        raise
                    if upload is not None and not exchange.websocket:
                        await asyncio.wait([upload])  # one reader of `receive` at a time
                    if failure.stale:
                        fresh = True
                        exchange.rewind()
                        continue
                    free = failure.unsent or (failure.status != 504 and began <= endpoint.failing_since)
                    if not self._another(len(tried) + 1, free=free or counted):
                        raise
                else:
                    free = False
                    self._observe(endpoint, answer, exchange, began, asked, clock())
                    if answer.status not in self._retries.statuses or not self._unwelcome(
                        exchange, len(tried) + 1, free=counted
                    ):
                        return answer
                    exchange.let_go()
                self.stats.retries += 1
                if not (free or counted):
                    counted = True
                    self.budget.active += 1
                tried.append(endpoint)
                exchange.rewind()
                if all(one in tried for one in self._roster.all_candidates(clock())):
                    await asyncio.sleep(backoff(self._retries.backoff, len(tried) + 1, self._rng.random()))
        finally:
            if counted:
                self.budget.active -= 1

    def _another(self, attempt: int, *, free: bool) -> bool:
        """Whether there may be a try after this one; `free` of the budget, or in it already."""
        return attempt < self._retries.attempts and (free or self.budget.allows(self.in_flight))

    def _unwelcome(self, exchange: Exchange, attempt: int, *, free: bool) -> bool:
        """Whether this response is one to try again instead of handing it on."""
        return (
            exchange.method in IDEMPOTENT
            and exchange.body.replayable
            and not exchange.body.more
            and self._another(attempt, free=free)
        )

    def _observe(
        self, endpoint: Endpoint, answer: Answer, exchange: Exchange, began: float, asked: float, now: float
    ) -> None:
        """Remember how the backend did: the time from being asked to its first byte, or a penalty if it failed."""
        assert answer.status is not None
        if answer.status >= 500:
            self._failed(endpoint, now, f"it answered {answer.status}", header(answer.headers, b"retry-after"))
            return
        self._roster.served(endpoint, now)
        if self._hedger is not None:
            self._hedger.observe(now - began)
        if exchange.upload is None:  # the time of an upload is the client's, not the backend's
            self._policy.observe(endpoint, now - asked, now)

    def outrun(self, endpoint: Endpoint, seconds: float) -> None:
        """A hedge was quicker, or the client has left: a backend takes longer than the `seconds` it has had.

        Nothing else would be known of one that never answers, and it would look idle and be asked first for ever.
        """
        self._policy.observe(endpoint, seconds, monotonic())

    def _failed(
        self, endpoint: Endpoint, now: float, why: str, retry_after: bytes | None = None, *, cut: bool = False
    ) -> None:
        self.stats.backend_failures += 1
        endpoint.last_failure, endpoint.failed_at = why, now
        seconds = self._penalty
        if retry_after is not None and retry_after.isdigit():
            seconds = max(seconds, min(float(retry_after[:4]), 10 * self._penalty))
        self._policy.observe(endpoint, seconds, now)
        self._roster.failed(endpoint, now, cut=cut)

    def _ejected(self, endpoint: Endpoint, seconds: float, why: str) -> None:
        self.stats.ejections += 1
        logger.warning("%s is ejected for %g s: %s", endpoint.name, seconds, why)

    # Slots

    def choose(self, exchange: Exchange, tried: list[Endpoint], now: float) -> Endpoint | None:
        """The backend for a request, or None if all that could serve it are busy. Raises Unavailable if none could."""
        candidates = self._roster.candidates(now, self._rng)
        if tried or self._full or exchange.sticky:
            everybody = self._roster.all_candidates(now)
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
            raise self.none_available()
        return self._policy.pick(candidates, now, self._rng, exchange.key)

    async def _queue(self, exchange: Exchange, runtime: Runtime, tried: list[Endpoint]) -> Endpoint:
        if len(runtime.queue) >= sum(one.max_queue for one in self._roster.all_candidates(monotonic())):
            self.stats.unavailable += 1
            raise Unavailable("all backends are busy and the queue is full", error="connection_limit_reached")
        self.stats.queued += 1
        waiter = Waiter(runtime.loop.create_future(), exchange, tried)
        runtime.queue.append(waiter)
        exchange.wait_until(float("inf"))  # the queue has a time of its own
        try:
            async with asyncio.timeout(self._queue_timeout):
                endpoint = await waiter.future
            exchange.progress()
            return endpoint
        except BaseException as error:
            if waiter in runtime.queue:
                runtime.queue.remove(waiter)
            future = waiter.future
            if future.done() and not future.cancelled() and future.exception() is None:
                self.give_back(future.result(), runtime)  # it came in the very moment of the end
            if isinstance(error, TimeoutError):
                self.stats.unavailable += 1
                text = "all backends were busy for too long"
                raise Unavailable(text, error="connection_limit_reached") from None
            raise

    def take(self, endpoint: Endpoint) -> None:
        endpoint.requests += 1
        endpoint.in_flight += 1
        self.in_flight += 1
        if endpoint.in_flight == endpoint.full_at:
            self._full += 1

    def give_back(self, endpoint: Endpoint, runtime: Runtime) -> None:
        if endpoint.in_flight == endpoint.full_at:
            self._full -= 1
        endpoint.in_flight -= 1
        self.in_flight -= 1
        if endpoint.draining:
            runtime.drained(endpoint)
        if runtime.queue:
            self.serve_queue(runtime)

    def redescribe(self, endpoint: Endpoint, backend: Backend, limits: Limits) -> None:
        """Take a new description of a member. How much it may have at a time may change; what it has stays."""
        self._full -= endpoint.in_flight >= endpoint.full_at
        endpoint.describe(backend, limits)
        self._full += endpoint.in_flight >= endpoint.full_at

    def serve_queue(self, runtime: Runtime) -> None:
        """Give free slots to those who have waited longest."""
        now = monotonic()
        while runtime.queue:
            waiter = runtime.queue[0]
            if waiter.future.done():
                runtime.queue.popleft()
                continue
            try:
                endpoint = self.choose(waiter.exchange, waiter.tried, now)
            except Unavailable as error:
                runtime.queue.popleft()
                waiter.future.set_exception(error)
                continue
            if endpoint is None:
                return
            runtime.queue.popleft()
            self.take(endpoint)
            waiter.future.set_result(endpoint)

    def ended(self, exchange: Exchange, error: BaseException | None, answer: Answer | None) -> None:
        """An exchange leaves its endpoint; `error` says how, `answer` what had come of it."""
        if isinstance(error, ClientGone):
            self.stats.clients_gone += 1
        endpoint, exchange.endpoint = exchange.endpoint, None
        if endpoint is not None:
            if isinstance(error, UpstreamFailure):
                # a WebSocket dials the URL, which to some transports is a mere name: clients could take the backend out
                if not error.blameless and not (exchange.websocket and endpoint.backend.transport is not None):
                    self._failed(endpoint, monotonic(), str(error), cut=answer is not None)
                error.backend = endpoint.name
            elif answer is not None and answer.complete:
                endpoint.cut_in_a_row = 0
            self.give_back(endpoint, exchange.runtime)

    def none_available(self) -> Unavailable:
        self.stats.unavailable += 1
        return Unavailable("no backend is available")
