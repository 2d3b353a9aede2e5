"""Whose request is it? Turns a request into the identity that a limit is kept for.

A key is any callable `key(scope)`, sync or async, that returns a string, bytes, an integer, a tuple of these, or None
for "this rule is not about this request". The ones here are the usual ones.
"""

import logging
from collections.abc import Awaitable, Callable
from functools import cache, lru_cache
from hashlib import blake2b
from ipaddress import ip_network
from typing import Any, TypeAlias

from asgi_enhance.asgi.address import ClientAddress, normalise
from asgi_enhance.asgi.scope import header
from asgi_enhance.asgi.types import Scope
from asgi_enhance.errors import ConfigError, RateLimitError

logger = logging.getLogger("asgi_enhance.ratelimit")

Identity: TypeAlias = str | bytes | int | tuple[Any, ...] | None
Key = Callable[[Scope], Identity | Awaitable[Identity]]

LONGEST = 64
"""Characters of an identity that are kept as they are; longer ones are hashed, so that nobody fills the memory."""

LOOKS = 1000
"""Requests that are looked at for a proxy that nobody has named: one that stands in front is in each of them."""

PEER = ClientAddress()
"""Believes nobody."""

UNKNOWN = "\0unknown"
"""All clients without an address (UNIX sockets, mostly) together. No real address is spelled like this."""


def by_client(address: ClientAddress | None = None, *, ipv6_prefix: int = 64) -> Key:
    """The client's address. An IPv6 client is its network of `ipv6_prefix` bits: one customer has all of that.

    Raises ConfigError for an `ipv6_prefix` outside 1 to 128.
    """
    if not 1 <= ipv6_prefix <= 128:
        raise ConfigError(f"ipv6_prefix must be from 1 to 128, not {ipv6_prefix!r}")

    @lru_cache(maxsize=4096)
    def network(text: str) -> str:
        plain = normalise(text.partition("%")[0])
        if plain is None or ":" not in plain:
            return plain or text
        return str(ip_network(f"{plain}/{ipv6_prefix}", strict=False))

    looks = LOOKS

    def peer(scope: Scope) -> Identity:
        nonlocal looks
        if looks:
            looks = 0 if _look(PEER, scope) else looks - 1
        client = scope.get("client")
        if not client or not client[0]:
            return UNKNOWN
        text: str = client[0]
        return network(text) if ":" in text else text

    def behind_proxies(scope: Scope) -> Identity:
        nonlocal looks
        assert address is not None
        if looks:
            looks = 0 if _look(address, scope) else looks - 1
        text = address(scope)
        if text is None:
            return UNKNOWN
        return network(text) if ":" in text else text

    return peer if address is None else behind_proxies


def _look(address: ClientAddress, scope: Scope) -> bool:
    """Whether there is a proxy in front that nobody has named. It is said once a process."""
    field = address.ignored(scope)
    client = scope.get("client")
    peer = normalise(client[0]) if client and client[0] else "unix"
    if field is None or peer is None:
        return False
    if not _told:
        _told.append(peer)
        logger.warning(
            "%s from %r is not believed: all who come through it are limited as one client. If it is a proxy of yours, "
            "trust it: client=ClientAddress(trusted=[%r]), or trusted_proxies of EnhancedAPI's settings",
            *(field, peer, peer),
        )
    return True


_told: list[str] = []


def by_header(name: str) -> Key:
    """The value of a request header, such as an API key. Requests without it are not this rule's.

    Whoever can make values up has as many buckets as he likes: check them first, or keep a rule by client beside it.
    """
    wanted = name.lower().encode("latin-1")

    def key(scope: Scope) -> Identity:
        return header(scope["headers"], wanted)

    return key


def by_user(scope: Scope) -> Identity:
    """The user that an authentication layer further out has put into `scope["user"]`; nobody's if there is none."""
    if "user" not in scope:
        _say_that_nobody_authenticates()
    user = scope.get("user")
    if user is None or not getattr(user, "is_authenticated", True):
        return None
    if isinstance(user, str | int):
        return user
    for attribute in ("identity", "id", "username", "display_name"):
        try:
            value = user[attribute] if isinstance(user, dict) else getattr(user, attribute)
        except (AttributeError, KeyError, NotImplementedError):
            continue
        if value not in (None, ""):
            return value if isinstance(value, str | int | bytes) else str(value)
    return None


@cache
def _say_that_nobody_authenticates() -> None:
    logger.warning(
        'a rule by user does not apply: the scope has no "user". The layer that authenticates must be outside this one'
    )


def combine(*keys: Key) -> Key:
    """All of the keys together; None if any of them is."""

    async def key(scope: Scope) -> Identity:
        parts = []
        for one in keys:
            part = one(scope)
            if isinstance(part, Awaitable):
                part = await part
            if part is None:
                return None
            parts.append(part)
        return tuple(parts)

    return key


def spell(identity: Any) -> str:
    """An identity as one string that no other identity has: types and the parts of tuples are told apart."""
    if isinstance(identity, str):
        text = identity if not identity.startswith("\0") or identity in (UNKNOWN,) else f"\0s{identity}"
    elif isinstance(identity, bytes):
        text = f"\0b{identity.decode('latin-1')}"
    elif isinstance(identity, int) and not isinstance(identity, bool):
        text = f"\0i{identity:x}"
    elif isinstance(identity, tuple):
        text = "\0t" + "".join(f"{len(part)}:{part}" for part in map(spell, identity))
    else:
        raise RateLimitError(
            f"a key must give a str, bytes, int, a tuple of these or None, not {type(identity).__name__}"
        )
    return text if len(text) <= LONGEST else f"\0h{digest(text)}"


@lru_cache(maxsize=4096)
def digest(identity: str) -> str:
    """128 bits of the identity, in hexadecimal: what leaves this process."""
    return blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
