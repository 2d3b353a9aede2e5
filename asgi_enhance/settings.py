"""Configuration from the environment, read once into something that does not change."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

from asgi_enhance.asgi.address import ClientAddress
from asgi_enhance.errors import ConfigError

T = TypeVar("T")


def _text(value: str) -> str:
    if not value:
        raise ValueError("a text that is not empty")
    return value


MOST = 2**31 - 1
"""The largest number that limits, and the seconds of RFC 9111, go up to."""


def _positive(value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= 10 and 0 < int(value) <= MOST):
        raise ValueError(f"a whole number from 1 to {MOST}")
    return int(value)


def _redis_url(value: str) -> str:
    if "://" not in value:
        raise ValueError("a URL such as redis://127.0.0.1:6379/0")
    return value


def _names(value: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in value.split(",") if name.strip())


def _urls(value: str) -> tuple[str, ...]:
    urls = _names(value)
    if not all(map(_is_backend, urls)):
        raise ValueError("URLs with http:// or https://, without a login, separated by commas")
    return urls


def _is_backend(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme.removeprefix("dns+") in ("http", "https") and bool(parts.hostname) and "@" not in url


def _networks(value: str) -> tuple[str, ...]:
    names = _names(value)
    try:
        ClientAddress(names)
    except ConfigError:
        raise ValueError("networks such as 10.0.0.0/8, addresses or unix, separated by commas") from None
    return names


def _setting(variable: str, default: T, read: Callable[[str], T], *, secret: bool = False) -> T:
    """A field that knows the variable it comes from and how its text is read."""
    setting: T = field(default=default, repr=not secret, metadata={"variable": variable, "read": read})
    return setting


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What `EnhancedAPI` and the command line need to know; each field names its environment variable.

    redis_url:         `REDIS_URL`. Shared state for all processes. Default: none, each process on its own.
    backends:          `API_LOAD_BALANCER_BACKENDS`. Backend URLs, separated by commas. Default: none.
    rate_limit:        `API_RATE_LIMIT_DEFAULT`. Requests a client may make in one window. Default: 100.
    rate_limit_window: `API_RATE_LIMIT_WINDOW`. The window, seconds. Default: 60.
    cache_ttl:         `API_CACHE_TTL`. Seconds that a value is cached when nothing else says how long. Default: 300.
    prefix:            `ASGI_ENHANCE_PREFIX`. The beginning of every Redis key. Default: `asgi_enhance`.
    trusted_proxies:   `ASGI_ENHANCE_TRUSTED_PROXIES`. Networks (CIDR) or `unix`, separated by commas, whose
                       `X-Forwarded-For` is believed. Default: nobody's.
    """

    redis_url: str | None = _setting("REDIS_URL", None, _redis_url, secret=True)
    backends: tuple[str, ...] = _setting("API_LOAD_BALANCER_BACKENDS", (), _urls)
    rate_limit: int = _setting("API_RATE_LIMIT_DEFAULT", 100, _positive)
    rate_limit_window: int = _setting("API_RATE_LIMIT_WINDOW", 60, _positive)
    cache_ttl: int = _setting("API_CACHE_TTL", 300, _positive)
    prefix: str = _setting("ASGI_ENHANCE_PREFIX", "asgi_enhance", _text)
    trusted_proxies: tuple[str, ...] = _setting("ASGI_ENHANCE_TRUSTED_PROXIES", (), _networks)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """The settings of this environment (default: the process'); an empty variable counts as absent.

        Raises ConfigError naming the variable, its value and what was expected.
        """
        environ = os.environ if environ is None else environ
        given: dict[str, Any] = {}
        for each in fields(cls):
            variable, read = each.metadata["variable"], each.metadata["read"]
            value = environ.get(variable, "").strip()
            if not value:
                continue
            try:
                given[each.name] = read(value)
            except ValueError as expected:
                shown = value if each.repr and "@" not in value else "***"
                raise ConfigError(f"{variable}={shown!r}: expected {expected}") from None
        return cls(**given)
