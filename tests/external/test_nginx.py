"""The configuration that the pages give for nginx, under a real one: addresses, WebSockets, event streams."""

import asyncio
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from websockets.asyncio.client import connect

from asgi_enhance.testing.live import LiveServer, free_port

pytestmark = pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx")
PAGE = Path(__file__).parents[2] / "docs" / "proxies.md"


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The app behind nginx; where it is reached, without a scheme."""
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    (block,) = re.findall(r"```nginx\n(.*?)```", PAGE.read_text(), re.DOTALL)
    with LiveServer("tests.external.proxied:app", options=["--no-proxy-headers", "--timeout-keep-alive", "75"]) as app:
        configured = block.replace("listen 80;", f"listen 127.0.0.1:{port};").replace(
            "127.0.0.1:8000", f"127.0.0.1:{app.port}"
        )
        paths = "".join(f"{kind}_temp_path {folder};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        config = folder / "nginx.conf"
        config.write_text(
            f"daemon off; pid {folder}/pid; error_log {folder}/error.log;\n"
            f"events {{}}\nhttp {{ access_log off; {paths}\n{configured}}}\n"
        )
        nginx = subprocess.Popen(["nginx", "-c", str(config), "-p", str(folder), "-e", f"{folder}/error.log"])
        try:
            for _ in range(200):
                try:
                    httpx2.get(f"http://127.0.0.1:{port}/client")
                    break
                except httpx2.TransportError:
                    assert nginx.poll() is None, (folder / "error.log").read_text()
            yield f"127.0.0.1:{port}"
        finally:
            nginx.terminate()
            nginx.wait()


def test_the_client_is_whom_nginx_and_other_trusted_proxies_name(proxied: str) -> None:
    answer = httpx2.get(f"http://{proxied}/client", headers={"x-forwarded-for": "203.0.113.9, 192.0.2.1"})
    assert answer.text == "192.0.2.1"  # as if the test, at the trusted 127.0.0.1, were a proxy that saw 192.0.2.1


def test_a_limit_is_counted_for_each_client_and_not_for_nginx(proxied: str) -> None:
    def ask(client: str) -> int:
        return httpx2.get(f"http://{proxied}/limited", headers={"x-forwarded-for": client}).status_code

    assert [ask("192.0.2.7") for _ in range(3)] == [200, 200, 429]
    assert ask("192.0.2.8") == 200


async def test_a_websocket_passes(proxied: str) -> None:
    async with connect(f"ws://{proxied}/ws/ada") as socket:
        await socket.send('{"type": "ping"}')
        assert await asyncio.wait_for(socket.recv(), 5) == '{"type":"pong"}'


async def test_an_event_stream_is_not_held_back(proxied: str) -> None:
    async with (
        httpx2.AsyncClient() as client,
        client.stream("GET", f"http://{proxied}/events/ada?group=room") as stream,
        asyncio.timeout(5),
    ):
        assert await anext(stream.aiter_lines()) == "retry: 2000"
