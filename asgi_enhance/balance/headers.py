"""Which header fields cross the proxy, in both directions, and which it adds. Pure.

RFC 9110, 7.6.1: `Connection` and every field it names end here, as do the fields that have always been hop-by-hop.
They are removed before anything is added, so that a client cannot name away what the proxy says. RFC 9112, 6: the
message is framed anew from bytes counted; the client's own framing is checked, never forwarded.
"""

import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal
from urllib.parse import quote

from asgi_enhance.asgi.address import ClientAddress
from asgi_enhance.asgi.types import HOP_BY_HOP, Headers, Scope
from asgi_enhance.balance.failure import Rejected, UpstreamFailure
from asgi_enhance.errors import ConfigError
from asgi_enhance.options import checked

NOT_FORWARDED = HOP_BY_HOP | {b"http2-settings"}

_SAID_BY_PROXIES = frozenset({b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"via"})
_HINTS = frozenset(
    {
        b"client-ip",  # Rails believes it, the scheme and the ssl; gunicorn the ssl and the protocol
        b"x-forwarded-scheme",
        b"x-forwarded-ssl",
        b"x-forwarded-protocol",
        b"x-original-url",
        b"x-rewrite-url",
        b"x-forwarded-prefix",
        b"x-forwarded-port",
        b"x-forwarded-server",
        b"x-real-ip",
    }
)
_SPECIAL = NOT_FORWARDED | _SAID_BY_PROXIES | _HINTS | {b"content-length", b"expect", b"host", b"max-forwards"}

_HOST = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]*\Z")  # RFC 3986, 3.2.2; anything else is a 400 (RFC 9112, 3.2)
_PREFIX = b"x-forwarded-prefix"
_MAX_HOST = 256
"""Longer ones are not remembered."""
TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")


@checked
@dataclass(frozen=True, slots=True)
class Forwarding:
    """What is said to backends about the client and the way the request came.

    trusted:     networks of proxies in front whose X-Forwarded-*, Forwarded and hint fields are believed and
                 extended; `"unix"` for UNIX sockets. Everybody else's are removed. Default: nobody.
    hops:        instead of networks: the number of proxies in front, each of which adds one entry. Default: none.
    host:        `"preserve"` the client's Host (default) or `"rewrite"` it to the backend's authority.
    x_forwarded: send X-Forwarded-For, -Proto and -Host, and -Prefix where a mount is taken off. Default: True.
    forwarded:   send Forwarded (RFC 7239). Default: False.
    via:         pseudonym in `Via` on requests, by which a loop is known (508). Default: a random one a balancer.
    via_on_responses: say it on responses too. Default: False.
    underscores: fields with `_` in their name, which some backends take for `-`: `"drop"` them when their twin with
                 dashes is there (default), `"reject"` (400), or `"allow"`.
    server_fields: the backend's Server and Date: `"drop"` them (default), since ASGI servers add their own, or
                 `"forward"` them under a server told not to.
    rewrite_location: Location and Content-Location that name the backend say where the client finds that (nginx's
                 proxy_redirect), see `rewrite`. Default: False, they pass as they are.
    rewrite_cookies: the same for Path and Domain of cookies (nginx's proxy_cookie_path, proxy_cookie_domain).
                 Default: False.
    """

    trusted: Iterable[str] = ()
    hops: int | None = None
    host: Literal["preserve", "rewrite"] = "preserve"
    x_forwarded: bool = True
    forwarded: bool = False
    via: str = field(default_factory=lambda: f"lb-{secrets.token_hex(4)}")
    via_on_responses: bool = False
    underscores: Literal["drop", "reject", "allow"] = "drop"
    server_fields: Literal["drop", "forward"] = "drop"
    rewrite_location: bool = False
    rewrite_cookies: bool = False

    def __post_init__(self) -> None:
        if self.host not in ("preserve", "rewrite"):
            raise ConfigError(f"host must be 'preserve' or 'rewrite', not {self.host!r}")
        if self.underscores not in ("drop", "reject", "allow"):
            raise ConfigError(f"underscores must be 'drop', 'reject' or 'allow', not {self.underscores!r}")
        if self.server_fields not in ("drop", "forward"):
            raise ConfigError(f"server_fields must be 'drop' or 'forward', not {self.server_fields!r}")
        if not TOKEN.match(self.via.encode("latin-1", "replace")):
            raise ConfigError(f"via must be a token, not {self.via!r}")


@dataclass(slots=True)
class RequestHead:
    """The fields of one request as every backend gets them. `host`, `TE` and the framing are apart.

    trailers: the client takes them (`TE: trailers`). How that is said to a backend depends on the version of HTTP.
    """

    host: bytes
    fields: Headers
    length: int | None
    has_body: bool
    expects_continue: bool
    max_forwards: int | None
    trailers: bool = False


