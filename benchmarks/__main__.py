"""`python -m benchmarks [--quick] [name …]`: the benchmarks, one after the other, each in a process of its own.

Tables are printed as they come, and written with their drawings to `docs/benchmarks`. What is quick is not for
quoting: it goes to `build/benchmarks`.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from benchmarks import harness, report

ALSO = {"broadcast": ["--redis"]}
"""Scripts that are run once more, with these options."""


def names() -> list[str]:
    """Every script here that is a benchmark of its own: it uses the harness, and can be run as a program."""
    return [
        script.stem
        for script in sorted(Path(__file__).parent.glob("[!_]*.py"))
        if "from benchmarks.harness import" in (text := script.read_text()) and '__name__ == "__main__"' in text
    ]


def run(
    script: str, options: Sequence[str], tell: Callable[[harness.Part], None]
) -> tuple[list[harness.Table | harness.Note], bool]:
    """What a script shows, and whether it ended well: what it says that it must reach is reached."""
    shown: list[harness.Table | harness.Note] = []
    reading, writing = os.pipe()
    command = [sys.executable, "-m", f"benchmarks.{script}", *options]
    with (
        open(reading, "rb") as lines,
        subprocess.Popen(command, pass_fds=[writing], env={**os.environ, harness.PIPE: str(writing)}) as process,
    ):
        os.close(writing)
        for line in lines:
            part = msgspec.json.decode(line, type=harness.Part)
            tell(part)
            if not isinstance(part, harness.Progress):
                shown.append(part)
    return shown, process.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Run the benchmarks.")
    parser.add_argument("--quick", action="store_true", help="a short run of each: does it work?")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the pages go")
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(names())}; default: all")
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - set(names()):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}: there are {', '.join(names())}")
    folder = chosen.out or Path("build/benchmarks" if chosen.quick else "docs/benchmarks")
    scripts = chosen.names or names()
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    failed = []
    with Progress(*columns, console=Console(soft_wrap=True)) as bars:

        def say(text: str) -> None:
            bars.console.print(text, markup=False, highlight=False)

        def tell(bar: TaskID, script: str, part: harness.Part) -> None:
            if isinstance(part, harness.Progress):
                bars.update(bar, description=f"{script}: {part.doing}", completed=part.done, total=part.of)
            else:
                say(f"\n{part.markdown()}")

        all_of_it = bars.add_task("all", total=len(scripts))
        say(report.machine())
        for script in scripts:
            say(f"\n## {script}")
            bar = bars.add_task(script)
            quick = ["--quick"] if chosen.quick else []
            parts, good = run(script, quick, partial(tell, bar, script))
            if good and script in ALSO:
                more, good = run(script, [*quick, *ALSO[script]], partial(tell, bar, script))
                parts += more
            bars.remove_task(bar)
            bars.advance(all_of_it)
            if parts:
                command = " ".join(["python -m benchmarks", *quick, script])
                say(f"\n→ {report.write(folder, script, parts, command=command)}")
                report.write_index(folder)
            if not good:
                failed.append(script)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
