"""The route a request took, as the template it was declared with; never the path itself.

Routers write what they decided into the scope: Starlette and FastAPI the endpoint, Litestar the template. An endpoint
is looked up in a map of the whole tree of routes, made once: mounts, included routers and sub-apps contribute their
prefixes. Where an endpoint is declared more than once, the path is held against the patterns of its places. What
a framework keeps to itself (Quart, Falcon, Django), a hook of `asgi_enhance.metrics.hooks` writes to `scope[HOOK]`.
What never reached the router (a cache hit, a refusal of the rate limiter) is named by the routes that it would have
been held against there.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from re import Pattern
from typing import Any

from asgi_enhance.asgi.scope import path_below_mount
from asgi_enhance.asgi.types import Scope

HOOK = "asgi_enhance.route"
UNMATCHED = "<unmatched>"

MOST_TREES = 16
"""Router trees that are remembered; more means that somebody builds apps by the request."""

MOST_PATHS = 4096
"""Paths answered before they were routed whose template is remembered."""

_DEEPEST = 32


@dataclass(frozen=True, slots=True)
class Place:
    """Where an endpoint is declared: its template, and the patterns to get there, from the outermost mount in."""

    template: str
    patterns: tuple[Pattern[str], ...]
    opaque: bool  # a mounted app whose routes cannot be seen

    def covers(self, path: str) -> bool:
        for pattern in self.patterns:
            match = pattern.match(path)
            if match is None:
                return False
            path = "/" + match.groupdict().get("path", "")
        return True


class _Tree:
    """All places of one router's endpoints, by the identity of the endpoint, which is kept alive with it."""

    def __init__(self, router: Any) -> None:
        self.router = router
        self._places: dict[int, tuple[Any, list[Place]]] = {}
        self.stale = False
        self._count = -1
        self.read()

    def read(self) -> None:
        self._places = {}
        for endpoint, place in _walk(getattr(self.router, "routes", ()), "", (), 0):
            self._places.setdefault(id(endpoint), (endpoint, []))[1].append(place)

    def places(self, endpoint: Any) -> list[Place]:
        found = self._places.get(id(endpoint))
        return found[1] if found is not None else []

    def learn(self, endpoint: Any) -> list[Place]:
        """Routes may be added after the first request: read once more for an endpoint that is not known."""
        if id(endpoint) not in self._places and len(self._places) < 100_000:
            known = self._places
            self.read()
            for key, value in known.items():
                self._places.setdefault(key, value)
            self._places.setdefault(id(endpoint), (endpoint, []))
        return self.places(endpoint)


class Routes:
    """Names the route of a scope that has been through its app."""

    def __init__(self) -> None:
        self._trees: dict[int, _Tree] = {}
        self._apps: list[_Unrouted] = []

    def watch(self, app: Any) -> None:
        """Name what is answered before it reaches the router of this app, too."""
        self._apps.append(_Unrouted(app))

    def name(self, scope: Scope) -> tuple[str, bool]:
        """The template, and whether it follows from the endpoint (or the template in the scope) alone."""
        endpoint = scope.get("endpoint")
        inner = scope.get("path_template")
        if inner is None:
            inner = scope.get(HOOK)
        if endpoint is None and inner is None and "router" not in scope:
            for unrouted in self._apps:
                if unrouted.routes:
                    return unrouted.name(scope), False
        if endpoint is None or "router" not in scope:
            return self._without_router(scope, inner)
        prefix = _litestar_mount(scope) if scope.get("path_template") == "" else ""
        places = self._tree(scope["router"]).learn(endpoint)
        exact = not prefix and inner is None
        if not places:
            return UNMATCHED, exact
        place = places[0]
        if any(other.template != place.template for other in places):
            exact = False
            path = _path_at_router(scope)
            place = next((place for place in places if place.covers(path)), place)
        if not place.opaque:
            return prefix + place.template, exact
        if inner:
            return prefix + place.template.removesuffix("/{path}") + inner, False
        # The app may be a router that was left without a route (nothing more is known of it), or a file server.
        return prefix + place.template, False

    def _without_router(self, scope: Scope, inner: str | None) -> tuple[str, bool]:
        if inner:
            return inner, True
        if inner == "":
            mount = _litestar_mount(scope)
            return (mount + "/{path}" if mount else UNMATCHED), False
        return UNMATCHED, "litestar_app" not in scope  # a mount in Litestar looks the same at first sight

    def _tree(self, router: Any) -> _Tree:
        tree = self._trees.get(id(router))
        if tree is None:
            if len(self._trees) >= MOST_TREES:
                self._trees.clear()
            tree = self._trees[id(router)] = _Tree(router)
        return tree


