"""What a user writes: which requests, whose, how many. A `Rule` is configuration; `bound` makes of it what runs."""

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from inspect import iscoroutinefunction
from typing import Literal

from asgi_enhance.asgi.path import path_pattern
from asgi_enhance.asgi.scope import header, path_below_mount
from asgi_enhance.asgi.types import Scope
from asgi_enhance.errors import ConfigError
from asgi_enhance.options import checked
from asgi_enhance.ratelimit.keys import Key, by_header, by_user, combine
from asgi_enhance.ratelimit.notation import Limits, quotas
from asgi_enhance.ratelimit.policy import MAX_LIMIT, SECOND, Quota

OnError = Literal["local", "open", "closed"]
KeySpec = str | Key
Tier = Callable[[Scope], "Limits | Awaitable[Limits | None] | None"]
Cost = Callable[[Scope], "int | Awaitable[int]"]

KINDS = ("http", "websocket", "message")

METHODS = frozenset(
    (
        *("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "QUERY"),
        *("ACL", "BASELINE-CONTROL", "BIND", "CHECKIN", "CHECKOUT", "COPY", "LABEL", "LINK", "LOCK", "MERGE"),
        *("MKACTIVITY", "MKCALENDAR", "MKCOL", "MKREDIRECTREF", "MKWORKSPACE", "MOVE", "ORDERPATCH", "PRI"),
        *("PROPFIND", "PROPPATCH", "REBIND", "REPORT", "SEARCH", "UNBIND", "UNCHECKOUT", "UNLINK", "UNLOCK"),
        *("UPDATE", "UPDATEREDIRECTREF", "VERSION-CONTROL"),
        *("M-SEARCH", "NOTIFY", "PURGE", "SOURCE", "SUBSCRIBE", "UNSUBSCRIBE"),
    )
)
"""Those registered at IANA, and those beside them that servers take: of any other nobody is ever limited or exempt."""

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HOST = re.compile(r"(\*\.)?[\w.-]+|\[[0-9A-Fa-f:.]+\]")


@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Ban:
    """Refuse an identity all that its rule matches for a while, after it has been refused too often.

    after:   refusals that lead to a ban.
    within:  seconds in which they have to happen. Default: 60.
    seconds: how long the ban lasts (up to 1/32 longer). Default: 600.
    """

    after: int
    within: int = 60
    seconds: int = 600

    def __post_init__(self) -> None:
        for name in ("after", "within", "seconds"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"Ban: {name} must be a whole number of at least 1, not {value!r}")

    def quotas(self, name: str) -> tuple[Quota, Quota]:
        """The two that a ban is made of: refusals counted, and the ban itself."""
        return (
            Quota(self.after, self.within * SECOND, name=f"{name}-refusals"),
            Quota(1, self.seconds * SECOND, name=f"{name}-ban"),
        )


@checked
@dataclass(frozen=True, slots=True)
class Rule:
    """A limit for some requests. All rules that match a request apply to it, and it is admitted by all or refused.

    limits:      `"10/second; 1000/hour"`, `"100/minute burst 20"`, a mapping, quotas; or a callable of the scope,
                 sync or async, that gives one of these (tiers) or None for no limit. None: no rate limit (for
                 `concurrency`).
    name:        what header fields call it, and part of its keys in Redis. Default: `rule-1`, `rule-2`, … by position.
    path:        path templates of this rule's own, below the mount: `/items/{id}` (one segment), `/files/{rest:path}`,
                 `/api/*`; a slash at the end makes no difference. Default: every path.
    methods:     default: all. GET includes HEAD; a WebSocket handshake is a GET.
    host:        `example.com`, `*.example.com`, without port. Default: all.
    on:          `http`, `websocket` (the handshake), `message` (each WebSocket message received). Default: the first
                 two.
    key:         `"client"` (default), `"user"`, `"header:x-api-key"`, a callable (see `keys`), or a tuple of these.
    cost:        units a request takes, or a callable of the scope, sync or async. Default: 1.
    charge:      `charge(scope, status)` (101 for a WebSocket), sync, when the response is finished: further units, or
                 a negative number to give back.
    concurrency: requests of one identity in flight at once in this process. Default: no limit.
    max_delay:   seconds a request may wait until it fits before it is refused. Default: 0.
    ban:         a `Ban`. Default: none.
    on_error:    without Redis: `local` (this process' share of the limit), `open` (admit) or `closed` (503).
                 Default: the layer's.
    shadow:      decide and count, never refuse. Default: False.
    """

    limits: Limits | Tier | None
    _: KW_ONLY
    name: str = ""
    path: str | Sequence[str] | None = None
    methods: str | Sequence[str] | None = None
    host: str | Sequence[str] | None = None
    on: str | Sequence[str] = ("http", "websocket")
    key: KeySpec | tuple[KeySpec, ...] = "client"
    cost: int | Cost = 1
    charge: Callable[[Scope, int], int] | None = None
    concurrency: int | None = None
    max_delay: float = 0.0
    ban: Ban | None = None
    on_error: OnError | None = None
    shadow: bool = False

    def __post_init__(self) -> None:
        if self.limits is None and self.concurrency is None:
            raise ConfigError("Rule: limits must be given, or concurrency")
        if self.limits is not None and not callable(self.limits):
            quotas(self.limits)
        if unknown := set(_several(self.on)) - set(KINDS):
            raise ConfigError(f"Rule: on must be of {KINDS}, not {sorted(unknown)}")
        if not callable(self.cost):
            check_cost(self.cost)
        if self.concurrency is not None and (isinstance(self.concurrency, bool) or self.concurrency < 1):
            raise ConfigError(f"Rule: concurrency must be at least 1, not {self.concurrency!r}")
        if not 0 <= self.max_delay < float("inf"):
            raise ConfigError(f"Rule: max_delay must be seconds, 0 or more, not {self.max_delay!r}")
        if set(_several(self.on)) == {"message"} and (self.concurrency is not None or self.charge is not None):
            raise ConfigError("Rule: concurrency and charge are for requests and handshakes, not for messages")
        if self.on_error not in (None, "local", "open", "closed"):
            raise ConfigError(f"Rule: on_error must be 'local', 'open' or 'closed', not {self.on_error!r}")
        if self.charge is not None and iscoroutinefunction(self.charge):
            raise ConfigError("Rule: charge must not be async: it is asked when the response has gone out")
        for what, values in (("methods", self.methods), ("host", self.host), ("path", self.path)):
            if values is not None and not _several(values):
                raise ConfigError(f"Rule: {what} must not be empty: it would never match")
        if wrong := [value for value in _several(self.methods or ()) if value.upper() not in METHODS]:
            raise ConfigError(f"Rule: methods can never be one of {wrong}: name each, as in ['GET', 'POST']")
        if wrong := [value for value in _several(self.host or ()) if not _HOST.fullmatch(value)]:
            raise ConfigError(f"Rule: host can never be one of {wrong}: a name has no scheme and port, or is *.name")
        self.matcher()
        resolve_key(self.key, by_user)

    def covers(self, kind: str) -> bool:
        return kind in _several(self.on)

    def matcher(self) -> Callable[[Scope], bool] | None:
        """Whether a request is this rule's; None if every one is."""
        tests: list[Callable[[Scope], bool]] = []
        if self.methods is not None:
            tests.append(method_matcher(self.methods))
        if self.path is not None:
            tests.append(path_matcher(_several(self.path)))
        if self.host is not None:
            tests.append(_of_hosts(_several(self.host)))
        if len(tests) < 2:
            return tests[0] if tests else None
        return lambda scope: all(test(scope) for test in tests)


def check_cost(cost: object) -> int:
    """`cost` if it can be one. ConfigError for what is not a whole number of at least 1."""
    if isinstance(cost, bool) or not isinstance(cost, int) or not 1 <= cost <= MAX_LIMIT:
        raise ConfigError(f"cost must be a whole number from 1 to {MAX_LIMIT}, not {cost!r}")
    return cost


def resolve_key(spec: KeySpec | tuple[KeySpec, ...], client: Key) -> Key:
    """The callable that a rule's `key` stands for; `client` is the layer's own way to tell clients apart."""
    if isinstance(spec, tuple):
        if not spec:
            raise ConfigError("Rule: key must not be an empty tuple")
        return combine(*(resolve_key(part, client) for part in spec))
    if callable(spec):
        return spec
    if spec == "client":
        return client
    if spec == "user":
        return by_user
    if isinstance(spec, str) and spec.startswith("header:") and _TOKEN.fullmatch(spec[7:]):
        return by_header(spec[7:])
    raise ConfigError(f"Rule: key must be 'client', 'user', 'header:<name>', a callable or a tuple, not {spec!r}")


def path_matcher(templates: str | Sequence[str]) -> Callable[[Scope], bool]:
    """Whether a request's path is one of these templates."""
    pattern = path_pattern(templates)
    return lambda scope: pattern.fullmatch(path_below_mount(scope)) is not None


def method_matcher(methods: str | Sequence[str]) -> Callable[[Scope], bool]:
    """Whether a request's method is one of these. GET includes HEAD; a WebSocket handshake is a GET."""
    wanted = {method.upper() for method in _several(methods)}
    if "GET" in wanted:
        wanted.add("HEAD")
    return lambda scope: scope.get("method", "GET") in wanted


def _of_hosts(hosts: Sequence[str]) -> Callable[[Scope], bool]:
    exact = {host.lower() for host in hosts if not host.startswith("*.")}
    below = tuple(host[1:].lower() for host in hosts if host.startswith("*."))

    def test(scope: Scope) -> bool:
        value = (header(scope["headers"], b"host") or b"").decode("latin-1").lower()
        host = value.partition("]")[0] + "]" if value.startswith("[") else value.partition(":")[0]
        return host in exact or host.endswith(below)

    return test


def _several(value: str | Sequence[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)
