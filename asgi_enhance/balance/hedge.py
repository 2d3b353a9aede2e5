"""Hedging: a second backend is asked when the first takes longer than nearly all do; the first answer wins.

"The Tail at Scale" (Dean, Barroso 2013). Only for safe requests without a body, only while the retry budget allows it,
so that hedges and retries together cannot multiply an overload.
"""

import asyncio
from collections import deque
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

from asgi_enhance.balance.exchange import Answer, Exchange
from asgi_enhance.balance.failure import Unavailable
from asgi_enhance.balance.runtime import Runtime
from asgi_enhance.errors import ConfigError
from asgi_enhance.options import checked

if TYPE_CHECKING:
    from asgi_enhance.balance.dispatch import Dispatcher

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_SAMPLES = 256
_FRESH = 32


@checked
@dataclass(frozen=True, slots=True)
class Hedge:
    """When to ask a second backend.

    quantile: of the last 256 times to the first byte; a request that takes longer is hedged. Default: 0.95.
    minimum:  seconds that are always waited. Default: 0.01.
    initial:  seconds waited until there are measurements. Default: 0.5.
    """

    quantile: float = 0.95
    minimum: float = 0.01
    initial: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.quantile < 1:
            raise ConfigError(f"quantile must be between 0 and 1, not {self.quantile!r}")
        if self.minimum <= 0 or self.initial <= 0:
            raise ConfigError("minimum and initial must be more than 0 seconds")


class Hedger:
    """Knows how long a request may take before it is worth a second one."""

    def __init__(self, hedge: Hedge) -> None:
        self._hedge = hedge
        self._samples: deque[float] = deque(maxlen=_SAMPLES)
        self._since = 0
        self.delay = hedge.initial

    def suits(self, exchange: Exchange) -> bool:
        bodiless = not exchange.head.has_body and not exchange.body.more and not exchange.body.first
        return exchange.method in SAFE and not exchange.websocket and bodiless

    def observe(self, seconds: float) -> None:
        self._samples.append(seconds)
        self._since += 1
        if self._since >= _FRESH:
            self._since = 0
            ranked = sorted(self._samples)
            self.delay = max(self._hedge.minimum, ranked[int(self._hedge.quantile * (len(ranked) - 1))])


async def open_hedged(
    dispatcher: "Dispatcher", hedger: Hedger, exchange: Exchange, runtime: Runtime
) -> tuple[Answer, float]:
    """Open the exchange at its endpoint and, if that is slow, at another; whatever answers first is its answer.

    Also says when the try began that was answered: a second backend is not to blame for the time of the first.
    """
    began = asked = monotonic()
    first = _Try(exchange)
    second: _Try | None = None
    try:
        await asyncio.wait({first.task}, timeout=hedger.delay)
        if not first.task.done() and dispatcher.budget.allows(dispatcher.in_flight):
            twin = _twin(dispatcher, exchange, runtime)
            if twin is not None:
                dispatcher.stats.hedges += 1
                dispatcher.budget.active += 1
                second, asked_second = _Try(twin), monotonic()
                await asyncio.wait({first.task, second.task}, return_when=asyncio.FIRST_COMPLETED)
                if first.failed or second.failed:
                    await asyncio.wait({first.task, second.task})
                if second.won and not first.won:
                    if not first.failed and exchange.endpoint is not None:
                        dispatcher.outrun(exchange.endpoint, monotonic() - began)
                    asked = asked_second
                    exchange.swap(second.owner)
                    first, second = _Try.swapped(first, second)
        answer = exchange.answer = await first.task
        return answer, asked
    finally:
        first.call_off()
        if second is not None:
            dispatcher.budget.active -= 1
            second.call_off()
            second.owner.let_go(second.error)


class _Try:
    """One of the two attempts, and the exchange that owns what comes of it."""

    __slots__ = ("owner", "task")

    def __init__(self, owner: Exchange, task: "asyncio.Task[Answer] | None" = None) -> None:
        assert owner.upstream is not None
        self.owner = owner
        self.task = task or asyncio.create_task(_open(owner), name="balance-hedge")

    @staticmethod
    def swapped(one: "_Try", other: "_Try") -> "tuple[_Try, _Try]":
        return _Try(one.owner, other.task), _Try(other.owner, one.task)

    @property
    def error(self) -> BaseException | None:
        return self.task.exception() if self.task.done() and not self.task.cancelled() else None

    @property
    def failed(self) -> bool:
        return self.error is not None

    @property
    def won(self) -> bool:
        return self.task.done() and not self.task.cancelled() and self.task.exception() is None

    def call_off(self) -> None:
        """Whatever has come or will come of the attempt is given back."""
        if self.won:
            self.owner.answer = self.task.result()
        elif not self.task.done():
            self.task.cancel()  # an attempt that is cancelled closes its own connection


async def _open(exchange: Exchange) -> Answer:
    assert exchange.upstream is not None
    return await exchange.upstream.open(exchange, fresh=False)


def _twin(dispatcher: "Dispatcher", exchange: Exchange, runtime: Runtime) -> Exchange | None:
    """The same request with a slot on another endpoint, if there is one free."""
    first = exchange.endpoint
    assert first is not None
    try:
        endpoint = dispatcher.choose(exchange, [first], monotonic())
    except Unavailable:
        return None
    if endpoint is None or endpoint is first:
        return None
    twin = exchange.twin()
    dispatcher.take(endpoint)
    twin.endpoint = endpoint
    twin.upstream = runtime.upstream(endpoint)
    return twin
