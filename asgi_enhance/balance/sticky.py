"""Sticky sessions by a signed cookie: its value names a backend to the balancer and tells nobody else. Pure."""

import hmac
from base64 import urlsafe_b64encode
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256

from asgi_enhance.asgi.types import RawHeaders
from asgi_enhance.errors import ConfigError
from asgi_enhance.options import checked

_NAME_CHARS = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


@checked
@dataclass(frozen=True, slots=True)
class Sticky:
    """Keep a client at its backend while that is available.

    secret:    key of the HMAC, at least 16 bytes, the same in all gateways. Source: yours, never the code's.
    cookie:    name of the cookie. Default: `lb`.
    max_age:   seconds the browser keeps it. Default: none, a session cookie.
    same_site: `"Lax"` (default), `"Strict"` or `"None"`.
    """

    secret: str | bytes = field(repr=False)
    cookie: str = "lb"
    max_age: int | None = None
    same_site: str = "Lax"

    def __post_init__(self) -> None:
        if len(self.secret) < 16:
            raise ConfigError("secret must have at least 16 bytes")
        if not self.cookie or not set(self.cookie) <= _NAME_CHARS:
            raise ConfigError(f"cookie must be a token, not {self.cookie!r}")
        if self.same_site not in ("Lax", "Strict", "None"):
            raise ConfigError(f"same_site must be 'Lax', 'Strict' or 'None', not {self.same_site!r}")


class StickyCookie:
    """Reads and writes the cookie of a `Sticky`."""

    def __init__(self, sticky: Sticky) -> None:
        self._sticky = sticky
        self._secret = sticky.secret.encode() if isinstance(sticky.secret, str) else sticky.secret
        self._prefix = sticky.cookie.encode() + b"="
        self._values: dict[str, bytes] = {}

    def read(self, headers: RawHeaders, ids: Iterable[str]) -> str | None:
        """The id the client's cookie stands for, if it is one of `ids` and the signature is ours."""
        for name, value in headers:
            if name == b"cookie" and self._prefix in value:
                for pair in value.split(b";"):
                    pair = pair.strip()
                    if pair.startswith(self._prefix):
                        token = pair[len(self._prefix) :]
                        return next((one for one in ids if hmac.compare_digest(token, self.value(one))), None)
        return None

    def value(self, backend_id: str) -> bytes:
        """What the cookie holds for this backend."""
        value = self._values.get(backend_id)
        if value is None:
            digest = hmac.digest(self._secret, backend_id.encode(), sha256)
            value = self._values[backend_id] = urlsafe_b64encode(digest[:18])
        return value

    def field(self, backend_id: str, *, path: str, secure: bool) -> tuple[bytes, bytes]:
        """The Set-Cookie field."""
        text = f"; Path={_safe_path(path)}; HttpOnly; SameSite={self._sticky.same_site}"
        if self._sticky.max_age is not None:
            text += f"; Max-Age={self._sticky.max_age}"
        if secure or self._sticky.same_site == "None":
            text += "; Secure"
        return b"set-cookie", self._prefix + self.value(backend_id) + text.encode("latin-1")


def _safe_path(path: str) -> str:
    return path if path.startswith("/") and all("!" <= c <= "~" and c != ";" for c in path) else "/"
