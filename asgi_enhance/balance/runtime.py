"""What the balancer holds on one event loop: ways to backends, exchanges under way, the queue, and one slow clock.

Deadlines need no timer a request: a single tick every `TICK` seconds looks at the exchanges under way. The same tick
begins to watch for the client of an exchange that has lasted that long: most are over before a watcher is worth a task.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import NamedTuple

from asgi_enhance.asgi.tasks import Tasks
from asgi_enhance.balance.backend import Endpoint
from asgi_enhance.balance.exchange import Answer, Exchange, Upstream
from asgi_enhance.balance.failure import ClientGone, GoingAway, Unavailable

TICK = 0.1


class Waiter(NamedTuple):
    """An exchange in the queue; the future gets the endpoint, its slot already taken."""

    future: asyncio.Future[Endpoint]
    exchange: Exchange
    tried: list[Endpoint]


class Runtime:
    """The balancer on one event loop."""

    def __init__(
        self,
        make_upstream: Callable[[Endpoint, Tasks, bool], Upstream],
        ended: Callable[[Exchange, BaseException | None, Answer | None], None],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.tasks = Tasks()
        self.queue: deque[Waiter] = deque()
        self.active: set[Exchange] = set()
        self.ended = ended
        self._make_upstream = make_upstream
        self._upstreams: dict[Endpoint, Upstream] = {}
        self._websockets: dict[Endpoint, Upstream] = {}
        self._drains: dict[Endpoint, asyncio.Event] = {}
        self._checks: dict[Endpoint, asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._young: set[Exchange] = set()

    def upstream(self, endpoint: Endpoint, websocket: bool = False) -> Upstream:
        upstreams = self._websockets if websocket else self._upstreams
        upstream = upstreams.get(endpoint)
        if upstream is None:
            upstream = upstreams[endpoint] = self._make_upstream(endpoint, self.tasks, websocket)
        return upstream

    def watch(self, endpoint: Endpoint, checks: Coroutine[None, None, None]) -> None:
        """Run the active checks of an endpoint for as long as it is here."""
        self._checks[endpoint] = self.tasks.spawn(checks, name="balance-check")

    async def retire(self, endpoint: Endpoint) -> None:
        """Let an endpoint that has left finish, then forget it."""
        check = self._checks.pop(endpoint, None)
        if check is not None:
            check.cancel()
        await self.drain(endpoint)
        self._websockets.pop(endpoint, None)
        upstream = self._upstreams.pop(endpoint, None)
        if upstream is not None:
            await upstream.aclose()

    async def drain(self, endpoint: Endpoint) -> None:
        """Wait until nothing is in flight at an endpoint that gets nothing new, then close what it keeps open."""
        if endpoint.in_flight:
            await self._drains.setdefault(endpoint, asyncio.Event()).wait()
        upstream = self._upstreams.get(endpoint)
        if upstream is not None:
            upstream.close_idle()

    def drained(self, endpoint: Endpoint) -> None:
        """Called as one after the other leaves an endpoint that is draining."""
        if not endpoint.in_flight:
            self.stop_draining(endpoint)

    def stop_draining(self, endpoint: Endpoint) -> None:
        """Let go who waits for an endpoint to drain: it has, or it has been brought back."""
        if endpoint in self._drains:
            self._drains.pop(endpoint).set()

    def websockets(self, endpoint: Endpoint) -> list[Exchange]:
        """The WebSockets at an endpoint."""
        return [one for one in self.active if one.websocket and one.endpoint is endpoint]

    def add(self, exchange: Exchange) -> None:
        self.active.add(exchange)
        if self._timer is None:
            self._timer = self.loop.call_later(TICK, self._tick)

    def remove(self, exchange: Exchange) -> None:
        self.active.discard(exchange)

    async def aclose(self) -> None:
        """Call off every exchange, end every task, close every connection."""
        for exchange in list(self.active):
            away = GoingAway if exchange.websocket else Unavailable
            exchange.interrupt(away("the balancer is being closed"))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await self.tasks.cancel()
        for upstream in list(self._upstreams.values()):
            await upstream.aclose()
        self._upstreams.clear()

    def _tick(self) -> None:
        now = self.loop.time()
        seen = self._young
        self._young = set()
        for exchange in list(self.active):
            if exchange.overdue(now):
                exchange.interrupt(exchange.lateness())
            elif exchange.watcher is None and not exchange.body.more and not exchange.body.ended:
                if exchange in seen:
                    exchange.watcher = self.tasks.spawn(_watch(exchange), name="balance-watch-client")
                else:
                    self._young.add(exchange)
        self._timer = self.loop.call_later(TICK, self._tick) if self.active else None


async def _watch(exchange: Exchange) -> None:
    if await exchange.body.gone():
        exchange.interrupt(ClientGone("the client left"))
