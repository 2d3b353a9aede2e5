"""May this response be stored, and on which terms (RFC 9111 3)?

The response decides, by what it says of itself; a rule of the operator speaks only where the response says nothing.
What is refused is refused with a word that says why, which Cache-Status shows as its `detail`.
"""

from collections.abc import Callable
from typing import Final

import msgspec

from asgi_enhance.asgi.types import HOP_BY_HOP, Headers, RawHeaders
from asgi_enhance.cache.entry import Entry
from asgi_enhance.cache.policy import fields, freshness, vary
from asgi_enhance.cache.policy.fields import Directives, Index
from asgi_enhance.cache.policy.options import Options
from asgi_enhance.cache.request import Request, resolved
from asgi_enhance.cache.rules import CacheRule

CONNECTION_ONLY: Final = HOP_BY_HOP | {b"proxy-authentication-info"}
"""RFC 9111 3.1: these belong to one connection, not to the response."""

OF_ONE_CLIENT: Final = frozenset(
    {b"ratelimit", b"ratelimit-policy", b"x-ratelimit-limit", b"x-ratelimit-remaining", b"x-ratelimit-reset"}
)
"""What a limit further in has told who asked (draft-ietf-httpapi-ratelimit-headers: a stored one is ignored)."""

NOT_KEPT: Final = CONNECTION_ONLY | OF_ONE_CLIENT | {b"age"}

UNDERSTOOD: Final = frozenset(
    {200, 203, 204, 300, 301, 302, 303, 307, 308, 400, 401, 403, 404, 405, 410, 414, 421, 451, 500, 501, 502, 503, 504}
)
"""Statuses whose caching this cache knows all about: `must-understand` may take the place of `no-store` (5.2.2.3)."""

SCHEMES: Final = frozenset({b"http", b"https"})

Rng = Callable[[], float]


class Received(msgspec.Struct):
    """A response as it came from the app, and when."""

    status: int
    headers: Headers
    requested: float
    """When the app was asked, by the clock of the cache."""
    received: float
    trailers: bool = False
    not_modified: bool = False
    """It is a stored response whose fields a 304 has just updated, not one that came whole."""


def terms(request: Request, response: Received, options: Options, rule: CacheRule | None, rng: Rng) -> Entry | str:
    """The entry to be kept, its body still empty, or why there is none, in a word."""
    status, headers, now = response.status, response.headers, response.received
    if request.method == "GET" and fields.is_no_store(headers, options.governing):
        return "no-store"  # what most responses of an app say that are not to be kept, at a third of the price
    index = fields.index(headers, options.telling)
    directives, aimed = _directives(index, options.targeted)
    reason = _obstacle(request, response, index, directives, options, shared=not options.private)
    if reason is not None:
        return reason

    date_lines = index.get(b"date", ())
    date = fields.http_date(date_lines[0], now) if date_lines else None
    if date is None:
        date = now
    expires = () if aimed else index.get(b"expires", ())
    lifetime = freshness.explicit_lifetime(directives, expires, date, now, shared=not options.private)
    explicit = lifetime is not None
    modified = index.get(b"last-modified", ())
    swr, sie = _window(directives, "stale-while-revalidate"), _window(directives, "stale-if-error")
    if lifetime is None:
        if request.method == "POST":
            return "no-explicit-freshness"  # RFC 9110 9.3.3; no rule can know what was posted
        if _is_event_stream(index):
            return "no-freshness"
        if status in options.negative_ttl:
            lifetime, explicit = options.negative_ttl[status], True
        elif rule is not None and rule.ttl is not None and status in rule.statuses:
            lifetime, explicit = rule.ttl, True
        else:
            last_modified = fields.http_date(modified[0], now) if modified else None
            public = "public" in directives
            lifetime = freshness.heuristic_lifetime(options.heuristic, status, public, last_modified, date)
    if rule is not None:
        swr = rule.stale_while_revalidate if swr is None and rule.stale_while_revalidate is not None else swr
        sie = rule.stale_if_error if sie is None and rule.stale_if_error is not None else sie
    if not explicit and status >= 400 and not lifetime:
        return "no-explicit-freshness"
    if options.jitter:
        lifetime *= 1.0 - options.jitter * rng()

    strict = options.invalid_age == "stale"
    age = freshness.initial_age(index.get(b"age", ()), date, response.requested, now, strict=strict)
    veto = not (_VETO if options.private else _SHARED_VETO).isdisjoint(directives)
    no_cache = directives.get("no-cache", False) is None
    etag = next(iter(index.get(b"etag", ())), None)
    swr, sie = (swr or 0.0, sie or 0.0) if not (veto or no_cache) else (0.0, 0.0)
    if age is None:
        age, lifetime = 0.0, 0.0
    remaining = lifetime - age
    validator = etag is not None or bool(modified)
    if not validator and (no_cache or max(remaining + swr, remaining + sie) <= 0):
        return "no-freshness" if not explicit else "never-fresh"

    nominated = _vary(index, rule)
    if nominated is None:
        return "vary-star"
    if not options.private and b"x-forwarded-proto" in options.risky_headers and _forwards_scheme(request):
        nominated = tuple(sorted({*nominated, b"x-forwarded-proto"}))
    if len(nominated) > options.max_vary:
        return "vary-too-many"
    omitted = _qualified(directives)
    if options.set_cookie == "strip":
        omitted |= {b"set-cookie", b"set-cookie2"}
    born = now - age
    return Entry(
        status=status,
        headers=_replayable(headers, index, omitted),
        born=born,
        lifetime=lifetime,
        fresh_until=0.0 if no_cache else born + lifetime,
        received=now,
        date=date,
        kept_until=now + max(remaining, 0.0) + max(swr, sie, KEEP_TO_VALIDATE if validator else 0.0),
        stale_while_revalidate=swr,
        stale_if_error=sie,
        must_revalidate=veto,
        no_cache=no_cache,
        etag=etag,
        last_modified=modified[0] if modified else None,
        vary=nominated,
        vary_values=request.variant(nominated),
        tags=_tags(request, index, rule),
        no_vary_search=b", ".join(index.get(b"no-vary-search", ())),
    )


