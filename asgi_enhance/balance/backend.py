"""What a backend is (`Backend`, written by the user) and what is known of it while it serves (`Endpoint`)."""

import ssl
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from asgi_enhance.balance.options import Limits
from asgi_enhance.errors import ConfigError
from asgi_enhance.options import checked

_PORTS = {"http": 80, "https": 443}


@checked
@dataclass(frozen=True, slots=True)
class Backend:
    """One server behind the balancer. A plain URL string does where nothing but the URL is to be said.

    url:             `http://` or `https://`, host, port, and an optional base path and query joined to every target.
    weight:          share of the traffic relative to the others, at least 0; 0 means none. Default: 1.
    priority:        0 is used first; higher numbers take what the lower ones cannot serve. Default: 0.
    id:              opaque name used in cookies and hashes. Default: a digest of the URL.
    max_connections: requests and WebSockets at the same time. Default: the balancer's limit.
    max_queue:       requests that may wait on its account, see `Limits`. Default: the balancer's limit.
    host:            value of `Host` for this backend instead of the balancer's policy. Default: none.
    address:         IP address to connect to instead of resolving the URL's host. Default: none.
    tls:             context for `https`. Default: the system's trust store, host name verified.
    transport:       an `httpx2`/`httpx` `AsyncBaseTransport` to use for HTTP instead of the built-in client; WebSockets
                     dial the URL all the same.
    """

    url: str
    weight: float = 1.0
    priority: int = 0
    id: str = ""
    max_connections: int | None = None
    max_queue: int | None = None
    host: str | None = None
    address: str | None = None
    tls: ssl.SSLContext | None = None
    transport: Any = None
    scheme: str = field(init=False)
    hostname: str = field(init=False)
    port: int = field(init=False)
    base_path: bytes = field(init=False)
    base_query: bytes = field(init=False)
    authority: bytes = field(init=False)

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            hostname, port = parts.hostname, parts.port
        except ValueError as error:
            raise ConfigError(f"backends: {self.url!r} is not a URL ({error})") from None
        if parts.scheme not in _PORTS or not hostname:
            raise ConfigError(f"backends: {self.url!r} must be http://host[:port] or https://host[:port]")
        if parts.username is not None or parts.fragment or any(c <= " " or c > "~" for c in self.url):
            shown = f"{parts.scheme}://***@{hostname}" if parts.username is not None else self.url
            raise ConfigError(f"backends: {shown!r} must not hold credentials, a fragment, spaces or non-ASCII")
        if not 0 <= self.weight <= 65_536:
            raise ConfigError(f"weight of {self.url!r} must be between 0 and 65536, not {self.weight!r}")
        if self.priority < 0:
            raise ConfigError(f"priority of {self.url!r} must be at least 0, not {self.priority!r}")
        if self.max_connections is not None and self.max_connections < 1:
            raise ConfigError(f"max_connections of {self.url!r} must be at least 1, not {self.max_connections!r}")
        if self.max_queue is not None and self.max_queue < 0:
            raise ConfigError(f"max_queue of {self.url!r} must be at least 0, not {self.max_queue!r}")
        if self.address is not None:
            try:
                ip_address(self.address)
            except ValueError:
                raise ConfigError(f"address of {self.url!r} is not an IP address: {self.address!r}") from None
        if self.transport is not None and not hasattr(self.transport, "handle_async_request"):
            raise ConfigError(f"transport of {self.url!r} is no AsyncBaseTransport of httpx2 or httpx")
        if self.host is not None and any(c <= " " or c > "~" or c == "/" for c in self.host):
            raise ConfigError(f"host of {self.url!r} is not a value for Host: {self.host!r}")
        authority = f"[{hostname}]" if ":" in hostname else hostname
        if port is not None and port != _PORTS[parts.scheme]:
            authority = f"{authority}:{port}"
        base_path = parts.path.rstrip("/")
        known = {
            "id": self.id or _digest(parts.scheme, authority, base_path, parts.query, self.address or ""),
            "scheme": parts.scheme,
            "hostname": hostname,
            "port": port if port is not None else _PORTS[parts.scheme],
            "base_path": base_path.encode(),
            "base_query": parts.query.encode(),
            "authority": authority.encode(),
        }
        for name, value in known.items():
            object.__setattr__(self, name, value)

    @property
    def name(self) -> str:
        """What it is called in reports and in calls that change it: its URL, and its address if that was given."""
        return f"{self.url}@{self.address}" if self.address else self.url

    @staticmethod
    def of(value: "Backend | str") -> "Backend":
        """A backend as it is, or made of its URL."""
        if isinstance(value, Backend):
            return value
        if isinstance(value, str):
            return Backend(value)
        raise ConfigError(f"backends: expected a URL or a Backend, not {value!r}")

    @staticmethod
    def all_of(values: "Iterable[Backend | str] | str") -> "list[Backend]":
        """Backends of a list, or of one comma-separated string as it stands in the environment."""
        if isinstance(values, str):
            values = [part for part in (part.strip() for part in values.split(",")) if part]
        backends = [Backend.of(value) for value in values]
        seen: dict[str, Backend] = {}
        for backend in backends:
            other = seen.setdefault(backend.id, backend)
            if other is not backend:
                raise ConfigError(
                    f"backends: {backend.name!r} is there twice: {other.name!r} is the same or has its id"
                )
        return backends

    def target(self, path: bytes, query: bytes) -> bytes:
        """The request target: base and path joined with one slash, both queries joined with `&`, nothing decoded."""
        if self.base_path and path != b"*":
            path = self.base_path + path
        if self.base_query:
            query = self.base_query + b"&" + query if query else self.base_query
        return path + b"?" + query if query else path


