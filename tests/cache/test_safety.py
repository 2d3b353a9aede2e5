"""What other caches have done wrong, one test each: what must never be kept, and what must never be shared.

The sources are the behaviour of published Python caches, the advisories named, and the attack classes of web cache
poisoning, web cache deception and cache-poisoned denial of service.
"""

import time
from typing import Any

import pytest

from asgi_enhance.cache import Cache, CacheMiddleware, CacheRule
from asgi_enhance.cache.request import Request
from asgi_enhance.ratelimit import RateLimitMiddleware
from asgi_enhance.ratelimit.headers import draft10, x_ratelimit
from asgi_enhance.testing.driver import http_scope, request
from tests.cache.origin import Answer, Clock, Origin, fields

FRESH = "Cache-Control: max-age=60"


async def never_kept(
    cache: Cache[Any], answer: Answer, *, headers: Any = (), body: bytes = b"", **options: Any
) -> CacheMiddleware:
    """Asked twice with these fields, and once without them, the app answers each time."""
    origin = Origin(answer)
    layer = CacheMiddleware(origin, cache=cache, **options)
    headers = fields(headers)
    if body:
        headers.append((b"content-length", b"%d" % len(body)))
    for _ in range(2):
        await request(layer, "/", headers=headers, body=body)
    await request(layer, "/")
    assert origin.calls == 3, "a response was kept that must not be"
    return layer


async def kept(cache: Cache[Any], answer: Answer, *, headers: Any = (), **options: Any) -> CacheMiddleware:
    origin = Origin(answer)
    layer = CacheMiddleware(origin, cache=cache, **options)
    for _ in range(2):
        await request(layer, "/", headers=fields(headers))
    assert origin.calls == 1, "a response was not kept that may be"
    return layer


@pytest.mark.parametrize(
    "lines",
    [
        ["Cache-Control: no-store"],
        ["Cache-Control: max-age=60, no-store"],
        ["Cache-Control: private"],
        ["Cache-Control: max-age=60, private"],
        ["Cache-Control: max-age=60", "Cache-Control: no-store"],
        ["Cache-Control: No-Store, Max-Age=60"],  # CVE-2026-8404
        ["Cache-Control: PRIVATE, max-age=60"],
        ['Cache-Control: ext="a, b", no-store, max-age=60'],
    ],
)
@pytest.mark.parametrize("rules", [(), (CacheRule("*", ttl=60),)], ids=["alone", "with a rule"])
async def test_what_the_app_forbids_is_not_kept(cache: Cache[Any], lines: list[str], rules: Any) -> None:
    await never_kept(cache, Answer(*lines), rules=rules)


async def test_no_cache_is_validated_even_under_a_rule(cache: Cache[Any]) -> None:
    await never_kept(cache, Answer("Cache-Control: no-cache"), rules=[CacheRule("*", ttl=60)])


async def test_a_response_that_sets_a_cookie_is_not_kept(cache: Cache[Any]) -> None:
    await never_kept(cache, Answer(FRESH, "Set-Cookie: session=1"))


async def test_a_response_that_sets_a_cookie_and_varies_by_it_is_not_kept(cache: Cache[Any]) -> None:
    """CVE-2026-48588."""
    await never_kept(cache, Answer(FRESH, "Set-Cookie: s=1", "Vary: Cookie"), headers="Cookie: unrelated=1")


async def test_set_cookie_can_be_stripped_from_what_is_kept(cache: Cache[Any]) -> None:
    layer = await kept(cache, Answer(FRESH, "Set-Cookie: session=1"), set_cookie="strip")
    assert (await request(layer, "/")).header("set-cookie") is None


async def test_the_response_to_authorized_requests_is_not_kept(cache: Cache[Any]) -> None:
    """CVE-2026-35193."""
    await never_kept(cache, Answer(FRESH), headers="Authorization: Bearer a")


@pytest.mark.parametrize("directive", ["public", "s-maxage=60", "must-revalidate"])
async def test_the_response_to_authorized_requests_is_kept_if_it_says_so(cache: Cache[Any], directive: str) -> None:
    await kept(cache, Answer(f"Cache-Control: max-age=60, {directive}"), headers="Authorization: Bearer a")


