import copy
from collections.abc import Callable
from urllib.parse import unquote

import pytest

from asgi_enhance.asgi.scope import (
    derived,
    header,
    header_values,
    path_below_mount,
    raw_path_below_mount,
    without_extensions,
)
from asgi_enhance.asgi.types import Scope


def scope_for(raw: str, *, root_path: str = "", path: str | None = None) -> Scope:
    return {
        "path": unquote(raw) if path is None else path,
        "raw_path": raw.encode("latin-1"),
        "root_path": root_path,
    }


def test_header_lookup_ignores_case_and_takes_the_first_line() -> None:
    headers = [(b"Accept", b"a"), (b"x", b"1"), (b"accept", b"b")]
    assert header(headers, b"accept") == b"a"
    assert header(headers, b"absent") is None
    assert header_values(headers, b"accept") == [b"a", b"b"]


@pytest.mark.parametrize(
    ("path", "root_path", "below"),
    [
        ("/lb/x", "/lb", "/x"),
        ("/lb", "/lb", "/"),
        ("/lb/", "/lb", "/"),
        ("/lbx/y", "/lb", "/lbx/y"),
        ("/x", "", "/x"),
        ("/x/", "", "/x/"),
        ("/svc/api/x", "/svc/api", "/x"),
        ("/lb/x", "/lb/", "/x"),
        ("", "", "/"),
    ],
)
def test_the_path_below_a_mount(path: str, root_path: str, below: str) -> None:
    assert path_below_mount({"path": path, "root_path": root_path}) == below


@pytest.mark.parametrize(
    ("raw", "path", "below"),
    [
        ("/lb/x", "/x/", "/x"),
        ("/lb/x/", "/x/", "/x/"),
        ("/lb/x%2F", "/x/", "/x/"),
        ("/lb", "/", "/"),
        ("/lb/x?to=/", "/x/", "/x"),
    ],
)
def test_the_slash_that_litestar_adds_is_not_the_clients(raw: str, path: str, below: str) -> None:
    assert path_below_mount(scope_for(raw, path=path)) == below


def test_a_mount_is_found_below_a_prefix_that_a_proxy_took_away() -> None:
    scope = {**scope_for("/lb/a%2Fb", root_path="/svc/lb"), "app_root_path": "/svc"}
    assert (path_below_mount(scope), raw_path_below_mount(scope)) == ("/a/b", b"/a%2Fb")
    assert path_below_mount({**scope, "path": "/svc/lb/x"}) == "/x"
    assert path_below_mount({**scope, "root_path": "/svc"}) == "/lb/a/b"


@pytest.mark.parametrize(
    ("scope", "below"),
    [
        pytest.param(scope_for("/a%2Fb%20c/%C3%A9;x=1"), b"/a%2Fb%20c/%C3%A9;x=1", id="no mount: byte for byte"),
        pytest.param(scope_for("/api/a%2Fb", root_path="/api"), b"/a%2Fb", id="starlette's mount"),
        pytest.param(scope_for("/a%70i/x%20y", root_path="/api"), b"/x%20y", id="an encoded mount"),
        pytest.param(scope_for("/svc/api/x", root_path="/svc/api"), b"/x", id="a server's root path"),
        pytest.param(scope_for("/lb/a%2Fb", path="/a/b"), b"/a%2Fb", id="litestar strips path only"),
        pytest.param(scope_for("/lb/x", path="/x/"), b"/x", id="litestar adds a slash"),
        pytest.param(scope_for("/lb", path="/"), b"/", id="litestar at the mount itself"),
        pytest.param(scope_for("/lb", root_path="/lb"), b"/", id="the mount itself"),
        pytest.param(scope_for("/%zz/%", root_path=""), b"/%zz/%", id="not percent-encoding"),
        pytest.param(scope_for("/m/%zz", root_path="/m"), b"/%zz", id="not percent-encoding below a mount"),
        pytest.param(scope_for("/m/%ff", root_path="/m", path="/m/�"), b"/%ff", id="bytes that are not utf-8"),
        pytest.param(scope_for("/m%2Fx", root_path="/m"), b"/x", id="a mount that ends in an encoded slash"),
        pytest.param(scope_for("/%ff/s/x", root_path="/�"), b"/s/x", id="a mount of bytes that are not utf-8"),
        pytest.param(scope_for("/ABC", path="/abc"), b"/abc", id="rewritten: other letters"),
        pytest.param(scope_for("/a//b%20", path="/a/b "), b"/a/b%20", id="rewritten: fewer slashes"),
        pytest.param(scope_for("/old", path="/quite/new"), b"/quite/new", id="rewritten: longer"),
        pytest.param(scope_for("/v1/a%2Fb", path="/a/b"), b"/a%2Fb", id="rewritten: without its prefix"),
        pytest.param({"path": "/é x", "root_path": ""}, b"/%C3%A9%20x", id="a server without raw_path"),
        pytest.param({**scope_for("/x"), "raw_path": b"/x?q=1"}, b"/x", id="a server that leaves the query in"),
    ],
)
def test_the_raw_path_below_a_mount(scope: Scope, below: bytes) -> None:
    assert raw_path_below_mount(scope) == below


def test_an_extension_is_withdrawn_on_a_copy() -> None:
    scope: Scope = {"type": "http", "extensions": {"a": {}, "b": {}}}
    inner = without_extensions(scope, "a")
    assert inner["extensions"] == {"b": {}}
    assert scope["extensions"] == {"a": {}, "b": {}}


@pytest.mark.parametrize("extensions", [{"b": {}}, {}, None])
def test_the_same_scope_comes_back_when_nothing_is_to_be_withdrawn(extensions: object) -> None:
    scope: Scope = {"type": "http", "extensions": extensions}
    assert without_extensions(scope, "a") is scope
    assert without_extensions({"type": "http"}, "a") == {"type": "http"}


def test_what_the_app_writes_into_the_copy_is_seen_by_the_layers_outside() -> None:
    scope: Scope = {"type": "http", "extensions": {"a": {}, "b": {}}}
    inner = without_extensions(scope, "a")
    inner["endpoint"] = 1
    inner.update({"route": 2}, path_params=3)
    inner.setdefault("state", {})["x"] = 4
    inner["extensions"] = {}
    seen = {"type": "http", "endpoint": 1, "route": 2, "path_params": 3, "state": {"x": 4}}
    assert inner == {**seen, "extensions": {}}
    assert scope == {**seen, "extensions": {"a": {}, "b": {}}}


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, dict, lambda scope: scope.copy()])
def test_a_copy_of_a_derived_scope_is_its_owners_alone(copied: Callable[[Scope], Scope]) -> None:
    scope: Scope = {"type": "http", "path": "/"}
    own = copied(derived(scope, path="/x"))
    own["type"] = "other"
    assert own == {"type": "other", "path": "/x"}
    assert scope == {"type": "http", "path": "/"}