def _digest(*parts: str) -> str:
    return blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()


class Endpoint:
    """A backend as it is now: what the policies read and write. No I/O; one writer, the balancer."""

    __slots__ = (
        "backend",
        "checked",
        "cost",
        "cost_at",
        "current",
        "cut_in_a_row",
        "draining",
        "ejected_until",
        "ejections",
        "failed_at",
        "failed_in_a_row",
        "failing_since",
        "failures",
        "full_at",
        "id",
        "in_flight",
        "last_failure",
        "max_queue",
        "name",
        "ramp_from",
        "requests",
        "verdicts",
        "weight",
        "window_failures",
        "window_requests",
    )

    def __init__(self, backend: Backend, limits: Limits) -> None:
        self.id = backend.id
        self.name = backend.name
        self.describe(backend, limits)
        self.in_flight = 0
        self.requests = 0
        self.failures = 0
        self.last_failure = ""  # in words for an operator
        self.failed_at = 0.0
        self.draining = False
        # peak EWMA: the cost in seconds and when it was last observed
        self.cost = 0.0
        self.cost_at = 0.0
        # smooth weighted round robin
        self.current = 0.0
        # slow start: when it began to serve (again); None means at full weight
        self.ramp_from: float | None = None
        # active checks: the verdict, and how many results in a row say otherwise
        self.checked = True
        self.verdicts = 0
        # passive ejection
        self.failed_in_a_row = 0  # before the head of an answer
        self.cut_in_a_row = 0  # after it
        self.failing_since = 0.0
        self.ejected_until = 0.0
        self.ejections = 0
        self.window_requests = 0
        self.window_failures = 0

    def describe(self, backend: Backend, limits: Limits) -> None:
        """Take what the user says of the backend, now or anew."""
        self.backend = backend
        self.weight = backend.weight
        self.full_at = backend.max_connections or limits.max_connections
        self.max_queue = limits.max_queue if backend.max_queue is None else backend.max_queue

    def __repr__(self) -> str:
        state = "draining" if self.draining else "up" if self.checked else "down"
        return f"<Endpoint {self.name} {state}, {self.in_flight} in flight>"
