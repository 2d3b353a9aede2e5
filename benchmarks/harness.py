"""Compare ways to do one job: rounds in turn, CPU time of this process, medians, ratios, a Markdown table.

    async def main() -> None:
        table = await compare({"plain": plain, "ours": ours}, operations=1000, rounds=9)
        print(table.markdown("GET, 32 at once"))

A way is an async function of no arguments that does `operations` operations. The first is what the others are compared
with. CPU time is this process's: let servers run in processes of their own.
"""

import argparse
import gc
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from statistics import median

Way = Callable[[], Awaitable[object]]


@dataclass(slots=True)
class Row:
    """The rounds of one way: seconds an operation, on the CPU and on the clock."""

    name: str
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Table:
    """The rows in the order they were given; ratios are medians of the rounds' own ratios to the first row."""

    rows: list[Row]

    def cpu_ratio(self, name: str) -> float:
        return self._ratio(name, "cpu")

    def throughput_ratio(self, name: str) -> float:
        return 1 / self._ratio(name, "wall")

    def markdown(self, title: str) -> str:
        lines = [
            f"| {title} | CPU µs/op | × | op/s | × |",
            "|---|---:|---:|---:|---:|",
            *(
                f"| {row.name} | {median(row.cpu) * 1e6:.1f} | {self.cpu_ratio(row.name):.2f} "
                f"| {1 / median(row.wall):,.0f} | {self.throughput_ratio(row.name):.2f} |"
                for row in self.rows
            ),
        ]
        return "\n".join(lines) + "\n"

    def _ratio(self, name: str, what: str) -> float:
        row = next(row for row in self.rows if row.name == name)
        first: list[float] = getattr(self.rows[0], what)
        mine: list[float] = getattr(row, what)
        return median(a / b for a, b in zip(mine, first, strict=True))


async def compare(ways: Mapping[str, Way], *, operations: int, rounds: int) -> Table:
    """Run every way once a round, in a new order each round, after one round that does not count."""
    rows = [Row(name) for name in ways]
    order = list(rows)
    for number in range(rounds + 1):
        random.shuffle(order)
        for row in order:
            way = ways[row.name]
            gc.collect()
            cpu, wall = time.process_time(), time.perf_counter()
            await way()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if number:
                row.cpu.append(cpu / operations)
                row.wall.append(wall / operations)
    return Table(rows)


def arguments(description: str) -> argparse.Namespace:
    """The command line every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a short run: a few rounds, few operations")
    return parser.parse_args()