async def test_the_response_to_a_request_with_a_cookie_is_not_kept(cache: Cache[Any]) -> None:
    await never_kept(cache, Answer(FRESH), headers="Cookie: session=1")


@pytest.mark.parametrize("lines", [["Cache-Control: public, max-age=60"], [FRESH, "Vary: Cookie"]])
async def test_the_response_to_a_request_with_a_cookie_is_kept_if_it_says_so(
    cache: Cache[Any], lines: list[str]
) -> None:
    await kept(cache, Answer(*lines), headers="Cookie: session=1")


async def test_a_personal_page_without_cache_control_is_not_kept(cache: Cache[Any]) -> None:
    await never_kept(cache, Answer(body=b"hello alice"), headers="Cookie: session=1", rules=[CacheRule("*", ttl=60)])


@pytest.mark.parametrize("star", ["*", "Accept, *", " *", "* ", ", *"])
async def test_vary_star_is_not_kept(cache: Cache[Any], star: str) -> None:
    """CVE-2026-6907, CVE-2026-48587."""
    await never_kept(cache, Answer(FRESH, f"Vary: {star}"))


@pytest.mark.parametrize("status", [206, 304])
async def test_what_is_not_a_whole_response_is_not_kept(cache: Cache[Any], status: int) -> None:
    await never_kept(cache, Answer(FRESH, status=status, body=b"" if status == 304 else b"part"))


@pytest.mark.parametrize("status", [400, 403, 404, 405, 410, 413, 414, 431, 500, 501, 502, 503, 504])
@pytest.mark.parametrize("lines", [[], ['ETag: "x"'], ["Last-Modified: Mon, 06 Jul 2020 00:00:00 GMT"]])
async def test_an_error_without_freshness_is_not_kept(cache: Cache[Any], status: int, lines: list[str]) -> None:
    await never_kept(cache, Answer(*lines, status=status), heuristic=0.0, rules=[CacheRule("*", ttl=60)])


async def test_an_error_with_a_negative_ttl_is_kept(cache: Cache[Any]) -> None:
    await kept(cache, Answer(status=404), negative_ttl={404: 10})


async def test_a_body_shorter_than_its_length_is_not_kept(cache: Cache[Any]) -> None:
    await never_kept(cache, Answer(FRESH, "Content-Length: 10", body=b"short"))


async def test_a_response_with_trailers_is_not_kept(cache: Cache[Any]) -> None:
    origin = Origin(Answer(FRESH, trailers=True))
    layer = CacheMiddleware(origin, cache=cache)
    for _ in range(2):
        await request(layer, "/")
    assert origin.calls == 2


async def test_the_response_to_a_get_with_a_body_is_not_kept(cache: Cache[Any]) -> None:
    await never_kept(cache, Answer(FRESH), body=b"q=1")


async def test_the_response_to_a_get_with_a_body_that_no_field_announces_is_not_kept(cache: Cache[Any]) -> None:
    """As HTTP/2 allows it."""
    origin = Origin(Answer(FRESH, body=b"poisoned"), Answer(FRESH, body=b"clean"))
    layer = CacheMiddleware(origin, cache=cache)
    assert (await request(layer, "/", body=b"q=1")).header("cache-status").endswith("detail=request-body")  # type: ignore[union-attr]
    assert (await request(layer, "/")).body == b"clean"


async def test_a_validation_with_a_body_freshens_nothing_for_others(cache: Cache[Any], clock: Clock) -> None:
    origin = Origin(
        Answer(FRESH, 'ETag: "1"'), Answer(FRESH, "X: poisoned", status=304), Answer(FRESH, "X: clean", status=304)
    )
    layer = CacheMiddleware(origin, cache=cache)
    await request(layer, "/")
    clock.step(61)
    await request(layer, "/", body=b"q=1")
    assert (await request(layer, "/")).header("x") == "clean"


async def test_a_get_with_a_body_is_not_answered_from_the_store(cache: Cache[Any]) -> None:
    origin = Origin(Answer(FRESH))
    layer = CacheMiddleware(origin, cache=cache)
    await request(layer, "/")
    await request(layer, "/", headers=[(b"content-length", b"3")], body=b"q=1")
    assert origin.calls == 2


