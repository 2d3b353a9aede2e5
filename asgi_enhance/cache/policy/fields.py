"""What a field value says: dates, ages, directives, lists. Lenient where the RFC says so, else strict.

- RFC 9110 5.6.7: three date formats, all GMT; RFC 9111 4.2: a cache matches them case-insensitively.
- RFC 9111 1.2.2: delta-seconds are non-negative integers; what is too large counts as 2^31.
- RFC 9111 4.2.1: of duplicate or conflicting directives the most restrictive one counts.
- RFC 9213 2.1: a targeted field is a Structured Fields Dictionary; one that does not parse, or is empty, is ignored.
"""

import re
from calendar import timegm
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from time import gmtime
from typing import Final

import http_sf

from asgi_enhance.asgi.types import RawHeaders

MAX_DELTA: Final = 2**31
REMEMBERED: Final = 256
"""How long a line may be whose meaning is remembered, in bytes: clients write such lines, too."""
INVALID: Final = -1
"""The value of a delta-seconds directive that is there but cannot be read: the response counts as stale."""

_MONTHS: Final = {
    name: number + 1 for number, name in enumerate((b"jan feb mar apr may jun jul aug sep oct nov dec").split())
}
_MONTH: Final = rb"(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)"
_TIME: Final = rb"(\d\d):(\d\d):(\d\d)"
_IMF: Final = re.compile(rb"(?:mon|tue|wed|thu|fri|sat|sun), (\d\d) %b (\d{4}) %b gmt" % (_MONTH, _TIME))
_RFC850: Final = re.compile(rb"(?:mon|tues|wednes|thurs|fri|satur|sun)day, (\d\d)-%b-(\d\d) %b gmt" % (_MONTH, _TIME))
_ASCTIME: Final = re.compile(rb"(?:mon|tue|wed|thu|fri|sat|sun) %b ([ \d]\d) %b (\d{4})" % (_MONTH, _TIME))

USUAL: Final = 29
"""How long an IMF-fixdate is, in bytes."""

_MEMBER: Final = re.compile(rb'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+')
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

DELTAS: Final = frozenset({"max-age", "s-maxage", "stale-while-revalidate", "stale-if-error", "min-fresh", "max-stale"})

Directives = Mapping[str, int | frozenset[bytes] | None]
"""Directive → delta-seconds (or INVALID), the field names of `no-cache="…"` and `private="…"`, or None."""


def http_date(value: bytes, now: float) -> float | None:
    """Seconds since the epoch, or None if `value` is not an HTTP-date."""
    usual = _usual_date(value) if len(value) == USUAL else None
    return usual if usual is not None else _date(value, now)


@lru_cache(1024)
def _usual_date(value: bytes) -> float | None:
    """The form that all should use; responses of one second bear the same date."""
    return _date(value, 0.0) if _IMF.fullmatch(value.lower()) else None


def _date(value: bytes, now: float) -> float | None:
    text = value.strip().lower()
    if match := _IMF.fullmatch(text):
        day, month, year, hour, minute, second = match.groups()
        number = int(year)
    elif match := _RFC850.fullmatch(text):
        day, month, year, hour, minute, second = match.groups()
        this_year = gmtime(now).tm_year
        number = this_year - this_year % 100 + int(year)
        if number > this_year + 50:
            number -= 100
    elif match := _ASCTIME.fullmatch(text):
        month, day, hour, minute, second, year = match.groups()
        number = int(year)
    else:
        return None
    if not (number > 0 and 0 < int(day) <= 31 and int(hour) < 24 and int(minute) < 60 and int(second) <= 60):
        return None
    return float(timegm((number, _MONTHS[month], int(day), int(hour), int(minute), int(second))))


def delta_seconds(value: bytes) -> int:
    """RFC 9111 1.2.2, or INVALID."""
    if not value.isdigit():
        return INVALID
    return min(int(value), MAX_DELTA) if len(value) <= 32 else MAX_DELTA


def values(headers: RawHeaders, name: bytes) -> list[bytes]:
    """All lines of one field; its name is given in lower case, theirs may be in any."""
    return [value for key, value in headers if len(key) == len(name) and key.lower() == name]


Index = dict[bytes, list[bytes]]
"""Field name in lower case → its lines."""


