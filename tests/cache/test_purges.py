"""What is known of purges is bounded, and what was to go goes all the same."""

from asgi_enhance.cache.policy.purges import MAX_PREFIXES, Fact, Purges, Verdict
from asgi_enhance.cache.request import Key

URL: Key = (b"", "http", b"testserver", b"/kept", b"")


def test_of_too_many_purges_the_oldest_become_one_of_all_that_is_older() -> None:
    purges = Purges(limit=3)
    for number in range(1, 5):
        purges.add(Fact("tag", f"tag{number}", False))
    assert len(purges._facts) == 3
    assert purges.verdict(0, ("another",)) is Verdict.GONE, "nobody knows any more which tag went then"
    assert purges.verdict(1, ("another",)) is Verdict.KEPT
    assert purges.verdict(1, ("tag2",)) is Verdict.GONE


def test_of_too_many_prefixes_the_oldest_becomes_a_purge_of_all_that_is_older() -> None:
    purges = Purges()
    for number in range(MAX_PREFIXES + 1):
        purges.add(Fact("prefix", f"http://testserver/{number}/", False))
    assert len(purges._prefixes) == MAX_PREFIXES
    assert purges.verdict(0, (), URL) is Verdict.GONE, "nobody knows any more which prefix went then"
    assert purges.verdict(1, (), URL) is Verdict.KEPT
    assert purges.verdict(1, (), (*URL[:3], b"/1/page", b"")) is Verdict.GONE


def test_a_purge_that_is_repeated_counts_from_its_last_time() -> None:
    purges = Purges(limit=2)
    for tag in ("a", "b", "a", "c"):
        purges.add(Fact("tag", tag, False))
    assert purges.verdict(2, ("a",)) is Verdict.GONE
    assert purges.everything == 2, "of the three tags b was purged the longest ago"
