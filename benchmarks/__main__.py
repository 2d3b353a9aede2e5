"""`python -m benchmarks [--quick] [name …]`: the benchmarks, one after the other, each in a process of its own."""

import argparse
import os
import platform
import subprocess
import sys
from pathlib import Path

HELPERS = {"__init__", "__main__", "harness"}


def names() -> list[str]:
    """Every script here that is a benchmark of its own: it can be run as a program."""
    scripts = sorted(Path(__file__).parent.glob("*.py"))
    return [one.stem for one in scripts if one.stem not in HELPERS and '__name__ == "__main__"' in one.read_text()]


def machine() -> str:
    """What the figures were measured on."""
    return (
        f"{platform.python_implementation()} {platform.python_version()}, {platform.system()}, {os.cpu_count()} cores"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Run the benchmarks.")
    parser.add_argument("--quick", action="store_true", help="a short run of each")
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(names())}; default: all")
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - set(names()):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    print(machine(), flush=True)
    failed = []
    for name in chosen.names or names():
        print(f"\n## {name}\n", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", *(["--quick"] if chosen.quick else [])]
        if subprocess.run(command).returncode:
            failed.append(name)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