def index(headers: RawHeaders, wanted: frozenset[bytes]) -> Index:
    """The wanted fields by name, for who is going to ask for many."""
    found: Index = {}
    for name, value in headers:
        name = name.lower()
        if name in wanted:
            found.setdefault(name, []).append(value)
    return found


def members(lines: Iterable[bytes]) -> list[bytes]:
    """The members of a list field, over all its lines, without the empty ones."""
    return [member for line in lines for part in line.split(b",") if (member := part.strip())]


def cache_control(lines: Sequence[bytes]) -> Directives:
    """The directives of all Cache-Control lines, names in lower case."""
    if len(lines) == 1 and len(lines[0]) <= REMEMBERED:
        return _of_line(lines[0])
    return _of_lines(lines)


@lru_cache(1024)
def _of_line(line: bytes) -> Directives:
    """Apps say the same few things all day."""
    return _of_lines([line])


def _of_lines(lines: Sequence[bytes]) -> Directives:
    directives: dict[str, int | frozenset[bytes] | None] = {}
    for line in lines:
        for part in _MEMBER.findall(line):
            name, equals, argument = part.partition(b"=")
            token = name.strip().lower()
            if not _TOKEN.fullmatch(token):
                continue
            # A space round "=" is an error; it must not make a directive weaker than it would be without
            well_formed = not equals or (name == name.lstrip().rstrip(b" \t") or name == name.rstrip())
            _add(directives, token.decode(), argument.rstrip() if equals else None, well_formed)
    return directives


def is_no_store(headers: RawHeaders, governing: frozenset[bytes]) -> bool:
    """Whether one Cache-Control line, alone of all that govern, says `no-store` and nothing that could soften it."""
    said = None
    for name, value in headers:
        if name in governing:
            if said is not None or name != b"cache-control":
                return False
            said = value
    if said is None:
        return False
    directives = _of_line(said) if len(said) <= REMEMBERED else _of_lines((said,))
    return "no-store" in directives and "must-understand" not in directives


def _add(
    directives: dict[str, int | frozenset[bytes] | None], name: str, argument: bytes | None, well_formed: bool
) -> None:
    if name in DELTAS:
        if argument is None and name == "max-stale":
            number = MAX_DELTA
        else:
            number = delta_seconds(_unquoted(argument)) if argument is not None and well_formed else INVALID
        known = directives.get(name)
        directives[name] = number if not isinstance(known, int) else min(known, number)
    elif name in ("no-cache", "private") and argument:
        fields = frozenset(field.lower() for field in members([_unquoted(argument)]))
        known = directives.get(name, fields)
        # The form without field names is the more restrictive of the two
        directives[name] = known | fields if isinstance(known, frozenset) else None
    else:
        directives[name] = None


def _unquoted(value: bytes) -> bytes:
    if len(value) >= 2 and value.startswith(b'"') and value.endswith(b'"'):
        return re.sub(rb"\\(.)", rb"\1", value[1:-1])
    return value


def targeted(lines: Iterable[bytes]) -> Directives | None:
    """The directives of a targeted field (RFC 9213), or None if the field is to be ignored."""
    try:
        parsed = http_sf.parse(b", ".join(lines), tltype="dictionary")
    except (http_sf.StructuredFieldError, ValueError):
        return None
    if not isinstance(parsed, dict) or not parsed:
        return None
    directives: dict[str, int | frozenset[bytes] | None] = {}
    for name, member in parsed.items():
        value = member[0] if isinstance(member, tuple) else member
        if value is False:
            continue
        if name in DELTAS:
            # A value of the wrong type is not consumed (2.1): as if the directive were not there
            if type(value) is int:
                directives[name] = min(value, MAX_DELTA) if value >= 0 else INVALID
        elif name in ("no-cache", "private") and type(value) is str:
            directives[name] = frozenset(field.lower() for field in members([value.encode()]))
        else:
            directives[name] = None
    return directives


def strings(lines: Sequence[bytes]) -> tuple[str, ...]:
    """A Structured Fields List of Strings (RFC 9875); empty if it is not one."""
    if not lines:
        return ()
    try:
        parsed = http_sf.parse(b", ".join(lines), tltype="list")
    except (http_sf.StructuredFieldError, ValueError):
        return ()
    if not isinstance(parsed, list):
        return ()
    items = [member[0] if isinstance(member, tuple) else member for member in parsed]
    return tuple(item for item in items if type(item) is str)
