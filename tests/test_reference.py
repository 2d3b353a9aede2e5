"""The reference in the documentation is complete and true: names, options, defaults and metrics, held against the code.

A table of options names its class in its head, and has a column `default`: each row's first cell names options of that
class, and a default that can be read (a number with its unit, a word in code, "none") is the constructor's. Defaults in
prose ("one of its own") are left to the reader.
"""

import argparse
import ast
import dataclasses
import enum
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

import asgi_enhance
from asgi_enhance import balance, broadcast, cli, health, ratelimit
from asgi_enhance.metrics import MetricsCollector, MetricsMiddleware
from asgi_enhance.metrics.exposition import Format, render
from asgi_enhance.testing.driver import WebSocket as Client
from asgi_enhance.testing.driver import request, websocket_scope

DOCS = Path(__file__).parent.parent / "docs"
CODE = re.compile(r"```.*?\n(.*?)```|`([^`]+)`", re.DOTALL)
UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "s": 1, "/s": 1, "bits": 1, "bytes": 1}


def public() -> Iterator[tuple[str, Any]]:
    """What a user imports: the package's names, and those of its capabilities."""
    for package in (asgi_enhance, ratelimit, balance, broadcast, health):
        for name in package.__all__:
            thing = getattr(package, name)
            if not inspect.ismodule(thing) and (package is asgi_enhance or name not in asgi_enhance.__all__):
                yield name, thing


HOMES = {"errors": "layers", "asgi": "layers", "settings": "api"}


def page_of(thing: Any) -> str:
    """The page on which something is described."""
    home = thing.__module__.split(".")[1]
    return f"{HOMES.get(home, home)}.md"


def words(page: str) -> set[str]:
    """All identifiers in the code of a page."""
    return set(re.findall(r"\w+", " ".join(one or other for one, other in CODE.findall((DOCS / page).read_text()))))


def options(thing: Any) -> dict[str, inspect.Parameter]:
    """A class's own options; those handed on with `**` to another class are that one's as well."""
    found = dict(inspect.signature(thing).parameters)
    if any(one.kind is one.VAR_KEYWORD for one in found.values()):
        found = {**options(asgi_enhance.LoadBalancer), **found}
    return {name: one for name, one in found.items() if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)}


ANSWERS = {"Decision", "Demand", "Standing", "Quota"}
"""What a core makes itself: its fields are no options."""

CONSTRUCTED = [
    (name, thing)
    for name, thing in public()
    if inspect.isclass(thing) and not issubclass(thing, Exception | enum.Enum) and name not in ANSWERS
]


@pytest.mark.parametrize(
    ("name", "thing"),
    [one for one in public() if one[0] != "Demand"],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_a_public_name_is_on_its_page(name: str, thing: Any) -> None:
    assert name in words(page_of(thing))


@pytest.mark.parametrize(("name", "thing"), CONSTRUCTED, ids=lambda one: one if isinstance(one, str) else "")
def test_every_option_is_on_the_page_of_its_class(name: str, thing: Any) -> None:
    assert set(options(thing)) - words(page_of(thing)) == set()


@dataclass
class Row:
    """Some options as a page has them: which class, their names, and what their defaults are said to be."""

    page: str
    thing: str
    names: list[str]
    default: str

    def defaults(self) -> list[str]:
        """One for each name: as many as there are names, or one for all of them."""
        parts = re.split(r", (?=\S)", self.default)
        return parts if len(parts) == len(self.names) else [self.default] * len(self.names)


def rows() -> Iterator[Row]:
    for path in sorted(DOCS.glob("*.md")):
        head: list[str] = []
        for line in path.read_text().splitlines():
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] if line.startswith("|") else []
            if not cells:
                head = []
            elif not head:
                head = cells
            elif not set(line) <= set("|-: "):
                for at, column in enumerate(head):
                    named = re.search(r"`([A-Z]\w+)`", column)
                    default = next((i for i in range(at + 1, len(head)) if head[i] in ("default", "seconds")), None)
                    if named and default and (names := re.findall(r"`(\w+)`", cells[at].partition("(")[0])):
                        yield Row(path.name, named[1], names, cells[default])


ROWS = list(rows())


def read(text: str) -> list[Any]:
    """The values that a default as it is written may stand for; none if it is prose."""
    if text in ("none", "nobody", "–"):
        return [NOTHING]
    if code := re.fullmatch(r"`([^`]+)`", text):
        try:
            return [plain(ast.literal_eval(code[1]))]
        except (ValueError, SyntaxError):
            return [code[1]] if code[1].isidentifier() or "-" in code[1] or "/" in code[1] else []
    number = re.fullmatch(r"(\d[\d  ]*(?:\.\d+)?)(?: ?([A-Za-z/]+))?", text)
    if number and (number[2] or "s") in UNITS:
        return [float(re.sub(r"[  ]", "", number[1])) * UNITS[number[2] or "s"]]
    return []


