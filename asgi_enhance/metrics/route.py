"""The route a request took, as the template it was declared with; never the path itself.

Routers write what they decided into the scope: Starlette and FastAPI the endpoint, Litestar the template. An endpoint
is looked up in a map of the whole tree of routes, made once: mounts, included routers and sub-apps contribute their
prefixes. Where an endpoint is declared more than once, and where a layer has answered before the router was reached,
the path is held against the patterns. What a framework keeps to itself (Quart, Falcon, Django), a hook of
`asgi_enhance.metrics.hooks` writes to `scope[HOOK]`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from re import Pattern
from typing import Any

from asgi_enhance.asgi.scope import path_below_mount
from asgi_enhance.asgi.types import Scope

HOOK = "asgi_enhance.route"
UNMATCHED = "<unmatched>"

MOST_TREES = 16
"""Router trees that are remembered; more means that somebody builds apps by the request."""

MOST_SEARCHES = 256
"""Endpoints that are looked for again because they were not there when the routes were read."""

MOST_PATHS = 1024
LONGEST_PATH = 512
"""Paths whose template is remembered, and characters of them that are looked at."""

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
        self._by_path: dict[str, str] = {}
        self._searches = 0
        self._read()

    def places(self, endpoint: Any) -> list[Place]:
        """Where an endpoint is declared. Routes may be added late: one that is not known is looked for once more."""
        found = self._places.get(id(endpoint))
        if found is not None:
            return found[1]
        if self._searches >= MOST_SEARCHES:  # an app that makes its endpoints as it goes
            return []
        self._searches += 1
        self._read()
        return self._places.setdefault(id(endpoint), (endpoint, []))[1]

    def match(self, path: str) -> str:
        """The template a path would have led to, for a request that was answered on its way to the router."""
        template = self._by_path.get(path)
        if template is None:
            template = next((place.template for place in self._in_order if place.covers(path)), UNMATCHED)
            if len(self._by_path) >= MOST_PATHS:
                self._by_path.clear()
            self._by_path[path] = template
        return template

    def _read(self) -> None:
        found = list(_walk(_routes_of(self.router) or (), "", (), 0))
        self._in_order = [place for _, place in found]
        for endpoint, place in found:
            places = self._places.setdefault(id(endpoint), (endpoint, []))[1]
            if place not in places:
                places.append(place)


class Routes:
    """Names the route of a scope that has been through its app."""

    def __init__(self) -> None:
        self._trees: dict[int, _Tree] = {}

    def name(self, scope: Scope, app: Any = None) -> tuple[str, bool]:
        """The template, and whether it follows from what the scope shows (see `series.shown`) alone.

        `app` is asked for its routes when the scope has been to no router: a cache or a limit has answered.
        """
        endpoint = scope.get("endpoint")
        inner = scope.get("path_template")
        if inner is None:
            inner = scope.get(HOOK)
        if "router" not in scope:
            return self._without_router(scope, inner, app)
        if endpoint is None:
            return self._without_router(scope, inner, None)
        prefix = _litestar_mount(scope) if scope.get("path_template") == "" else ""
        tree = self._tree(scope["router"])
        places = tree.places(endpoint)
        exact = not prefix and inner is None
        if not places:  # such as a layer round a mounted app, which has answered by itself
            return tree.match(_path_at_router(scope)[:LONGEST_PATH]), False
        place = places[0]
        if any(other.template != place.template for other in places):
            exact = False
            path = _path_at_router(scope)
            place = next((place for place in places if place.covers(path)), place)
        if not place.opaque:
            return prefix + place.template, exact
        if inner:
            return prefix + place.template.removesuffix("/{path}") + inner, False
        return prefix + place.template, False

    def _without_router(self, scope: Scope, inner: str | None, app: Any) -> tuple[str, bool]:
        if inner:
            return inner, True
        if inner == "":
            mount = _litestar_mount(scope)
            return (mount + "/{path}" if mount else UNMATCHED), False
        # What shows nothing may be any of several things, unless there is no router at all to have been to.
        if "router" in scope or "litestar_app" in scope:
            return UNMATCHED, False
        if app is None or not _routes_of(app):
            return UNMATCHED, True
        return self._tree(app).match(path_below_mount(scope)[:LONGEST_PATH]), False

    def _tree(self, router: Any) -> _Tree:
        tree = self._trees.get(id(router))
        if tree is None:
            if len(self._trees) >= MOST_TREES:
                self._trees.clear()
            tree = self._trees[id(router)] = _Tree(router)
        return tree


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
