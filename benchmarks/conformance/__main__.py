"""Run the public HTTP cache tests against `CacheMiddleware`: `make conformance`.

The suite (https://cache-tests.fyi, npm package `http-cache-tests`) has an origin server and a client, both in Node.
Between them runs the cache under uvicorn. A test counts as passed only if those it depends on have passed, as on the
suite's own site. Everything listens on 127.0.0.1.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from asgi_enhance.testing.live import LiveServer, free_port

RELEASE = "0.4.5"
SURROGATE = "surrogate-control"
"""A W3C Note of 2001, older than RFC 9213 and not implemented here; counted on its own."""

LOCAL = (
    "data:text/javascript,import net from 'node:net'; const listen = net.Server.prototype.listen;"
    "net.Server.prototype.listen = function (port, ...rest) {"
    " return listen.call(this, { port: Number(port), host: '127.0.0.1' }, ...rest) }"
)
"""Loaded before the origin, which would listen on every interface."""


def installed(home: Path) -> Path:
    """The suite as it was released, installed if it is not."""
    package = home / "node_modules" / "http-cache-tests"
    if not package.exists():
        home.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--prefix", str(home), "--no-audit", "--no-fund", "--ignore-scripts", "--omit=dev"]
        subprocess.run([*command, "--loglevel=error", f"http-cache-tests@{RELEASE}"], check=True)
    return package


def engine(suite: Path) -> Path:
    """Where in the suite its origin and its client are: later states of it than the release have a folder for them."""
    folder = suite / "test-engine"
    return folder if folder.is_dir() else suite


def tests(suite: Path) -> dict[str, dict[str, Any]]:
    """What is to be passed by a cache that is no browser: id → kind, suite, dependencies."""
    code = (
        "import tests from './tests/index.mjs';"
        "const more = await import('./tests/surrogate-control.mjs').then(found => [found.default], () => []);"
        "console.log(JSON.stringify([...tests, ...more].flatMap(suite => suite.tests.filter(test => !test.browser_only)"
        ".map(test => ({ id: test.id, kind: test.kind ?? 'required', needs: test.depends_on ?? [],"
        " suite: suite.id })))))"
    )
    output = subprocess.run(
        ["node", "--no-warnings", "--input-type=module", "-e", code], cwd=suite, check=True, capture_output=True
    )
    return {test["id"]: test for test in json.loads(output.stdout)}


async def run(suite: Path, invalid_age: str, only: str = "") -> str:
    """What the suite's client prints: the results as JSON, or one exchange in full."""
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        settings = {
            "npm_config_protocol": "http",
            "npm_config_port": str(port),
            "npm_config_pidfile": str(Path(directory) / "pid"),
            "npm_package_config_id": "",
            "npm_config_id": only,
        }
        origin = await asyncio.create_subprocess_exec(
            *("node", "--no-warnings", "--import", LOCAL, str(engine(suite) / "server" / "server.mjs")),
            cwd=suite,
            env={**os.environ, **settings},
            stdout=subprocess.PIPE,
        )
        try:
            assert origin.stdout is not None
            await origin.stdout.readline()  # it says where it listens
            options = ["--no-date-header", "--no-server-header", "--no-access-log", "--http", "httptools"]
            environment = {"ORIGIN": f"127.0.0.1:{port}", "INVALID_AGE": invalid_age}
            with LiveServer("benchmarks.conformance.app:app", options=options, env=environment) as cache:
                client = await asyncio.create_subprocess_exec(
                    *("node", "--no-warnings", str(engine(suite) / "cli.mjs")),
                    cwd=suite,
                    env={**os.environ, **settings, "npm_config_base": cache.url},
                    stdout=subprocess.PIPE,
                )
                output, _ = await client.communicate()
        finally:
            if origin.returncode is None:
                origin.terminate()
            await origin.wait()
    return output.decode()


def passed(name: str, known: dict[str, dict[str, Any]], results: dict[str, Any]) -> bool:
    """Whether a test and all it depends on have passed."""
    return results.get(name) is True and all(passed(need, known, results) for need in known[name]["needs"])


def report(known: dict[str, dict[str, Any]], results: dict[str, Any]) -> Counter[str]:
    """How many have passed, by kind."""
    count: Counter[str] = Counter()
    for name, test in known.items():
        kind = SURROGATE if test["suite"] == SURROGATE else test["kind"]
        count[f"{kind} of"] += 1
        count[kind] += passed(name, known, results)
    return count


def failures(known: dict[str, dict[str, Any]], results: dict[str, Any]) -> list[str]:
    lines = []
    for name, test in known.items():
        if test["suite"] != SURROGATE and test["kind"] != "check" and not passed(name, known, results):
            missing = [need for need in test["needs"] if not passed(need, known, results)]
            why = f"depends on {missing}" if missing else str(results.get(name))
            lines.append(f"  {test['kind']:9} {name}: {why}")
    return lines


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="", help="show the exchange of one test")
    parser.add_argument("--home", type=Path, default=Path(".venv-conformance"), help="where the suite is installed")
    parser.add_argument("--suite", type=Path, help="a folder with another state of the suite, its own npm install done")
    options = parser.parse_args()
    folder = options.suite.resolve() if options.suite else installed(options.home.resolve())
    invalid_age = "ignore" if options.suite else "stale"  # RFC 9111 turned the rule round, and later states follow it
    if options.only:
        print(await run(folder, invalid_age, options.only))
        return
    known = tests(folder)
    name = options.suite or f"http-cache-tests {RELEASE}"
    print(f"{name}, {len(known)} tests, {options.runs} runs of about a minute", flush=True)
    for number in range(options.runs):
        results = json.loads(await run(folder, invalid_age))
        count = report(known, results)
        kinds = [kind for kind in ("required", "optimal", "check", SURROGATE) if count[f"{kind} of"]]
        print(f"run {number + 1}: " + ", ".join(f"{kind} {count[kind]}/{count[kind + ' of']}" for kind in kinds))
        print("\n".join(failures(known, results)), flush=True)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
