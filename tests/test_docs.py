"""The code in the documentation runs, page by page, and its links lead somewhere."""

import ast
import asyncio
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette

from asgi_enhance.asgi.lifespan import Resource
from asgi_enhance.asgi.types import ASGIApp
from asgi_enhance.testing.driver import Driver, Lifetime, http_scope, request
from asgi_enhance.testing.live import LiveServer

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

SERVED = "frameworks.md"
"""Its programs are served instead, each in a process of its own."""

FRAMEWORKS = re.findall(r"^## (.+)$", (ROOT / "docs" / SERVED).read_text(), re.MULTILINE)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(text: str) -> Iterator[tuple[int, str]]:
    """The code that can run, each with the line it stands below."""
    for block in re.finditer(r"^(<!-- fragment -->\n)?```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        if block[1] is None:
            yield text[: block.start()].count("\n") + 1, block[2]


def section(page: str, heading: str) -> str:
    """The program below a heading."""
    text = (ROOT / "docs" / page).read_text()
    (_, code), *others = blocks(text.split(f"\n## {heading}\n")[1].split("\n## ")[0])
    assert not others
    return code


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != SERVED and "```python" in page.read_text()], ids=name
)
def test_the_code_of_a_page_runs_from_top_to_bottom(page: Path, redis_url: str) -> None:
    """Blocks may use what those before them made, an `app`, `await`, and a Redis at the address the pages give.

    What cannot run on its own has `<!-- fragment -->` above it.
    """
    names: dict[str, Any] = {"__name__": "docs", "app": Starlette()}
    with asyncio.Runner() as runner:
        for line, code in blocks(page.read_text()):
            code = "\n" * line + re.sub(r"redis://(localhost|127\.0\.0\.1):6379(/0)?", redis_url, code)
            compiled = compile(code, name(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            result = eval(compiled, names)
            if inspect.iscoroutine(result):
                runner.run(result)
        for value in names.values():
            if isinstance(value, Resource):
                runner.run(value.aclose())


def test_no_page_has_two_versions_of_a_line() -> None:
    for page in (*PAGES, ROOT / "CHANGELOG.md"):
        assert not re.search("^(<{7}|>{7}) ", page.read_text(), re.MULTILINE), name(page)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_site_leads_to_every_page() -> None:
    nav = set(re.findall(r": ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    pages = {str(page.relative_to(ROOT / "docs")) for page in PAGES if page.parent == ROOT / "docs"}
    assert nav == pages | {"benchmarks/index.md"}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_program_for_a_framework_does_what_the_page_says_of_it(framework: str, tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(section(SERVED, framework))
    with LiveServer("module:app", options=["--app-dir", str(tmp_path), "--no-proxy-headers"]) as server:
        answers = [httpx2.get(f"{server.url}/hello/ada") for _ in range(2)]
        scrape = httpx2.get(f"{server.url}/metrics").text
    assert [answer.json() for answer in answers] == [{"hello": "ada"}] * 2
    assert [answer.headers["cache-status"].rsplit("; ")[-1].partition("=")[0] for answer in answers] == [
        "stored",
        "ttl",
    ]
    assert "; hit" in answers[1].headers["cache-status"]
    assert all("ratelimit" in answer.headers for answer in answers)
    counts = dict(re.findall(r'request_duration_seconds_count{.*http_route="([^"]+)".*} (.)', scrape))
    assert sum(map(int, counts.values())) == 2
    assert set(counts) <= ROUTES.get(framework, {"/hello/{name}"})


ROUTES = {
    "Litestar": {"/hello/{name}", "<unmatched>"},
    "Django": {"/hello/<str:name>", "<unmatched>"},
    "Quart": {"/hello/<name>", "<unmatched>"},
    "Falcon": {"/hello/{name}", "<unmatched>"},
    "BlackSheep": {"<unmatched>"},
    "A balancer beside an app that mounts nothing": {"/hello/{name}", "<unmatched>"},
}
"""Under which routes a miss and a hit are counted, where it is not the template alone."""


def test_the_first_program_of_the_start_page_does_what_it_says(tmp_path: Path) -> None:
    (_, code), *_ = blocks((ROOT / "docs" / "index.md").read_text())
    (tmp_path / "module.py").write_text(code)
    with LiveServer("module:app", options=["--app-dir", str(tmp_path)]) as server:
        answers = [httpx2.get(server.url) for _ in range(2)]
        numbers = httpx2.get(f"{server.url}/metrics").text
        assert httpx2.get(f"{server.url}/metrics/dashboard").status_code == 200
    assert "; hit" in answers[1].headers["cache-status"]
    assert "r=98;" in answers[1].headers["ratelimit"]
    assert "asgi_enhance_cache_hits_total 1" in numbers


async def served(heading: str) -> tuple[ASGIApp, dict[str, Any]]:
    names: dict[str, Any] = {"__name__": "docs"}
    exec(compile(section("recipes.md", heading), heading, "exec"), names)
    return names["app"], names


async def test_the_recipe_for_warming_has_the_page_before_anybody_asks() -> None:
    app, _ = await served("Warming a cache")
    async with Lifetime(app):
        headers = [(b"host", b"shop.example"), (b"accept-encoding", b"gzip")]
        async with Driver(app, {**http_scope("/prices", scheme="https"), "headers": headers}) as server:
            assert "; hit" in dict((await server.next())["headers"])[b"cache-status"].decode()


async def test_the_recipe_for_tiers_gives_a_plan_its_rate() -> None:
    app, _ = await served("Tiers of limits")
    answer = await request(app, "/search")
    assert '"plan";q=10000;w=3600' in str(answer.header("ratelimit-policy"))
    assert '"search";r=19' in str(answer.header("ratelimit"))


async def test_the_recipe_for_logins_lets_failures_cost_more_and_ends_them() -> None:
    app, _ = await served("Protecting a login")

    async def login(name: str, password: str) -> int:
        body = json.dumps({"name": name, "password": password}).encode()
        return (await request(app, "/login", method="POST", body=body)).status

    assert [await login("ada", "correct horse") for _ in range(4)] == [200] * 4
    assert [await login("ada", "guess") for _ in range(5)] == [401, 401, 401, 401, 429]


async def test_the_recipe_for_changes_invalidates_and_tells() -> None:
    app, names = await served("Telling the clients what changed")
    await names["api"].cache.set("teaser", "old", tags=["article-7"])
    assert (await request(app, "/articles/7", method="PUT")).status == 204
    assert await names["api"].cache.get("teaser") is None
    await names["api"].shutdown()