KEEP_TO_VALIDATE: Final = 3600.0
"""How long a stale response with a validator is kept: a 304 is cheaper than a body, memory is not free."""


def _replayable(headers: RawHeaders, index: Index, omitted: frozenset[bytes]) -> tuple[tuple[bytes, bytes], ...]:
    """The fields that are part of the stored response: without those of a connection, and without Age."""
    dropped = NOT_KEPT
    if omitted or b"connection" in index:
        dropped = NOT_KEPT | omitted | {name.lower() for name in fields.members(index.get(b"connection", ()))}
    return tuple([(bytes(name), bytes(value)) for name, value in headers if name.lower() not in dropped])


def complete(entry: Entry, body: bytes) -> bool:
    """RFC 9111 3.3: a body that is shorter or longer than it said is not the response."""
    length = b"%d" % len(body)
    lines = fields.values(entry.headers, b"content-length")
    return all(line == length or {value.strip() for value in line.split(b",")} == {length} for line in lines)


def _directives(index: Index, targets: tuple[bytes, ...]) -> tuple[Directives, bool]:
    """The directives that count (RFC 9213 2.2), and whether they were aimed at caches like this one."""
    for name in targets:
        lines = index.get(name, ())
        if lines and (directives := fields.targeted(lines)) is not None:
            return directives, True
    return fields.cache_control(index.get(b"cache-control", ())), False


def _obstacle(
    request: Request, response: Received, index: Index, directives: Directives, options: Options, *, shared: bool
) -> str | None:
    status = response.status
    if request.method != "GET" and not response.not_modified and not _is_what_get_would_get(request, response, index):
        return "method"
    if status < 200 or status in (206, 304):
        return "partial" if status == 206 else "status"
    length = index.get(b"content-length")
    if length is not None and fields.delta_seconds(length[0].strip()) > options.max_body:
        return "too-large"
    if response.trailers:
        return "trailers"
    understood = "must-understand" in directives and status in UNDERSTOOD
    if "must-understand" in directives and not understood:
        return "not-understood"
    if "no-store" in directives and not understood:
        return "no-store"
    if "no-store" in request.directives:
        return "request-no-store"
    if shared and directives.get("private", False) is None:
        return "private"
    if options.set_cookie == "refuse" and not _COOKIES.isdisjoint(index):
        return "set-cookie"
    parts = [part for field in response.headers for part in field]
    text = b"".join(parts)
    if b"" in parts[::2] or b"\n" in text or b"\r" in text or b"\0" in text:
        return "invalid-field"
    return _personal(request, index, directives, options) if shared else None


