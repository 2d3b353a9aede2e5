"""Fixtures for every test: asyncio, and a real Redis or Valkey that is there or the run fails."""

import itertools
import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from asgi_enhance.redis import RedisManager
from asgi_enhance.testing.live import LiveServer
from asgi_enhance.testing.servers import RedisServer, ServerError

_NEEDS_A_SERVER = ("redis_server", "private_redis", "redis_cluster")
_runs = itertools.count(1)
_passed_with_server: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    try:
        config.stash[_server] = RedisServer.from_env()
        config.stash[_server].start()
    except (ServerError, OSError) as error:
        raise pytest.UsageError(str(error)) from error


def pytest_unconfigure(config: pytest.Config) -> None:
    if (server := config.stash.get(_server, None)) is not None:
        server.close()


def pytest_report_header(config: pytest.Config) -> str:
    server = config.stash[_server]
    return f"redis: {server.engine} {server.version}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """A test that needs a server counts only when it ran: its skip is a failure, unless its `skipif` names a reason."""
    report = yield
    if not set(_NEEDS_A_SERVER).isdisjoint(getattr(item, "fixturenames", ())):
        if report.skipped and not hasattr(report, "wasxfail") and item.get_closest_marker("skipif") is None:
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} needs a server and was skipped: {call.excinfo}"
        elif report.when == "call" and report.passed:
            _passed_with_server.append(item.nodeid)
    return report


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A run of the whole suite in which no test reached the server must not look green."""
    whole_suite = session.config.args_source is pytest.Config.ArgsSource.TESTPATHS
    narrowed = session.config.option.keyword or session.config.option.markexpr or session.config.option.collectonly
    if whole_suite and not narrowed and not _passed_with_server and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write_line("no test used the Redis server: that is a failure", red=True)


_server = pytest.StashKey[RedisServer]()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def redis_server(pytestconfig: pytest.Config) -> RedisServer:
    """The session's server, running and empty."""
    server = pytestconfig.stash[_server]
    server.start()
    server.flush()
    return server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    return redis_server.url


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[RedisManager]:
    """A manager of the test's own, with a prefix nobody else uses, and patient with a busy machine."""
    prefix = f"test-{os.getpid()}-{next(_runs)}"
    async with RedisManager(redis_url, prefix=prefix, connect_timeout=2.0, command_timeout=2.0) as manager:
        yield manager


@pytest.fixture
def private_redis() -> Iterator[RedisServer]:
    """A running server of the test's own, to stop, pause and kill."""
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def backend_url() -> Iterator[str]:
    """A backend to balance to, under a real server: it answers with the path and query it was asked for."""
    with LiveServer("tests.integration.apps:backend") as server:
        yield server.url
