"""What the broadcaster decides, without doing it: limits, names, origins, rates, which groups keep a history.

The rules:

- A browser sends `Origin` with every WebSocket handshake and no other protection exists (RFC 6455 §10.2): the origin's
  host must be the host that was asked for, or be on the list. What sends no `Origin` is not a browser.
- An inbound message costs one token; tokens come back at a steady rate up to a burst. Without a token the connection
  is not read, so that TCP slows the sender down: nothing is lost and nothing is stored.
- A group keeps a history if a rule names it: exactly, or by a prefix that ends in `*`. The first rule that fits wins.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, get_args
from urllib.parse import urlsplit

from asgi_enhance.errors import ConfigError
from asgi_enhance.options import checked

SlowConsumer = Literal["disconnect", "drop-oldest", "drop-newest", "latest-per-key"]
"""What happens when the outbox of a connection is full."""

Action = Literal["join", "publish", "presence"]
"""What a client may ask to do with a group."""

MAX_NAME = 200


@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds of one processor. All are positive.

    connections:            connections in this process; more are refused with 503. Default 50 000.
    connections_per_client: connections of one client in this process; more are refused with 429. Default 16.
    groups_per_connection:  groups one connection may be in. Default 128, as Centrifugo.
    groups:                 groups in this process, those that only keep a history included. Default 100 000.
    message_bytes:          size of an inbound message; a larger one closes the connection with 1009. Default 65 536.
    inbound_rate:           inbound messages a second and connection; faster senders are slowed down. Default 50.
    inbound_burst:          inbound messages a connection may send at once before the rate holds. Default 100.
    inbox_messages:         inbound messages of one connection that wait for their handler. Default 32.
    handlers:               handlers that run at the same time in this process. Default 256.
    handler_seconds:        time a handler may take before it is cancelled and answered with an error. Default 30.
    outbox_messages:        messages that wait for one slow connection. Default 256.
    outbox_bytes:           their size in bytes. Default 1 MiB.
    all_outboxes_bytes:     size of all outboxes; the connection that would exceed it is closed. Default 256 MiB.
    send_seconds:           time one message may take to be written before the connection is closed. Default 30.
    close_seconds:          time a farewell may take before the connection is let go without. Default 5.
    """

    connections: int = 50_000
    connections_per_client: int = 16
    groups_per_connection: int = 128
    groups: int = 100_000
    message_bytes: int = 65_536
    inbound_rate: float = 50.0
    inbound_burst: int = 100
    inbox_messages: int = 32
    handlers: int = 256
    handler_seconds: float = 30.0
    outbox_messages: int = 256
    outbox_bytes: int = 1 << 20
    all_outboxes_bytes: int = 256 << 20
    send_seconds: float = 30.0
    close_seconds: float = 5.0

    def __post_init__(self) -> None:
        for each in fields(self):
            if getattr(self, each.name) <= 0:
                raise ConfigError(f"limits: {each.name} must be positive, not {getattr(self, each.name)!r}")


@checked
@dataclass(frozen=True, slots=True)
class History:
    """What a group remembers: its last messages, for those who come back.

    size:     number of messages. Default 100.
    ttl:      seconds after the last message until all are forgotten. Default 300.
    meta_ttl: seconds after the last message until the count itself is forgotten and a new epoch begins; at least
              `ttl`. Default 86 400.
    """

    size: int = 100
    ttl: float = 300.0
    meta_ttl: float = 86_400.0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"history: size must be at least 1, not {self.size!r}")
        if self.ttl <= 0:
            raise ConfigError(f"history: ttl must be positive, not {self.ttl!r}")
        if self.meta_ttl < self.ttl:
            raise ConfigError(f"history: meta_ttl must be at least ttl ({self.ttl:g}), not {self.meta_ttl!r}")


class HistoryRules:
    """Which group keeps which history."""

    __slots__ = ("_exact", "_prefixes")

    def __init__(self, rules: Mapping[str, History]) -> None:
        for name in rules:
            if "*" in name[:-1]:
                raise ConfigError(f"history: a '*' stands at the end of a name only, not as in {name!r}")
        self._exact = {name: rule for name, rule in rules.items() if not name.endswith("*")}
        self._prefixes = [(name[:-1], rule) for name, rule in rules.items() if name.endswith("*")]

    def __call__(self, group: str) -> History | None:
        found = self._exact.get(group)
        if found is None:
            for prefix, rule in self._prefixes:
                if group.startswith(prefix):
                    return rule
        return found


class TokenBucket:
    """The allowance of one sender: `burst` at once, `rate` a second in the long run."""

    __slots__ = ("_at", "_tokens")

    def __init__(self, burst: int, now: float) -> None:
        self._tokens = float(burst)
        self._at = now

    def take(self, rate: float, burst: int, now: float) -> float:
        """Take one token. The seconds to wait until it is really there; 0.0 if it is."""
        self._tokens = min(float(burst), self._tokens + (now - self._at) * rate) - 1.0
        self._at = now
        return 0.0 if self._tokens >= 0.0 else -self._tokens / rate


def checked_policy(name: str) -> SlowConsumer:
    for policy in get_args(SlowConsumer):
        if name == policy:
            return policy  # type: ignore[no-any-return]
    raise ConfigError(f"slow_consumer must be one of {', '.join(get_args(SlowConsumer))}, not {name!r}")


def checked_name(value: object, what: str) -> str:
    """A group's or client's name that is fit to be one: 1 to 200 printable characters."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME or not value.isprintable():
        raise ValueError(f"{what} must be 1 to {MAX_NAME} printable characters")
    return value


def origin_allowed(origin: str | None, host: str | None, allowed: frozenset[str]) -> bool:
    """Whether a page of this origin may connect. Schemes are not compared: TLS may end before us."""
    if origin is None or "*" in allowed or origin.lower() in allowed:
        return True
    if host is None:
        return False
    try:
        return _host(urlsplit(origin).netloc) == _host(host)
    except ValueError:
        return False


def listed_origin(origin: str) -> str:
    """An origin as `origin_allowed` looks for it: lower case, and without the port that a browser leaves out."""
    origin = origin.lower()
    port = {"http": ":80", "https": ":443"}.get(origin.partition("://")[0], "")
    return origin.removesuffix(port)


def _host(netloc: str) -> str:
    """Host and port as they are compared: lower case, the default ports of http and https left out."""
    name = netloc.lower()
    for port in (":80", ":443"):
        name = name.removesuffix(port)
    return name
