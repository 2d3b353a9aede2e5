"""Redis URLs: where the servers are, and how redis-py is to connect to them.

    redis://user:password@host:6379/0            one server; rediss:// with TLS; unix:///path?db=0
    redis+sentinel://host:26379,host:26379/service/0     the primary that the Sentinels know under this name
    redis+cluster://host:6379,host:6379          a Cluster, found through any of these nodes

`rediss+sentinel` and `rediss+cluster` are the same with TLS. User and password are those of the Redis servers;
the query (`?protocol=3`, `?ssl_ca_certs=…`) takes what redis-py's `from_url` takes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlsplit

from asgi_enhance.errors import ConfigError

SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
_PARTS = re.compile(r"([^/?]*@)?([^/?]*)(?:/([^?]*))?(?:\?(.*))?", re.DOTALL)  # login@, hosts, path, query
_ENCODE = "(in a password, / ? # [ ] and the like must be percent-encoded)"
_PORTS = {"sentinel": 26379, "cluster": 6379}


@dataclass(frozen=True, slots=True)
class Address:
    """What a URL says. `kind` is "single", "sentinel" or "cluster"; `seeds` are the hosts it names."""

    kind: str
    label: str
    seeds: tuple[tuple[str, int], ...] = ()
    service: str = ""
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, url: str) -> "Address":
        """Read a URL; `ConfigError` that shows it without its password."""
        from redis.asyncio.connection import parse_url

        label = without_password(url)
        scheme, separator, rest = url.partition("://")
        if not separator or scheme not in SCHEMES:
            raise ConfigError(f"url: {label!r} must start with one of {', '.join(f'{name}://' for name in SCHEMES)}")
        try:
            if "+" not in scheme:
                _check(scheme, rest)
                return cls(kind="single", label=label, options=parse_url(url))
            base, kind = scheme.split("+")
            login, hosts, path, query = _PARTS.fullmatch(rest).groups(default="")  # type: ignore[union-attr]
            seeds = tuple(_seed(host, _PORTS[kind]) for host in hosts.split(","))
            service, database = "", path
            if kind == "sentinel":
                service, _, database = path.partition("/")
                if not service:
                    raise ValueError("name the service after the hosts: redis+sentinel://host:26379/service/0")
            one = f"{login}host/{database}?{query}"
            _check(base, one)
            options = parse_url(f"{base}://{one}")
        except ValueError as error:
            raise ConfigError(f"url: {label!r}: {error}") from None
        del options["host"]
        if kind == "cluster" and options.pop("db", 0):
            raise ConfigError(f"url: {label!r}: a cluster has database 0 only")
        return cls(kind=kind, label=label, seeds=seeds, service=service, options=options)


def without_password(url: str) -> str:
    """The URL with its password, in the authority or the query, replaced by `***`.

    Also what may be one by mistake: a name without a password, and in the place of a port what is no number.
    """
    scheme, separator, rest = url.partition("://")
    login, at, rest = rest.rpartition("@")
    if at:
        user, colon, _ = login.partition(":")
        login = f"{user}:***" if colon else "***"
    elif "[" not in rest:
        rest = re.sub(r"^([^/?:]*:)(?!\d+(?:[,/?]|$))[^?]*", r"\1***", rest)
    rest = re.sub(r"(?i)((?:^|[?&])[^=&]*password=)[^&]*", r"\1***", rest)
    return f"{scheme}{separator}{login}{at}{rest}"


# The messages below show nothing of the URL: what stands where a host is expected may be a piece of a password.


def _seed(host: str, port: int) -> tuple[str, int]:
    parts = _split(f"//{host}")
    if not parts.hostname:
        raise ValueError("an empty name is not a host")
    return parts.hostname, parts.port or port


def _check(scheme: str, rest: str) -> None:
    """redis-py takes a database it cannot read for 0."""
    parts = _split(f"{scheme}://{rest}")
    if scheme != "unix" and not re.fullmatch(r"/?\d*", parts.path):
        raise ValueError(f"the database must be a number {_ENCODE}")


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # read when it is asked for
    except ValueError:
        raise ValueError(f"this is no host and port {_ENCODE}") from None
    return parts
