"""Questions a layer asks of a scope: one header, the path below the mount, a copy with less in it."""

from typing import Any
from urllib.parse import quote, unquote_to_bytes

from asgi_enhance.asgi.types import RawHeaders, Scope


def header(headers: RawHeaders, name: bytes) -> bytes | None:
    """The first value of the header `name` (given in lower case), or None."""
    for key, value in headers:
        if key == name or (len(key) == len(name) and key.lower() == name):
            return value
    return None


def header_values(headers: RawHeaders, name: bytes) -> list[bytes]:
    """All values of the header `name` (given in lower case), in order, one a line."""
    return [value for key, value in headers if len(key) == len(name) and key.lower() == name]


def path_below_mount(scope: Scope) -> str:
    """The decoded path as seen by an app mounted at `root_path`; always begins with a slash.

    Starlette, FastAPI and BlackSheep leave the mount in `path` and name it in `root_path`; Litestar takes it out
    of `path`, leaves `root_path` empty and adds a slash at the end. All end here in the same answer.
    """
    path: str = scope["path"]
    below = path[len(_mount(scope)) :] or "/"
    if below == path and below.endswith("/") and below != "/":
        raw: bytes | None = scope.get("raw_path")
        if raw and not _decoded(raw.partition(b"?")[0][-3:]).endswith("/"):
            return below[:-1]
    return below


def raw_path_below_mount(scope: Scope) -> bytes:
    """The path below the mount exactly as the client wrote it: percent-encoding, case and `;` untouched.

    That is the tail of `raw_path` that says what `path` says: a client may have encoded the mount (`/a%70i` for
    `/api`). If there is none, because a layer further out changed `path`, the path counts, encoded anew.
    """
    below = path_below_mount(scope)
    raw: bytes | None = scope.get("raw_path")
    if raw is not None:
        raw = raw.partition(b"?")[0]  # some servers leave the query in
        if "%" not in below and raw.decode("latin-1").endswith(below):
            return raw[-len(below) :]
        decoded = _decoded(raw)
        tail = _skip_decoded(raw, len(decoded[: max(0, len(decoded) - len(below))].encode()))
        if tail.startswith(b"/") and _decoded(tail) == below:
            return tail
    return quote(below, safe="/:@!$&'()*+,;=-._~").encode("ascii")


def _mount(scope: Scope) -> str:
    """The part of `path` that is the mount: `root_path` if the path is below it, else nothing.

    Where a proxy takes away a prefix, FastAPI's and hypercorn's `root_path` begins with what `path` never had;
    Starlette says in `app_root_path` how much that is.
    """
    root: str = scope.get("root_path", "")
    if not root or root == "/":
        return ""
    path: str = scope["path"]
    for mount in (root.rstrip("/"), root.removeprefix(scope.get("app_root_path", "")).rstrip("/")):
        if path.startswith(mount) and (len(path) == len(mount) or path[len(mount)] == "/"):
            return mount
    return ""


def _decoded(raw: bytes) -> str:
    return unquote_to_bytes(raw).decode("utf-8", "replace")


def _skip_decoded(raw: bytes, count: int) -> bytes:
    """`raw` without its first `count` bytes, counted as they are when decoded."""
    at = 0
    while count > 0 and at < len(raw):
        escaped = raw[at : at + 1] == b"%" and len(unquote_to_bytes(raw[at : at + 3])) == 1
        at += 3 if escaped else 1
        count -= 1
    return raw[at:]


def derived(scope: Scope, **changes: Any) -> Scope:
    """A copy of the scope with `changes`, for the app further in (contract 2).

    What the app writes into the copy, such as the route it found, is written into the original as well, since layers
    further out look for it there. Only the keys of `changes` are the copy's own.
    """
    return _Derived(scope, changes)


def without_extensions(scope: Scope, *names: str) -> Scope:
    """The same scope, or a derived one that no longer advertises the named extensions if it did (contract 4)."""
    extensions = scope.get("extensions")
    if not extensions or not any(name in extensions for name in names):
        return scope
    return derived(scope, extensions={name: value for name, value in extensions.items() if name not in names})


class _Derived(dict[str, Any]):
    __slots__ = ("_origin", "_own")

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[Scope]]:
        return dict, (dict(self),)  # a copy of it is its owner's alone

    def __init__(self, origin: Scope, changes: dict[str, Any]) -> None:
        super().__init__(origin, **changes)
        self._origin = origin
        self._own = changes.keys()

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        if key not in self._own:
            self._origin[key] = value

    def update(self, *args: Any, **kwargs: Any) -> None:
        for key, value in dict(*args, **kwargs).items():
            self[key] = value

    def setdefault(self, key: str, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]
