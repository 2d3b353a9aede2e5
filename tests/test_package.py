"""What is built and handed out: a wheel and an sdist with what is needed and no more, that work where they land."""

import re
import subprocess
import sys
import tarfile
import time
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

import asgi_enhance
from asgi_enhance.testing.live import free_port

ROOT = Path(__file__).parent.parent
PROGRAM = ROOT / "tests" / "typing" / "program.py"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with both, built from the sources by the build backend itself."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (wheel,) = built.glob("*.whl")
    return wheel


def sources(*suffixes: str) -> set[str]:
    return {str(path.relative_to(ROOT)) for path in (ROOT / "asgi_enhance").rglob("*") if path.suffix in suffixes}


def test_the_wheel_has_the_package_with_its_scripts_types_and_page_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    inside = {name for name in names if ".dist-info/" not in name}
    assert inside == sources(".py", ".lua", ".typed", ".html")
    assert {"asgi_enhance/py.typed", "asgi_enhance/metrics/dashboard.html"} < inside
    assert any(name.endswith(".lua") for name in inside)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_sdist_has_what_it_takes_to_build_test_and_document(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers()}
    needed = {"README.md", "LICENSE", "CHANGELOG.md", "Makefile", "pyproject.toml", "mkdocs.yml", "docs/index.md"}
    assert needed | sources(".py", ".lua", ".typed", ".html") | {"tests/test_package.py"} <= names
    roots = {name.partition("/")[0] for name in names}
    assert roots <= {*needed, "PKG-INFO", ".gitignore", "asgi_enhance", "tests", "benchmarks", "docs"}
    assert not any("__pycache__" in name or name.endswith(".pyc") for name in names)


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that has the package from its wheel; what it depends on comes from the one that runs the tests."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(packages)
    ours = next(path for path in map(Path, sys.path) if path.name == "site-packages")
    (packages / "dependencies.pth").write_text(f"{ours}\n")
    return folder / "bin" / "python"


def test_the_first_example_of_the_readme_answers_from_the_wheel(python: Path, tmp_path: Path) -> None:
    (example, *_) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "module.py").write_text(example)
    where = subprocess.run(
        [python, "-c", "import asgi_enhance; print(asgi_enhance.__file__)"],
        cwd=tmp_path, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert where.stdout.startswith(str(python.parents[1]))
    with serving(python, tmp_path) as url:
        answers = [httpx2.get(url) for _ in range(6)]
        scrape = httpx2.get(f"{url}/metrics").text
    assert answers[0].json() == {"hello": "world"}
    assert "hit" in answers[1].headers["cache-status"]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429]
    assert "asgi_enhance_metrics_series" in scrape


@contextmanager
def serving(python: Path, folder: Path) -> Iterator[str]:
    port = free_port()
    server = subprocess.Popen([python, "-m", "uvicorn", "module:app", "--port", str(port)], cwd=folder)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1000):
            try:
                httpx2.get(f"{url}/metrics")
                break
            except httpx2.TransportError:
                assert server.poll() is None, "it ended"
                time.sleep(0.02)
        yield url
    finally:
        server.terminate()
        server.wait(10)


def test_a_program_that_uses_every_public_name_is_well_typed_against_the_wheel(python: Path, tmp_path: Path) -> None:
    used = set(re.findall(r"\w+", PROGRAM.read_text()))
    assert set(asgi_enhance.__all__) <= used
    (tmp_path / "program.py").write_text(PROGRAM.read_text())
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(python), "program.py"]
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
