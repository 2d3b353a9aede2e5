"""Which backends may be chosen at all: verdicts, ejections, priorities and panic. Pure: `now` and `rng` are arguments.

After Envoy's cluster manager:

- A backend is available if it is not draining, has a weight, its active checks say so and it is not ejected.
- Ejection grows with every repetition and shrinks again with every 10 s of good conduct; at most `max_share` of the
  backends are out at a time, yet one always may be. Those taken out by active checks do not use that allowance.
- A priority level counts as healthy up to 1.4 times its available share; what it cannot take spills over to the next.
- If all levels together are not enough, a level with less than `panic` of its backends available ignores health:
  one bad answer in two is better than the whole load on a few.
"""

import random
from collections.abc import Callable, Iterable
from math import sqrt
from typing import NamedTuple

from asgi_enhance.balance.backend import Endpoint
from asgi_enhance.balance.options import Ejection

OVERPROVISION = 1.4
DECAY_INTERVAL = 10.0
SUCCESS_RATE_HOSTS = 5
SUCCESS_RATE_REQUESTS = 100
SUCCESS_RATE_STDEV = 1.9
FAILURE_SHARE = 0.85
FAILURE_SHARE_REQUESTS = 50


class Level(NamedTuple):
    """One priority: who serves, and its share of the traffic."""

    endpoints: list[Endpoint]
    share: float


