"""Who is the client? The peer of the connection, unless a proxy that is trusted says otherwise.

The rules, after nginx's `real_ip_recursive` and Envoy's `xff_num_trusted_hops`:

- Nothing a client sends is believed unless the connection comes from a trusted network (`trusted`) or passes a
  known number of proxies (`hops`).
- Each proxy appends on the right, so the list is read from the right: the first address that is not trusted wins.
  What is not an address ends the walk; the last trusted address is the answer then.
- IPv4 written as IPv6 (`::ffff:192.0.2.1`) is IPv4. A peer without an address (a UNIX socket) is None and is
  trusted only if `trusted` contains `"unix"`.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from itertools import islice

from asgi_enhance.asgi.scope import header_values
from asgi_enhance.asgi.types import Scope
from asgi_enhance.errors import ConfigError
from asgi_enhance.options import checked

FIELDS = ("x-forwarded-for", "forwarded")

NEAREST = 16
"""Entries in which a server that has believed them is looked for."""


@lru_cache(maxsize=4096)
def normalise(text: str) -> str | None:
    """An address in its one canonical spelling, or None if `text` is not an address."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)


@checked
class ClientAddress:
    """A callable that tells the client's address of a scope, or None if there is none.

    trusted: networks (CIDR) or addresses of proxies whose word is taken; `"unix"` for UNIX sockets. Default: nobody.
    hops:    instead of networks: the number of proxies in front, the client is the `hops`-th entry from the right.
    header:  `"x-forwarded-for"` (default) or `"forwarded"` (RFC 7239), whichever the proxy in front sets.

    Raises ConfigError for a network that is not one, for `hops` < 1, for both at once, or another header.
    """

    def __init__(
        self, trusted: str | Iterable[str] = (), *, hops: int | None = None, header: str = "x-forwarded-for"
    ) -> None:
        names = (trusted,) if isinstance(trusted, str) else tuple(trusted)
        if hops is not None and names:
            raise ConfigError("trusted and hops exclude each other: give one of them")
        if hops is not None and hops < 1:
            raise ConfigError(f"hops must be at least 1, not {hops!r}")
        if header not in FIELDS:
            raise ConfigError(f"header must be 'x-forwarded-for' or 'forwarded', not {header!r}")
        self._unix = "unix" in names
        self._networks = tuple(_network(name) for name in names if name != "unix")
        self._hops = hops
        self._header = header.encode()
        self._is_trusted = lru_cache(maxsize=4096)(self._in_networks)

    def __call__(self, scope: Scope) -> str | None:
        peer = _peer(scope)
        if self._hops is not None:
            return self._hop(scope, peer)
        if not (self._networks or self._unix) or not self.trusts(peer):
            return peer
        return self._rightmost_untrusted(scope, peer)

    def trusts(self, address: str | None) -> bool:
        """Whether the word of this peer is taken. `address` is as `__call__` would give it."""
        return self._unix if address is None else self._is_trusted(address)

    def ignored(self, scope: Scope) -> str | None:
        """The field in which a peer who is not trusted speaks for others, if there is one.

        A server that has believed it already has made one of its addresses the peer.
        """
        peer = _peer(scope)
        if self._hops is not None or self.trusts(peer):
            return None
        for name in FIELDS:
            entries = tuple(islice(_entries(scope, name.encode()), NEAREST))
            if entries:
                return name if peer not in map(normalise, entries) else None
        return None

    def _hop(self, scope: Scope, peer: str | None) -> str | None:
        assert self._hops is not None
        entry = next(islice(_entries(scope, self._header), self._hops - 1, None), None)
        return peer if entry is None else normalise(entry) or peer

    def _rightmost_untrusted(self, scope: Scope, peer: str | None) -> str | None:
        answer = peer
        for entry in _entries(scope, self._header):
            address = normalise(entry)
            if address is None:
                break
            answer = address
            if not self.trusts(address):
                break
        return answer

    def _in_networks(self, text: str) -> bool:
        try:
            address = ip_address(text)
        except ValueError:
            return False
        return any(address in network for network in self._networks if network.version == address.version)


def _peer(scope: Scope) -> str | None:
    client = scope.get("client")
    text = client[0] if client else None
    return (normalise(text) or text) if text else None


def _entries(scope: Scope, header: bytes) -> Iterator[str]:
    """What the proxies have written, the nearest one first."""
    for line in reversed(header_values(scope.get("headers", ()), header)):
        text = line.decode("latin-1")
        forwarded = header == b"forwarded"
        for part in _from_the_right(text, ",") if forwarded else reversed(text.split(",")):
            if entry := part.strip():
                yield _without_port(_forwarded_for(entry) if forwarded else entry)


def _network(name: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(name, strict=False)
    except ValueError as error:
        raise ConfigError(f"trusted: {name!r} is neither a network, an address nor 'unix'") from error


def _forwarded_for(element: str) -> str:
    for pair in _from_the_right(element, ";"):
        name, _, value = pair.partition("=")
        if name.strip().lower() == "for":
            return value.strip().strip('"')
    return ""


def _from_the_right(text: str, separator: str) -> Iterator[str]:
    """The parts between separators that are not inside quotes.

    Read from the right, as a quote that the client left open must not swallow what the proxies wrote after it.
    """
    end, quoted = len(text), False
    for at in range(len(text) - 1, -1, -1):
        if text[at] == '"':
            escapes = 0
            while quoted and text[at - 1 - escapes : at - escapes] == "\\":
                escapes += 1
            quoted = quoted == bool(escapes % 2)
        elif text[at] == separator and not quoted:
            yield text[at + 1 : end]
            end = at
    yield text[:end]


def _without_port(entry: str) -> str:
    if entry.startswith("["):
        return entry[1:].partition("]")[0]
    return entry.partition(":")[0] if entry.count(":") == 1 else entry
