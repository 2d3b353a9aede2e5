"""Rules for apps that send no Cache-Control: which paths may be cached, and for how long."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from asgi_enhance.asgi.path import path_pattern
from asgi_enhance.errors import ConfigError
from asgi_enhance.options import checked


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
            if value is not None and not value >= 0:
                raise ConfigError(f"{name} must be at least 0 seconds, not {value!r}")
        if isinstance(self.vary, (str, bytes)) or isinstance(self.tags, str):
            raise ConfigError("vary and tags must be sequences of names, not one string")
        object.__setattr__(self, "_pattern", path_pattern(self.path))
        names = (name if isinstance(name, bytes) else name.encode("latin-1") for name in self.vary)
        object.__setattr__(self, "nominated", tuple(name.lower() for name in names))
        object.__setattr__(self, "statuses", frozenset(self.statuses))

    def matches(self, path: str) -> bool:
        return self._pattern.fullmatch(path) is not None
