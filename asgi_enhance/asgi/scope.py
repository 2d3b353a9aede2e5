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
    of `path` and leaves `root_path` empty. Both end here in the same answer.
    """
    path: str = scope["path"]
    return path[len(_mount(scope)) :] or "/"


def raw_path_below_mount(scope: Scope) -> bytes:
    """The path below the mount exactly as the client wrote it: percent-encoding, case and `;` untouched.

    The mount is cut off by its decoded length, since a client may have encoded it (`/a%70i` for `/api`).
    """
    path: str = scope["path"]
    mount = _mount(scope)
    raw: bytes | None = scope.get("raw_path")
    if raw is None:
        return quote(path[len(mount) :] or "/", safe="/:@!$&'()*+,;=-._~").encode("ascii")
    raw = raw.partition(b"?")[0]  # some servers leave the query in
    if mount:
        return _skip_decoded(raw, len(mount.encode())) or b"/"
    if b"%" not in raw and len(raw) == len(path):
        return raw
    decoded = unquote_to_bytes(raw).decode("utf-8", "replace")
    if decoded == path:
        return raw
    # Litestar: the mount is gone from `path` but not from `raw_path`, and a slash may have been added.
    cut = len(decoded) - len(path) + (not decoded.endswith(path))
    return _skip_decoded(raw, len(decoded[:cut].encode())) or b"/"


def _mount(scope: Scope) -> str:
    """The part of `path` that is the mount: `root_path` if the path is below it, else nothing."""
    root: str = scope.get("root_path", "")
    if not root or root == "/":
        return ""
    path: str = scope["path"]
    root = root.rstrip("/")
    below = path.startswith(root) and (len(path) == len(root) or path[len(root)] == "/")
    return root if below else ""


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
