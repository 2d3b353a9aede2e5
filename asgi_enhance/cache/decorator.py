"""`@cached`: a function whose results are kept, and computed once however many call at the same time."""

import functools
import inspect
from collections.abc import Awaitable, Callable, Sequence
from hashlib import blake2b
from math import inf
from typing import Any, ParamSpec, TypeVar, get_type_hints

import msgspec

from asgi_enhance.cache.core import Cache
from asgi_enhance.cache.memory import MemoryCache
from asgi_enhance.errors import CacheError, ConfigError

P = ParamSpec("P")
T = TypeVar("T")


def cached(
    ttl: float,
    *,
    cache: Cache[Any] | None = None,
    key: Callable[..., str] | None = None,
    tags: Sequence[str] = (),
    as_type: Any = None,
) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]:
    """Keep the results of an async function.

    ttl:     how long a result is kept, in seconds.
    cache:   where. Default: a MemoryCache for this function alone.
    key:     makes the key from the arguments. Default: the function's name and all its arguments, which must be such
             as msgspec encodes; where one cannot be (a session, a request), say with `key` what tells calls apart.
    tags:    names to purge results by.
    as_type: what structures are decoded into (a msgspec type). Default: what the function declares to return, so that
             a hit gives what a miss gives. If it declares nothing, or nothing msgspec can make: dicts, lists and so on.

    The function gets `.cache`, `.key(*arguments)` and `await .forget(*arguments)`.
    """
    if not isinstance(ttl, (int, float)) or not 0 < ttl < inf:
        raise ConfigError(f"ttl must be a number of seconds above 0, not {ttl!r}")

    def decorate(function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        if not inspect.iscoroutinefunction(function):
            raise ConfigError(f"cached is for async functions, which {function!r} is not")
        store = cache if cache is not None else MemoryCache()
        returned = _declared(function) if as_type is None else as_type
        signature = inspect.signature(function)
        name = f"{function.__module__}.{function.__qualname__}"

        def key_of(*arguments: P.args, **options: P.kwargs) -> str:
            if key is not None:
                return f"{name}:{key(*arguments, **options)}"
            bound = signature.bind(*arguments, **options)
            bound.apply_defaults()
            # msgpack tells 1 from "1" and ("a", "b") from "ab"; Python's hash is another in every process
            try:
                # but not Decimal("1") from "1", nor two structures with the same fields: their types do
                kinds = ([_kind(value) for value in bound.args], {n: _kind(v) for n, v in bound.kwargs.items()})
                packed = msgspec.msgpack.encode((kinds, bound.args, bound.kwargs), order="deterministic")
            except (TypeError, ValueError, OverflowError) as error:
                raise CacheError(f"the arguments of {name} make no key: {error}; give `key`") from error
            return f"{name}:{blake2b(packed, digest_size=16).hexdigest()}"

        @functools.wraps(function)
        async def wrapper(*arguments: P.args, **options: P.kwargs) -> T:
            result: T = await store.get_or_compute(
                key_of(*arguments, **options),
                lambda: function(*arguments, **options),
                ttl,
                tags=tags,
                as_type=returned,
            )
            return result

        async def forget(*arguments: P.args, **options: P.kwargs) -> None:
            await store.delete(key_of(*arguments, **options))

        wrapper.cache = store  # type: ignore[attr-defined]
        wrapper.key = key_of  # type: ignore[attr-defined]
        wrapper.forget = forget  # type: ignore[attr-defined]
        return wrapper

    return decorate


def _declared(function: Callable[..., Any]) -> Any:
    """The type a function says it returns, if msgspec can decode into it."""
    try:
        declared = get_type_hints(function).get("return", Any)
        msgspec.json.schema(declared)  # a decoder would be made for a type of somebody's own, and then fail each time
    except (NameError, TypeError):  # a name that only a type checker sees; a type that is not data
        return Any
    return declared


def _kind(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
