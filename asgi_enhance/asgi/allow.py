"""Who may see the inside? Predicates on a scope, for the pages that are not for everybody.

MetricsMiddleware(app, allow=from_networks("10.0.0.0/8"))
HealthMiddleware(app, allow=with_token(os.environ["PROBE_TOKEN"]))
"""

import hmac
from collections.abc import Callable

from asgi_enhance.asgi.address import ClientAddress
from asgi_enhance.asgi.scope import header
from asgi_enhance.asgi.types import Scope
from asgi_enhance.errors import ConfigError

Allow = Callable[[Scope], bool]


def from_networks(*networks: str, client: ClientAddress | None = None) -> Allow:
    """Clients whose address is in one of `networks` (CIDR); `client` knows the proxies in front. Default: none are."""
    if not networks:
        raise ConfigError("networks: name at least one")
    inside = ClientAddress(networks)
    address = client or ClientAddress()
    return lambda scope: inside.trusts(address(scope))


def with_token(*tokens: str) -> Allow:
    """Requests that bring one of `tokens` as `Authorization: Bearer`, compared in constant time."""
    wanted = [token.encode() for token in tokens]
    if not wanted or not all(wanted):
        raise ConfigError("tokens: name at least one, and no empty one")

    def allow(scope: Scope) -> bool:
        kind, _, token = (header(scope["headers"], b"authorization") or b"").partition(b" ")
        known = [hmac.compare_digest(token.strip(), one) for one in wanted]
        return kind.lower() == b"bearer" and any(known)

    return allow


def from_this_machine(scope: Scope) -> bool:
    """Who calls on the loopback and for himself: a proxy that forwards for others does not."""
    client = scope.get("client")
    if client is None or client[0] not in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
        return False
    return all(header(scope["headers"], name) is None for name in (b"forwarded", b"x-forwarded-for", b"x-real-ip"))