class _Unrouted:
    """The routes of an app, for requests that are answered before they reach it."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._names: dict[str, str] = {}

    @cached_property
    def routes(self) -> list[Any] | None:
        """Asked for at the first request, when every framework has put its app together."""
        return _routes_of(self._app)

    def name(self, scope: Scope) -> str:
        path = _path_at_router(scope)
        name = self._names.get(path)
        if name is None:
            places = (place for _, place in _walk(self.routes or (), "", (), 0))
            name = next((place.template for place in places if place.covers(path)), UNMATCHED)
            if len(self._names) >= MOST_PATHS:
                self._names.clear()
            self._names[path] = name
        return name


def _walk(
    routes: Iterable[Any], prefix: str, patterns: tuple[Pattern[str], ...], depth: int
) -> Iterator[tuple[Any, Place]]:
    """Every endpoint below some routes of Starlette's kind, with its place."""
    if depth > _DEEPEST:
        return
    for route in routes:
        if hasattr(route, "effective_route_contexts"):  # FastAPI: a router that was included
            contexts = (getattr(c, "starlette_route", None) or c for c in route.effective_route_contexts())
            yield from _walk(contexts, prefix, patterns, depth + 1)
        elif hasattr(route, "host_regex"):  # Starlette's Host: no part of the path
            yield from _descend(route, prefix, patterns, depth)
        elif hasattr(route, "app") and not hasattr(route, "endpoint"):  # Mount
            pattern = getattr(route, "path_regex", None)
            if pattern is not None:
                below = prefix + route.path_format.removesuffix("/{path}")
                yield from _descend(route, below, (*patterns, pattern), depth)
        elif getattr(route, "path_regex", None) is not None:
            yield route.endpoint, Place(prefix + route.path_format, (*patterns, route.path_regex), opaque=False)


def _descend(route: Any, prefix: str, patterns: tuple[Pattern[str], ...], depth: int) -> Iterator[tuple[Any, Place]]:
    inner = _routes_of(route.app)
    if inner is None:
        yield route.app, Place(prefix + "/{path}", patterns, opaque=True)
    else:
        yield from _walk(inner, prefix, patterns, depth + 1)


def _routes_of(app: Any) -> list[Any] | None:
    """The routes of an app, looking through the middlewares round it; None if it has none to show."""
    for _ in range(_DEEPEST):
        if app is None:
            return None
        routes = getattr(app, "routes", None)
        if isinstance(routes, list) and all(hasattr(route, "matches") for route in routes):
            return routes
        app = getattr(app, "app", None)
    return None


def _path_at_router(scope: Scope) -> str:
    """The path as the outermost router saw it, before its mounts were added to `root_path`."""
    root = scope.get("app_root_path", scope.get("root_path", ""))
    return path_below_mount({"path": scope["path"], "root_path": root})


def _litestar_mount(scope: Scope) -> str:
    """Litestar leaves the template of a mounted app empty; its handler knows the one path it is mounted at."""
    paths = getattr(scope.get("route_handler"), "paths", None) or ()
    return min(paths, default="").rstrip("/") if all(isinstance(path, str) for path in paths) else ""
