"""The command line, as a process, against real servers."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from asgi_enhance.cli import main
from asgi_enhance.gateway import Gateway
from asgi_enhance.testing.live import LiveServer, free_port

COMMAND = [sys.executable, "-m", "asgi_enhance"]


@contextmanager
def running(*arguments: str) -> Iterator[str]:
    """A command that serves; its URL. It has to stop within seconds when it is asked to."""
    with started(*arguments) as (url, _):
        yield url


@contextmanager
def started(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    port = free_port()
    process = subprocess.Popen([*COMMAND, *arguments, "--port", str(port)], stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 20
    try:
        while True:
            assert process.poll() is None, "it ended"
            assert time.monotonic() < deadline, "it does not answer"
            try:
                httpx2.get(f"{url}/metrics")
                break
            except httpx2.TransportError:
                time.sleep(0.02)
        yield url, process
        process.send_signal(signal.SIGTERM)
        process.wait(10)
    finally:
        process.kill()
        process.wait()


def test_serve_runs_a_gateway_with_the_layers_that_were_asked_for(backend_url: str) -> None:
    options = ("--cache", "--metrics", "--rate-limit", "5/minute", "--broadcast", "/ws/{client_id}")
    with running("serve", "--backend", backend_url, *options) as url:
        answer = httpx2.get(f"{url}/a%2Fb?c=d")
        assert answer.json() == {"path": "/a/b", "query": "c=d"}
        assert "cache-status" in answer.headers
        statuses = [httpx2.get(f"{url}/x").status_code for _ in range(6)]
        assert statuses[-1] == 429
        assert "http_server_request_duration_seconds_count" in httpx2.get(f"{url}/metrics").text


def test_serve_without_layers_is_a_plain_proxy(backend_url: str) -> None:
    with running("serve", "--backend", backend_url) as url:
        answer = httpx2.get(f"{url}/x")
        assert answer.json() == {"path": "/x", "query": ""}
        assert not {"cache-status", "ratelimit"} & set(answer.headers)


def test_wrap_serves_an_app_inside_the_stack_with_several_workers() -> None:
    with running("wrap", "tests.testing.apps:hello", "--metrics", "--workers", "2") as url:
        assert httpx2.get(url).text == "hello"


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_stop_finishes_what_is_under_way_and_sends_the_broadcasters_clients_away(workers: str) -> None:
    command = ("wrap", "tests.testing.apps:halves", "--broadcast", "/ws/{client_id}", "--workers", workers)
    with started(*command) as (url, process):
        port = int(url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 8\r\n\r\nhalf")
        async with asyncio.timeout(20), connect(f"ws://127.0.0.1:{port}/ws/ada") as ada:
            await reader.readuntil(b"first")
            process.send_signal(signal.SIGTERM)
            with pytest.raises(ConnectionClosed) as closed:
                await ada.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1012
            writer.write(b"half")
            assert b"second" in await reader.read()
            assert await asyncio.to_thread(process.wait) in (0, -signal.SIGTERM)
        writer.close()


async def test_a_wrapped_app_finds_the_api_round_it_and_publishes() -> None:
    with running("wrap", "tests.testing.apps:halves", "--broadcast", "/ws/{client_id}") as url:
        async with asyncio.timeout(20), connect(f"{url.replace('http', 'ws')}/ws/ada") as ada:
            await ada.send('{"type": "ping"}')
            await ada.recv()
            async with httpx2.AsyncClient() as client:
                await client.get(f"{url}/today")
            assert json.loads(await ada.recv()) == {"event": "news", "data": "/today"}


def test_what_does_not_do_what_one_may_think_is_warned_of_and_a_port_in_use_ends_it() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        options = ("--cache", "--broadcast", "/ws/{client_id}", "--port", str(taken.getsockname()[1]), "--workers", "2")
        command = [*COMMAND, "serve", "--backend", "http://127.0.0.1:1", *options]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert ended.returncode == 1
    assert "each of the 2 workers has its own state: --cache, --broadcast" in ended.stderr
    assert "no other process can publish" in ended.stderr


def test_what_is_handed_to_the_workers_shows_no_password() -> None:
    assert "hunter2" not in repr(Gateway(app="a:b", redis_url="redis://:hunter2@localhost"))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_app_that_does_not_start_is_no_success(workers: str) -> None:
    command = [*COMMAND, "wrap", "tests.testing.apps:unstarted", "--port", "0", "--workers", workers]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert ended.returncode == 1
    assert "no database" in ended.stderr


@pytest.mark.parametrize(
    "arguments",
    [("--workers", "0"), ("--workers", "two"), ("--port", "99999"), ("--grace", "-1")],
)
def test_a_number_out_of_bounds_is_named(arguments: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["serve", "--backend", "http://127.0.0.1:1", *arguments])
    assert arguments[0] in capsys.readouterr().err


def test_it_tells_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out.startswith("asgi-enhance 0.")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve", "--backend", "ftp://x"], "ftp"),
        (["serve", "--backend", "http://127.0.0.1:1", "--rate-limit", "many"], "many"),
        (["wrap", "no_such_module:app"], "no_such_module"),
        (["wrap", "no_colon"], "no_colon"),
        (["wrap", "..:app"], "..:app"),
        (["wrap", "tests.testing.apps:hallo"], "hallo"),
        (["wrap", "tests.testing.apps:os.name"], "no ASGI app"),
        (["serve", "--backend", "http://127.0.0.1:1", "--cache", "--redis", "http://x"], "redis://"),
    ],
)
def test_what_cannot_work_is_said_and_nothing_is_served(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_check_says_that_all_is_well(
    backend_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("API_LOAD_BALANCER_BACKENDS", backend_url)
    assert main(["check"]) == 0
    assert "within reach" in capsys.readouterr().out


def test_check_says_what_is_out_of_reach(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://:secret@127.0.0.1:1")
    monkeypatch.setenv("API_LOAD_BALANCER_BACKENDS", "http://127.0.0.1:1")
    assert main(["check"]) == 1
    printed = capsys.readouterr().out
    assert "✗ REDIS_URL" in printed
    assert "✗ API_LOAD_BALANCER_BACKENDS: http://127.0.0.1:1: " in printed
    assert "Connect call failed" in printed
    assert "secret" not in printed


def test_check_says_that_a_backend_is_there_but_not_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with LiveServer("tests.testing.apps:failing") as failing:
        monkeypatch.setenv("API_LOAD_BALANCER_BACKENDS", failing.url)
        assert main(["check"]) == 1
    assert "500" in capsys.readouterr().out


def test_check_says_that_a_name_leads_nowhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("API_LOAD_BALANCER_BACKENDS", "dns+http://no-such-host.invalid:80")
    assert main(["check"]) == 1
    assert "✗ API_LOAD_BALANCER_BACKENDS: dns+http://no-such-host.invalid:80: " in capsys.readouterr().out


def test_check_says_what_cannot_work_though_each_setting_can_be_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("API_RATE_LIMIT_WINDOW", "2000000000")
    assert main(["check"]) == 2
    assert "window" in capsys.readouterr().err


def test_check_names_a_bad_setting(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("API_CACHE_TTL", "soon")
    assert main(["check"]) == 2
    assert "API_CACHE_TTL='soon'" in capsys.readouterr().err
