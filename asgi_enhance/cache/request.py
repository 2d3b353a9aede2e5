"""What the cache needs to know of a request: its key, its cache-related fields, whether it may be answered at all.

The key is a tuple of bytes as the client wrote them. Nothing is decoded, normalised or joined, so two URLs share an
entry only if they are the same URL: `/a%2Fb` is not `/a/b`, `/a/` is not `/a`, and the host is part of it. Where a
layer further out has changed the path, for this client perhaps, what the app is asked for is part of it, too.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any
from urllib.parse import quote, unquote_to_bytes, urljoin, urlsplit

from asgi_enhance.asgi.types import RawHeaders, Scope
from asgi_enhance.cache.policy.fields import Directives, cache_control
from asgi_enhance.cache.policy.vary import VaryNames, VaryValues, values

Key = tuple[bytes, str, bytes, bytes, bytes]
"""Namespace, scheme, host, path, query: one URL, whoever asks for it and however it varies."""

Partition = tuple[bytes, ...]
"""What else tells apart the responses of one URL: fields the operator names, the user in a private cache."""

Place = tuple[str | bytes, ...]
"""A key and a partition: where the variants of one URL are kept, those of each user for himself."""

WATCHED = frozenset(
    {
        b"cache-control",
        b"content-length",
        b"host",
        b"if-match",
        b"if-modified-since",
        b"if-none-match",
        b"if-range",
        b"if-unmodified-since",
        b"pragma",
        b"range",
        b"transfer-encoding",
    }
)
_NO_DIRECTIVES: Directives = {}


class Request:
    """One request, read once."""

    url: Key
    key: Key
    """Where its entry is looked for; another than its URL only for No-Vary-Search."""
    plain: bool
    """No field asks for anything but the response itself."""

    __slots__ = (
        "_directives",
        "encodings",
        "fence",
        "fields",
        "headers",
        "key",
        "method",
        "partition",
        "path",
        "plain",
        "url",
    )

    def __init__(
        self,
        scope: Scope,
        namespace: bytes = b"",
        partition_by: Sequence[bytes] = (),
        encodings: tuple[bytes, ...] = (),
        url: Key | None = None,
    ) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: RawHeaders = scope["headers"]
        self.encodings = encodings
        self._directives: Directives | None = None
        self.fence: bytes | None = None
        """The last write to its URL that the store knew of when it was looked up; None if it was not."""
        self.fields: dict[bytes, bytes] = {}
        self.partition: Partition = ()
        if url is not None:  # somebody has read it already, and found that it is plain
            self.url = self.key = url
            self.plain = True
            return
        fields = self.fields
        for name, value in self.headers:
            if name in WATCHED:
                fields[name] = fields[name] + b", " + value if name in fields else value
        host = fields.pop(b"host", None)
        self.plain = not fields
        self.url = self.key = (
            namespace,
            scope.get("scheme", "http"),
            host.lower() if host is not None else _server(scope),
            _path(scope),
            scope.get("query_string", b""),
        )
        if partition_by:
            self.partition = _partition(self.headers, partition_by)

    @property
    def place(self) -> Place:
        return self.key + self.partition

    @property
    def directives(self) -> Directives:
        if self._directives is None:
            if self.plain:
                return _NO_DIRECTIVES
            line = self.fields.get(b"cache-control")
            if line is not None:
                self._directives = cache_control([line])
            elif b"no-cache" in self.fields.get(b"pragma", b"").lower():
                self._directives = {"no-cache": None}  # RFC 9111 5.4: only where there is no Cache-Control
            else:
                self._directives = _NO_DIRECTIVES
        return self._directives

    @property
    def has_body(self) -> bool:
        """A GET may have a body, and an app may read it; no key can hold it."""
        return b"transfer-encoding" in self.fields or self.fields.get(b"content-length", b"0").strip() != b"0"

    @property
    def conditional(self) -> bool:
        """The client has something of its own to compare with, or wants only a part."""
        return not self.plain and not self.fields.keys().isdisjoint(_OWN_CONDITIONS)

    @property
    def origin(self) -> str:
        return f"{self.url[1]}://{self.url[2].decode('latin-1')}"

    def variant(self, vary: VaryNames) -> VaryValues:
        """This request's values of the fields a Vary nominates."""
        return values(vary, self.headers, self.encodings) if vary else ()


def _partition(headers: RawHeaders, names: Sequence[bytes]) -> Partition:
    """One digest a field, which tells apart absent, empty, one line and two lines. Credentials are not kept."""
    parts: list[bytes] = []
    for name in names:
        state = blake2b(digest_size=16)
        lines = [value for key, value in headers if key == name]
        for line in lines:
            state.update(b"%d:" % len(line) + line)
        parts.append(state.digest() if lines else b"")
    return tuple(parts)


_OWN_CONDITIONS = frozenset({b"if-match", b"if-modified-since", b"if-none-match", b"if-unmodified-since", b"range"})


def _path(scope: Scope) -> bytes:
    raw: bytes | None = scope.get("raw_path")
    if raw is None:
        return quote(scope["path"]).encode("ascii")
    raw = raw.partition(b"?")[0]
    path: str = scope["path"]
    return raw if says(raw, path) else raw + _REWRITTEN + path.encode("utf-8", "replace")


def says(raw: bytes, path: str) -> bool:
    """Whether the path is what the client wrote, or its end: Litestar takes its mounts away, and adds a slash."""
    if raw.decode("latin-1") == path:
        return True
    return unquote_to_bytes(raw).decode("utf-8", "replace").rstrip("/").endswith(path.rstrip("/"))


_REWRITTEN = b"\0"
"""Stands between what the client wrote and what has become of it. No server takes it as a part of a path."""


def _server(scope: Scope) -> bytes:
    server = scope.get("server")
    if not server:
        return b""
    host, port = server
    return f"{host}:{port}".encode("latin-1", "replace") if port is not None else str(host).encode("latin-1", "replace")


def digest(key: Sequence[bytes | str | None]) -> str:
    """A key or the values of a variant as a fixed-length name; the length before each part keeps parts apart."""
    state = blake2b(digest_size=16)
    for part in key:
        if isinstance(part, str):
            part = part.encode()
        state.update(b"-" if part is None else b"%d:" % len(part) + part)
    return state.hexdigest()


def generate_cache_key(request: Any) -> str:
    """A key for a value that belongs to a request: method, URL as it was sent, and nothing else.

    `request` is a scope, or whatever has one (a Starlette or FastAPI Request).
    """
    read = Request(request if isinstance(request, dict) else request.scope)
    return digest((read.method.encode(), *read.key))


def url_of(key: Key) -> str:
    """The URL as the client wrote it, without the namespace."""
    _, scheme, host, path, query = key
    path = path.partition(_REWRITTEN)[0]
    return f"{scheme}://" + (host + path + (b"?" + query if query else b"")).decode("latin-1")


def resolved(base: Key, reference: bytes) -> Key | None:
    """The key of a URI reference, or None if it leads to another origin."""
    namespace, scheme, host, *_ = base
    here = url_of(base)
    try:
        there = urlsplit(urljoin(here, reference.decode("latin-1").strip()))
    except ValueError:
        return None
    origin = (there.scheme.lower(), there.netloc.lower().encode("latin-1"))
    if origin != (scheme, host):
        return None
    return namespace, scheme, host, there.path.encode("latin-1") or b"/", there.query.encode("latin-1")
