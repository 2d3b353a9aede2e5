"""Whose request it is: forged, missing and many addresses have a safe outcome."""

from types import SimpleNamespace
from typing import Any

import pytest

from asgi_enhance.asgi.address import ClientAddress
from asgi_enhance.errors import ConfigError, RateLimitError
from asgi_enhance.ratelimit import RateLimitMiddleware, Rule, by_client, by_header, by_user, keys
from asgi_enhance.ratelimit.keys import LONGEST, digest, spell
from asgi_enhance.testing.driver import http_scope, request
from tests.ratelimit.apps import hello


async def statuses(app: RateLimitMiddleware, *scopes: dict[str, Any]) -> list[int]:
    return [(await request(app, **scope)).status for scope in scopes]


async def test_a_forged_forwarded_for_changes_nothing() -> None:
    app = RateLimitMiddleware(hello, default="1/minute")
    forged = [{"headers": [(b"x-forwarded-for", b"203.0.113.%d" % i)]} for i in range(3)]
    assert await statuses(app, *forged) == [200, 429, 429]


async def test_behind_a_trusted_proxy_the_client_is_who_the_proxy_says() -> None:
    app = RateLimitMiddleware(hello, default="1/minute", client=ClientAddress(trusted=["10.0.0.0/8"]))
    proxied = [
        {"client": ("10.0.0.1", 1), "headers": [(b"x-forwarded-for", chain)]}
        for chain in (b"203.0.113.1", b"203.0.113.2", b"198.51.100.9, 203.0.113.1")
    ]
    assert await statuses(app, *proxied) == [200, 200, 429]


@pytest.fixture
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_told", [])


PROXIED: dict[str, Any] = {"client": ("172.17.0.1", 1), "headers": [(b"x-forwarded-for", b"203.0.113.1")]}