@pytest.mark.parametrize(
    "name",
    [
        "X-Forwarded-Host",
        "X-Forwarded-Scheme",
        "X-Original-URL",
        "X-Rewrite-URL",
        "X-HTTP-Method-Override",
        "Forwarded",
    ],
)
async def test_the_response_to_a_request_with_a_risky_field_is_not_kept(cache: Cache[Any], name: str) -> None:
    await never_kept(cache, Answer(FRESH), headers=f"{name}: evil")


async def test_a_risky_field_that_is_in_the_key_is_none(cache: Cache[Any]) -> None:
    origin = Origin(Answer(FRESH, body=b"evil"), Answer(FRESH, body=b"good"))
    layer = CacheMiddleware(origin, cache=cache, key_headers=["X-Forwarded-Port"])
    ports = ("1", "443", "1", "443")
    bodies = [(await request(layer, "/", headers=fields(f"X-Forwarded-Port: {port}"))).body for port in ports]
    assert bodies == [b"evil", b"good", b"evil", b"good"]


async def test_what_every_proxy_says_keeps_nothing_from_being_kept(cache: Cache[Any]) -> None:
    await kept(cache, Answer(FRESH), headers=["X-Forwarded-Proto: http", "X-Forwarded-Host: TestServer"])


async def test_the_scheme_that_a_proxy_has_served_tells_responses_apart(cache: Cache[Any], clock: Clock) -> None:
    """Where TLS ends in front, an app redirects who came without it, and links as it was asked."""
    origin = Origin(
        Answer(FRESH, 'ETag: "a"', body=b"plain"),
        Answer(FRESH, 'ETag: "b"', body=b"secure"),
        Answer(FRESH, status=304),
    )
    layer = CacheMiddleware(origin, cache=cache)
    schemes = ("http", "https", "http", "https")
    bodies = [(await request(layer, "/", headers=fields(f"X-Forwarded-Proto: {one}"))).body for one in schemes]
    assert bodies == [b"plain", b"secure", b"plain", b"secure"]
    assert origin.calls == 2
    clock.step(61)
    for _ in range(2):
        assert (await request(layer, "/", headers=fields("X-Forwarded-Proto: https"))).body == b"secure"
    assert origin.calls == 3


@pytest.mark.parametrize("line", ["X-Forwarded-Proto: evil", "X-Forwarded-Proto: https, http"])
async def test_a_scheme_that_is_none_is_a_risk(cache: Cache[Any], line: str) -> None:
    await never_kept(cache, Answer(FRESH), headers=line)


async def test_a_request_with_a_risky_field_is_answered_from_the_store(cache: Cache[Any]) -> None:
    origin = Origin(Answer(FRESH))
    layer = CacheMiddleware(origin, cache=cache)
    await request(layer, "/")
    await request(layer, "/", headers=fields("X-Forwarded-Host: evil"))
    assert origin.calls == 1


async def test_a_response_to_head_is_not_kept_for_get(cache: Cache[Any]) -> None:
    origin = Origin(Answer(FRESH, body=b"body"))
    layer = CacheMiddleware(origin, cache=cache)
    await request(layer, "/", method="HEAD")
    assert (await request(layer, "/")).body == b"body"


@pytest.mark.parametrize("field", [(b"x", b"a\r\nset-cookie: b"), (b"x: a\r\nset-cookie", b"b"), (b"", b"a")])
async def test_a_field_with_a_line_break_is_not_kept(cache: Cache[Any], field: tuple[bytes, bytes]) -> None:
    origin = Origin(Answer(FRESH))
    origin.answers[0].start["headers"].append(field)  # type: ignore[union-attr]
    layer = CacheMiddleware(origin, cache=cache)
    for _ in range(2):
        await request(layer, "/")
    assert origin.calls == 2


# -- keys -------------------------------------------------------------------------------------------------------------