class Roster:
    """The members, and who of them may be chosen now."""

    def __init__(self, ejection: Ejection | None) -> None:
        self.endpoints: list[Endpoint] = []
        self.panicking = False
        self.on_eject: Callable[[Endpoint, float, str], None] | None = None  # who, for how many seconds, and why
        self._ejection = ejection
        self._levels: list[Level] = []
        self._valid_until = 0.0
        self._next_look = 0.0

    def changed(self) -> None:
        """A member, a weight or a verdict has changed."""
        self._valid_until = 0.0

    def candidates(self, now: float, rng: random.Random) -> list[Endpoint]:
        """The backends to choose from; empty if none may be used. Belongs to the roster: not to be changed."""
        if now >= self._valid_until:
            self._rebuild(now)
        levels = self._levels
        if len(levels) == 1:
            return levels[0].endpoints
        if not levels:
            return []
        point = rng.random()
        for level in levels:
            point -= level.share
            if point < 0:
                return level.endpoints
        return levels[-1].endpoints

    def all_candidates(self, now: float) -> list[Endpoint]:
        """The candidates of every level, the first level first: for a request its own level cannot take."""
        if now >= self._valid_until:
            self._rebuild(now)
        return [endpoint for level in self._levels for endpoint in level.endpoints]

    def available(self, endpoint: Endpoint, now: float) -> bool:
        return endpoint.checked and endpoint.ejected_until <= now and not endpoint.draining and endpoint.weight > 0

    # What has been seen of a backend

    def served(self, endpoint: Endpoint, now: float) -> None:
        """A request went well."""
        endpoint.failed_in_a_row = 0
        endpoint.window_requests += 1
        if now >= self._next_look:
            self._look(now)

    def failed(self, endpoint: Endpoint, now: float, *, cut: bool = False) -> None:
        """A request failed by the backend's fault; `cut`: in the middle of its answer, and its head was a good one.

        Heads and bodies have a row each: the next good head says nothing of bodies, and streams may never end.
        """
        if cut:
            endpoint.cut_in_a_row += 1
        else:
            if not endpoint.failed_in_a_row:
                endpoint.failing_since = now
            endpoint.failed_in_a_row += 1
            endpoint.window_requests += 1
        endpoint.failures += 1
        endpoint.window_failures += 1
        if now >= self._next_look:
            self._look(now)
        ejection = self._ejection
        row = endpoint.cut_in_a_row if cut else endpoint.failed_in_a_row
        if ejection is not None and row >= ejection.consecutive:
            self.eject(endpoint, now, f"{row} failures in a row, the last: {endpoint.last_failure}")

    def eject(self, endpoint: Endpoint, now: float, why: str = "") -> bool:
        """Take a backend out for its time, unless too many are out already."""
        ejection = self._ejection
        if ejection is None or endpoint.ejected_until > now:
            return False
        out = sum(1 for other in self.endpoints if other.ejected_until > now)
        if out >= max(1, int(ejection.max_share * len(self.endpoints))):
            return False
        if endpoint.ejections:
            good_intervals = int((now - endpoint.ejected_until) / DECAY_INTERVAL)
            endpoint.ejections = max(0, endpoint.ejections - good_intervals)
        endpoint.ejections += 1
        endpoint.failed_in_a_row = endpoint.cut_in_a_row = 0
        seconds = min(ejection.max_time, ejection.base_time * endpoint.ejections)
        endpoint.ejected_until = now + seconds
        endpoint.ramp_from = endpoint.ejected_until
        self.changed()
        if self.on_eject is not None:
            self.on_eject(endpoint, seconds, why)
        return True

    def checked(self, endpoint: Endpoint, good: bool, now: float, *, rise: int, fall: int, uneject: bool) -> bool:
        """The result of an active check. True if it changed the verdict."""
        if good and uneject and endpoint.ejected_until > now:
            endpoint.ejected_until = now
            endpoint.ramp_from = now
            self.changed()
        if good == endpoint.checked:
            endpoint.verdicts = 0
            return False
        endpoint.verdicts += 1
        if endpoint.verdicts < (rise if good else fall):
            return False
        return self.judged(endpoint, good, now)

    def judged(self, endpoint: Endpoint, good: bool, now: float) -> bool:
        """Take a verdict of the active checks as it is. True if it is another than before.

        Who was seen to be down and is back begins anew: an ejection is over. One that was never seen to be down stays
        ejected its time, since users saw what the checks did not.
        """
        endpoint.verdicts = 0
        if good == endpoint.checked:
            return False
        endpoint.checked = good
        if good:
            endpoint.ejected_until = min(endpoint.ejected_until, now)
            endpoint.ramp_from = now
            endpoint.failed_in_a_row = endpoint.cut_in_a_row = 0
        self.changed()
        return True

    def _look(self, now: float) -> None:
        """Once an interval: who is out of line with the others (success rate), or fails nearly always?"""
        self._next_look = now + DECAY_INTERVAL
        busy = [one for one in self.endpoints if one.window_requests >= SUCCESS_RATE_REQUESTS]
        suspects: list[Endpoint] = []
        if len(busy) >= SUCCESS_RATE_HOSTS:
            rates = [1 - one.window_failures / one.window_requests for one in busy]
            threshold = success_threshold(rates)
            suspects += [one for one, rate in zip(busy, rates, strict=True) if rate < threshold]
        judged = [one for one in self.endpoints if one.window_requests >= FAILURE_SHARE_REQUESTS]
        if len(judged) >= SUCCESS_RATE_HOSTS:
            suspects += [one for one in judged if one.window_failures >= FAILURE_SHARE * one.window_requests]
        for endpoint in suspects:
            failures, requests = endpoint.window_failures, endpoint.window_requests
            self.eject(endpoint, now, f"{failures} of {requests} requests failed, the last: {endpoint.last_failure}")
        for endpoint in self.endpoints:
            endpoint.window_requests = endpoint.window_failures = 0

    def _rebuild(self, now: float) -> None:
        members = [one for one in self.endpoints if not one.draining and one.weight > 0]
        ends = [one.ejected_until for one in members if one.ejected_until > now]
        self._valid_until = min(ends, default=float("inf"))
        by_priority: dict[int, list[Endpoint]] = {}
        for one in members:
            by_priority.setdefault(one.backend.priority, []).append(one)
        levels = [by_priority[priority] for priority in sorted(by_priority)]
        available = [[one for one in level if self.available(one, now)] for level in levels]
        health = [min(1.0, OVERPROVISION * len(up) / len(level)) for up, level in zip(available, levels, strict=True)]
        panic = self._ejection.panic if self._ejection is not None else 0.0
        self.panicking = False
        if sum(health) < 1.0 and panic:
            for index, level in enumerate(levels):
                if len(available[index]) < panic * len(level):
                    available[index] = level
                    self.panicking = True
        shares = spill(health)
        if not any(shares) and levels:
            shares[0] = 1.0  # nobody is well: the first level, if panic lets it, else nobody
        self._levels = [Level(up, share) for up, share in zip(available, shares, strict=True) if up and share > 0]


def spill(health: Iterable[float]) -> list[float]:
    """The share of the traffic of every priority level, given how healthy each is (0 to 1)."""
    shares: list[float] = []
    left = 1.0
    for level in health:
        share = min(left, level)
        shares.append(share)
        left -= share
    total = sum(shares)
    return [share / total for share in shares] if total else shares


def success_threshold(rates: list[float]) -> float:
    """Below this success rate a backend is an outlier: the mean less 1.9 standard deviations."""
    mean = sum(rates) / len(rates)
    return mean - SUCCESS_RATE_STDEV * sqrt(sum((rate - mean) ** 2 for rate in rates) / len(rates))