@pytest.mark.parametrize("client", [None, ClientAddress(trusted=["10.0.0.0/8"])])
@pytest.mark.usefixtures("nothing_said")
async def test_a_proxy_that_is_not_trusted_is_told_of_once(
    client: ClientAddress | None, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        app = RateLimitMiddleware(hello, client=client)
        await statuses(app, PROXIED, PROXIED, {**PROXIED, "client": ("172.17.0.2", 1)})
    (record,) = caplog.records
    assert "x-forwarded-for from '172.17.0.1' is not believed" in record.getMessage()
    assert "client=ClientAddress(trusted=['172.17.0.1'])" in record.getMessage()


@pytest.mark.usefixtures("nothing_said")
async def test_of_a_peer_that_nobody_could_trust_nothing_is_told(caplog: pytest.LogCaptureFixture) -> None:
    await statuses(RateLimitMiddleware(hello), {**PROXIED, "client": ("x" * 100_000, 1)})
    assert not caplog.records


@pytest.mark.parametrize("client", [None, ClientAddress(trusted=["10.0.0.0/8"])])
@pytest.mark.usefixtures("nothing_said")
async def test_after_so_many_requests_nobody_looks_for_proxies_any_more(
    client: ClientAddress | None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "LOOKS", 3)
    await statuses(RateLimitMiddleware(hello, client=client), {}, {}, {}, PROXIED)
    assert not caplog.records


@pytest.mark.parametrize("client", [None, ClientAddress(trusted=["10.0.0.0/8"])])
async def test_addresses_of_one_ipv6_network_are_one_client(client: ClientAddress | None) -> None:
    app = RateLimitMiddleware(hello, default="1/minute", client=client)
    hosts = ["2001:db8:0:1::1", "2001:db8:0:1:ffff::2", "2001:DB8:0:1::3%eth0", "2001:db8:0:2::1"]
    assert await statuses(app, *({"client": (host, 1)} for host in hosts)) == [200, 429, 429, 200]


async def test_ipv4_written_as_ipv6_is_the_same_client() -> None:
    app = RateLimitMiddleware(hello, default="1/minute")
    assert await statuses(app, {"client": ("192.0.2.1", 1)}, {"client": ("::ffff:192.0.2.1", 1)}) == [200, 429]


async def test_clients_without_an_address_share_a_bucket_of_their_own() -> None:
    app = RateLimitMiddleware(hello, default="1/minute")
    scopes: list[dict[str, Any]] = [{"client": None}, {"client": ("", 0)}, {"client": ("127.0.0.1", 1)}]
    assert await statuses(app, *scopes) == [200, 429, 200]


async def test_a_huge_address_from_a_careless_proxy_is_hashed() -> None:
    app = RateLimitMiddleware(hello, default="1/minute")
    assert await statuses(app, {"client": ("x" * 100_000, 1)}, {"client": ("x" * 100_001, 1)}) == [200, 200]
    (tables,) = app.limiter._memory._tables.values()
    assert all(len(identity) <= LONGEST for table in tables for identity in table)


async def test_a_rule_by_header_is_not_about_requests_without_it() -> None:
    app = RateLimitMiddleware(hello, [Rule("1/minute", key="header:X-Api-Key")], default=None)
    key = {"headers": [(b"x-api-key", b"k1")]}
    assert await statuses(app, key, key, {}, {}, {"headers": [(b"x-api-key", b"k2")]}) == [200, 429, 200, 200, 200]


async def test_random_tokens_do_not_get_past_the_rule_by_client() -> None:
    app = RateLimitMiddleware(hello, [Rule("5/minute", key="header:authorization")], default="3/minute")
    tokens = [{"headers": [(b"authorization", b"token %d" % i)]} for i in range(5)]
    assert await statuses(app, *tokens) == [200] * 3 + [429] * 2


async def test_sync_and_async_keys_and_tuples_of_them() -> None:
    async def tenant(scope: Any) -> str:
        return str(scope["headers"][-1][1])

    app = RateLimitMiddleware(hello, [Rule("1/minute", key=(tenant, "client"))], default=None)
    one, two = {"headers": [(b"x-tenant", b"1")]}, {"headers": [(b"x-tenant", b"2")]}
    elsewhere = {**one, "client": ("198.51.100.1", 1)}
    assert await statuses(app, one, two, elsewhere, one) == [200, 200, 200, 429]


async def test_a_tuple_with_a_none_is_not_mine() -> None:
    app = RateLimitMiddleware(hello, [Rule("1/minute", key=("client", "user"))], default=None)
    assert await statuses(app, {}, {}) == [200, 200]


@pytest.mark.parametrize(
    ("user", "identity"),
    [
        (None, None),
        ("alice", "alice"),
        (7, 7),
        (SimpleNamespace(is_authenticated=False, username="alice"), None),
        (SimpleNamespace(is_authenticated=True, identity="alice"), "alice"),
        (SimpleNamespace(id=7), 7),
        (SimpleNamespace(username="alice"), "alice"),
        ({"id": 7}, 7),
        ({"name": "?"}, None),
        (object(), None),
    ],
)
def test_the_user_is_found_in_what_authentication_layers_leave(user: object, identity: object) -> None:
    assert by_user({**http_scope(), "user": user}) == identity


def test_starlettes_users_are_understood() -> None:
    from starlette.authentication import SimpleUser, UnauthenticatedUser

    assert by_user({**http_scope(), "user": SimpleUser("alice")}) == "alice"
    assert by_user({**http_scope(), "user": UnauthenticatedUser()}) is None


async def test_a_key_that_gives_nonsense_is_an_error_of_the_program() -> None:
    app = RateLimitMiddleware(hello, [Rule("1/minute", key=lambda scope: 1.5)])  # type: ignore[arg-type,return-value]
    with pytest.raises(RateLimitError, match="float"):
        await request(app)


def test_a_header_key_reads_the_header_in_any_case() -> None:
    assert by_header("X-Api-Key")(http_scope(headers=[(b"X-API-KEY", b"k")])) == b"k"


def test_a_digest_tells_nothing_and_differs() -> None:
    assert digest("alice") != digest("bob")
    assert len(digest("alice")) == 32
    assert digest("\ud800")


def test_lone_surrogates_do_not_break_anything() -> None:
    assert spell("\ud800" * 100).startswith("\0h")


@pytest.mark.parametrize("prefix", [0, 129])
def test_a_prefix_that_is_none_is_a_config_error(prefix: int) -> None:
    with pytest.raises(ConfigError, match="ipv6_prefix"):
        by_client(ipv6_prefix=prefix)
