import httpx2
import pytest

from asgi_enhance.testing.live import SERVERS, LiveServer


@pytest.mark.parametrize("server", [*SERVERS, "daphne"])
def test_an_app_is_served_by_a_real_server(server: str) -> None:
    with LiveServer("tests.testing.apps:hello", server=server, env={"GREETING": "good day"}) as live:
        assert httpx2.get(live.url).text == "good day"
        live.stop()
        assert not live.running
        if server != "daphne":  # which has no lifespan
            assert "startup of hello" in live.output()
            assert "shutdown of hello" in live.output()


def test_a_killed_server_starts_again_on_its_port() -> None:
    with LiveServer("tests.testing.apps:hello") as live:
        live.kill()
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(live.url)
        live.start()
        assert httpx2.get(live.url).text == "hello"


def test_a_server_that_does_not_start_shows_why() -> None:
    with pytest.raises(RuntimeError, match="no_such_module"), LiveServer("no_such_module:app"):
        pass


def test_a_port_that_somebody_else_has_is_not_taken_for_the_server() -> None:
    with LiveServer("tests.testing.apps:hello") as other:
        server = LiveServer("tests.testing.apps:hello", port=other.port)
        with pytest.raises(RuntimeError, match=f"port {other.port} is taken"):
            server.start()


def test_an_unknown_server_is_refused() -> None:
    with pytest.raises(ValueError, match="apache"):
        LiveServer("tests.testing.apps:hello", server="apache")
