"""What can be looked at: `Check` is a question with a deadline; the functions make the usual ones.

A check's `look` is a function, sync (called in a thread, since it may block) or async. It gives a `Result`, or True or
None for a pass, or False for a failure; what it raises is a failure too. It must not say secrets: its output is shown
to whoever may see details.
"""

import asyncio
import inspect
import socket
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

from asgi_enhance.asgi.process import CpuMeter, Limits, LoopLag, resident_bytes
from asgi_enhance.errors import ConfigError
from asgi_enhance.health.policy import Result, Status, by_thresholds
from asgi_enhance.options import checked

if TYPE_CHECKING:
    from asgi_enhance.redis import RedisManager

Kind = Literal["component", "datastore", "system"]
Answer = Result | bool | None
Look = Callable[[], Answer | Awaitable[Answer]]


@checked
class Check:
    """A question that is asked when its last answer is older than `ttl`.

    look:       the question; see the module.
    name:       as shown; `component:measurement` by custom.
    critical:   whether a failure takes the process out of service. Default: False, it warns.
    timeout:    seconds after which the answer is a failure. Default: 1.
    ttl:        seconds an answer holds: however often probes come, nobody is asked more often. Default: 5.
    kind:       "component", "datastore" or "system". Default: "component".
    background: a coroutine function that runs as long as the health does, for checks that have to watch. Default: None.
    resource:   held as long as the health runs. Default: None.
    """

    def __init__(
        self,
        look: Look,
        *,
        name: str,
        critical: bool = False,
        timeout: float = 1.0,
        ttl: float = 5.0,
        kind: Kind = "component",
        background: Callable[[], Coroutine[Any, Any, None]] | None = None,
        resource: AbstractAsyncContextManager[Any] | None = None,
    ) -> None:
        if not name or "/" in name:
            raise ConfigError(f"name must be text without a slash, not {name!r}")
        if not timeout > 0:
            raise ConfigError(f"timeout must be positive seconds, not {timeout!r}")
        if ttl < 0:
            raise ConfigError(f"ttl must not be negative, not {ttl!r}")
        self.name = name
        self.critical = critical
        self.timeout = timeout
        self.ttl = ttl
        self.kind: Kind = kind
        self.background = background
        self.resource = resource
        self._look = look
        self._thread: asyncio.Future[Any] | None = None

    async def ask(self) -> Result:
        """One look, within the deadline. Never raises but for a cancellation of its own."""
        try:
            async with asyncio.timeout(self.timeout):
                return _as_result(await self._answer())
        except TimeoutError:
            return Result(Status.FAIL, output=f"no answer in {self.timeout:g} s")
        except Exception as error:
            return Result(Status.FAIL, output=type(error).__name__)

    async def _answer(self) -> Answer:
        found: Any = self._look() if inspect.iscoroutinefunction(self._look) else await self._in_a_thread()
        answer: Answer = await found if inspect.isawaitable(found) else found
        return answer

    async def _in_a_thread(self) -> Any:
        """A function that hangs keeps its one thread; nobody starts another beside it."""
        if self._thread is None or self._thread.done() or self._thread.get_loop() is not asyncio.get_running_loop():
            self._thread = asyncio.ensure_future(asyncio.to_thread(self._look))
            self._thread.add_done_callback(lambda thread: thread.cancelled() or thread.exception())
        return await asyncio.shield(self._thread)


def _as_result(answer: Answer) -> Result:
    if isinstance(answer, Result):
        return answer
    return Result(Status.FAIL if answer is False else Status.PASS)


def redis(manager: "RedisManager", *, critical: bool = False, timeout: float = 0.5, ttl: float = 2.0) -> Check:
    """Whether Redis answers, and how fast. Not critical: without it the layers go on in the process."""

    async def look() -> Result:
        return Result(observed=round(await manager.ping() * 1000, 3), unit="ms")

    return Check(
        look, name="redis:responseTime", critical=critical, timeout=timeout, ttl=ttl, kind="datastore", resource=manager
    )


def backends(
    states: Callable[[], Mapping[str, bool]], *, name: str = "backends:available", critical: bool = False
) -> Check:
    """Whether backends can be used: some away is a warning, all of them a failure. `states` tells which, by name.

    Make it critical where the process does nothing but proxy.
    """

    async def look() -> Result:
        found = states()
        up = sum(map(bool, found.values()))
        if up == len(found) and up:
            return Result(observed=up)
        away = ", ".join(sorted(backend for backend, available in found.items() if not available)[:10])
        return Result(Status.WARN if up else Status.FAIL, up, output=f"not available: {away or 'there are none'}")

    return Check(look, name=name, critical=critical, ttl=0.0)


def tcp(host: str, port: int, *, critical: bool = False, timeout: float = 1.0, ttl: float = 5.0) -> Check:
    """Whether a connection can be made."""

    async def look() -> Result:
        began = perf_counter()
        _, writer = await asyncio.open_connection(host, port)
        observed = round((perf_counter() - began) * 1000, 3)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        return Result(observed=observed, unit="ms")

    return Check(look, name=f"tcp {host}:{port}", critical=critical, timeout=timeout, ttl=ttl)


def dns(host: str, *, critical: bool = False, timeout: float = 1.0, ttl: float = 30.0) -> Check:
    """Whether a name resolves."""

    async def look() -> Result:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        return Result(observed=len({entry[4][0] for entry in found}), unit="addresses")

    return Check(look, name=f"dns {host}", critical=critical, timeout=timeout, ttl=ttl)


def memory(*, warn: float = 0.85, fail: float | None = None, critical: bool = True) -> Check:
    """Resident memory as a part (0 to 1) of what the cgroup or the machine allows."""
    limit: list[int] = []  # read once, when first asked

    async def look() -> Result:
        if not limit:
            limit.append(Limits().memory_bytes)
        return by_thresholds(resident_bytes() / limit[0], warn=warn, fail=fail, unit="of the limit")

    return Check(look, name="memory:utilization", critical=critical, kind="system")


def cpu(*, warn: float = 0.9, fail: float | None = None, critical: bool = True) -> Check:
    """CPU as a part (0 to 1) of what the cgroup or the machine allows, as the mean of some seconds."""
    meter = CpuMeter()
    limit: list[float] = []

    async def look() -> Result:
        if not limit:
            limit.append(Limits().cpu_cores)
        return by_thresholds(meter.cores() / limit[0], warn=warn, fail=fail, unit="of the limit")

    return Check(look, name="cpu:utilization", critical=critical, kind="system")


def event_loop(*, warn: float = 0.1, fail: float | None = 2.0, critical: bool = True) -> Check:
    """The worst lag of the event loop in ten seconds: something blocks it."""
    lag = LoopLag()

    async def look() -> Result:
        return by_thresholds(lag.worst, warn=warn, fail=fail, unit="s")

    return Check(look, name="event-loop:lag", critical=critical, kind="system", ttl=0.0, background=lag.run)
