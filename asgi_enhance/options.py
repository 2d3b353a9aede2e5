"""What a constructor asks of its options: that each is of the type it declares.

A wrong type would otherwise be found by the first request that meets it. Ranges and what options mean together are the
constructor's own business; this is what all have in common.
"""

import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import wraps
from inspect import Parameter, signature
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from asgi_enhance.errors import ConfigError

C = TypeVar("C", bound=type)

GATHERING = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
SECRET = re.compile("secret|token|sticky|url|redis")
"""Options whose values are not repeated in an error."""


def checked(cls: C) -> C:
    """A class decorator: ConfigError, naming the argument, where one is not of the type its constructor declares.

    Numbers must be numbers (an int is a float, a bool is neither), a string is no list of strings, and of callables
    nothing is asked but that they can be called.
    """
    init: Callable[..., None] = cls.__init__  # type: ignore[misc]
    parameters = signature(init)
    single = {name for name, each in parameters.parameters.items() if each.kind not in GATHERING}
    hints: dict[str, Any] = {}

    @wraps(init)
    def construct(*args: Any, **kwargs: Any) -> None:
        if not hints:  # not when the class is made: what it names may be declared later
            hints.update(_hints(init))
        for name, value in parameters.bind(*args, **kwargs).arguments.items():
            if name in single and name in hints and not fits(value, hints[name]):
                shown = "" if SECRET.search(name) else f" {value!r:.80}"
                raise ConfigError(f"{name} must be {_spelled(hints[name])}, not {type(value).__name__}{shown}")
        init(*args, **kwargs)

    cls.__init__ = construct  # type: ignore[misc]
    return cls


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type; what this does not know, a value does fit."""
    origin, of = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in of)
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in of)
    if hint is None or hint is NoneType:
        return value is None
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    kind: Any = origin or hint
    if kind is Any or not isinstance(kind, type) or getattr(kind, "_is_protocol", False):
        return True
    if kind is Callable:
        return callable(value)
    if not isinstance(value, kind) or (isinstance(value, (str, bytes)) and issubclass(kind, Iterable) and origin):
        return False
    if not of or not isinstance(value, Collection):  # what can be read only once is not read here
        return True
    if isinstance(value, Mapping) and issubclass(kind, Mapping):
        return all(fits(key, of[0]) and fits(each, of[1]) for key, each in value.items())
    if kind is tuple and of[-1] is not Ellipsis:
        return len(value) == len(of) and all(map(fits, value, of))
    return not issubclass(kind, Iterable) or all(fits(each, of[0]) for each in value)


def _hints(init: Callable[..., None]) -> dict[str, Any]:
    """The declared types. Those that only a type checker can see, since importing them would be dear, are left out."""
    names = vars(sys.modules[init.__module__])
    found: dict[str, Any] = {}
    for name, hint in init.__annotations__.items():
        try:
            found[name] = eval(hint, dict(names)) if isinstance(hint, str) else hint
        except NameError:
            continue
    return found


def _spelled(hint: Any) -> str:
    """A type as its source has it, without the modules."""
    if isinstance(hint, type) and not get_args(hint):
        return hint.__name__
    return re.sub(r"\b(?:\w+\.)+", "", str(hint)).replace("NoneType", "None")
