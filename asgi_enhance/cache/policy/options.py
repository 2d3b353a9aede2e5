"""What the operator has chosen: the part of the middleware's options that decisions depend on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

RISKY_HEADERS: Final = frozenset(
    {
        b"forwarded",
        b"x-forwarded-host",
        b"x-forwarded-path",
        b"x-forwarded-port",
        b"x-forwarded-prefix",
        b"x-forwarded-proto",
        b"x-forwarded-scheme",
        b"x-forwarded-server",
        b"x-forwarded-ssl",
        b"x-host",
        b"x-http-host-override",
        b"x-http-method",
        b"x-http-method-override",
        b"x-method-override",
        b"x-middleware-prefetch",
        b"x-middleware-subrequest",
        b"x-nextjs-data",
        b"x-now-route-matches",
        b"x-original-host",
        b"x-original-url",
        b"x-rewrite-url",
    }
)
"""Request fields that are in no cache key and that frameworks act upon: with one of them a client could make the app
write a response which the cache then hands to everybody."""

TELLING: Final = frozenset(
    {
        b"age",
        b"cache-groups",
        b"cache-tag",
        b"connection",
        b"content-length",
        b"content-location",
        b"content-type",
        b"date",
        b"etag",
        b"expires",
        b"last-modified",
        b"no-vary-search",
        b"set-cookie",
        b"set-cookie2",
        b"surrogate-key",
        b"vary",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """See CacheMiddleware, which documents each of them."""

    private: bool = False
    heuristic: float = 0.0
    targeted: tuple[bytes, ...] = (b"cdn-cache-control",)
    set_cookie: Literal["refuse", "strip", "store"] = "refuse"
    cookies: Literal["explicit", "ignore"] = "explicit"
    risky_headers: frozenset[bytes] = RISKY_HEADERS
    negative_ttl: Mapping[int, float] = field(default_factory=dict)
    max_body: int = 1 << 20
    max_vary: int = 8
    jitter: float = 0.0
    invalid_age: Literal["ignore", "stale"] = "ignore"
    honour: frozenset[str] = frozenset()
    encodings: tuple[bytes, ...] = (b"br", b"gzip", b"zstd", b"deflate")
    governing: frozenset[bytes] = field(init=False)
    """The response fields that hold directives."""
    telling: frozenset[bytes] = field(init=False)
    """The response fields that decide whether and how a response is kept."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "governing", frozenset({b"cache-control", *self.targeted}))
        object.__setattr__(self, "telling", TELLING | self.governing)
