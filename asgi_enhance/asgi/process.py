"""What this process uses, against what it may use: CPU and memory with the limits of its cgroup, and the loop's lag.

In a container the machine's own figures say nothing: the limits are read from the cgroup (v2, then v1) and from every
cgroup above it, since the tightest one binds. Where there is no limit, the machine is the limit.
"""

import asyncio
import os
import resource
import sys
from collections import deque
from pathlib import Path
from time import perf_counter, process_time

CGROUPS = Path("/sys/fs/cgroup")

LAG_INTERVAL = 0.25
"""Seconds between two looks at the event loop."""


class Limits:
    """Bytes of memory and cores of CPU this process may use. `root` and `membership` are the kernel's files."""

    __slots__ = ("cpu_cores", "memory_bytes")

    def __init__(self, root: Path = CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> None:
        places = _cgroups(root, membership)
        memory = [limit for place in places if (limit := _memory_limit(place)) is not None]
        cores = [quota for place in places if (quota := _cpu_limit(place)) is not None]
        self.memory_bytes = min([_machine_memory(), *memory])
        self.cpu_cores = min([float(_machine_cores()), *cores])


def _cgroups(root: Path, membership: Path) -> list[Path]:
    """The directories of this process' cgroup and of those above it."""
    places = [root, root / "memory", root / "cpu"]
    for line in (_read(membership) or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for base in [root / name for name in controllers.split(",")] if controllers else [root]:
            place = base / path.strip().lstrip("/")
            places += [place, *[parent for parent in place.parents if parent.is_relative_to(base)]]
    return places


def _memory_limit(place: Path) -> int | None:
    text = _read(place / "memory.max") or _read(place / "memory.limit_in_bytes")
    limit = int(text) if text and text.strip().isdigit() else None
    return limit if limit is not None and limit < 1 << 60 else None  # v1 writes "no limit" as nearly 2^63


def _cpu_limit(place: Path) -> float | None:
    quota, _, period = (_read(place / "cpu.max") or "").strip().partition(" ")
    if not quota:
        quota = (_read(place / "cpu.cfs_quota_us") or "").strip()
        period = (_read(place / "cpu.cfs_period_us") or "").strip()
    if not (quota.isdigit() and period.isdigit()) or int(quota) == 0 or int(period) == 0:
        return None
    return int(quota) / int(period)


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return None


def _machine_memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 1 << 62


def _machine_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def resident_bytes() -> int:
    """Memory this process has resident."""
    statm = _read(Path("/proc/self/statm"))
    if statm is not None:
        return int(statm.split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class CpuMeter:
    """Cores in use, as the mean since the look before the last one that is at least `every` seconds old."""

    __slots__ = ("_every", "_marks")

    def __init__(self, every: float = 5.0) -> None:
        self._every = every
        self._marks: deque[tuple[float, float]] = deque([(perf_counter(), process_time())], maxlen=2)

    def cores(self) -> float:
        now, used = perf_counter(), process_time()
        since, before = self._marks[0]
        if now - self._marks[-1][0] >= self._every:
            self._marks.append((now, used))
        return max(0.0, (used - before) / (now - since)) if now > since else 0.0


class LoopLag:
    """How late the event loop runs what is due. `run` is a task; `last` and `worst` (of the last 10 s) are seconds."""

    __slots__ = ("_recent", "last")

    def __init__(self) -> None:
        self.last = 0.0
        self._recent: deque[float] = deque(maxlen=round(10 / LAG_INTERVAL))

    @property
    def worst(self) -> float:
        return max(self._recent, default=0.0)

    async def run(self) -> None:
        while True:
            due = perf_counter() + LAG_INTERVAL
            await asyncio.sleep(LAG_INTERVAL)
            self.last = max(0.0, perf_counter() - due)
            self._recent.append(self.last)