NOTHING = "nothing"


def plain(default: Any) -> Any:
    """A default as a page writes it: a function by its name, and nothing is nothing, of whatever type."""
    if inspect.isroutine(default):
        return default.__name__
    return NOTHING if default is None or default in ((), "", frozenset()) else default


def class_named(row: Row) -> Any:
    """The class that a table is of; two packages have `Limits`."""
    found = [thing for name, thing in public() if name == row.thing]
    return next((one for one in found if page_of(one) == row.page), found[0] if found else None)


def test_tables_of_options_are_found() -> None:
    assert len({(row.page, row.thing) for row in ROWS}) > 15
    assert sum(bool(read(default)) for row in ROWS for default in row.defaults()) > 100


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.thing}-{'-'.join(row.names)}")
def test_what_a_table_says_of_an_option_is_so(row: Row) -> None:
    thing = class_named(row)
    assert thing is not None, f"{row.page} has a table of {row.thing}, which is nothing public"
    for name, text in zip(row.names, row.defaults(), strict=True):
        assert name in options(thing), f"{row.thing} has no option {name}"
        said, default = read(text), options(thing)[name].default
        if said and default is not inspect.Parameter.empty and repr(default) != "<factory>":
            assert plain(default) in said, f"{row.thing}({name}=): {default!r} in the code, {text!r} on {row.page}"


async def exposed() -> set[str]:
    """The metrics of an app whose requests and WebSockets end well and badly."""

    async def broken(request: Request) -> None:
        raise RuntimeError("on purpose")

    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text())
        await websocket.close()

    app = Starlette(routes=[Route("/broken", broken), WebSocketRoute("/echo", echo)])
    async with MetricsCollector(registry=None, redis="redis://127.0.0.1:1") as collector:
        layer = MetricsMiddleware(app, collector=collector)
        with pytest.raises(RuntimeError):
            await request(layer, "/broken")
        async with Client(layer, websocket_scope("/echo")) as client:
            await client.accepted()
            client.send_text("hello")
            await client.receive_text()
            await client.ended()
        pieces, _ = await render(await collector.gather(), None, Format.TEXT)
    return set(re.findall(r"^# TYPE (\w+)", b"".join(pieces).decode(), re.MULTILINE))


async def test_every_metric_is_on_the_page_and_every_one_on_the_page_is_there() -> None:
    table = (DOCS / "metrics.md").read_text().split("| series | labels |")[1].split("\n\n")[0]
    told = set()
    for cell in re.findall(r"^\| (.*?) \|", table, re.MULTILINE):
        names = re.findall(r"`([^`]+)`", cell)
        if not names or "{" in names[0]:
            continue
        family = "_".join(names[0].split("_")[:3])
        told |= {name.replace("…", family) if "…" in name else name for name in names}
    assert told == await exposed()


def test_every_count_of_a_core_is_on_the_page_and_every_one_on_the_page_is_counted() -> None:
    page = (DOCS / "metrics.md").read_text()
    api = asgi_enhance.EnhancedAPI("redis://127.0.0.1:1", settings=asgi_enhance.Settings())
    for name, core in api._cores().items():
        table = page.split(f"| `{name}` | |\n")[1].split("\n\n")[0]
        told = [
            word for cell in re.findall(r"^\| (.*?) \|", table, re.MULTILINE) for word in re.findall(r"`(\w+)`", cell)
        ]
        assert sorted(told) == sorted(field.name for field in dataclasses.fields(core.stats)), name


def test_every_setting_is_on_the_page_with_its_variable_and_default() -> None:
    page = (DOCS / "api.md").read_text()
    for field in dataclasses.fields(asgi_enhance.Settings):
        row = re.search(rf"^\| `{field.metadata['variable']}` \| `{field.name}`.*\| (.*?) \|$", page, re.MULTILINE)
        assert row is not None, f"{field.metadata['variable']} is not on the page"
        assert not read(row[1]) or plain(field.default) in read(row[1]), f"{field.name}: {row[1]}"


def test_every_option_of_the_command_line_is_on_the_page_and_every_one_on_the_page_is_there() -> None:
    page = (DOCS / "api.md").read_text().split("## Command line")[1]
    (commands,) = (one for one in cli.parser()._actions if isinstance(one, argparse._SubParsersAction))
    there = {
        option
        for command in (cli.parser(), *commands.choices.values())
        for action in command._actions
        for option in action.option_strings
        if option not in ("-h", "--help")
    }
    assert set(re.findall(r"`[^`]*?(--[a-z][a-z-]*)", page)) | set(re.findall(r"\[(--[a-z][a-z-]*)", page)) == there
    assert all(f"`{name}" in page for name in commands.choices)
