"""The tour holds, in memory and over Redis, and fails when a step does not hold."""

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
    assert "✗" in done.stdout


def test_a_check_that_does_not_hold_stops_the_tour(capsys: pytest.CaptureFixture[str]) -> None:
    transcript = Transcript(colours=False)
    with pytest.raises(StepFailed, match="never"):
        transcript.check(False, "never")
    assert "✗ never" in capsys.readouterr().out
