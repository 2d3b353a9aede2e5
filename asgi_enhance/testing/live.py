"""Real servers for tests: an app under uvicorn, hypercorn, granian or daphne, in its own process, on a free port."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

SERVERS = ("uvicorn", "hypercorn", "granian")
"""Those that speak all of ASGI; `"daphne"` can be asked for as well."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class LiveServer:
    """`with LiveServer("tests.apps:app") as server:` serves an importable app at `server.url`.

    app:     `module:attribute`, importable from the current directory.
    server:  `"uvicorn"` (default), `"hypercorn"`, `"granian"` or `"daphne"` (which has no lifespan).
    options: more arguments for the server's own command line.
    env:     added to this process' environment.
    port:    default: a free one.

    `stop()` asks politely (SIGTERM), `kill()` does not, `start()` starts again on the same port. What the server
    printed is in `output()`, and in the error of a start that failed.
    """

    def __init__(
        self,
        app: str,
        *,
        server: str = "uvicorn",
        options: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        port: int | None = None,
    ) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.ws_url = f"ws://127.0.0.1:{self.port}"
        self._command = [*_command(server, app, self.port), *options]
        self._env = {**os.environ, **(env or {})}
        self._output = tempfile.TemporaryFile("a+b")  # noqa: SIM115 it lives as long as the server
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server has not been started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, *, timeout: float = 20.0) -> None:
        """Start, and wait until the port answers."""
        if _listens(self.port):
            self._output.close()
            raise RuntimeError(f"port {self.port} is taken")
        self._process = subprocess.Popen(
            self._command, env=self._env, stdout=self._output, stderr=self._output, start_new_session=True
        )
        deadline = time.monotonic() + timeout
        while not _listens(self.port):
            if not self.running or time.monotonic() > deadline:
                self.kill()
                output = self.output()
                self._output.close()
                raise RuntimeError(f"{' '.join(self._command)} did not start:\n{output}")
            time.sleep(0.02)  # there is no event to wait for: the port belongs to another process

    def stop(self, *, timeout: float = 10.0) -> int:
        """SIGTERM, and wait for the end; the exit code. A server that does not end in time is killed."""
        assert self._process is not None
        if self.running:
            self._process.terminate()
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
        code: int = self._process.returncode
        return code

    def kill(self) -> None:
        """SIGKILL to the server and its workers."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def output(self) -> str:
        """All it has printed so far."""
        self._output.seek(0)
        return self._output.read().decode(errors="replace")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self.kill()
        self._output.close()


def _command(server: str, app: str, port: int) -> list[str]:
    run = [sys.executable, "-m"]
    if server == "uvicorn":
        return [*run, "uvicorn", app, "--port", str(port), "--log-level", "warning", "--no-access-log"]
    if server == "hypercorn":
        return [*run, "hypercorn", app, "--bind", f"127.0.0.1:{port}", "--log-level", "warning"]
    if server == "granian":
        return [*run, "granian", "--interface", "asgi", app, "--port", str(port), "--log-level", "warning"]
    if server == "daphne":
        return [*run, "daphne", app, "--port", str(port), "--verbosity", "0"]
    raise ValueError(f"server must be one of {(*SERVERS, 'daphne')}, not {server!r}")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