class HeaderRules:
    """`Forwarding`, compiled: all that can be decided once is decided here."""

    def __init__(self, forwarding: Forwarding) -> None:
        self.forwarding = forwarding
        self.client_address = ClientAddress(forwarding.trusted, hops=forwarding.hops)
        self._believes = bool(tuple(forwarding.trusted)) or forwarding.hops is not None
        self._via = forwarding.via.encode()
        self._via_line = (b"via", b"1.1 " + self._via)
        dropped = {b"date", b"server"} if forwarding.server_fields == "drop" else set()
        self._response_special = NOT_FORWARDED | dropped
        self._plain = forwarding.x_forwarded and not forwarding.forwarded and not self._believes
        self._said = lru_cache(maxsize=4096)(self._say)

    def request(self, scope: Scope) -> RequestHead:
        """The fields for the backends. Raises Rejected for a request that must not be forwarded."""
        special: Headers = []
        fields: Headers = []
        underscored = False
        for pair in scope["headers"]:
            name = pair[0]
            if name in _SPECIAL:
                special.append(pair)
            else:
                fields.append(pair)
                if b"_" in name:
                    underscored = True
        if underscored and self.forwarding.underscores != "allow":
            fields = self._without_underscores(fields)
        if len(special) == 1 and special[0][0] == b"host" and self._plain:
            head = RequestHead(special[0][1], fields, None, False, False, None)
            client = scope.get("client")
            if client and len(head.host) < _MAX_HOST:  # nearly every request
                fields += self._said(client[0], scope.get("scheme"), head.host)
                return head
        return self._judged(scope, fields, special)

    def below(self, head: RequestHead, mount: str) -> None:
        """Say to the backend what prefix of the path it does not see (X-Forwarded-Prefix)."""
        if self.forwarding.x_forwarded and mount.strip("/"):
            prefix = encoded(mount)
            before = [value for name, value in head.fields if name == _PREFIX]  # said by a proxy that is trusted
            outer = before[-1].rstrip(b"/") if before else b""
            if not (prefix + b"/").startswith(outer + b"/"):  # a root path of the server's holds it already
                prefix = outer + prefix
            head.fields = [*(pair for pair in head.fields if pair[0] != _PREFIX), (_PREFIX, prefix)]

    def _judged(self, scope: Scope, fields: Headers, special: Headers) -> RequestHead:
        """The fields of a request with more to say than what it wants and where."""
        head = RequestHead(b"", fields, None, False, False, None)
        said: dict[bytes, list[bytes]] = {}
        named: set[bytes] = set()
        hints: Headers = []
        hosts = 0
        for pair in special:
            name, value = pair
            if name == b"host":
                hosts += 1
                head.host = value
            elif name == b"content-length":
                head.length = _length(value, head.length)
            elif name == b"transfer-encoding":
                if value.strip().lower() != b"chunked":
                    raise Rejected(501, "Only the transfer coding 'chunked' is supported.")
                head.has_body = True
            elif name == b"connection":
                named.update(_tokens(value))
            elif name == b"te":
                head.trailers = head.trailers or b"trailers" in _tokens(value)
            elif name == b"expect":
                if value.strip().lower() != b"100-continue":
                    raise Rejected(417, "The only expectation that is supported is '100-continue'.")
                head.expects_continue = True
            elif name == b"max-forwards":
                if value.isdigit():
                    head.max_forwards = int(value[:9])
                fields.append(pair)
            elif name in _SAID_BY_PROXIES:
                said.setdefault(name, []).append(value)
            elif name in _HINTS:
                hints.append(pair)
        if hosts != 1 and (hosts or scope.get("http_version") in ("1.1", "1.0", None)):
            raise Rejected(400, "A request must have exactly one Host field.")
        _check_host(head.host)
        if head.length is not None:
            if head.has_body:
                raise Rejected(400, "Content-Length and Transfer-Encoding exclude each other.")
            head.has_body = True
        if named:
            head.fields = fields = [pair for pair in fields if pair[0] not in named]
            for name in named:
                said.pop(name, None)
            hints = [pair for pair in hints if pair[0] not in named]
        self._add(scope, head, said, hints)
        return head

    def response(self, status: int, fields: Headers) -> Headers:
        """The fields for the client. Raises UpstreamFailure for framing that cannot be trusted."""
        special = self._response_special
        kept = [pair for pair in fields if pair[0] not in special]
        if len(kept) != len(fields):
            named: set[bytes] = set()
            for pair in fields:
                name = pair[0]
                if name == b"connection":
                    named.update(_tokens(pair[1]))
                elif name == b"transfer-encoding" and pair[1].strip().lower() != b"chunked":
                    raise UpstreamFailure("an unknown transfer coding", error="http_response_transfer_coding")
            if named:
                named -= {b"close", b"keep-alive", b"content-length"}
                kept = [pair for pair in kept if pair[0] not in named]
        if status in (204, 304):  # servers take a length for the promise of a body
            kept = [pair for pair in kept if pair[0] != b"content-length"]
        if self.forwarding.via_on_responses:
            kept.append(self._via_line)
        return kept

    def _add(self, scope: Scope, head: RequestHead, said: dict[bytes, list[bytes]], hints: Headers) -> None:
        fields = head.fields
        client = scope.get("client")
        peer = client[0] if client else None
        via = said.get(b"via")
        if via and any(self._via in line.replace(b",", b" ").split() for line in via):
            raise Rejected(508, "The request has been here before.", error="proxy_loop_detected")
        if via:
            fields.extend((b"via", value) for value in via)
        fields.append(self._via_line)
        trusted = self.forwarding.hops is not None or self.client_address.trusts(peer)
        if trusted:
            fields.extend(hints)
        if self.forwarding.x_forwarded:
            scheme = b"https" if scope.get("scheme") in ("https", "wss") else b"http"
            host = head.host
            if trusted:
                scheme = _last(said.get(b"x-forwarded-proto")) or scheme
                host = _last(said.get(b"x-forwarded-host")) or host
                prior = said.get(b"x-forwarded-for", [])
                if peer is not None:
                    prior = [*prior, peer.encode("latin-1", "replace")]
                if prior:
                    fields.append((b"x-forwarded-for", b", ".join(prior)))
            elif peer is not None:
                fields.append((b"x-forwarded-for", peer.encode("latin-1", "replace")))
            if peer is not None or trusted:
                fields.append((b"x-forwarded-proto", scheme))
                if host:
                    fields.append((b"x-forwarded-host", host))
        elif trusted:
            for name in (b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"):
                fields.extend((name, value) for value in said.get(name, ()))
        if self.forwarding.forwarded:
            prior = said.get(b"forwarded", []) if trusted else []
            fields.append((b"forwarded", b", ".join([*prior, _forwarded(peer, scope, head.host)])))
        elif trusted:
            fields.extend((b"forwarded", value) for value in said.get(b"forwarded", ()))

    def _say(self, peer: str, scheme: str | None, host: bytes) -> Headers:
        """What is added for a client who may say nothing of itself. Raises Rejected for a host that is none."""
        _check_host(host)
        return [
            self._via_line,
            (b"x-forwarded-for", peer.encode("latin-1", "replace")),
            (b"x-forwarded-proto", b"https" if scheme in ("https", "wss") else b"http"),
            *([(b"x-forwarded-host", host)] if host else []),
        ]

    def _without_underscores(self, fields: Headers) -> Headers:
        if self.forwarding.underscores == "reject":
            raise Rejected(400, "Field names with an underscore are not accepted.")
        names = {name for name, _ in fields} | _SPECIAL
        return [pair for pair in fields if b"_" not in pair[0] or pair[0].replace(b"_", b"-") not in names]


def with_one_cookie(fields: Headers) -> Headers:
    """HTTP/2 may have a line a cookie, and what leaves it must not (RFC 9113, 8.2.3)."""
    cookies = [value for name, value in fields if name == b"cookie"]
    if len(cookies) < 2:
        return fields
    return [*(pair for pair in fields if pair[0] != b"cookie"), (b"cookie", b"; ".join(cookies))]


def encoded(mount: str) -> bytes:
    """A mount (`root_path`) as it is written in a URL."""
    return quote(mount.rstrip("/"), safe="/:@!$&'()*+,=-._~").encode("ascii")


def _check_host(host: bytes) -> None:
    if not _HOST.match(host):
        raise Rejected(400, "The Host field is not valid.")


def _length(value: bytes, before: int | None) -> int:
    if not value.isdigit() or len(value) > 18 or (before is not None and before != int(value)):
        raise Rejected(400, "The Content-Length field is not valid.")
    return int(value)


def _tokens(value: bytes) -> set[bytes]:
    return {token for token in (part.strip().lower() for part in value.split(b",")) if token}


def _last(lines: list[bytes] | None) -> bytes | None:
    """The last entry: what the nearest trusted proxy said."""
    return lines[-1].rpartition(b",")[2].strip() if lines else None


def _forwarded(peer: str | None, scope: Scope, host: bytes) -> bytes:
    node = "unknown" if peer is None else f'"[{peer}]"' if ":" in peer else peer
    scheme = "https" if scope.get("scheme") in ("https", "wss") else "http"
    element = f"for={node};proto={scheme}".encode("latin-1", "replace")
    if host:
        safe = host if TOKEN.match(host) else b'"' + host.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
        element += b";host=" + safe
    return element
