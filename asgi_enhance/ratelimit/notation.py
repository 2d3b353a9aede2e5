"""Reads rates the way `limits` writes them, and a little more.

    "100/minute"   "10 per second; 1000/hour"   "500/5 minutes"   "100/minute burst 20"

Separators are `;` `,` and `|`. Besides `limits`' units (second to year; its month has 30 days, its year 360) there are
weeks, and `s` `sec` `m` `min` `h` `hr` `d` `w`.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from asgi_enhance.errors import ConfigError
from asgi_enhance.ratelimit.policy import SECOND, UNNAMED, Quota

Limits = str | Quota | Mapping[str, Any] | tuple[Quota, ...]
"""Limits as a user may write them: notation, `{"requests": 100, "window": 60, "burst": 20}`, or quotas."""

_UNITS = {
    1: ("s", "sec", "second"),
    60: ("m", "min", "minute"),
    3_600: ("h", "hr", "hour"),
    86_400: ("d", "day"),
    604_800: ("w", "week"),
    2_592_000: ("month",),
    31_104_000: ("year",),
}
_SECONDS = {spelling: seconds for seconds, names in _UNITS.items() for name in names for spelling in (name, name + "s")}

_RATE = re.compile(
    r"\s*(?P<limit>\d{1,12})\s*(?:/|\s+per\s+)\s*(?P<multiple>\d{1,12})?\s*(?P<unit>[a-z]+)(?:\s+burst\s+(?P<burst>\d{1,12}))?\s*",
    re.IGNORECASE,
)


def quotas(limits: Limits, name: str = "default") -> tuple[Quota, ...]:
    """The quotas that `limits` stands for. ConfigError if it does not stand for any."""
    if isinstance(limits, str):
        return parse(limits, name)
    if isinstance(limits, Quota):
        return _called((limits,), name)
    if isinstance(limits, Mapping):
        return (_from_mapping(limits, name),)
    if isinstance(limits, tuple) and limits and all(isinstance(quota, Quota) for quota in limits):
        return _called(limits, name)
    raise ConfigError(f"limits must be a rate such as '100/minute', a mapping or quotas, not {limits!r}")


@lru_cache(maxsize=1024)
def _called(given: tuple[Quota, ...], name: str) -> tuple[Quota, ...]:
    """Quotas without a name of their own get one as rates do: else those of two rules would share a count."""
    found = tuple(
        quota if quota.name != UNNAMED else replace(quota, name=name if len(given) == 1 else f"{name}-{quota.seconds}s")
        for quota in given
    )
    if len({quota.name for quota in found}) < len(found):
        raise ConfigError(f"limits {given!r}: two quotas have the same name")
    return found


@lru_cache(maxsize=1024)
def parse(text: str, name: str = "default") -> tuple[Quota, ...]:
    """`text` as quotas. One is called `name`; several are told apart by their windows (`name-60s`)."""
    rates = [_rate(part, text) for part in re.split(r"[;,|]", text)]
    if len(rates) == 1:
        limit, seconds, burst = rates[0]
        return (Quota(limit, seconds * SECOND, burst, name),)
    found = tuple(Quota(limit, seconds * SECOND, burst, f"{name}-{seconds}s") for limit, seconds, burst in rates)
    if len({quota.name for quota in found}) < len(found):
        raise ConfigError(f"limits {text!r}: two rates have the same window")
    return found


def _rate(part: str, text: str) -> tuple[int, int, int]:
    match = _RATE.fullmatch(part)
    if match is None:
        raise ConfigError(f"limits {text!r}: {part.strip()!r} is not a rate such as '100/minute burst 20'")
    unit = _SECONDS.get(match["unit"].lower())
    if unit is None:
        raise ConfigError(f"limits {text!r}: {match['unit']!r} is not a unit of time")
    limit, multiple, burst = (
        int(match[group] or given) for group, given in (("limit", 0), ("multiple", 1), ("burst", 0))
    )
    if limit == 0 or multiple == 0 or (match["burst"] and burst == 0):
        raise ConfigError(f"limits {text!r}: no number in it may be 0")
    return limit, unit * multiple, burst


def _from_mapping(limits: Mapping[str, Any], name: str) -> Quota:
    unknown = set(limits) - {"requests", "window", "burst"}
    if unknown or not {"requests", "window"} <= set(limits):
        raise ConfigError(f"limits {dict(limits)!r}: it takes 'requests', 'window' (seconds) and maybe 'burst'")
    window = limits["window"]
    if isinstance(window, bool) or not isinstance(window, int | float) or not math.isfinite(window):
        raise ConfigError(f"window must be a number of seconds, not {window!r}")
    burst = limits.get("burst")
    if burst == 0:
        raise ConfigError("burst must be at least 1, not 0; None: no burst")
    return Quota(limits["requests"], round(window * SECOND), burst or 0, name)
