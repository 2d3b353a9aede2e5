"""A shared HTTP cache (RFC 9111) as an ASGI layer. Here is what a hit needs; the rest of a request is an Exchange."""

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf
from typing import Any, Literal

from asgi_enhance.asgi.lifespan import run_lifespan
from asgi_enhance.asgi.scope import path_below_mount
from asgi_enhance.asgi.types import ASGIApp, Headers, Message, Receive, Scope, Send
from asgi_enhance.cache.core import Cache, Shelf
from asgi_enhance.cache.entry import Entry
from asgi_enhance.cache.exchange import Exchange
from asgi_enhance.cache.memory import MemoryCache
from asgi_enhance.cache.passing import Passing
from asgi_enhance.cache.policy import invalidation, status
from asgi_enhance.cache.policy.conditional import asking
from asgi_enhance.cache.policy.options import RISKY_HEADERS, Options
from asgi_enhance.cache.policy.reuse import DIRECTIVES
from asgi_enhance.cache.request import WATCHED, Key, Request, says
from asgi_enhance.cache.rules import CacheRule, field_names
from asgi_enhance.errors import ConfigError
from asgi_enhance.options import checked


@checked
class CacheMiddleware:
    """Stores what the app's responses allow to be stored, and answers with it.

    app:        the ASGI app whose responses are cached.
    cache:      where they are kept. Default: a MemoryCache of its own, or a RedisCache if `redis` is given.
    redis:      a RedisManager, or a URL: shorthand for `cache=RedisCache(redis)`.
    rules:      CacheRules for apps that send no Cache-Control; the first whose path matches counts.
    private:    True: a cache for each user (told apart by Authorization and Cookie), which stores what is `private`
                and ignores `s-maxage`. Default: one shared cache.
    namespace:  put in front of every key: two apps, or two releases, that share a store. Default: "".
    key_headers: request fields that are part of the key whether or not a response names them in Vary.
    max_body:   larger bodies are passed on and not kept, in bytes. Default 1 MiB; never more than the cache holds.
    max_vary:   responses that vary by more fields than this are not kept. Default 8.
    heuristic:  the fraction of the time since Last-Modified for which a response without freshness is fresh
                (RFC 9111 4.2.2); 0.1 is usual. Default 0: only what is said counts.
    negative_ttl: status → seconds, for errors without freshness of their own: `{404: 10}`. Default: none is kept.
    targeted:   fields that speak to this cache in particular, the most specific first (RFC 9213).
                Default: CDN-Cache-Control.
    set_cookie: a response with Set-Cookie is not kept ("refuse"), kept without it ("strip"), or kept ("store").
    cookies:    "explicit": a response to a request with a Cookie is kept only if it says `public`, `s-maxage` or
                `Vary: Cookie`. "ignore": cookies make no difference.
    risky_headers: request fields that are in no key but that apps may act upon: with one of them nothing is stored,
                unless `key_headers` names it. X-Forwarded-Host that is the Host, and X-Forwarded-Proto of http or
                https, which is told apart, are no risk.
    honour:     the request directives that are listened to, of max-age, max-stale, min-fresh, no-cache, no-store and
                only-if-cached. Default: those with which a client cannot make the app work.
    invalid_age: an Age that cannot be read, or is more than one, is ignored as RFC 9111 5.1 advises ("ignore"), or
                taken as a sign that the response may be of any age ("stale").
    collapse:   whether requests for the same thing wait for one call of the app. Default True.
    early:      XFetch's beta: entries are renewed ahead of time, the likelier the dearer they were. 1.0 is usual.
                Default 0: off.
    jitter:     up to this fraction is taken off each lifetime, so that what was stored together does not expire
                together. Default 0.
    refresh_timeout: how long a renewal in the background may take, in seconds. Default 30.
    encodings:  the content codings the app may choose from: Accept-Encoding is normalised to these for Vary.
    age:        whether hits carry Age. RFC 9111 wants it; it also tells strangers when somebody asked first.
    cache_status: the name of this cache in Cache-Status (RFC 9211), or None for no such field.
    rng:        random numbers in [0, 1) for `early` and `jitter`, for tests.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        cache: Cache[Any] | None = None,
        redis: Any = None,
        rules: Sequence[CacheRule] = (),
        private: bool = False,
        namespace: str = "",
        key_headers: Iterable[str] = (),
        max_body: int = 1 << 20,
        max_vary: int = 8,
        heuristic: float = 0.0,
        negative_ttl: Mapping[int, float] | None = None,
        targeted: Iterable[str] = ("CDN-Cache-Control",),
        set_cookie: Literal["refuse", "strip", "store"] = "refuse",
        cookies: Literal["explicit", "ignore"] = "explicit",
        risky_headers: Iterable[str] | None = None,
        honour: Iterable[str] = ("max-stale", "no-store", "only-if-cached"),
        invalid_age: Literal["ignore", "stale"] = "ignore",
        collapse: bool = True,
        early: float = 0.0,
        jitter: float = 0.0,
        refresh_timeout: float = 30.0,
        encodings: Iterable[str] = ("br", "gzip", "zstd", "deflate"),
        age: bool = True,
        cache_status: str | None = "asgi-enhance",
        rng: Callable[[], float] = random.random,
    ) -> None:
        if cache is not None and redis is not None:
            raise ConfigError("cache and redis exclude each other: give one of them")
        if unknown := set(honour) - DIRECTIVES:
            raise ConfigError(f"honour: unknown request directives {sorted(unknown)}")
        if set_cookie not in ("refuse", "strip", "store"):
            raise ConfigError(f"set_cookie must be 'refuse', 'strip' or 'store', not {set_cookie!r}")
        if cookies not in ("explicit", "ignore"):
            raise ConfigError(f"cookies must be 'explicit' or 'ignore', not {cookies!r}")
        if invalid_age not in ("ignore", "stale"):
            raise ConfigError(f"invalid_age must be 'ignore' or 'stale', not {invalid_age!r}")
        for name, fraction in (("heuristic", heuristic), ("jitter", jitter)):
            if not 0.0 <= fraction <= 1.0:
                raise ConfigError(f"{name} must be between 0 and 1, not {fraction!r}")
        for name, number in (("max_body", max_body), ("max_vary", max_vary), ("early", early)):
            if not number >= 0:
                raise ConfigError(f"{name} must be at least 0, not {number!r}")
        for code, seconds in (negative_ttl or {}).items():
            if not 0 < seconds < inf:
                raise ConfigError(f"negative_ttl[{code}] must be a number of seconds above 0, not {seconds!r}")
        if not refresh_timeout > 0:
            raise ConfigError(f"refresh_timeout must be more than 0 seconds, not {refresh_timeout!r}")
        if cache_status is not None and not _is_token(cache_status):
            raise ConfigError(f"cache_status must be a token, not {cache_status!r}")
        risky = RISKY_HEADERS if risky_headers is None else frozenset(field_names("risky_headers", risky_headers))
        self.app = app
        self.cache: Cache[Any] = cache if cache is not None else _default_cache(redis)
        self.stats = self.cache.stats
        self.options = Options(
            private=private,
            heuristic=heuristic,
            targeted=field_names("targeted", targeted),
            set_cookie=set_cookie,
            cookies=cookies,
            risky_headers=risky.difference(field_names("key_headers", key_headers)),
            negative_ttl=dict(negative_ttl or {}),
            max_body=int(min(max_body, self.cache.largest)),
            max_vary=max_vary,
            jitter=jitter,
            invalid_age=invalid_age,
            honour=frozenset(honour),
            encodings=field_names("encodings", encodings),
        )
        self.collapse = collapse
        self.early = early
        self.rng = rng
        self.refresh_timeout = refresh_timeout
        self.age = age
        self.cache_status = cache_status is not None
        self.cache_name = (cache_status or "").encode("ascii")
        self.hit = self.cache_name + b"; hit; ttl=%d"
        self.follower = {why: self.cache_name + told + b"; collapsed" for why, told in status.FORWARDED.items()}
        self._rules = tuple(rules)
        self._namespace = namespace.encode()
        credentials = (b"authorization", b"cookie") if private else ()
        self._partition_by = (*field_names("key_headers", key_headers), *credentials)
        self._glances = not (self._partition_by or early)
        self._find = self.cache.glance
        self._clock = self.cache.clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await run_lifespan(self.app, scope, receive, send, (self.cache,))
            else:
                await self.app(scope, receive, send)
            return
        method = scope["method"]
        url = self._plain(scope) if self._glances and method == "GET" else None
        if url is not None and (shelf := self._find(url)) is not None:
            entry = shelf.only
            if entry is None:
                if not self._rules and says(url[3], scope["path"]):
                    await Passing(self, scope, receive, send, url).run()
                    return
            elif (now := self._clock()) < entry.fresh_until and shelf.path == scope["path"] and not entry.purged:
                self.stats.hits += 1
                by, age, headers = shelf.sent
                if by is not self or age != int(now - entry.born):
                    headers = self._render(shelf, entry, now)
                await send({"type": "http.response.start", "status": entry.status, "headers": headers.copy()})
                await send({"type": "http.response.body", "body": entry.body})
                return
        request = self.request(scope, url if url is not None and says(url[3], scope["path"]) else None)
        exchange = Exchange(self, scope, receive, send, request)
        self.cache.simplify(request)
        if method in ("GET", "HEAD"):
            await exchange.run(self.cache.peek(request))
        elif method in invalidation.SAFE:
            await self.app(scope, receive, send)
        else:
            await exchange.write_through()

    def request(self, scope: Scope, url: Key | None = None) -> Request:
        """What the cache asks of a request. `url`: what `_plain` has found."""
        return Request(scope, self._namespace, self._partition_by, self.options.encodings, url)

    def _plain(self, scope: Scope) -> Key | None:
        """The URL of a request that asks for nothing but the response, in one look; `Request` reads the others.

        Whether the path is still what the client wrote is for who uses it to look.
        """
        host, watched = None, WATCHED  # a local name is found faster, and this is asked of every header
        for field in scope["headers"]:
            if field[0] in watched:
                if host is not None or field[0] != b"host":
                    return None
                host = field[1]
        path = scope.get("raw_path")
        if host is None or path is None or b"?" in path:
            return None
        return self._namespace, scope.get("scheme", "http"), host.lower(), path, scope.get("query_string", b"")

    def _render(self, shelf: Shelf, entry: Entry, now: float) -> Headers:
        """The fields of a hit, which are the same until the entry is a second older."""
        age = entry.age(now)
        headers = [*entry.headers]
        if self.age:
            headers.append((b"age", b"%d" % age))
        if self.cache_status:
            headers.append((b"cache-status", self.hit % (int(entry.lifetime) - age)))
        shelf.sent = (self, age, headers)
        return headers

    def rule(self, scope: Scope) -> CacheRule | None:
        """The rule for this path, if there is one."""
        if not self._rules:
            return None
        path = path_below_mount(scope)
        return next((rule for rule in self._rules if rule.matches(path)), None)

    def cacheable(self, request: Request) -> bool:
        """Whether the cache may answer at all: If-Match and If-Unmodified-Since are for the origin (RFC 9111 4.3.2)."""
        return request.plain or not (b"if-match" in request.fields or b"if-unmodified-since" in request.fields)

    def storable(self, request: Request) -> bool:
        """Whether there is any chance that the response may be kept, as far as the request can tell."""
        return b"range" not in request.fields and "no-store" not in request.directives

    async def refresh(self, scope: Scope, request: Request, stale: Entry) -> None:
        """Renew an entry behind the client's back, unless somebody is at it."""
        if self.cache.flights.find(self.cache.flight_name(request)) is None:
            running = await self.cache.started()
            running.tasks.spawn(self._refresh(scope, stale), name="asgi_enhance.cache.refresh")

    async def _refresh(self, scope: Scope, stale: Entry) -> None:
        scope = {**scope, "method": "GET", "headers": asking(scope["headers"], None)}
        if "state" in scope:
            scope["state"] = dict(scope["state"])
        request = self.request(scope)
        self.cache.simplify(request)
        if self.cache.flights.find(self.cache.flight_name(request)) is None:
            async with asyncio.timeout(self.refresh_timeout):
                await Exchange(self, scope, _Nobody(), _discard, request).renew(stale)


class _Nobody:
    """The client of a renewal: it has asked, it says nothing more, and it never leaves."""

    __slots__ = ("_asked",)

    def __init__(self) -> None:
        self._asked = False

    async def __call__(self) -> Message:
        if self._asked:
            await asyncio.get_running_loop().create_future()
        self._asked = True
        return {"type": "http.request", "body": b"", "more_body": False}


async def _discard(message: Message) -> None:
    """Nobody reads what a renewal sends."""


def _default_cache(redis: Any) -> Cache[Any]:
    if redis is None:
        return MemoryCache()
    from asgi_enhance.cache.redis import RedisCache

    return RedisCache(redis)


def _is_token(name: str) -> bool:
    return (
        name.isascii()
        and bool(name)
        and (name[0].isalpha() or name[0] == "*")
        and all(character.isalnum() or character in "!#$%&'*+-.^_`|~:/" for character in name)
    )
