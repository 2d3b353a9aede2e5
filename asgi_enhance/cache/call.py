"""One call of the app for one request, and what becomes of the answer: what is kept of it, what the client gets.

The app is called in the task that the request came in, its bytes go on as they come, and a bounded copy is kept
beside them. The copy becomes an entry before the last body message goes out, so that whoever asks next finds it.
"""

import logging
import time
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from asgi_enhance.asgi.messages import CLIENT_GONE, BodyCopy
from asgi_enhance.asgi.scope import derived, without_extensions
from asgi_enhance.asgi.types import Headers, Message, Receive, Scope, Send
from asgi_enhance.cache.core import Fetch
from asgi_enhance.cache.entry import Entry
from asgi_enhance.cache.lead import Lead
from asgi_enhance.cache.policy import conditional, reuse, status
from asgi_enhance.cache.policy.answer import answer
from asgi_enhance.cache.policy.storing import Received, complete, terms
from asgi_enhance.cache.request import Request
from asgi_enhance.cache.rules import CacheRule

if TYPE_CHECKING:
    from asgi_enhance.cache.layer import CacheMiddleware

logger = logging.getLogger("asgi_enhance.cache")

ERRORS = frozenset({500, 502, 503, 504})
"""RFC 5861 4: what counts as an error for stale-if-error."""