def _is_what_get_would_get(request: Request, response: Received, index: Index) -> bool:
    """RFC 9110 9.3.3: the response to a POST is one to GET if its Content-Location is the target itself."""
    location = index.get(b"content-location", ())
    return (
        request.method == "POST"
        and response.status == 200
        and len(location) == 1
        and resolved(request.url, location[0]) == request.url
    )


def _personal(request: Request, index: Index, directives: Directives, options: Options) -> str | None:
    """RFC 9111 3.5, and what it leaves to the cache: is a response to somebody's request for everybody?"""
    for_all = "public" in directives or "s-maxage" in directives
    for name, value in request.headers:
        if name == b"authorization":
            if not (for_all or "must-revalidate" in directives):
                return "authorization"
        elif name == b"cookie":
            if options.cookies == "explicit" and not for_all and b"cookie" not in (_vary(index, None) or ()):
                return "cookie"
        elif name in options.risky_headers and not _said_by_the_key(request, name, value):
            return "unkeyed-header"
    return None


def _said_by_the_key(request: Request, name: bytes, value: bytes) -> bool:
    """Nearly every proxy writes these two: the host as it came, and one of two schemes, which are told apart."""
    if name == b"x-forwarded-host":
        return value.lower() == request.url[2]
    return name == b"x-forwarded-proto" and value in SCHEMES


def _forwards_scheme(request: Request) -> bool:
    """As where TLS ends in front of us: apps redirect and make links by what a proxy says of it."""
    return any(name == b"x-forwarded-proto" for name, _ in request.headers)


def _vary(index: Index, rule: CacheRule | None) -> vary.VaryNames | None:
    lines = index.get(b"vary", ())
    if rule is not None:
        lines = (*lines, *rule.nominated)
    return vary.names(lines) if lines else ()


def _is_event_stream(index: Index) -> bool:
    """What is told as it happens is old when it is whole; nobody shall wait for that unless the app says so."""
    return any(kind.lower().startswith(b"text/event-stream") for kind in index.get(b"content-type", ()))


def _window(directives: Directives, name: str) -> float | None:
    seconds = directives.get(name)
    return float(max(0, seconds)) if isinstance(seconds, int) else None


def _qualified(directives: Directives) -> frozenset[bytes]:
    """The fields that `no-cache="…"` and `private="…"` keep out of the store: never sent, so never sent unvalidated."""
    listed: frozenset[bytes] = frozenset()
    for name in ("no-cache", "private"):
        names = directives.get(name)
        if isinstance(names, frozenset):
            listed |= names
    return listed


def _tags(request: Request, index: Index, rule: CacheRule | None) -> tuple[str, ...]:
    if rule is None and _TAGGING.isdisjoint(index):
        return ()
    groups = fields.strings(index.get(b"cache-groups", ()))
    tags = [group_tag(request.origin, group) for group in groups]
    for line in index.get(b"surrogate-key", ()):
        tags.extend(tag.decode("latin-1") for tag in line.split())
    tags.extend(tag.decode("latin-1") for tag in fields.members(index.get(b"cache-tag", ())))
    if rule is not None:
        tags.extend(rule.tags)
    return tuple(dict.fromkeys(tags))


def group_tag(origin: str, group: str) -> str:
    """RFC 9875: a group is known within its origin only. No Surrogate-Key can hold a space, so none can pretend."""
    return f"{origin} {group}"


_VETO: Final = frozenset({"must-revalidate"})
_SHARED_VETO: Final = frozenset({"must-revalidate", "proxy-revalidate", "s-maxage"})
_TAGGING: Final = frozenset({b"cache-groups", b"surrogate-key", b"cache-tag"})
_COOKIES: Final = frozenset({b"set-cookie", b"set-cookie2"})