async def told_apart(cache: Cache[Any], one: dict[str, Any], other: dict[str, Any], *lines: str) -> None:
    origin = Origin(Answer(FRESH, *lines, body=b"one"), Answer(FRESH, *lines, body=b"other"))
    layer = CacheMiddleware(origin, cache=cache)
    for _ in range(2):
        assert (await request(layer, **one)).body == b"one"
        assert (await request(layer, **other)).body == b"other"
    assert origin.calls == 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("/a%2Fb", "/a/b"),
        ("/a/b", "/a:b"),
        ("/adm/", "/adm"),
        ("/a", "/A"),
        ("/a;b", "/a"),
        ("/a/../b", "/b"),
        ("/a%00", "/a"),
        ("/a?b=1&c=2", "/a?c=2&b=1"),
        ("/a?b=1;c=2", "/a?b=1"),
        ("/a?", "/a?b"),
        ("/a?b=%32", "/a?b=2"),
        ("/ab?c", "/a?bc"),
    ],
)
async def test_two_urls_are_two_entries(cache: Cache[Any], one: str, other: str) -> None:
    await told_apart(cache, {"path": one}, {"path": other})


async def test_what_a_layer_outside_makes_of_a_url_is_an_entry_of_its_own(cache: Cache[Any]) -> None:
    """As one that chooses by language, cookie or experiment which of several pages is asked for."""
    origin = Origin(*[Answer(FRESH, body=b"%d" % number) for number in range(3)])
    layer = CacheMiddleware(origin, cache=cache)
    for path in ("/page", "/de/page", "/fr/page"):
        bodies = [(await request(layer, path, raw_path=b"/page")).body for _ in range(3)]
        assert bodies == [b"%d" % (origin.calls - 1)] * 3
    assert origin.calls == 3
    await cache.purge(url="http://testserver/page")  # what the client wrote is one URL
    assert [(await request(layer, path, raw_path=b"/page")).body for path in ("/page", "/de/page")] == [b"2"] * 2
    assert origin.calls == 5


async def test_what_a_layer_outside_makes_of_a_url_that_is_not_for_sharing_is_kept_apart_when_it_is(
    cache: Cache[Any],
) -> None:
    origin = Origin(Answer("Set-Cookie: a=1"), Answer(FRESH, body=b"de"), Answer(FRESH, body=b"plain"))
    layer = CacheMiddleware(origin, cache=cache)
    paths = ("/page", "/de/page", "/page", "/de/page")
    assert [(await request(layer, path, raw_path=b"/page")).body for path in paths] == [b"", b"de", b"plain", b"de"]


@pytest.mark.parametrize(
    ("path", "raw"), [("/page", b"/api/page"), ("/page/", b"/api/page"), ("/page", b"/%70age"), ("/é", b"/%C3%A9")]
)
async def test_a_path_that_lost_its_mount_or_was_decoded_is_still_what_the_client_wrote(
    cache: Cache[Any], path: str, raw: bytes
) -> None:
    layer = CacheMiddleware(Origin(Answer(FRESH)), cache=cache)
    await request(layer, path, raw_path=raw)
    assert Request(http_scope(path, raw_path=raw)).url[3] == raw
    await request(layer, path, method="POST", raw_path=raw)
    assert "uri-miss" in str((await request(layer, path, raw_path=raw)).header("cache-status"))


async def test_what_a_limit_inside_tells_one_client_is_told_to_no_other(cache: Cache[Any], clock: Clock) -> None:
    app = RateLimitMiddleware(
        Origin(Answer(FRESH, 'ETag: "a"'), Answer(FRESH, status=304)), headers=(draft10, x_ratelimit)
    )
    layer = CacheMiddleware(app, cache=cache)
    told = []
    for _ in range(4):
        answer = await request(layer, "/")
        told.append(sum(b"ratelimit" in name for name, _ in answer.headers))
        clock.step(31)
    assert told == [5, 0, 5, 0]


async def test_two_hosts_are_two_entries(cache: Cache[Any]) -> None:
    await told_apart(
        cache,
        {"path": "/", "scheme": "http"},
        {"path": "/", "scheme": "https"},
    )
    origin = Origin(Answer(FRESH, body=b"a"), Answer(FRESH, body=b"b"))
    layer = CacheMiddleware(origin, cache=cache, namespace="hosts")
    for host, body in ((b"a.test", b"a"), (b"b.test", b"b"), (b"A.TEST", b"a")):
        scope_headers = [(b"host", host)]
        answer = await _with_host(layer, scope_headers)
        assert answer == body


