"""Rules for apps that send no Cache-Control: which paths may be cached, and for how long."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Final

from asgi_enhance.asgi.path import path_pattern
from asgi_enhance.errors import ConfigError
from asgi_enhance.options import checked

_FIELD_NAME: Final = re.compile(r"[!#$%&'+.^_`|~0-9A-Za-z-]+")
"""A token (RFC 9110 5.6.2), without `*`, which as a member of Vary is no name."""


def field_names(option: str, names: Iterable[str]) -> tuple[bytes, ...]:
    """Names of fields as scopes have them; ConfigError naming the option if one is none."""
    names = tuple(names)
    for name in names:
        if not _FIELD_NAME.fullmatch(name):
            raise ConfigError(f"{option}: {name!r} is not the name of a field")
    return tuple(name.lower().encode("ascii") for name in names)


@checked
@dataclass(frozen=True, slots=True)
class CacheRule:
    """What the operator knows of the responses below a path. The response's own word always comes first.

    path:     a template of the path below the mount: "/articles/{id}", "/static/*", "*" (see `asgi.path`). The first
              rule that fits counts.
    ttl:      freshness lifetime in seconds, for responses that give none themselves. None: the rule gives none.
    stale_while_revalidate, stale_if_error: seconds past freshness (RFC 5861), where the response gives none.
    vary:     request fields whose values select the response, besides those of its own Vary.
    tags:     names to purge by.
    statuses: which statuses `ttl` is for. Default: 200.
    bypass:   True takes the path out of the cache altogether.
    """

    path: str
    ttl: float | None = None
    stale_while_revalidate: float | None = None
    stale_if_error: float | None = None
    vary: Sequence[bytes | str] = ()
    tags: Sequence[str] = ()
    statuses: frozenset[int] = frozenset({200})
    bypass: bool = False
    nominated: tuple[bytes, ...] = field(init=False, repr=False, compare=False)
    """`vary` as it is compared."""
    _pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("ttl", "stale_while_revalidate", "stale_if_error"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < inf:
                raise ConfigError(f"{name} must be a number of seconds from 0, not {value!r}")
        if isinstance(self.vary, (str, bytes)) or isinstance(self.tags, str):
            raise ConfigError("vary and tags must be sequences of names, not one string")
        if "?" in self.path:
            raise ConfigError(f"path is matched without the query, so nothing is like {self.path!r}")
        object.__setattr__(self, "_pattern", path_pattern(self.path))
        names = (name.decode("latin-1") if isinstance(name, bytes) else name for name in self.vary)
        object.__setattr__(self, "nominated", field_names("vary", names))
        object.__setattr__(self, "statuses", frozenset(self.statuses))

    def matches(self, path: str) -> bool:
        return self._pattern.fullmatch(path) is not None
