"""The tour holds, in memory and over Redis, and fails when a step does not hold."""

import re
import signal
import socket
import subprocess
import sys

import pytest

from asgi_enhance.demo.transcript import StepFailed, Transcript


def tour(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "asgi_enhance", "demo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_tour_is_complete() -> None:
    done = tour()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The tour is complete" in done.stdout
    assert "✗" not in done.stdout
    assert not done.stderr


def test_the_same_tour_holds_over_two_gateways_that_share_redis(redis_url: str) -> None:
    done = tour("--redis", redis_url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "two gateways" in done.stdout


def test_a_redis_that_is_away_fails_the_tour() -> None:
    done = tour("--redis", "redis://127.0.0.1:1")
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stdout.splitlines()[-1]


def test_a_url_that_is_none_is_refused_by_name() -> None:
    done = tour("--redis", "nonsense")
    assert done.returncode == 2
    assert done.stderr.startswith("asgi-enhance demo: url: 'nonsense'")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_demo_takes_its_servers_along(number: signal.Signals) -> None:
    command = [sys.executable, "-m", "asgi_enhance", "demo", "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        said = ""
        while "Serving" not in said:
            said += (line := demo.stdout.readline())
            assert line, f"ended before it served:\n{said}"
        demo.send_signal(number)
        assert demo.wait(30) == 0
    ports = [int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", said)]
    assert len(ports) == 4
    for port in ports:
        with socket.socket() as client:
            assert client.connect_ex(("127.0.0.1", port)) != 0, f"a server still listens on {port}"


def test_a_check_that_does_not_hold_stops_the_tour(capsys: pytest.CaptureFixture[str]) -> None:
    transcript = Transcript(colours=False)
    with pytest.raises(StepFailed, match="never"):
        transcript.check(False, "never")
    assert "✗ never" in capsys.readouterr().out
