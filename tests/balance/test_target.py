"""Behaviours 1–17: the request line reaches the backend as the client wrote it, or not at all."""

from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from asgi_enhance.balance import Backend, Forwarding, Limits, LoadBalanceApp
from asgi_enhance.balance.failure import Rejected
from asgi_enhance.balance.headers import HeaderRules
from asgi_enhance.balance.rewrite import Rewriter
from asgi_enhance.balance.target import strict_query
from asgi_enhance.testing.driver import request
from tests.balance.wire import ScriptedBackend, ask, front, get, serve


async def forwarded(target: bytes, http: str, **options: Any) -> bytes:
    async with front(http=http, **options) as (backend, port):
        assert (await ask(port, get(target))).status == 200
        return backend.last.target


async def refused(request: bytes, http: str, **options: Any) -> int:
    """The status of a request that no backend has seen."""
    async with front(http=http, **options) as (backend, port):
        response = await ask(port, request)
        assert not backend.wires, "a backend was contacted"
        return response.status


async def test_01_the_path_is_byte_identical(http: str) -> None:
    target = b"/a%2Fb%20c/%C3%A9;x=1"
    assert await forwarded(target, http) == target


async def test_02_the_query_is_byte_identical(http: str) -> None:
    target = b"/?a=1&a=2;b=3&c=%zz"
    assert await forwarded(target, http) == target


@pytest.mark.parametrize(
    ("query", "kept"),
    [(b"a=1&a=2;b=3", b"a=1"), (b"a=1&a=%zz&b=3", b"a=1&b=3"), (b"a=%zz", b""), (b"a=%2", b""), (b"a=%41", b"a=%41")],
)
async def test_03_a_strict_query_loses_what_parsers_disagree_on(http: str, query: bytes, kept: bytes) -> None:
    assert await forwarded(b"/?" + query, http, strict_query=True) == (b"/?" + kept if kept else b"/")


def test_03_a_strict_query_of_too_many_pairs_is_rejected() -> None:
    with pytest.raises(Rejected):
        strict_query(b"&".join([b"a=1"] * 10_001))


@pytest.mark.parametrize(
    ("base", "query", "joined"),
    [
        ("?sta=tic", b"us=er", b"/?sta=tic&us=er"),
        ("?sta=tic", b"", b"/?sta=tic"),
        ("", b"us=er", b"/?us=er"),
        ("", b"", b"/"),
    ],
)
async def test_04_the_query_of_the_backend_comes_first(http: str, base: str, query: bytes, joined: bytes) -> None:
    assert await forwarded(b"/?" + query if query else b"/", http, base=f"/{base}") == joined


@pytest.mark.parametrize(
    ("base", "path", "joined"),
    [
        ("", b"/", b"/"),
        ("/", b"/", b"/"),
        ("/a", b"/b", b"/a/b"),
        ("/a/", b"/b", b"/a/b"),
        ("/a/", b"/", b"/a/"),
        ("/a%2Fb/", b"/c%2Fd", b"/a%2Fb/c%2Fd"),
        ("/a%2Fb", b"/c%2Fd", b"/a%2Fb/c%2Fd"),
        ("/a%20b", b"//c", b"/a%20b//c"),
    ],
)
async def test_05_base_and_path_are_joined_with_one_slash(http: str, base: str, path: bytes, joined: bytes) -> None:
    assert await forwarded(path, http, base=base) == joined


async def test_06_a_path_that_looks_like_an_authority_is_a_path(http: str) -> None:
    async with front(http=http) as (backend, port):
        await ask(port, get(b"//evil.example/x"))
        assert backend.last.target == b"//evil.example/x"
        assert backend.last.one(b"host") == b"front.example"


async def test_07_an_absolute_target_never_chooses_the_host(http: str) -> None:
    """httptools takes the authority off before the app sees the target; h11 hands it on, and it is refused."""
    async with front(http=http) as (backend, port):
        response = await ask(port, get(b"http://evil.example/a"))
        assert response.status == (200 if http == "httptools" else 400)
        assert [request.target for request in backend.requests] == ([b"/a"] if http == "httptools" else [])


@pytest.mark.parametrize(
    "path", [b"/../../etc", b"/a/%2e%2e/b", b"/a/.", b"/%2E./x", b"/a/..;x/b", b"/a%2f..%2fb", b"/a\\..\\b"]
)
async def test_08_dot_segments_are_refused(http: str, path: bytes) -> None:
    assert await refused(get(path), http) == 400


async def test_08_a_dot_that_is_no_segment_passes(http: str) -> None:
    assert await forwarded(b"/.well-known/a..b/...", http) == b"/.well-known/a..b/..."


