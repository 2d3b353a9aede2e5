"""ASGI in, ASGI out: a scope becomes an exchange for the backends, an answer becomes fields for the client."""

from collections.abc import Callable

from asgi_enhance.asgi.types import Headers, Receive, Scope
from asgi_enhance.balance.body import Body
from asgi_enhance.balance.exchange import Answer, Exchange
from asgi_enhance.balance.failure import Rejected
from asgi_enhance.balance.headers import HeaderRules, RequestHead, with_one_cookie
from asgi_enhance.balance.health import Roster
from asgi_enhance.balance.options import Limits, Timeouts
from asgi_enhance.balance.rewrite import Rewriter
from asgi_enhance.balance.runtime import Runtime
from asgi_enhance.balance.sticky import StickyCookie
from asgi_enhance.balance.target import raw_target, strict_query

_FOR_EVER = float("inf")
_BODILESS = frozenset({"GET", "HEAD"})
_HTTP1 = frozenset({"1.0", "1.1"})
"""In these a GET without Content-Length and Transfer-Encoding has no body (RFC 9112, 6.3); in HTTP/2 it may."""


class Translator:
    """What one balancer makes of requests and answers, by its options.

    hash_key: what the policy hashes of a scope; None where it hashes nothing.
    """

    def __init__(
        self,
        roster: Roster,
        rules: HeaderRules,
        limits: Limits,
        timeouts: Timeouts,
        *,
        sticky: StickyCookie | None,
        hash_key: Callable[[Scope], str | None] | None,
        strip_mount: bool,
        strict_query: bool,
    ) -> None:
        self._roster = roster
        self._rules = rules
        self._limits = limits
        self._timeouts = timeouts
        self._sticky = sticky
        self._hash_key = hash_key
        self._strip_mount = strip_mount
        self._strict_query = strict_query
        self._rewrites = rules.forwarding.rewrite_location or rules.forwarding.rewrite_cookies

    def request(self, scope: Scope, receive: Receive, runtime: Runtime) -> Exchange:
        """A request as the backends will get it. Raises Rejected for one that must not be forwarded."""
        head = self._rules.request(scope)
        http1 = scope.get("http_version") in _HTTP1
        if not http1:
            head.fields = with_one_cookie(head.fields)
        path, query = self._target(scope, head)
        limits, timeouts = self._limits, self._timeouts
        if limits.max_body is not None and head.length is not None and head.length > limits.max_body:
            raise Rejected(413, "The request body is too large.")
        method: str = scope["method"]
        expected = head.has_body or method not in _BODILESS or not http1
        return Exchange(
            runtime,
            method,
            path,
            query,
            head,
            Body(receive, head.length, limit=limits.max_body, replay=limits.replay, expected=expected),
            self._key(scope) if self._hash_key is not None else b"",
            self._stuck_to(scope) if self._sticky is not None else None,
            timeouts.idle,
            _FOR_EVER if timeouts.total is None else runtime.loop.time() + timeouts.total,
        )

    def handshake(self, scope: Scope, receive: Receive, runtime: Runtime) -> Exchange:
        """The handshake of a WebSocket as the backends will get it. Raises Rejected."""
        head = self._rules.request(scope)
        head.fields = [pair for pair in head.fields if not pair[0].startswith(b"sec-websocket-")]
        if scope.get("http_version") not in _HTTP1:
            head.fields = with_one_cookie(head.fields)
        path, query = self._target(scope, head)
        idle = self._timeouts.websocket_idle
        return Exchange(
            runtime,
            "GET",
            path,
            query,
            head,
            Body(receive, None, limit=None, replay=0),
            self._key(scope) if self._hash_key is not None else b"",
            self._stuck_to(scope) if self._sticky is not None else None,
            _FOR_EVER if idle is None else idle,
            _FOR_EVER,
            websocket=True,
            subprotocols=scope.get("subprotocols") or (),
        )

    def response(self, exchange: Exchange, answer: Answer, scope: Scope) -> Headers:
        """The fields for the client. Raises UpstreamFailure for framing that cannot be trusted."""
        assert answer.status is not None
        headers = self._rules.response(answer.status, answer.headers)
        if self._rewrites:
            assert exchange.endpoint is not None
            forwarding = self._rules.forwarding
            mount = scope.get("root_path", "") if self._strip_mount else ""
            rewriter = Rewriter(exchange.endpoint.backend, exchange.head, mount)
            headers = rewriter.fields(headers, location=forwarding.rewrite_location, cookies=forwarding.rewrite_cookies)
        if self._sticky is not None:
            self._stick(self._sticky, exchange, headers, scope)
        return headers

    def _target(self, scope: Scope, head: RequestHead) -> tuple[bytes, bytes]:
        if self._strip_mount and scope.get("root_path"):
            self._rules.below(head, scope["root_path"])
        path, query = raw_target(scope, self._strip_mount, self._limits.max_target)
        return path, strict_query(query) if self._strict_query and query else query

    def _stick(self, sticky: StickyCookie, exchange: Exchange, headers: Headers, scope: Scope) -> None:
        """Give the client the cookie of the backend that serves it, if it has no other or another's."""
        endpoint = exchange.endpoint
        if endpoint is not None and endpoint.id != exchange.sticky:
            secure = (b"x-forwarded-proto", b"https") in exchange.head.fields or scope.get("scheme") in ("https", "wss")
            headers.append(sticky.field(endpoint.id, path=scope.get("root_path") or "/", secure=secure))

    def _stuck_to(self, scope: Scope) -> str | None:
        assert self._sticky is not None
        return self._sticky.read(scope["headers"], (one.id for one in self._roster.endpoints))

    def _key(self, scope: Scope) -> bytes:
        assert self._hash_key is not None
        return (self._hash_key(scope) or "").encode("utf-8", "surrogateescape")
