"""What the balancer holds on one event loop: ways to backends, exchanges under way, the queue, and one slow clock.

Deadlines need no timer a request: a single tick every `TICK` seconds looks at the exchanges under way. The same tick
begins to watch for the client of an exchange that has lasted that long: most are over before a watcher is worth a task.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from asgi_enhance.asgi.tasks import Tasks
from asgi_enhance.balance.backend import Endpoint
from asgi_enhance.balance.exchange import Exchange, Upstream
from asgi_enhance.balance.failure import ClientGone

TICK = 0.1


class Waiter(NamedTuple):
    """An exchange in the queue; the future gets the endpoint, its slot already taken."""

    future: asyncio.Future[Endpoint]
    exchange: Exchange
    tried: list[Endpoint]


class Runtime:
    """The balancer on one event loop."""

    def __init__(self, make_upstream: Callable[[Endpoint, Tasks, bool], Upstream]) -> None:
        self.loop = asyncio.get_running_loop()
        self.tasks = Tasks()
        self.queue: deque[Waiter] = deque()
        self.active: set[Exchange] = set()
        self._make_upstream = make_upstream
        self._upstreams: dict[Endpoint, Upstream] = {}
        self._websockets: dict[Endpoint, Upstream] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._young: set[Exchange] = set()

    def upstream(self, endpoint: Endpoint, *, websocket: bool = False) -> Upstream:
        upstreams = self._websockets if websocket else self._upstreams
        upstream = upstreams.get(endpoint)
        if upstream is None:
            upstream = upstreams[endpoint] = self._make_upstream(endpoint, self.tasks, websocket)
        return upstream

    async def forget(self, endpoint: Endpoint) -> None:
        """Close the way to a backend that has left."""
        self._websockets.pop(endpoint, None)
        upstream = self._upstreams.pop(endpoint, None)
        if upstream is not None:
            await upstream.aclose()

    def add(self, exchange: Exchange) -> None:
        self.active.add(exchange)
        if self._timer is None:
            self._timer = self.loop.call_later(TICK, self._tick)

    def remove(self, exchange: Exchange) -> None:
        self.active.discard(exchange)

    async def aclose(self) -> None:
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
            if exchange.deadline <= now:
                exchange.interrupt(exchange.overdue())
            elif exchange.watcher is None and not exchange.body.more and not exchange.body.ended:
                if exchange in seen:
                    exchange.watcher = self.tasks.spawn(_watch(exchange), name="balance-watch-client")
                else:
                    self._young.add(exchange)
        self._timer = self.loop.call_later(TICK, self._tick) if self.active else None


async def _watch(exchange: Exchange) -> None:
    await exchange.body.gone()
    exchange.interrupt(ClientGone("the client left"))
