"""Which URLs have been written to since a response was asked for?"""

from asgi_enhance.cache.policy.writes import Writes
from asgi_enhance.cache.request import Key


def url(path: bytes) -> Key:
    return b"", "http", b"host", path, b""


def test_a_write_is_known_to_those_who_asked_before_it() -> None:
    writes = Writes()
    before = writes.number
    writes.add(url(b"/a"))
    assert writes.since(before, url(b"/a"))
    assert not writes.since(writes.number, url(b"/a"))
    assert not writes.since(before, url(b"/b"))


def test_a_write_that_was_forgotten_is_taken_for_a_write_to_any_url() -> None:
    writes = Writes(limit=2)
    before = writes.number
    for path in (b"/a", b"/b", b"/c"):
        writes.add(url(path))
    assert writes.since(before, url(b"/a"))
    assert writes.since(before, url(b"/never"))
    assert not writes.since(writes.number, url(b"/a"))


def test_the_url_whose_last_write_is_the_longest_ago_is_forgotten_first() -> None:
    writes = Writes(limit=2)
    writes.add(url(b"/a"))
    writes.add(url(b"/b"))
    second = writes.number
    writes.add(url(b"/a"))
    writes.add(url(b"/c"))
    assert writes.since(second, url(b"/a"))
    assert not writes.since(second, url(b"/b"))


def test_no_more_than_the_limit_is_remembered() -> None:
    writes = Writes(limit=10)
    for number in range(1000):
        writes.add(url(b"/%d" % number))
    assert len(writes._last) == 10