class Call:
    """The state of one request whose answer the app makes."""

    __slots__ = (
        "_cache",
        "_collapsed",
        "_copy",
        "_draft",
        "_entry",
        "_fetch",
        "_layer",
        "_leads",
        "_receive",
        "_received_body",
        "_request",
        "_requested",
        "_rule",
        "_scope",
        "_send",
        "_started",
        "_timer",
        "_validating",
        "_why",
        "_withheld",
    )

    def __init__(self, layer: "CacheMiddleware", scope: Scope, receive: Receive, send: Send, request: Request) -> None:
        self._layer = layer
        self._cache = layer.cache
        self._scope = scope
        self._receive = receive
        self._send = send
        self._request = request
        self._rule: CacheRule | None = None
        self._entry: Entry | None = None  # the stale one, of which the app is asked whether it still holds
        self._why = "uri-miss"
        self._collapsed: bool | None = None
        self._leads: Lead | None = None
        self._fetch: Fetch | None = None
        self._validating = False

    async def forward(self) -> None:
        layer, cache, request = self._layer, self._cache, self._request
        if self._entry is None:
            layer.stats.misses += 1
        else:
            self._validating = request.method == "GET" and bool(conditional.validators(self._entry))
            layer.stats.validations += 1
        fetch = cache.fetch(request.key, request.fence)
        self.begin(fetch, cache.clock(), time.perf_counter())
        if cache.remote:
            await cache.fence(fetch)
        try:
            scope = self._scope
            if self._validating or scope.get("extensions"):
                scope = self._inner_scope()
            await layer.app(scope, self._watch, self.on_message)
        except Exception as error:
            if self._leads is not None:
                self._leads.fail()
            # Who has had an answer gets no second one; whoever calls should still hear of the failure
            if self._withheld or self._started or not await self._excuse(None):
                raise
            logger.error("the app failed; a stale response was served instead", exc_info=error)

    def begin(self, fetch: Fetch | None, requested: float, timer: float) -> None:
        """The app is asked now: by the clock of the cache, and by the one that measures how long it takes."""
        self._fetch = fetch
        self._requested, self._timer = requested, timer
        self._withheld = self._started = self._received_body = False
        self._copy: BodyCopy | None = None
        self._draft: Entry | None = None

    def _inner_scope(self) -> Scope:
        scope = self._scope
        if self._request.method == "GET" and self._layer.storable(self._request):
            scope = copyable(scope)
        if self._validating:
            scope = derived(scope, headers=conditional.asking(self._request.headers, self._entry))
        return scope

    async def _watch(self) -> Message:
        """A GET over HTTP/2 may have a body that no field announces, and what is made of it is for nobody else."""
        message = await self._receive()
        if message.get("body"):
            self.has_body()
        return message

    def has_body(self) -> None:
        self._received_body = True
        self._give_up()

    # -- what the app says ----------------------------------------------------------------------------------------

    def on_message(self, message: Message) -> Awaitable[None]:
        """Hands the server's own awaitable on, one coroutine less, where there is nothing else to wait for."""
        kind = message["type"]
        if self._withheld:
            return _done()
        if kind == "http.response.start":
            if self._entry is not None:
                return self._on_successor(message)
            return self._send(self._on_start(message))
        if self._copy is not None:
            if kind == "http.response.body":
                return self._on_body(message)
            if kind in _NOT_COPIED:
                self._give_up()
        return self._send(message)

    async def _on_successor(self, message: Message) -> None:
        """What the app says where something is stored already."""
        code: int = message["status"]
        if code == 304 and self._validating:
            self._withheld = True
            await self._freshen(list(message.get("headers", ())))
            return
        if code in ERRORS and await self._excuse(code):
            self._withheld = True
            if self._leads is not None:
                self._leads.fail()
            return
        message = {**message, "headers": list(message.get("headers", ()))}
        if self._request.method == "HEAD":
            await self._learn_from_head(Received(code, message["headers"], self._requested, self._cache.clock()))
        await self._send(self._on_start(message))

    def _on_start(self, message: Message) -> Message:
        """Decide whether the response is kept; the message as the client gets it."""
        layer, code, headers = self._layer, message["status"], list(message.get("headers", ()))
        self._started = True
        verdict: Entry | str = "request-body"
        detail: str | None
        if not self._received_body:
            now, trailers = self._cache.clock(), message.get("trailers", False)
            response = Received(code, headers, self._requested, now, trailers)
            verdict = terms(self._request, response, layer.options, self._rule, layer.rng)
        if isinstance(verdict, str):
            if self._request.method == "GET":
                layer.stats.refused += 1
                layer.stats.too_large += verdict == "too-large"
            detail = verdict
            if self._leads is not None:
                if code == CLIENT_GONE:  # which says nothing of what the next one gets
                    self._leads.end()
                else:
                    self._leads.alone()
        else:
            assert self._fetch is not None
            detail = self._cache.obstacle(self._fetch)
            self._draft = verdict
            self._copy = BodyCopy(layer.options.max_body)
        if layer.cache_status:
            told = status.forwarded(layer.cache_name, self._why, code, detail is None, self._collapsed, detail)
            headers.append((b"cache-status", told))
        return {**message, "headers": headers}

    async def _on_body(self, message: Message) -> None:
        assert self._copy is not None
        if not self._copy.add(message.get("body", b"")):
            self._layer.stats.too_large += 1
            self._give_up()
        elif not message.get("more_body", False):
            await self._publish(self._copy.body() or b"")
        await self._send(message)

    def _give_up(self) -> None:
        self._copy = self._draft = None
        if self._leads is not None:
            self._leads.alone()

    # -- what is kept of it ---------------------------------------------------------------------------------------

    async def _publish(self, body: bytes) -> None:
        """The response is whole: store it before anybody can know that it is."""
        entry, self._copy = self._draft, None
        if entry is None:
            return
        if not complete(entry, body):
            self._give_up()
            return
        entry.fill(body)
        await self._keep(entry)

    async def _keep(self, entry: Entry) -> bool:
        entry.render_time = time.perf_counter() - self._timer
        assert self._fetch is not None
        if self._received_body:
            self._fetch.void = True
        cache = self._cache
        kept = await cache.store(self._request, entry, self._fetch)
        fresh = cache.clock() < entry.fresh_until
        if kept and fresh:
            cache.forget_pass(self._request)
        if self._leads is not None:
            # Who waits for another query, since both were one until now, is not to get it, nor is who has come since it
            # was outdated; but they need not go alone either
            another_query = self._request.key != self._fetch.key != self._request.url
            if another_query or cache.overtaken(self._fetch) or cache.purged(self._request, entry):
                self._leads.end()
            elif fresh:
                self._leads.share(entry)
            else:
                self._leads.alone()
        return kept

    async def _freshen(self, headers: Headers) -> None:
        """RFC 9111 4.3.4: the app says the stored response holds, and for how long."""
        old = self._entry
        assert old is not None
        self._layer.stats.not_modified += 1
        now = self._cache.clock()
        merged = conditional.updated(old, headers)
        response = Received(old.status, merged, self._requested, now, not_modified=True)
        verdict = terms(self._request, response, self._layer.options, self._rule, self._layer.rng)
        kept = False
        if isinstance(verdict, str):
            await self._cache.invalidate([self._request.url])
            if self._leads is not None:
                self._leads.alone()
            entry = old.for_once(merged, now)
        else:
            verdict.fill(old.body)
            kept = await self._keep(verdict)
            entry = verdict.shown(merged)
        await self._answer(entry, now, self._told(304, kept))

    async def _learn_from_head(self, response: Received) -> None:
        """RFC 9111 4.3.5: a response to HEAD freshens what is stored, or shows that it is outdated."""
        old = self._entry
        if old is None or response.status != 200:
            return
        if not conditional.head_agrees(old, response.headers):
            await self._cache.invalidate([self._request.url])
            return
        merged = conditional.updated(old, response.headers)
        renewed = Received(old.status, merged, response.requested, response.received, not_modified=True)
        entry = terms(self._request, renewed, self._layer.options, self._rule, self._layer.rng)
        if isinstance(entry, Entry):
            entry.fill(old.body)
            assert self._fetch is not None
            await self._cache.store(self._request, entry, self._fetch)

    # -- what the client gets instead -----------------------------------------------------------------------------

    async def _excuse(self, code: int | None) -> bool:
        """stale-if-error: answer with the stale entry where the app has failed."""
        entry, now = self._entry, self._cache.clock()
        if entry is None or not reuse.on_error(entry, now):
            return False
        self._layer.stats.hits += 1
        self._layer.stats.stale_hits += 1
        told = self._told(code, False, "stale-if-error")
        await self._answer(entry, now, told)
        return True

    async def _answer(self, entry: Entry, now: float, told: bytes | None) -> None:
        """Send the entry, or the part of it that was asked for. `told`: Cache-Status, if it is not simply a hit."""
        layer = self._layer
        code, headers, body = answer(self._request, entry, now)
        if layer.age:
            headers.append((b"age", b"%d" % entry.age(now)))
        if layer.cache_status:
            headers.append((b"cache-status", told or layer.hit % (int(entry.lifetime) - entry.age(now))))
        await self._send({"type": "http.response.start", "status": code, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    def _told(self, code: int | None, stored: bool, detail: str | None = None) -> bytes:
        return status.forwarded(self._layer.cache_name, self._why, code, stored, self._collapsed, detail)


def copyable(scope: Scope) -> Scope:
    """The scope for an app whose bytes are to be seen: a file that is sent by its path cannot be copied."""
    return without_extensions(scope, "http.response.pathsend", "http.response.zerocopysend")


async def _done() -> None:
    """Nothing is left to do."""


_NOT_COPIED = frozenset({"http.response.pathsend", "http.response.zerocopysend", "http.response.trailers"})
