"""One request on its way through the cache when it is no plain hit: answered from the store, with what somebody else
fetches, or by a call of the app.
"""

import asyncio
import time
from collections.abc import Hashable

from asgi_enhance.asgi.problem import Problem
from asgi_enhance.asgi.types import Message
from asgi_enhance.cache.call import Call
from asgi_enhance.cache.entry import Entry
from asgi_enhance.cache.flights import Outcome
from asgi_enhance.cache.lead import LEADING, Lead
from asgi_enhance.cache.policy import conditional, invalidation, reuse
from asgi_enhance.cache.policy.reuse import Use
from asgi_enhance.cache.valuecache import Claim


class Exchange(Call):
    """Decides who is asked."""

    __slots__ = ()

    async def run(self, entry: Entry | None) -> None:
        layer, request = self._layer, self._request
        self._rule = rule = layer.rule(self._scope)
        asks_for_more = not request.plain and (request.has_body or not layer.cacheable(request))
        if asks_for_more or (rule is not None and rule.bypass):
            layer.stats.bypasses += 1
            self._why = "bypass"
            await layer.app(self._scope, self._receive, self._tell)
            return
        if entry is None and self._cache.remote:
            entry = await self._cache.lookup(request)
        if entry is not None and await self._serve(entry):
            return
        if not request.plain and "only-if-cached" in layer.options.honour & request.directives.keys():
            await Problem(504)(self._scope, self._receive, self._send)
            return
        self._entry = entry
        if entry is not None:
            self._why = "stale" if entry.purged or self._cache.clock() >= entry.fresh_until else "request"
        elif self._cache.knows(request):
            self._why = "vary-miss"
        if layer.collapse and not self._cache.passes(name := self._cache.flight_name(request)):
            await self._ask(name)
        else:
            await self.forward()

    async def _serve(self, entry: Entry) -> bool:
        """Answer with the entry if it may be used without asking."""
        now = self._cache.clock()
        layer = self._layer
        use = reuse.decide(self._request, entry, now, layer.options.honour)
        if use is Use.VALIDATE:
            return False
        if use is Use.REFRESH or (layer.early and reuse.early(entry, now, layer.early, layer.rng)):
            await layer.refresh(self._scope, self._request, entry)
        layer.stats.hits += 1
        if entry.purged or now >= entry.fresh_until:
            layer.stats.stale_hits += 1
        await self._answer(entry, now, None)
        return True

    # -- one call for all -----------------------------------------------------------------------------------------

    async def _ask(self, name: Hashable) -> None:
        """Ask the app, or wait for what somebody else is told who has asked for `name`."""
        request, cache = self._request, self._cache
        give_up = time.monotonic() + cache.collapse_timeout
        for _ in range(MAX_FLIGHTS):
            if name in LEADING.get():
                break
            flight = cache.flights.find(name)
            if flight is None:
                if self._may_lead():
                    await self._lead(name, give_up)
                    return
                break
            outcome = await flight.wait(max(0.0, give_up - time.monotonic()))
            if flight.value is not None and await self._follow(flight.value):
                return
            if outcome is Outcome.FAILED and await self._excuse(None):
                return
            if outcome not in (Outcome.SHARED, Outcome.LOST):
                self._collapsed = False
                break
            if (found := cache.peek(request)) is not None and await self._serve(found):
                return
            if cache.passes(name := cache.flight_name(request)):
                break
        await self.forward()

    def _may_lead(self) -> bool:
        """Whether the answer to this request may be one for others."""
        request = self._request
        if request.method != "GET" or not self._layer.storable(request):
            return False
        # What a client has conditions of its own for may be answered with 304 or 206, which is for nobody else
        return not request.conditional or (self._entry is not None and bool(conditional.validators(self._entry)))

    async def _lead(self, name: Hashable, give_up: float, *, insist: bool = True) -> None:
        """Ask the app for all who want the same, here and in other processes. Who need not insist leaves it to them."""
        cache = self._cache
        self._leads = lead = Lead(cache, name)
        received = self._entry.received if self._entry is not None else None
        claim = Claim.PASS
        led = LEADING.get()
        LEADING.set((*led, name))
        try:
            while cache.remote and (claim := await cache.claim(name, give_up)) is Claim.AGAIN:
                if not insist:
                    return
                if (found := await cache.lookup(self._request)) is not None and found.received != received:
                    lead.share(found)
                    if await self._follow(found):
                        return
            lead.granted = claim is Claim.GRANTED
            await self.forward()
        finally:
            LEADING.set(led)
            lead.end()
            if lead.release is not None:
                await asyncio.wait((lead.release,))

    async def renew(self, stale: Entry) -> None:
        """Ask the app for a new one without a client who waits for it."""
        self._entry, self._why = stale, "stale"
        self._rule = self._layer.rule(self._scope)
        self._layer.stats.refreshes += 1
        await self._lead(self._cache.flight_name(self._request), time.monotonic() + 1.0, insist=False)

    async def _follow(self, entry: Entry) -> bool:
        """Answer with what the leader has brought, if it is this request's as well."""
        request, now = self._request, self._cache.clock()
        if entry.vary_values != request.variant(entry.vary):
            return False
        if reuse.decide(request, entry, now, self._layer.options.honour) is Use.VALIDATE:
            return False
        self._layer.stats.collapsed += 1
        await self._answer(entry, now, self._layer.follower[self._why])
        return True

    # -- writes, and what is none of the cache's business ---------------------------------------------------------

    async def write_through(self) -> None:
        """An unsafe method: the app decides, and what it changes goes before the client hears of it."""
        self._why = "method"
        self.begin(None, self._cache.clock(), time.perf_counter())
        await self._layer.app(self._scope, self._receive, self._on_written)

    async def _on_written(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            code, headers = message["status"], list(message.get("headers", ()))
            if keys := invalidation.keys(self._request, code, headers):
                await self._cache.invalidate(keys)
            if groups := invalidation.groups(self._request, code, headers):
                await self._cache.purge(tags=groups)
            if self._request.method == "POST":
                self._rule = self._layer.rule(self._scope)
                self._fetch = self._cache.fetch(self._request.key, self._request.fence)
                await self._cache.fence(self._fetch)
        await self.on_message(message)

    async def _tell(self, message: Message) -> None:
        """Pass on a response that is none of the cache's business, with a note that it is not."""
        if message["type"] == "http.response.start" and self._layer.cache_status:
            told = (b"cache-status", self._told(message["status"], False))
            message = {**message, "headers": [*message.get("headers", ()), told]}
        await self._send(message)


MAX_FLIGHTS = 3
"""How often a request may find that what it waited for was another variant, before it goes on its own."""
