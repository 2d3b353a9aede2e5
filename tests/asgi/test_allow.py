"""Who may see the inside: by address, by token, from this machine."""

from typing import Any

import pytest

from asgi_enhance.asgi.address import ClientAddress
from asgi_enhance.asgi.allow import from_networks, from_this_machine, with_token
from asgi_enhance.errors import ConfigError
from asgi_enhance.testing.driver import http_scope


def scope(peer: str | None = "192.0.2.7", **headers: str) -> Any:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return http_scope("/", headers=pairs, client=None if peer is None else (peer, 1))


@pytest.mark.parametrize(
    ("peer", "allowed"), [("10.1.2.3", True), ("::ffff:10.1.2.3", True), ("11.0.0.1", False), (None, False)]
)
def test_networks_are_matched_by_the_peer(peer: str | None, allowed: bool) -> None:
    assert from_networks("10.0.0.0/8")(scope(peer, x_forwarded_for="10.9.9.9")) is allowed


def test_a_trusted_proxy_speaks_for_its_client() -> None:
    allow = from_networks("10.0.0.0/8", client=ClientAddress("172.16.0.0/12"))
    assert allow(scope("172.16.0.1", x_forwarded_for="10.9.9.9"))
    assert not allow(scope("172.16.0.1", x_forwarded_for="192.0.2.9"))


@pytest.mark.parametrize(
    ("authorization", "allowed"),
    [
        ("Bearer first", True),
        ("bearer second", True),
        ("Bearer firs", False),
        ("Basic first", False),
        ("first", False),
        ("Bearer", False),
        ("", False),
    ],
)
def test_a_token_is_the_whole_token(authorization: str, allowed: bool) -> None:
    assert with_token("first", "second")(scope(authorization=authorization)) is allowed


def test_this_machine_is_the_loopback_without_a_proxy() -> None:
    assert from_this_machine(scope("127.0.0.1"))
    assert from_this_machine(scope("::1"))
    assert not from_this_machine(scope("127.0.0.1", forwarded="for=127.0.0.1"))
    assert not from_this_machine(scope("192.0.2.7"))
    assert not from_this_machine(scope(None))


def test_nobody_is_let_in_by_an_empty_list() -> None:
    with pytest.raises(ConfigError, match="networks"):
        from_networks()
    with pytest.raises(ConfigError, match="tokens"):
        with_token("")