async def test_09_a_fragment_never_reaches_the_backend(http: str) -> None:
    """httptools drops it; h11 hands it on, and it is refused."""
    async with front(http=http) as (backend, port):
        response = await ask(port, get(b"/a#b"))
        assert response.status == (200 if http == "httptools" else 400)
        assert all(request.target == b"/a" for request in backend.requests)


async def test_10_an_encoded_line_break_stays_encoded(http: str) -> None:
    assert await forwarded(b"/a%0d%0aX-Injected:%20yes", http) == b"/a%0d%0aX-Injected:%20yes"


@pytest.mark.parametrize("value", [b"a\r\nX-Injected: yes", b"a\nb", b"a\rb", b"a\0b"])
async def test_10_a_line_break_that_a_layer_in_front_let_in_reaches_no_backend(value: bytes) -> None:
    async with ScriptedBackend() as backend:
        app = LoadBalanceApp([backend.url])
        assert (await request(app, headers=[(b"x-a", value)])).status == 400
        assert not backend.requests
        await app.balancer.close()


@pytest.mark.parametrize(("strip", "seen"), [(True, b"/x"), (False, b"/api/x")])
async def test_11_the_mount_is_stripped_unless_it_is_to_be_kept(http: str, strip: bool, seen: bytes) -> None:
    async with ScriptedBackend() as backend:
        site = Starlette(routes=[Mount("/api", LoadBalanceApp([backend.url], strip_mount=strip))])
        async with serve(site, http=http) as port:
            await ask(port, get(b"/api/x"))
        assert backend.last.target == seen


async def test_12_an_encoded_mount_is_stripped_by_what_it_means(http: str) -> None:
    async with ScriptedBackend() as backend:
        site = Starlette(routes=[Mount("/api", LoadBalanceApp([backend.url]))])
        async with serve(site, http=http) as port:
            await ask(port, get(b"/a%70i/x%20y"))
        assert backend.last.target == b"/x%20y"


async def test_13_the_servers_own_root_path_is_stripped_too(http: str) -> None:
    async with ScriptedBackend() as backend:
        site = Starlette(routes=[Mount("/api", LoadBalanceApp([backend.url]))])
        async with serve(site, http=http, root_path="/svc") as port:
            await ask(port, get(b"/api/x%2Fy"))
        assert backend.last.target == b"/x%2Fy"


async def fields_14(http: str, *fields: str, base: str = "", **options: Any) -> list[str]:
    """Fields of a backend with that base path, as the client of a balancer mounted at `/my app` gets them."""
    async with ScriptedBackend() as backend:
        lines = "".join(f"{field.format(backend=backend.url)}\r\n" for field in fields)
        backend.answer = f"HTTP/1.1 302 Found\r\n{lines}content-length: 0\r\n\r\n".encode()
        balancer = LoadBalanceApp([backend.url + base], **options)
        async with serve(Starlette(routes=[Mount("/my app", balancer)]), http=http) as port:
            response = await ask(port, get(b"/my%20app/x"))
        names = {field.partition(":")[0].encode() for field in fields}
        seen = [f"{name.decode()}: {value.decode()}" for name, value in response.headers if name in names]
        return [field.replace(backend.url, "{backend}") for field in seen]


async def test_14_locations_and_cookies_are_not_rewritten_unasked(http: str) -> None:
    fields = ["location: /b", "content-location: /b", "set-cookie: a=b; Domain=127.0.0.1; Path=/c"]
    assert await fields_14(http, *fields) == fields


@pytest.mark.parametrize(
    ("base", "said", "seen"),
    [
        ("", "/b?c#d", "/my%20app/b?c#d"),
        ("", "{backend}/b", "/my%20app/b"),
        ("", "{backend}", "/my%20app/"),
        ("", "http://front.example/b", "http://front.example/my%20app/b"),
        ("", "https://FRONT.example:443/b", "https://FRONT.example:443/my%20app/b"),
        ("", "//front.example/b", "//front.example/my%20app/b"),
        ("", "http://other.example/b", "http://other.example/b"),
        ("", "b/c", "b/c"),
        ("", "?page=2", "?page=2"),
        ("", "mailto:a@b", "mailto:a@b"),
        ("/base", "/base/b", "/my%20app/b"),
        ("/base", "/base?c", "/my%20app/?c"),
        ("/base", "{backend}/base", "/my%20app/"),
        ("/base", "/based/b", "/based/b"),
        ("/base", "{backend}/other", "{backend}/other"),
    ],
)
async def test_14_a_location_is_rewritten_on_demand(http: str, base: str, said: str, seen: str) -> None:
    fields = [f"location: {said}", f"content-location: {said}"]
    rewritten = await fields_14(http, *fields, base=base, forwarding=Forwarding(rewrite_location=True))
    assert rewritten == [f"location: {seen}", f"content-location: {seen}"]


