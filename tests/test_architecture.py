"""The arrows of the house, read from its imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import asgi_enhance

PACKAGE = Path(asgi_enhance.__file__).parent
GROUND = {"asgi", "redis", "errors", "options"}
CAPABILITIES = {
    folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").exists() and folder.name not in GROUND
} - {"demo", "testing"}
COMPOSERS = {"api", "cli", "demo", "gateway", "__main__", "__init__"}
IMPURE = {"asyncio", "socket", "time", "random", "secrets", "threading", "subprocess", "os", "redis", "httpx2"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    """The top-level part of the package a file lives in: `cache`, `asgi`, `errors`, …"""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def name(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def imports(path: Path) -> set[str]:
    """Every module a file imports, wherever in the file, as an absolute name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}:{node.lineno} has a relative import"
            module = node.module or ""
            found |= {f"{module}.{alias.name}" for alias in node.names} | {module}
    return found


def rooms_of(path: Path) -> set[str]:
    """The rooms of this package that a file imports from."""
    own = (module.split(".") for module in imports(path) if module.startswith("asgi_enhance."))
    return {parts[1] for parts in own} - {room(path)}


@pytest.mark.parametrize("path", modules(), ids=name)
def test_a_module_says_in_its_first_sentence_what_it_is_for(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring, f"{name(path)} has no docstring"


@pytest.mark.parametrize("path", [p for p in modules() if room(p) in CAPABILITIES], ids=name)
def test_a_capability_imports_no_other_capability(path: Path) -> None:
    assert rooms_of(path) <= GROUND


@pytest.mark.parametrize("path", [p for p in modules() if room(p) in GROUND], ids=name)
def test_the_ground_knows_no_capability(path: Path) -> None:
    assert rooms_of(path) <= GROUND


@pytest.mark.parametrize("path", [p for p in modules() if room(p) == "asgi"], ids=name)
def test_asgi_knows_nothing_of_redis(path: Path) -> None:
    assert rooms_of(path) <= {"errors", "options"}


@pytest.mark.parametrize("path", [p for p in modules() if room(p) not in COMPOSERS | CAPABILITIES], ids=name)
def test_only_the_composers_know_more_than_one_capability(path: Path) -> None:
    assert not rooms_of(path) & CAPABILITIES


def purity(path: Path) -> bool:
    """Whether a file is one that decides: `policy.py`, or a file of a `policy` package."""
    return path.stem == "policy" or "policy" in path.relative_to(PACKAGE).parts


@pytest.mark.parametrize("path", [p for p in modules() if purity(p)], ids=name)
def test_a_policy_decides_and_does_nothing_else(path: Path) -> None:
    """No I/O, no await, no clock, no random source of its own; types may be named."""
    tree = ast.parse(path.read_text())
    waits = [node for node in ast.walk(tree) if isinstance(node, ast.Await | ast.AsyncFunctionDef)]
    assert not waits, f"{name(path)}:{waits[0].lineno} awaits"
    guarded = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in guarded or not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        harmless = ast.unparse(node) in ("import random", "from random import Random", "from time import gmtime")
        assert harmless or not IMPURE & {module.split(".")[0] for module in named}, ast.unparse(node)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "random":
            assert node.attr == "Random", f"{name(path)}:{node.lineno} draws from the global random source"
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Random", "random.Random", "gmtime"):
            assert ast.unparse(node.func) == "gmtime", f"{name(path)}:{node.lineno} makes a random source"
            assert node.args, f"{name(path)}:{node.lineno} reads the clock"
    assert not rooms_of(path) - {"errors", "options", "asgi"}
    siblings = {module.rsplit(".", 1)[-1] for module in imports(path) if module.startswith("asgi_enhance.")}
    assert not siblings & {"core", "layer"}, "a policy knows neither core nor layer"


@pytest.mark.parametrize("path", [p for p in modules() if p.stem == "core"], ids=name)
def test_a_core_does_not_know_its_layer(path: Path) -> None:
    assert f"asgi_enhance.{room(path)}.layer" not in imports(path)


def test_every_lua_file_is_beside_a_core() -> None:
    for script in PACKAGE.rglob("*.lua"):
        assert room(script) in CAPABILITIES | {"redis"}, name(script)


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = ("redis", "httpx2", "websockets", "prometheus_client", "limits", "cachetools", "uvicorn")
    code = f"import sys, asgi_enhance; print([m for m in {heavy} if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


@pytest.mark.parametrize("public", asgi_enhance.__all__)
def test_every_public_name_is_there(public: str) -> None:
    assert getattr(asgi_enhance, public) is not None
    assert public in dir(asgi_enhance)


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Nonsense"):
        _ = asgi_enhance.Nonsense


def test_type_checkers_see_the_same_public_names() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname for node in guarded.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == set(asgi_enhance.__all__)
