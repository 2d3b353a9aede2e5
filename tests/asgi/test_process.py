"""What a process may use: the tightest of its cgroups, version 2 and 1, and the machine where there is no limit."""

import asyncio
import time
from pathlib import Path

import pytest

from asgi_enhance.asgi.process import CpuMeter, Limits, LoopLag, resident_bytes


def limits(root: Path, membership: str, **files: str) -> Limits:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_max", ".max")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "self").write_text(membership)
    return Limits(root, root / "self")


def test_the_tightest_group_on_the_way_up_binds(tmp_path: Path) -> None:
    found = limits(
        tmp_path,
        "0::/pod/app\n",
        pod__app__memory_max="max\n",
        pod__memory_max="268435456\n",
        pod__app__cpu_max="max 100000\n",
        pod__cpu_max="50000 100000\n",
    )
    assert found.memory_bytes == 268435456
    assert found.cpu_cores == 0.5


def test_version_1_is_understood(tmp_path: Path) -> None:
    for controller, name, text in (
        ("memory", "memory.limit_in_bytes", "134217728"),
        ("cpu", "cpu.cfs_quota_us", "25000"),
        ("cpu", "cpu.cfs_period_us", "100000"),
    ):
        (tmp_path / controller / "app").mkdir(parents=True, exist_ok=True)
        (tmp_path / controller / "app" / name).write_text(text)
    (tmp_path / "self").write_text("4:memory:/app\n3:cpu:/app\n")
    found = Limits(tmp_path, tmp_path / "self")
    assert (found.memory_bytes, found.cpu_cores) == (134217728, 0.25)


@pytest.mark.parametrize("memory", ["max", "9223372036854771712", "garbage", ""])
def test_no_limit_means_the_machine(tmp_path: Path, memory: str) -> None:
    found = limits(tmp_path, "0::/\n", memory_max=memory, cpu_max="-1 100000")
    free = Limits(tmp_path / "nothing", tmp_path / "nothing")
    assert found.memory_bytes == free.memory_bytes > 1 << 26
    assert found.cpu_cores == free.cpu_cores >= 1


def test_resident_memory_is_that_of_this_process() -> None:
    before = resident_bytes()
    held = bytearray(64 << 20)
    assert resident_bytes() - before > 32 << 20
    del held


def test_a_busy_process_uses_a_core() -> None:
    meter = CpuMeter()
    until = time.thread_time() + 0.05
    while time.thread_time() < until:
        pass
    assert meter.cores() > 0.05


async def test_a_loop_that_is_held_is_late() -> None:
    lag = LoopLag()
    task = asyncio.create_task(lag.run())
    try:
        await asyncio.sleep(0)
        time.sleep(0.4)  # noqa: ASYNC251 - to hold the loop is the point
        async with asyncio.timeout(5):
            while not lag.worst:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        assert lag.worst > 0.1
    finally:
        task.cancel()
