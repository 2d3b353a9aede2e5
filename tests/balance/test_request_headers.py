"""Behaviours 18–39: what the backend is told, by the client and by the proxy."""

from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from asgi_enhance.asgi.types import ASGIApp, Message, Receive, Scope, Send
from asgi_enhance.balance import Forwarding, LoadBalanceApp, LoadBalancer
from asgi_enhance.balance.headers import HeaderRules
from asgi_enhance.errors import ConfigError
from asgi_enhance.testing.driver import Driver, http_scope
from tests.balance.wire import HttpMessage, ScriptedBackend, ask, front, get, serve


async def seen(*lines: bytes, http: str, method: bytes = b"GET", **forwarding: object) -> HttpMessage:
    """The request as the backend saw it."""
    async with front(http=http, forwarding=Forwarding(**forwarding)) as (backend, port):  # type: ignore[arg-type]
        response = await ask(port, get(b"/", *lines, method=method))
        assert response.status == 200, response.body
        return backend.last


async def status(*lines: bytes, http: str, **forwarding: object) -> int:
    """The status of a request that no backend has seen."""
    async with front(http=http, forwarding=Forwarding(**forwarding)) as (backend, port):  # type: ignore[arg-type]
        response = await ask(port, get(b"/", *lines))
        assert not backend.wires, "a backend was contacted"
        return response.status


def rules(**forwarding: object) -> HeaderRules:
    return HeaderRules(Forwarding(**forwarding))  # type: ignore[arg-type]


async def test_18_connection_and_every_field_it_names_end_here(http: str) -> None:
    lines = (
        b"Connection: X-One, , x-TWO",
        b"Connection: keep-alive,x-three",
        b"X-One: 1",
        b"x-two: 2",
        b"X-Three: 3",
        b"X-Four: 4",
    )
    request = await seen(*lines, http=http)
    assert request.names().isdisjoint({b"connection", b"x-one", b"x-two", b"x-three"})
    assert request.one(b"x-four") == b"4"


@pytest.mark.parametrize(
    "name",
    [b"Keep-Alive", b"Proxy-Connection", b"Proxy-Authenticate", b"Proxy-Authorization", b"TE", b"Trailer", b"Upgrade"],
)
async def test_19_hop_by_hop_fields_end_here_even_if_not_named(http: str, name: bytes) -> None:
    request = await seen(name + b": something", http=http)
    assert name.lower() not in request.names()


async def test_20_a_client_cannot_name_away_what_the_proxy_says(http: str) -> None:
    request = await seen(b"Connection: X-Forwarded-For, Via, Host, X-Forwarded-Proto", http=http)
    assert request.one(b"x-forwarded-for") == b"127.0.0.1"
    assert request.one(b"x-forwarded-proto") == b"http"
    assert request.one(b"via") is not None
    assert request.one(b"host") == b"front.example"


@pytest.mark.parametrize("more", [(b"Connection: TE",), (), (b"Content-Length: 0",)])
async def test_21_only_te_trailers_passes_and_is_named_as_of_this_hop(http: str, more: tuple[bytes, ...]) -> None:
    request = await seen(b"TE: gzip, trailers", *more, http=http)
    assert (request.one(b"te"), request.one(b"connection")) == (b"trailers", b"te")


async def test_22_duplicate_lines_keep_their_order(http: str) -> None:
    request = await seen(b"X-A: 1", b"X-B: 2", b"X-A: 3", http=http)
    assert [value for name, value in request.headers if name in (b"x-a", b"x-b")] == [b"1", b"2", b"3"]


async def test_22_the_cookies_of_http_2_leave_it_in_one_line() -> None:
    """Browsers send a line a cookie there; a backend of HTTP/1.1 may see the first alone, or join them by a comma."""
    headers = [(b"cookie", b"a=1"), (b"x-a", b"1"), (b"cookie", b"b=2")]
    async with ScriptedBackend() as backend, LoadBalancer([backend.url]) as balancer:
        app = LoadBalanceApp(balancer=balancer)
        for version, cookies in (("2", [b"a=1; b=2"]), ("1.1", [b"a=1", b"b=2"])):
            nothing: list[Message] = [{"type": "http.request"}]
            async with Driver(app, http_scope("/", http_version=version, headers=headers), nothing) as server:
                assert (await server.next())["status"] == 200
            assert backend.last.all(b"cookie") == cookies


