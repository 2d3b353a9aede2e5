"""The command that runs the benchmarks, and what it makes of what they show."""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.__main__ import names
from benchmarks.harness import Table
from benchmarks.plot import svg

SVG = "{http://www.w3.org/2000/svg}"


def drawn(rows: dict[str, list[float | str | None]]) -> ElementTree.Element:
    drawing = svg(Table("GET", {"× CPU": ".2f"}, rows, drawn="× CPU"))
    assert drawing is not None
    return ElementTree.fromstring(drawing)


def test_a_quick_run_writes_a_page_with_its_tables_and_drawings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--out", str(tmp_path), "balance_quality"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    page = (tmp_path / "balance_quality.md").read_text()
    head = "| success under 1 s | published |\n|---|---:|---:|\n| round-robin |"
    assert head in page
    assert head in printed
    assert "cores" in page
    assert "asgi-enhance 0." in page
    assert "(balance_quality-1.svg)" in page
    assert ElementTree.parse(tmp_path / "balance_quality-1.svg").getroot().tag == f"{SVG}svg"
    assert "(balance_quality.md)" in (tmp_path / "index.md").read_text()


def test_the_scripts_are_those_that_measure() -> None:
    assert {"balance", "broadcast", "cache", "metrics", "ratelimit", "redis_manager", "stack"} < set(names())
    assert not {"__main__", "__init__", "harness", "plot", "report"} & set(names())


def test_a_script_that_is_not_there_is_named_beside_those_that_are() -> None:
    command = [sys.executable, "-m", "benchmarks", "cash"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "cash" in done.stderr
    assert "cache, metrics, ratelimit" in " ".join(done.stderr.split())


def test_figures_close_together_are_bars_as_long_as_they_are_large() -> None:
    one, two = drawn({"bare": [1.0], "ours": [2.0]}).findall(f"{SVG}rect")
    assert float(two.attrib["width"]) == pytest.approx(2 * float(one.attrib["width"]), abs=0.2)
    assert (one.attrib["class"], two.attrib["class"]) == ("bar", "ours")


def test_figures_far_apart_are_dots_on_a_logarithmic_scale() -> None:
    root = drawn({"bare": [1.0], "ours": [10.0], "theirs": [100.0]})
    at = [float(dot.attrib["cx"]) for dot in root.findall(f"{SVG}circle")]
    assert at[2] - at[1] == pytest.approx(at[1] - at[0], abs=0.2)
    assert "logarithmic" in "".join(root.itertext())


def test_what_is_no_figure_is_in_the_table_and_not_in_the_drawing() -> None:
    rows: dict[str, list[float | str | None]] = {"a <b>": [1.0], "b": [None], "c": ["left out"], "d": [2.0]}
    assert [text for text in drawn(rows).itertext() if text in rows] == ["a <b>", "d"]
    assert "| b | – |\n| c | left out |" in Table("GET", {"× CPU": ".2f"}, rows).markdown()
    assert svg(Table("GET", {"× CPU": ".2f"}, {"alone": [1.0]}, drawn="× CPU")) is None
