"""The balancer's settings, a frozen dataclass a question. Seconds everywhere; None means no limit."""

from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Any

from asgi_enhance.errors import ConfigError
from asgi_enhance.options import checked


def _statuses(owner: object, name: str) -> None:
    value = getattr(owner, name)
    if isinstance(value, Iterable) and not all(isinstance(one, int) and 100 <= one < 600 for one in value):
        raise ConfigError(f"{name} must hold status codes, numbers from 100 to 599, not {value!r}")


def _positive(owner: object, *names: str, optional: tuple[str, ...] = ()) -> None:
    for name in (*names, *optional):
        value: Any = getattr(owner, name)
        if (value is None and name in optional) or (value is not None and value > 0):
            continue
        raise ConfigError(f"{name} must be more than 0, not {value!r}")


@checked
@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long each step may take. `first_byte`, `idle` and `total` are looked at every tenth of a second.

    connect:    until a connection stands, TLS included. Default: 1 s. Source: loopback to same region.
    first_byte: from the last byte of the request to the head of the response. Default: 60 s (nginx).
    idle:       without a byte moving, in either direction. Default: 60 s (nginx).
    total:      for the whole exchange with all its retries. Default: none, so that streams may last.
    queue:      a request waits for a free backend. Default: 1 s.
    websocket_idle: without a message in either direction on a WebSocket, which is closed with 1001 then. Default: none;
                lost peers are found by ping.
    keep_alive: an unused connection is kept. Default: 4 s, below the 5 s after which uvicorn closes it.
    """

    connect: float = 1.0
    first_byte: float = 60.0
    idle: float = 60.0
    total: float | None = None
    queue: float = 1.0
    websocket_idle: float | None = None
    keep_alive: float = 4.0

    def __post_init__(self) -> None:
        _positive(self, "connect", "first_byte", "idle", "queue", "keep_alive", optional=("total", "websocket_idle"))


@checked
@dataclass(frozen=True, slots=True)
class Limits:
    """How much there may be of anything.

    max_connections:   requests and WebSockets at a time on one backend. Default: 1024 (Envoy).
    max_queue:         requests waiting, a backend: all wait in one line for whichever is free first, and it is as long
                       as those that may be chosen allow together. Default: 1024 (Envoy's max_pending_requests).
    max_body:          bytes of a request body. Default: none; the backend knows best.
    max_target:        bytes of path and query. Default: 16384.
    max_response_head: bytes of a response's head with all its interim responses, and of its trailers. Default: 65536.
    max_message:       bytes of a WebSocket message. Default: 16 MiB (uvicorn).
    replay:            bytes of a request body kept for another try. Default: 65536.
    """

    max_connections: int = 1024
    max_queue: int = 1024
    max_body: int | None = None
    max_target: int = 16_384
    max_response_head: int = 65_536
    max_message: int = 16 * 1024 * 1024
    replay: int = 65_536

    def __post_init__(self) -> None:
        _positive(self, "max_connections", "max_target", "max_response_head", "max_message", optional=("max_body",))
        if self.max_queue < 0:
            raise ConfigError(f"max_queue must be at least 0, not {self.max_queue!r}")
        if self.replay < 0:
            raise ConfigError(f"replay must be at least 0, not {self.replay!r}")


@checked
@dataclass(frozen=True, slots=True)
class Retries:
    """When a request is tried again, on another backend first, never after a byte of a response.

    attempts:   tries in all. Default: 3.
    budget:     retries at a time as a share of the requests in flight. Default: 0.2 (Envoy, Finagle).
    min_budget: retries at a time that are always allowed. Default: 3 (Envoy).
    statuses:   responses to an idempotent request that are worth another try, e.g. `{502, 503}`. Default: none.
    backoff:    seconds before a second try at the same backend, doubled each time, with full jitter, at most ten times
                as long. Default: 0.025 (Envoy).
    """

    attempts: int = 3
    budget: float = 0.2
    min_budget: int = 3
    statuses: Container[int] = frozenset()
    backoff: float = 0.025

    def __post_init__(self) -> None:
        _positive(self, "attempts", "backoff")
        _statuses(self, "statuses")
        if not 0 <= self.budget <= 1:
            raise ConfigError(f"budget must be between 0 and 1, not {self.budget!r}")
        if self.min_budget < 0:
            raise ConfigError(f"min_budget must be at least 0, not {self.min_budget!r}")


@checked
@dataclass(frozen=True, slots=True)
class Ejection:
    """Passive health: what the traffic itself says (Envoy's outlier detection and its defaults).

    consecutive: failures (5xx, refused, reset, timed out) in a row before a backend is ejected, or answers it broke
                 off with no whole one between. Default: 5.
    base_time:   seconds out, times the number of ejections so far. Default: 30.
    max_time:    seconds out at most. Default: 300.
    max_share:   share of the backends ejected at a time; one always may be. Default: 0.1.
    panic:       below this share of available backends health is ignored; 0 never ignores it. Default: 0.5.
    penalty:     seconds a failure counts for in the measured latency. Default: 1.
    """

    consecutive: int = 5
    base_time: float = 30.0
    max_time: float = 300.0
    max_share: float = 0.1
    panic: float = 0.5
    penalty: float = 1.0

    def __post_init__(self) -> None:
        _positive(self, "consecutive", "base_time", "max_time", "penalty")
        if not 0 <= self.max_share <= 1:
            raise ConfigError(f"max_share must be between 0 and 1, not {self.max_share!r}")
        if not 0 <= self.panic <= 1:
            raise ConfigError(f"panic must be between 0 and 1, not {self.panic!r}")


@checked
@dataclass(frozen=True, slots=True)
class HealthCheck:
    """Active health: a GET on a connection of its own, or by the backend's `transport`.

    path:      asked of every backend. Default: `/`.
    interval:  seconds between two checks, ±20 %. Default: 2 (HAProxy).
    fast:      seconds between two checks while the verdict is about to change. Default: 0.5.
    timeout:   seconds for one check. Default: 1.
    rise:      good checks in a row that bring a backend back. Default: 2 (HAProxy).
    fall:      bad checks in a row that take it out. Default: 3 (HAProxy).
    expect:    statuses that are good. Default: 200 to 399.
    host:      value of `Host`. Default: the backend's authority.
    uneject:   a good check also ends a passive ejection. Default: False: what failed for users stays out its time.
    """

    path: str = "/"
    interval: float = 2.0
    fast: float = 0.5
    timeout: float = 1.0
    rise: int = 2
    fall: int = 3
    expect: Container[int] = range(200, 400)
    host: str | None = None
    uneject: bool = False

    def __post_init__(self) -> None:
        _positive(self, "interval", "fast", "timeout", "rise", "fall")
        _statuses(self, "expect")
        if not self.path.startswith("/") or any(c <= " " or c > "~" for c in self.path):
            raise ConfigError(f"path must be an absolute path in ASCII, not {self.path!r}")