async def test_23_bytes_beyond_ascii_pass_both_ways(http: str) -> None:
    answer = b"HTTP/1.1 200 OK\r\nx-back: caf\xe9\r\ncontent-length: 0\r\n\r\n"
    async with front(answer, http) as (backend, port):
        response = await ask(port, get(b"/", b"X-There: caf\xe9"))
        assert backend.last.one(b"x-there") == b"caf\xe9"
        assert response.one(b"x-back") == b"caf\xe9"


async def test_24_unknown_fields_are_forwarded(http: str) -> None:
    assert (await seen(b"X-Never-Heard-Of: yes", http=http)).one(b"x-never-heard-of") == b"yes"


async def test_25_nothing_is_invented(http: str) -> None:
    request = await seen(http=http)
    assert request.names() == {b"host", b"via", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"}


async def test_26_host_is_preserved_or_rewritten_and_there_once(http: str) -> None:
    assert (await seen(http=http)).all(b"host") == [b"front.example"]
    async with front(http=http, forwarding=Forwarding(host="rewrite")) as (backend, port):
        await ask(port, get())
        assert backend.last.all(b"host") == [f"127.0.0.1:{backend.port}".encode()]


@pytest.mark.parametrize("head", [b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"])
async def test_27_a_missing_or_second_host_is_a_400(http: str, head: bytes) -> None:
    async with front(http=http) as (backend, port):
        response = await ask(port, head)
        assert response.status == 400
        assert not backend.wires


@pytest.mark.parametrize("host", [b"a b", b"a/b", b"user@a", b"a?b", b"a\\b", b'a"b', b"caf\xe9"])
async def test_27_a_host_that_is_none_is_a_400(http: str, host: bytes) -> None:
    async with front(http=http) as (backend, port):
        assert (await ask(port, b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % host)).status == 400
        assert not backend.wires


@pytest.mark.parametrize("host", [b"a.example:80", b"[2001:db8::1]:80", b"my_service", b""])
async def test_27_a_host_that_is_one_is_kept(http: str, host: bytes) -> None:
    async with front(http=http) as (backend, port):
        assert (await ask(port, b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % host)).status == 200
        assert backend.last.one(b"host") == (host or backend.url.removeprefix("http://").encode())


def test_27_what_is_said_of_a_host_is_remembered_only_if_that_is_short() -> None:
    made = rules()
    for size in (300, 20):
        fields = made.request({**http_scope(), "headers": [(b"host", b"a" * size)]}).fields
        assert (b"x-forwarded-host", b"a" * size) in fields
    assert made._said.cache_info().currsize == 1


async def test_28_x_forwarded_for_of_a_stranger_is_replaced(http: str) -> None:
    request = await seen(b"X-Forwarded-For: 6.6.6.6", b"X-Forwarded-For: 7.7.7.7", http=http)
    assert request.all(b"x-forwarded-for") == [b"127.0.0.1"]


async def test_28_x_forwarded_for_of_a_trusted_proxy_is_extended(http: str) -> None:
    request = await seen(b"X-Forwarded-For: 6.6.6.6", b"X-Forwarded-For: 7.7.7.7", http=http, trusted=["127.0.0.0/8"])
    assert request.all(b"x-forwarded-for") == [b"6.6.6.6, 7.7.7.7, 127.0.0.1"]


_SAID = (b"X-Forwarded-Proto: https", b"X-Forwarded-Host: a.example", b"X-Forwarded-Prefix: /p")


async def test_29_what_a_stranger_says_of_scheme_and_host_is_replaced(http: str) -> None:
    request = await seen(*_SAID, http=http)
    assert request.one(b"x-forwarded-proto") == b"http"
    assert request.one(b"x-forwarded-host") == b"front.example"
    assert request.one(b"x-forwarded-prefix") is None


async def test_29_what_a_trusted_proxy_says_of_scheme_and_host_is_kept(http: str) -> None:
    request = await seen(*_SAID, b"X-Forwarded-Host: b.example", http=http, trusted=["127.0.0.1"])
    assert request.one(b"x-forwarded-proto") == b"https"
    assert request.one(b"x-forwarded-host") == b"b.example"
    assert request.one(b"x-forwarded-prefix") == b"/p"


@pytest.mark.parametrize(
    ("said", "trusted", "seen"),
    [
        ("", [], "/my%20app"),
        ("/evil", [], "/my%20app"),
        ("/p", ["127.0.0.1"], "/p/my%20app"),
        ("/my", ["127.0.0.1"], "/my/my%20app"),
        ("/my%20app", ["127.0.0.1"], "/my%20app"),
    ],
)
async def test_29_a_backend_is_told_the_mount_it_does_not_see(
    http: str, said: str, trusted: list[str], seen: str
) -> None:
    async with ScriptedBackend() as backend:
        app = LoadBalanceApp([backend.url], forwarding=Forwarding(trusted=trusted))
        async with serve(Starlette(routes=[Mount("/my app", app)]), http=http) as port:
            await ask(port, get(b"/my%20app/x", *([f"X-Forwarded-Prefix: {said}".encode()] if said else [])))
    assert backend.last.all(b"x-forwarded-prefix") == [seen.encode()]


async def test_30_forwarded_is_written_when_it_is_asked_for(http: str) -> None:
    request = await seen(b"Forwarded: for=6.6.6.6", http=http, forwarded=True)
    assert request.all(b"forwarded") == [b"for=127.0.0.1;proto=http;host=front.example"]
    request = await seen(b"Forwarded: for=6.6.6.6", http=http, forwarded=True, trusted=["127.0.0.1"])
    assert request.all(b"forwarded") == [b"for=6.6.6.6, for=127.0.0.1;proto=http;host=front.example"]
    assert (await seen(b"Forwarded: for=6.6.6.6", http=http)).all(b"forwarded") == []


@pytest.mark.parametrize(("client", "node"), [(("2001:db8::1", 1), b'for="[2001:db8::1]"'), (None, b"for=unknown")])
def test_30_forwarded_of_an_ipv6_address_is_quoted_and_of_nobody_unknown(client: object, node: bytes) -> None:
    head = rules(forwarded=True).request(http_scope(client=client))
    assert dict(head.fields)[b"forwarded"].startswith(node)


@pytest.mark.parametrize("trusted", [[], ["unix"]], ids=["stranger", "trusted"])
async def test_31_a_peer_without_address_is_a_stranger_unless_it_is_trusted(
    http: str, tmp_path: Path, trusted: list[str]
) -> None:
    async with ScriptedBackend() as backend:
        app = LoadBalanceApp([backend.url], forwarding=Forwarding(trusted=trusted))
        async with serve(app, http=http, unix=tmp_path / "socket"):
            request = get(b"/", b"X-Forwarded-For: 6.6.6.6", b"X-Forwarded-Proto: https")
            assert (await ask(tmp_path / "socket", request)).status == 200
        await app.balancer.close()
    said = {name: value for name, value in backend.last.headers if name.startswith(b"x-forwarded")}
    if trusted:
        assert said[b"x-forwarded-for"] == b"6.6.6.6"
        assert said[b"x-forwarded-proto"] == b"https"
    else:
        assert not said


async def test_32_the_client_hashed_is_the_first_stranger_from_the_right(http: str) -> None:
    """Which address `ip-hash` takes, with the rules of ClientAddress."""
    async with ScriptedBackend() as one, ScriptedBackend() as two:
        app = LoadBalanceApp(
            [one.url, two.url], algorithm="ip-hash", forwarding=Forwarding(trusted=["127.0.0.1", "10.0.0.0/8"])
        )
        async with serve(app, http=http) as port:
            for spoofed in range(12):
                line = b"X-Forwarded-For: 9.9.9.%d, 192.0.2.1, 10.0.0.%d" % (spoofed, spoofed)
                await ask(port, get(b"/", line))
        assert sorted([len(one.requests), len(two.requests)]) == [0, 12]


@pytest.mark.parametrize(("hops", "client"), [(1, "10.0.0.1"), (2, "192.0.2.1"), (4, "203.0.113.9")])
def test_32_with_a_known_number_of_proxies_the_client_is_that_many_from_the_right(hops: int, client: str) -> None:
    scope = http_scope(client=("203.0.113.9", 1), headers=[(b"x-forwarded-for", b"6.6.6.6, 192.0.2.1, 10.0.0.1")])
    assert rules(hops=hops).client_address(scope) == client


async def test_33_x_forwarded_can_be_turned_off(http: str) -> None:
    request = await seen(b"X-Forwarded-For: 6.6.6.6", http=http, x_forwarded=False)
    assert not any(name.startswith(b"x-forwarded") for name in request.names())


async def test_34_via_names_the_proxy_on_requests_and_if_wanted_on_responses(http: str) -> None:
    request = await seen(b"Via: 1.0 fred", http=http, via="me")
    assert request.all(b"via") == [b"1.0 fred", b"1.1 me"]
    async with front(http=http, forwarding=Forwarding(via="me", via_on_responses=True)) as (_, port):
        assert (await ask(port, get())).one(b"via") == b"1.1 me"


async def test_35_a_request_that_was_here_before_is_a_508(http: str) -> None:
    assert await status(b"Via: 1.0 fred, 1.1 me (proxy)", http=http, via="me") == 508


async def test_36_a_field_with_underscores_is_dropped_beside_its_twin(http: str) -> None:
    request = await seen(b"X_User: evil", b"X-User: good", b"Content_Length: 3", b"My_Own: kept", http=http)
    assert request.names().isdisjoint({b"x_user", b"content_length"})
    assert request.one(b"my_own") == b"kept"


async def test_36_fields_with_underscores_may_be_rejected_or_allowed(http: str) -> None:
    assert await status(b"X_User: evil", http=http, underscores="reject") == 400
    request = await seen(b"X_User: both", b"X-User: both", http=http, underscores="allow")
    assert request.one(b"x_user") == b"both"


@pytest.mark.parametrize("name", [b"X-Original-URL", b"X-Rewrite-URL", b"X-Real-IP", b"X-Forwarded-Ssl", b"Client-IP"])
async def test_37_hints_of_strangers_are_not_handed_on(http: str, name: bytes) -> None:
    assert name.lower() not in (await seen(name + b": /admin", http=http)).names()
    assert name.lower() in (await seen(name + b": /admin", http=http, trusted=["127.0.0.1"])).names()


async def test_38_the_scope_others_see_is_not_changed(http: str) -> None:
    before: list[tuple[bytes, bytes]] = []
    after: list[tuple[bytes, bytes]] = []

    def watched(app: ASGIApp) -> ASGIApp:
        async def outer(scope: Scope, receive: Receive, send: Send) -> None:
            before.extend(scope["headers"])
            await app(scope, receive, send)
            after.extend(scope["headers"])

        return outer

    async with ScriptedBackend() as backend, serve(watched(LoadBalanceApp([backend.url])), http=http) as port:
        await ask(port, get(b"/", b"Connection: X-Gone", b"X-Gone: 1", b"X-Kept: 2"))
    assert before == after != []


async def test_39_authorization_passes_and_no_cookie_or_proxy_is_remembered(
    http: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    answer = b"HTTP/1.1 200 OK\r\nset-cookie: user=alice\r\ncontent-length: 0\r\n\r\n"
    async with front(answer, http) as (backend, port):
        await ask(port, get(b"/", b"Authorization: Bearer alice"))
        assert backend.last.one(b"authorization") == b"Bearer alice"
        await ask(port, get())
        assert backend.last.names().isdisjoint({b"cookie", b"authorization"})


@pytest.mark.parametrize(
    ("argument", "value"), [("host", "other"), ("underscores", "maybe"), ("server_fields", "both"), ("via", "a b")]
)
def test_a_bad_setting_is_named(argument: str, value: str) -> None:
    with pytest.raises(ConfigError, match=argument):
        Forwarding(**{argument: value})  # type: ignore[arg-type]
