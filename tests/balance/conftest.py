"""Every behaviour is tested behind both of uvicorn's parsers."""

import pytest


@pytest.fixture(params=["httptools", "h11"])
def http(request: pytest.FixtureRequest) -> str:
    """The HTTP parser of the server in front."""
    value: str = request.param
    return value
