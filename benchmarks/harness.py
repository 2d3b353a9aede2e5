"""What every benchmark is made of: compare ways to do one job, and show what came out.

    async def main(quick: bool) -> None:
        table = await compare({"plain": plain, "ours": ours}, operations=1000, rounds=9)
        show(table.titled("GET, 32 at once"))

A way is an async function of no arguments that does `operations` operations. The first is what the others are compared
with. CPU time is this process's: let servers run in processes of their own.

A script shows tables and sentences as it gets them. Run on its own it prints them as Markdown; run by
`python -m benchmarks` it writes them, and how far it has come, to the pipe that the command has opened for it.
"""

import argparse
import gc
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

import msgspec

from asgi_enhance.asgi.types import Message, Scope

Way = Callable[[], Awaitable[object]]

PIPE = "ASGI_ENHANCE_BENCHMARK_PIPE"
"""Environment variable: the file descriptor that results are written to, one JSON object a line."""


# What a script shows


class Table(msgspec.Struct, frozen=True, tag=True):
    """Figures of several things.

    title:   what was measured; also the head of the column of names.
    columns: head of each column → how its numbers are written, as `format` takes it.
    rows:    name → one figure a column: a number, a text as it is, or None where there is none.
    drawn:   the head of the column that is drawn; None: no plot.
    better:  which of the drawn figures are the good ones.
    """

    title: str
    columns: dict[str, str]
    rows: dict[str, list[float | str | None]]
    drawn: str | None = None
    better: Literal["less", "more"] = "less"

    def cell(self, figure: float | str | None, column: str) -> str:
        if figure is None:
            return "–"
        return figure if isinstance(figure, str) else format(figure, self.columns[column])

    def markdown(self) -> str:
        lines = [f"| {self.title} | {' | '.join(self.columns)} |", f"|---|{'---:|' * len(self.columns)}"]
        for name, figures in self.rows.items():
            cells = [self.cell(one, column) for one, column in zip(figures, self.columns, strict=True)]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        return "\n".join(lines)


class Note(msgspec.Struct, frozen=True, tag=True):
    """A sentence: a figure that needs no table, or what is to be known about those shown."""

    text: str

    def markdown(self) -> str:
        return self.text


class Progress(msgspec.Struct, frozen=True, tag=True):
    """How far a script has come in what it does now."""

    doing: str
    done: int
    of: int


Part = Table | Note | Progress


def show(what: Table | str) -> None:
    """A table or a sentence, to whoever runs this."""
    _tell(what if isinstance(what, Table) else Note(what))


def progress(doing: str, done: int, of: int) -> None:
    """So many steps are done of so many; only the command that runs all benchmarks shows it."""
    _tell(Progress(doing, done, of))


def _tell(part: Part) -> None:
    if pipe := os.environ.get(PIPE):
        os.write(int(pipe), msgspec.json.encode(part) + b"\n")
    elif not isinstance(part, Progress):
        print(part.markdown(), end="\n\n", flush=True)


# Rounds in turn


@dataclass(slots=True)
class Row:
    """The rounds of one way: seconds an operation, on the CPU and on the clock."""

    name: str
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The rows in the order they were given; ratios are medians of the rounds' own ratios to the first row."""

    rows: list[Row]

    def cpu_ratio(self, name: str) -> float:
        return self._ratio(name, "cpu")

    def throughput_ratio(self, name: str) -> float:
        return 1 / self._ratio(name, "wall")

    def titled(self, title: str) -> Table:
        """The table of it: CPU time, which is what is drawn, and throughput."""
        columns = {"CPU µs/op": ".1f", "× CPU": ".3g", "op/s": ",.0f", "× op/s": ".3g"}
        rows: dict[str, list[float | str | None]] = {
            row.name: [
                median(row.cpu) * 1e6,
                self.cpu_ratio(row.name),
                1 / median(row.wall),
                self.throughput_ratio(row.name),
            ]
            for row in self.rows
        }
        return Table(title, columns, rows, drawn="× CPU")

    def _ratio(self, name: str, what: str) -> float:
        row = next(row for row in self.rows if row.name == name)
        first: list[float] = getattr(self.rows[0], what)
        mine: list[float] = getattr(row, what)
        return median(a / b for a, b in zip(mine, first, strict=True))


async def compare(ways: Mapping[str, Way], *, operations: int, rounds: int) -> Comparison:
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
        progress("rounds", number + 1, rounds + 1)
    return Comparison(rows)


def arguments(description: str) -> argparse.Namespace:
    """The command line every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a short run: a few rounds, few operations")
    return parser.parse_args()


# Calls in process: a fresh scope each, as a server makes it, a `receive` with an empty body, a `send` that does nothing


HEADERS = [
    (b"host", b"example.org"),
    (b"user-agent", b"benchmark/1"),
    (b"accept", b"*/*"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"connection", b"keep-alive"),
]


def fresh_scope(path: str, method: str = "GET") -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": HEADERS,
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
        "state": {},
        "extensions": {},
    }


async def receive() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def discard(message: Message) -> None:
    pass
