"""What has been purged since a response was asked for?

A purge is not a search for entries but a numbered fact: "at number 7, all with the tag `news` went". An entry knows
how many purges had happened when its response was asked for, so one that was being made while the purge came is
purged too. Purging costs the same whatever the cache holds; Varnish's bans work like this.

The facts are bounded: when there are too many the oldest are folded into "at number n, all went", which forgets
nothing that was to go.
"""

from collections import OrderedDict
from enum import Enum
from typing import Final, Literal, NamedTuple

from asgi_enhance.cache.entry import Entry
from asgi_enhance.cache.request import Key, url_of

Kind = Literal["tag", "url", "prefix", "all"]


class Verdict(Enum):
    KEPT = "kept"
    SOFT = "soft"
    """Stale now, whatever its freshness says; good enough where a stale response is."""
    GONE = "gone"


class Fact(NamedTuple):
    kind: Kind
    name: str
    soft: bool


class Purges:
    """The purges of one cache, as far as they are known here."""

    __slots__ = ("_facts", "_limit", "_prefixes", "everything", "number")

    def __init__(self, limit: int = 10_000) -> None:
        self.number = 0
        self.everything = 0
        """All entries older than this number are gone."""
        self._limit = limit
        self._facts: OrderedDict[Fact, int] = OrderedDict()
        self._prefixes: dict[Fact, int] = {}

    def add(self, fact: Fact, number: int | None = None) -> int:
        """Record a purge; its number is the next one unless somebody else has numbered it."""
        number = self.number + 1 if number is None else number
        self.number = max(self.number, number)
        if fact.kind == "all" and not fact.soft:
            self.forget(number)
            return number
        known = self._prefixes if fact.kind == "prefix" else self._facts
        known[fact] = number
        if fact.kind != "prefix":
            self._facts.move_to_end(fact)
        if len(self._facts) > self._limit:
            self.everything = max(self.everything, self._facts.popitem(last=False)[1])
        if len(self._prefixes) > MAX_PREFIXES:
            oldest = min(self._prefixes, key=self._prefixes.__getitem__)
            self.everything = max(self.everything, self._prefixes.pop(oldest))
        return number

    def forget(self, number: int) -> None:
        """All up to this number went; what is known of it in particular is no longer needed."""
        self.number = max(self.number, number)
        self.everything = max(self.everything, number)
        for facts in (self._facts, self._prefixes):
            for fact in [fact for fact, at in facts.items() if at <= number]:
                del facts[fact]

    def verdict(self, epoch: int, tags: tuple[str, ...], key: Key | None = None) -> Verdict:
        """What became of an entry since `epoch`. `key` is None for values, which have no URL."""
        if epoch >= self.number:
            return Verdict.KEPT
        if epoch < self.everything:
            return Verdict.GONE
        url = None if key is None else url_of(key)
        soft = self._facts.get(_ALL_SOFT, 0) > epoch
        for gone in (True, False):
            facts = [Fact("tag", tag, not gone) for tag in tags]
            if url is not None:
                facts.append(Fact("url", url, not gone))
            hit = any(self._facts.get(fact, 0) > epoch for fact in facts) or (
                url is not None
                and any(
                    at > epoch and fact.soft is not gone and url.startswith(fact.name)
                    for fact, at in self._prefixes.items()
                )
            )
            if hit:
                if gone:
                    return Verdict.GONE
                soft = True
        return Verdict.SOFT if soft else Verdict.KEPT

    def of(self, entry: Entry, key: Key) -> Verdict:
        return self.verdict(entry.epoch, entry.tags, key)


MAX_PREFIXES: Final = 256
"""Prefixes are compared one by one, on the first hit after a purge."""

_ALL_SOFT: Final = Fact("all", "", True)
