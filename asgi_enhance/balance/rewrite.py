"""Where a response says where it is: `Location`, `Content-Location`, and `Path` and `Domain` of cookies. Pure, opt-in.

A backend speaks of itself as it is reached by the balancer; the client sees it below the mount and under another name.

- A URL or path at or below the backend's base path is moved to the mount. What is outside of it the client cannot
  reach through here anyway, and what is relative is right already: both stay.
- The backend's own origin is taken off, since a path is enough (RFC 9110, 10.2.2). The client's origin stays, scheme
  and all: a redirect from http to https is meant. Any other origin is somebody else's and the field stays as it is.
- A cookie's `Domain` that is the backend's name is taken off; the cookie is the client's host's then.
"""

import re

from asgi_enhance.asgi.types import Headers
from asgi_enhance.balance.backend import Backend
from asgi_enhance.balance.headers import RequestHead, encoded

_URL = re.compile(rb"(?:([A-Za-z][A-Za-z0-9+.-]*):)?(?://([^/?#]*))?(.*)\Z", re.DOTALL)
_PORT = re.compile(rb":[0-9]*\Z")
_DEFAULT_PORT = re.compile(rb":(?:80|443)?\Z")
_LOCATIONS = (b"location", b"content-location")


class Rewriter:
    """Rewrites the fields of one response."""

    __slots__ = ("_base", "_client_hosts", "_hosts", "_mount", "_names", "_scheme")

    def __init__(self, backend: Backend, head: RequestHead, mount: str) -> None:
        self._scheme = backend.scheme.encode()
        self._base = backend.base_path
        self._hosts = {_host(backend.authority), _host((backend.host or "").encode())}
        self._names = {_PORT.sub(b"", host) for host in self._hosts}  # a cookie's domain has no port
        said = (value for name, value in head.fields if name == b"x-forwarded-host")
        self._client_hosts = {_host(head.host), *map(_host, said)}
        self._mount = encoded(mount)

    def fields(self, fields: Headers, *, location: bool, cookies: bool) -> Headers:
        """The fields as the client is to see them."""
        return [
            (name, self.location(value))
            if location and name in _LOCATIONS
            else (name, self.cookie(value))
            if cookies and name == b"set-cookie"
            else (name, value)
            for name, value in fields
        ]

    def location(self, value: bytes) -> bytes:
        """A URL or a reference to one."""
        match = _URL.match(value)
        assert match is not None  # every part is optional
        scheme, authority, path = match.groups()
        if authority is None:
            origin = b""
            if scheme is not None or not path.startswith(b"/"):
                return value
        elif _host(authority) in self._hosts and (scheme is None or scheme.lower() == self._scheme):
            origin = b""
        elif _host(authority) in self._client_hosts:
            origin = value[: match.start(3)]
        else:
            return value
        moved = self._moved(path)
        if moved is None:
            return value
        if not origin and moved[1:2] in (b"/", b"\\") and moved != value:
            moved = b"/." + moved  # a path, not the name of another host
        return origin + moved

    def cookie(self, value: bytes) -> bytes:
        """The value of a `Set-Cookie` field."""
        pair, *attributes = value.split(b";")
        kept = [pair]
        for attribute in attributes:
            name, _, said = (part.strip() for part in attribute.partition(b"="))
            if name.lower() == b"domain" and said.lower().removeprefix(b".") in self._names:
                continue
            if name.lower() == b"path" and said.startswith(b"/"):
                moved = self._moved(said)
                if moved is not None:
                    attribute = b" Path=" + (moved[:-1] if moved == self._mount + b"/" != b"/" else moved)
            kept.append(attribute)
        return b";".join(kept)

    def _moved(self, path: bytes) -> bytes | None:
        """A path of the backend's as the client reaches it; None if it does not."""
        base = self._base
        if base:
            if not path.startswith(base) or path[len(base) : len(base) + 1] not in (b"", b"/", b"?", b"#"):
                return None
            path = path[len(base) :]
        return self._mount + (path if path.startswith(b"/") else b"/" + path)


def _host(authority: bytes) -> bytes:
    return _DEFAULT_PORT.sub(b"", authority.lower())
