"""Asks the checks, at most one question each at a time, and remembers the answers for a while."""

import asyncio
from collections.abc import Collection, Iterable
from time import monotonic, time

from asgi_enhance.asgi.lifespan import Resource
from asgi_enhance.asgi.tasks import Tasks
from asgi_enhance.errors import ConfigError
from asgi_enhance.health.checks import Check
from asgi_enhance.health.policy import Finding, Phase, Result, Status


class Health(Resource[Tasks]):
    """The state of a process: its phase, and what its checks say.

    checks: asked for readiness, in this order. Default: none.
    phase:  where it begins; the layer follows the app's start-up and shutdown from there. Default: serving.
    """

    def __init__(self, checks: Iterable[Check] = (), *, phase: Phase = Phase.SERVING) -> None:
        super().__init__()
        self.phase = phase
        self._checks: dict[str, Check] = {}
        self._answers: dict[str, tuple[float, Finding]] = {}
        self._flights: dict[tuple[int, str], asyncio.Task[Finding]] = {}
        for check in checks:
            self.add(check)

    def add(self, check: Check) -> None:
        """Ask this, too. ConfigError for a name that is taken."""
        if check.name in self._checks:
            raise ConfigError(f"checks: there is one named {check.name!r} already")
        self._checks[check.name] = check
        self.needs = (*self.needs, check.resource)

    def serve(self) -> None:
        """Start-up is finished."""
        self.phase = Phase.SERVING

    def drain(self) -> None:
        """Not ready any more, though requests are still served: call it some seconds before the end."""
        self.phase = Phase.DRAINING

    @property
    def names(self) -> list[str]:
        return list(self._checks)

    async def findings(self, *, only: str | None = None, exclude: Collection[str] = ()) -> list[Finding]:
        """What the checks say, asked at once where the last answer is too old."""
        tasks = await self.started()
        wanted = [check for check in self._checks.values() if check.name not in exclude and only in (None, check.name)]
        return list(await asyncio.gather(*(self._finding(check, tasks) for check in wanted)))

    async def _finding(self, check: Check, tasks: Tasks) -> Finding:
        known = self._answers.get(check.name)
        if known is not None and monotonic() - known[0] < check.ttl:
            return known[1]
        key = (id(asyncio.get_running_loop()), check.name)
        flight = self._flights.get(key)
        if flight is None or flight.done():
            flight = tasks.spawn(self._ask(check), name=f"asgi_enhance.health.{check.name}")
            self._flights[key] = flight
            flight.add_done_callback(lambda _: self._flights.pop(key, None))
        # Whatever a check does with its cancellation, the probe gets its answer in time.
        done, _ = await asyncio.wait({flight}, timeout=check.timeout + 0.1)
        if not done or flight.cancelled():
            return self._as_finding(check, Result(Status.FAIL, output=f"no answer in {check.timeout:g} s"))
        return flight.result()

    async def _ask(self, check: Check) -> Finding:
        finding = self._as_finding(check, await check.ask())
        self._answers[check.name] = (monotonic(), finding)
        return finding

    def _as_finding(self, check: Check, result: Result) -> Finding:
        return Finding(check.name, check.kind, check.critical, result, time())

    async def _start(self) -> Tasks:
        tasks = Tasks()
        for check in self._checks.values():
            if check.background is not None:
                tasks.spawn(check.background(), name=f"asgi_enhance.health.{check.name}.background")
        return tasks

    async def _stop(self, value: Tasks) -> None:
        await value.cancel()
