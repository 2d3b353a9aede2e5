"""The code in the documentation runs, page by page, and its links lead somewhere."""

import ast
import asyncio
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette

from asgi_enhance.asgi.lifespan import Resource

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in page.read_text()], ids=name)
def test_the_code_of_a_page_runs_from_top_to_bottom(page: Path, redis_url: str) -> None:
    """Blocks may use what those before them made, an `app`, `await`, and a Redis at the address the pages give.

    What cannot run on its own is marked as a `python fragment`.
    """
    text = page.read_text()
    names: dict[str, Any] = {"__name__": "docs", "app": Starlette()}
    with asyncio.Runner() as runner:
        for block in re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            line = text[: block.start()].count("\n") + 1
            code = "\n" * line + re.sub(r"redis://(localhost|127\.0\.0\.1):6379(/0)?", redis_url, block[1])
            compiled = compile(code, name(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            result = eval(compiled, names)
            if inspect.iscoroutine(result):
                runner.run(result)
        for value in names.values():
            if isinstance(value, Resource):
                runner.run(value.aclose())


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