@pytest.mark.parametrize(
    ("base", "said", "seen"),
    [
        ("", "a=b; Path=/; HttpOnly", "a=b; Path=/my%20app; HttpOnly"),
        ("", "a=b;path=/c", "a=b; Path=/my%20app/c"),
        ("", "a=b", "a=b"),
        ("", "a=b; Path=", "a=b; Path="),
        ("", "a=b; Domain=127.0.0.1; Path=/c", "a=b; Path=/my%20app/c"),
        ("", "a=b; Domain=.front.example", "a=b; Domain=.front.example"),
        ("/base", "a=b; Path=/base/", "a=b; Path=/my%20app"),
        ("/base", "a=Path=/base; Path=/other", "a=Path=/base; Path=/other"),
    ],
)
async def test_14_path_and_domain_of_a_cookie_are_rewritten_on_demand(
    http: str, base: str, said: str, seen: str
) -> None:
    forwarding = Forwarding(rewrite_cookies=True)
    assert await fields_14(http, f"set-cookie: {said}", base=base, forwarding=forwarding) == [f"set-cookie: {seen}"]


def test_14_the_backends_host_by_another_scheme_is_somebody_else() -> None:
    head = HeaderRules(Forwarding()).request({"headers": [(b"host", b"front.example")], "client": None})
    rewriter = Rewriter(Backend("http://b"), head, "/m")
    assert rewriter.location(b"https://b/x") == b"https://b/x"
    assert rewriter.location(b"HTTP://B:80/x") == b"/m/x"


async def test_14_only_what_was_asked_for_is_rewritten(http: str) -> None:
    fields = ["location: /b", "set-cookie: a=b; Path=/c"]
    seen = await fields_14(http, *fields, forwarding=Forwarding(rewrite_location=True))
    assert seen == ["location: /my%20app/b", fields[1]]
    seen = await fields_14(http, *fields, forwarding=Forwarding(rewrite_cookies=True))
    assert seen == [fields[0], "set-cookie: a=b; Path=/my%20app/c"]
    both = Forwarding(rewrite_location=True, rewrite_cookies=True)
    assert await fields_14(http, *fields, strip_mount=False, forwarding=both) == [
        "location: /b",
        "set-cookie: a=b; Path=/c",
    ]


@pytest.mark.parametrize(
    "said", [b"http://b//evil.example/", b"/base//evil.example/", rb"http://b/base/\evil.example/"]
)
def test_14_a_rewritten_path_never_names_another_host(said: bytes) -> None:
    base = "/base" if b"/base" in said else ""
    head = HeaderRules(Forwarding()).request({"headers": [(b"host", b"front.example")], "client": None})
    moved = Rewriter(Backend("http://b" + base), head, "").location(said)
    assert moved == b"/." + said[said.index(b"evil") - 2 :]


async def test_15_connect_is_a_405_and_options_star_stays_a_star(http: str) -> None:
    async with front(http=http) as (backend, port):
        response = await ask(port, b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n")
        assert response.status in (400, 405)  # httptools refuses it before the app sees it
        assert not backend.wires
        response = await ask(port, get(b"*", method=b"OPTIONS"))
        assert [request.target for request in backend.requests] == [b"*"]


@pytest.mark.parametrize("method", [b"OPTIONS", b"TRACE"])
async def test_16_max_forwards_is_answered_at_zero_lowered_above_and_never_added(http: str, method: bytes) -> None:
    async with front(http=http) as (backend, port):
        response = await ask(port, get(b"/", b"Max-Forwards: 0", b"Cookie: secret", method=method))
        assert response.status in (200, 204)
        assert b"secret" not in response.body
        assert not backend.requests
        await ask(port, get(b"/", b"Max-Forwards: 3", method=method))
        assert backend.last.one(b"max-forwards") == b"2"
        await ask(port, get(b"/", method=method))
        assert backend.last.one(b"max-forwards") is None


async def test_17_an_unknown_method_is_forwarded(http: str) -> None:
    async with front(http=http) as (backend, port):
        response = await ask(port, get(method=b"PROPFIND"))
        assert response.status == 200
        assert backend.last.start == b"PROPFIND / HTTP/1.1"


async def test_17_an_over_long_target_is_a_414(http: str) -> None:
    assert await refused(get(b"/" + b"a" * 200), http, limits=Limits(max_target=100)) == 414
