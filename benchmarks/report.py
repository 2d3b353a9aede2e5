"""What has been measured, as pages: a Markdown file and its drawings for each script, and a list of them."""

import ast
import os
import platform
import re
import tomllib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.harness import Note, Table
from benchmarks.plot import svg

HERE = Path(__file__).parent
ALWAYS = ("asgi-enhance", "redis", "hiredis", "limits", "uvicorn", "uvloop", "httptools")
"""Packages that are named whatever is measured."""


def machine() -> str:
    """What the figures are measured on, in a sentence."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{_processor()}, {cores} cores, {platform.system()}, "
        f"{platform.python_implementation()} {platform.python_version()}"
    )


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    text = information.read_text() if information.exists() else ""
    model = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return model[1] if model else platform.processor() or platform.machine()


def versions(script: str) -> dict[str, str]:
    """The installed packages that a script compares: those of the dependency group `bench-…` of its name."""
    groups = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["dependency-groups"]
    group = groups.get(f"bench-{script.partition('_')[0]}", [])
    found = {}
    for name in (*ALWAYS, *_names(group)):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _names(group: Sequence[Any]) -> Iterator[str]:
    for requirement in group:
        if name := re.match(r"[\w.-]+", str(requirement)):
            yield name[0]


def write(folder: Path, script: str, parts: Sequence[Table | Note], *, command: str) -> Path:
    """The page of a script, with a drawing under each table that has something to draw."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{script}-*.svg"):
        old.unlink()
    packages = ", ".join(f"{name} {number}" for name, number in versions(script).items())
    lines = [
        f"# Benchmark: {script}",
        f"`{command}`, {datetime.now(UTC):%d %B %Y}. {machine()}.",
        f"{packages}.",
        about(script),
    ]
    drawings = 0
    for part in parts:
        lines.append(part.markdown())
        if isinstance(part, Table) and (drawing := svg(part)):
            drawings += 1
            file = f"{script}-{drawings}.svg"
            (folder / file).write_text(drawing)
            lines.append(f"![{part.title}: {part.drawn}]({file})")
    page = folder / f"{script}.md"
    page.write_text("\n\n".join(lines) + "\n")
    return page


def about(script: str) -> str:
    """What the script says of itself."""
    return (ast.get_docstring(ast.parse((HERE / f"{script}.py").read_text())) or "").strip()


def write_index(folder: Path) -> None:
    """The list of all pages that are there, whenever they were written."""
    lines = [
        "# Benchmarks",
        "Written by `python -m benchmarks` (`make bench`). Each page says on what machine and beside which versions\n"
        "its figures were measured. Ways to do one job take turns within one run: quote the ratios, not the times.",
        "\n".join(
            f"- [{page.stem}]({page.name}): {about(page.stem).partition(chr(10))[0]}"
            for page in sorted(folder.glob("*.md"))
            if page.stem != "index"
        ),
    ]
    (folder / "index.md").write_text("\n\n".join(lines) + "\n")
