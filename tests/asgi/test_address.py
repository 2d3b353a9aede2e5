import pytest

from asgi_enhance import ClientAddress, ConfigError
from asgi_enhance.asgi.types import Scope


def scope_for(peer: str | None, *lines: str, header: str = "x-forwarded-for") -> Scope:
    return {
        "client": None if peer is None else (peer, 1234),
        "headers": [(header.encode(), line.encode("latin-1")) for line in lines],
    }


def test_by_default_the_peer_is_the_client_whatever_it_claims() -> None:
    assert ClientAddress()(scope_for("192.0.2.1", "10.0.0.1")) == "192.0.2.1"


def test_no_peer_is_no_address() -> None:
    assert ClientAddress()(scope_for(None, "10.0.0.1")) is None
    assert ClientAddress()({"headers": []}) is None


def test_ipv4_in_ipv6_is_ipv4() -> None:
    assert ClientAddress()(scope_for("::ffff:192.0.2.1")) == "192.0.2.1"
    assert ClientAddress("192.0.2.0/24")(scope_for("::ffff:192.0.2.1", "::ffff:198.51.100.9")) == "198.51.100.9"


@pytest.mark.parametrize(
    ("lines", "client"),
    [
        (["198.51.100.9"], "198.51.100.9"),
        (["6.6.6.6, 198.51.100.9, 10.0.0.2"], "198.51.100.9"),
        (["6.6.6.6", "198.51.100.9", "10.0.0.2"], "198.51.100.9"),
        (["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        (["6.6.6.6, evil, 10.0.0.2"], "10.0.0.2"),
        (["evil"], "10.0.0.1"),
        ([], "10.0.0.1"),
        (["198.51.100.9:4711"], "198.51.100.9"),
        (["[2001:db8::7]:4711"], "2001:db8::7"),
        (["2001:DB8:0::7"], "2001:db8::7"),
        (["010.0.0.1"], "10.0.0.1"),
    ],
)
def test_behind_trusted_networks_the_rightmost_untrusted_entry_wins(lines: list[str], client: str) -> None:
    assert ClientAddress(["10.0.0.0/8"])(scope_for("10.0.0.1", *lines)) == client


def test_an_untrusted_peer_is_not_believed() -> None:
    assert ClientAddress(["10.0.0.0/8"])(scope_for("192.0.2.1", "1.2.3.4")) == "192.0.2.1"


def test_a_unix_socket_is_believed_only_when_it_is_named() -> None:
    assert ClientAddress(["10.0.0.0/8"])(scope_for(None, "1.2.3.4")) is None
    assert ClientAddress(["unix"])(scope_for(None, "6.6.6.6, 1.2.3.4")) == "1.2.3.4"


@pytest.mark.parametrize(
    ("hops", "line", "client"),
    [(1, "6.6.6.6, 1.2.3.4", "1.2.3.4"), (2, "6.6.6.6, 1.2.3.4", "6.6.6.6"), (3, "6.6.6.6, 1.2.3.4", "192.0.2.1")],
)
def test_with_n_hops_the_nth_entry_from_the_right_wins_and_too_few_mean_the_peer(
    hops: int, line: str, client: str
) -> None:
    assert ClientAddress(hops=hops)(scope_for("192.0.2.1", line)) == client


@pytest.mark.parametrize(
    ("line", "client"),
    [
        ('for=6.6.6.6, for="[2001:db8::7]:4711";proto=https', "2001:db8::7"),
        ("proto=https;For=198.51.100.9", "198.51.100.9"),
        ("for=unknown", "10.0.0.1"),
        ("for=_hidden", "10.0.0.1"),
        ("proto=https", "10.0.0.1"),
        ('for=198.51.100.9;host="a,b"', "198.51.100.9"),
        ('for=198.51.100.9;host="x,for=6.6.6.6"', "198.51.100.9"),
        ('host="x;for=6.6.6.6";for=198.51.100.9', "198.51.100.9"),
        (r'for=198.51.100.9;host="x\",for=6.6.6.6,\""', "198.51.100.9"),
        (r'for=198.51.100.9;host="x\\";proto=http', "198.51.100.9"),
        ('for=6.6.6.6;host=", for=198.51.100.9;host="a"', "198.51.100.9"),
        (r'for="\, for=198.51.100.9;host="a"', "198.51.100.9"),
    ],
)
def test_forwarded_is_read_when_it_is_the_proxys_header(line: str, client: str) -> None:
    address = ClientAddress(["10.0.0.0/8"], header="forwarded")
    assert address(scope_for("10.0.0.1", line, header="forwarded")) == client
    assert address(scope_for("10.0.0.1", "1.2.3.4", header="x-forwarded-for")) == "10.0.0.1"


def test_a_peer_that_is_not_an_address_is_kept_as_it_is() -> None:
    assert ClientAddress(["10.0.0.0/8"])(scope_for("testclient", "1.2.3.4")) == "testclient"


@pytest.mark.parametrize(
    ("address", "peer", "line", "ignored"),
    [
        (ClientAddress(), "10.0.0.1", "1.2.3.4", True),
        (ClientAddress(), None, "1.2.3.4", True),
        (ClientAddress(["10.0.0.0/8"]), "172.17.0.1", "1.2.3.4", True),
        (ClientAddress(["10.0.0.0/8"]), "10.0.0.1", "1.2.3.4", False),
        (ClientAddress(["unix"]), None, "1.2.3.4", False),
        (ClientAddress(hops=1), "10.0.0.1", "1.2.3.4", False),
        (ClientAddress(), "10.0.0.1", "", False),
        (ClientAddress(), "1.2.3.4", "6.6.6.6, 1.2.3.4, 10.0.0.1", False),  # the server has believed it
        (ClientAddress(), "::ffff:1.2.3.4", "1.2.3.4:4711", False),
    ],
)
def test_it_tells_what_it_does_not_believe(address: ClientAddress, peer: str | None, line: str, ignored: bool) -> None:
    assert address.ignored(scope_for(peer, line)) == ("x-forwarded-for" if ignored else None)
    line = ", ".join(f"for={part}" for part in line.split(", ") if part)
    assert address.ignored(scope_for(peer, line, header="forwarded")) == ("forwarded" if ignored else None)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"trusted": ["10.0.0.0/99"]}, "10.0.0.0/99"),
        ({"trusted": ["proxy.example"]}, "proxy.example"),
        ({"hops": 0}, "hops"),
        ({"hops": 1, "trusted": ["10.0.0.1"]}, "hops"),
        ({"header": "x-real-ip"}, "header"),
    ],
)
def test_bad_configuration_is_refused_by_name(arguments: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        ClientAddress(**arguments)  # type: ignore[arg-type]
