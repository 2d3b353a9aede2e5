"""The ninety-six behaviours of a proxy: each has a test named after it, behind both of the server's parsers."""

import re
from pathlib import Path

_TEST = re.compile(r"def test_(\d\d)_\w+\(\s*([^)]*)\)")
_BOTH_PARSERS = re.compile(r"\b(?:http: str|ws: Protocols)")


def test_every_behaviour_has_a_test_that_runs_behind_both_parsers() -> None:
    tested = {
        int(number)
        for path in Path(__file__).parent.glob("test_*.py")
        for number, arguments in _TEST.findall(path.read_text())
        if _BOTH_PARSERS.search(arguments)
    }
    assert tested == set(range(1, 97))
