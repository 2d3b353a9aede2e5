"""Behaviours 1–17: the request line reaches the backend as the client wrote it, or not at all."""

from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from asgi_enhance.balance import Backend, Limits, LoadBalanceApp
from asgi_enhance.balance.failure import Rejected
from asgi_enhance.balance.target import strict_query
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
def test_04_the_query_of_the_backend_comes_first(base: str, query: bytes, joined: bytes) -> None:
    assert Backend(f"http://a/{base}").target(b"/", query) == joined


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
def test_05_base_and_path_are_joined_with_one_slash(base: str, path: bytes, joined: bytes) -> None:
    assert Backend(f"http://a{base}").target(path, b"") == joined


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


async def test_14_location_and_cookie_paths_are_not_rewritten(http: str) -> None:
    answer = b"HTTP/1.1 302 Found\r\nlocation: /b\r\nset-cookie: a=b; Path=/c\r\ncontent-length: 0\r\n\r\n"
    async with front(answer, http) as (_, port):
        response = await ask(port, get())
    assert (response.one(b"location"), response.one(b"set-cookie")) == (b"/b", b"a=b; Path=/c")


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
