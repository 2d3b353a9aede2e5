"""Is this process alive, is it ready, and how is that said?

The rules, after Kubernetes' probes, ASP.NET's health checks and draft-inadarei-api-health-check-06:

- Alive is who answers. No dependency takes part: restarting everybody because a database is away makes it worse.
- Ready is who has started, is not draining, and whose critical checks pass. A check that is not critical and fails, or
  that warns, makes the answer `warn`, and the service goes on serving.
- `pass` and `warn` are 200, `fail` is 503. `output` is given unless a check passes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    PASS = "pass"
    WARN = "warn"
    FAIL = "fail"

    @property
    def http(self) -> int:
        return 503 if self is Status.FAIL else 200


class Phase(StrEnum):
    """Where a process is in its life."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Result:
    """What one look has found. `observed` and `unit` are for readers; `output` says what is wrong."""

    status: Status = Status.PASS
    observed: Any = None
    unit: str | None = None
    output: str | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """A result, of which check, and when (wall-clock seconds)."""

    name: str
    kind: str
    critical: bool
    result: Result
    time: float

    @property
    def status(self) -> Status:
        """What it means for the whole: only a critical check can take a process out of service."""
        if self.result.status is Status.FAIL and not self.critical:
            return Status.WARN
        return self.result.status


def readiness(phase: Phase, findings: Iterable[Finding]) -> Status:
    if phase is not Phase.SERVING:
        return Status.FAIL
    said = {finding.status for finding in findings}
    return Status.FAIL if Status.FAIL in said else Status.WARN if Status.WARN in said else Status.PASS


def by_thresholds(value: float, *, warn: float, fail: float | None, unit: str) -> Result:
    """A measurement against its limits, each of which is still good."""
    if fail is not None and value > fail:
        return Result(Status.FAIL, value, unit, f"{value:.3g} {unit} is more than {fail:.3g}")
    if value > warn:
        return Result(Status.WARN, value, unit, f"{value:.3g} {unit} is more than {warn:.3g}")
    return Result(Status.PASS, value, unit)


def document(status: Status, phase: Phase, findings: Sequence[Finding], about: Mapping[str, str]) -> dict[str, Any]:
    """The body of application/health+json, for readers who may know."""
    body: dict[str, Any] = {"status": status, **about}
    if phase is not Phase.SERVING:
        body["notes"] = [phase]
    if findings:
        body["checks"] = {finding.name: [_entry(finding)] for finding in findings}
    return body


def _entry(finding: Finding) -> dict[str, Any]:
    result = finding.result
    entry: dict[str, Any] = {"componentType": finding.kind, "status": result.status}
    if result.observed is not None:
        entry["observedValue"] = result.observed
    if result.unit is not None:
        entry["observedUnit"] = result.unit
    entry["time"] = datetime.fromtimestamp(finding.time, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if result.output is not None and result.status is not Status.PASS:
        entry["output"] = result.output
    return entry
