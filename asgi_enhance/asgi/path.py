"""Path templates, one notation for all rules: a rule is matched before any framework has routed the request.

    /items/{id}         one segment
    /files/{rest:path}  any rest
    /api/*              /api and everything below it
    *                   every path

A slash at the end makes no difference. Matching is on the decoded path, case-sensitive, like the routers' own.
"""

import re
from collections.abc import Iterable

from asgi_enhance.errors import ConfigError

_PLACEHOLDER = re.compile(r"(\{\w+(?::path)?\}|/?\*$)")


def path_pattern(templates: str | Iterable[str]) -> re.Pattern[str]:
    """A pattern whose `fullmatch` says whether a path fits one of the templates. ConfigError for a broken one."""
    several = (templates,) if isinstance(templates, str) else templates
    return re.compile("(?:" + "|".join(map(_expression, several)) + ")/?", re.DOTALL)


def _expression(template: str) -> str:
    if template == "*":
        return ".*"
    if not template.startswith("/"):
        raise ConfigError(f"path must begin with a slash, not {template!r}")
    expression = ""
    for part in _PLACEHOLDER.split(template.rstrip("/") or "/"):
        if part.startswith("{") and part.endswith("}"):
            expression += ".*" if part.endswith(":path}") else "[^/]+"
        elif part == "/*":
            expression += "(?:/.*)?"
        elif part == "*":
            expression += ".*"
        elif any(sign in part for sign in "{}*"):
            raise ConfigError(
                f"path {template!r}: {part!r} is neither a {{segment}}, a {{rest:path}} nor a * at the end"
            )
        else:
            expression += re.escape(part)
    return expression