async def _with_host(layer: CacheMiddleware, headers: list[tuple[bytes, bytes]]) -> bytes:
    from asgi_enhance.testing.driver import Driver, Response, http_scope

    scope = {**http_scope("/"), "headers": headers}
    return Response(await Driver(layer, scope, [{"type": "http.request"}]).run()).body


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([], ["X-A:"]),  # CVE-2026-113593: absent is not empty
        (["X-A: 1", "X-B: 23"], ["X-A: 12", "X-B: 3"]),
        (["X-A: 1"], ["X-B: 1"]),
        (["X-A: 1,X-B"], ["X-A: 1", "X-B:"]),
    ],
)
async def test_two_variants_are_two_entries(cache: Cache[Any], one: list[str], other: list[str]) -> None:
    await told_apart(
        cache, {"path": "/", "headers": fields(one)}, {"path": "/", "headers": fields(other)}, "Vary: X-A, X-B"
    )


@pytest.mark.parametrize("name", ["Cookie", "X-Tenant"])
async def test_vary_keeps_users_and_tenants_apart(cache: Cache[Any], name: str) -> None:
    await told_apart(
        cache,
        {"path": "/", "headers": fields(f"{name}: alice")},
        {"path": "/", "headers": fields(f"{name}: bob")},
        f"Vary: {name}",
    )


async def test_many_variants_live_side_by_side(cache: Cache[Any]) -> None:
    origin = Origin(Answer(FRESH, "Vary: X-Tenant"))
    layer = CacheMiddleware(origin, cache=cache)
    for _ in range(3):
        for tenant in range(10):
            await request(layer, "/", headers=fields(f"X-Tenant: {tenant}"))
    assert origin.calls == 10


async def test_duplicate_fields_are_replayed_one_by_one(cache: Cache[Any]) -> None:
    layer = await kept(cache, Answer(FRESH, "Link: </a>", "Link: </b>", body=b"x"))
    answer = await request(layer, "/")
    assert [value for name, value in answer.headers if name == b"link"] == [b"</a>", b"</b>"]


# -- what a client may ask --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line", ["Cache-Control: no-cache", "Pragma: no-cache", "Cache-Control: max-age=0", "Cache-Control: min-fresh=9999"]
)
async def test_no_client_makes_the_app_work_for_what_is_fresh(cache: Cache[Any], line: str) -> None:
    await kept(cache, Answer(FRESH), headers=line)


async def test_an_etag_of_another_url_is_no_304(cache: Cache[Any]) -> None:
    origin = Origin(Answer(FRESH, 'ETag: "a"', body=b"a"), Answer(status=403, body=b"no"))
    layer = CacheMiddleware(origin, cache=cache)
    await request(layer, "/a")
    answer = await request(layer, "/b", headers=fields('If-None-Match: "a"'))
    assert answer.status == 403


@pytest.mark.parametrize("name", ["X-A", "Accept-Encoding", "Accept-Language"])
@pytest.mark.parametrize("value", ["a" + " " * 20_000 + "a", "a;" + " " * 20_000 + "a"])
async def test_no_value_that_a_response_varies_by_holds_the_loop(name: str, value: str) -> None:
    origin = Origin(Answer(FRESH, f"Vary: {name}"))
    layer = CacheMiddleware(origin)
    await request(layer, "/")
    before = time.process_time()
    await request(layer, "/", headers=fields(f"{name}: {value}"))
    assert time.process_time() - before < 0.25
    assert origin.calls == 2


async def test_a_response_to_post_is_kept_apart_by_what_a_rule_says(cache: Cache[Any]) -> None:
    origin = Origin(Answer(FRESH, "Content-Location: /me", body=b"alice's"), Answer(body=b"bob's"))
    layer = CacheMiddleware(origin, cache=cache, rules=[CacheRule("/me", ttl=60, vary=["X-Api-Key"], tags=["me"])])
    await request(layer, "/me", method="POST", headers=fields("X-Api-Key: alice"))
    assert (await request(layer, "/me", headers=fields("X-Api-Key: bob"))).body == b"bob's"
    assert (await request(layer, "/me", headers=fields("X-Api-Key: alice"))).body == b"alice's"
    await cache.purge(tags=["me"])
    await request(layer, "/me", headers=fields("X-Api-Key: alice"))
    assert origin.calls == 3
