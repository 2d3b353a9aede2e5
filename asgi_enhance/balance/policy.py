"""Choosing one backend of those that can serve. Pure: `now` and `rng` are arguments.

- `PeakEwma` (default): Finagle's and Linkerd's peak-sensitive moving average of the time to the first byte, times what
  is in flight, over the weight; all backends are looked at up to `SCAN`, two random ones beyond (the power of two
  choices). A failure counts as a slow answer, or the backend that fails fastest would win everything.
- `RoundRobin`: nginx's smooth weighted round robin.
- `LeastConnections`: fewest in flight for its weight, ties at random: by index, many proxies would herd.
- `IpHash`: weighted rendezvous (highest random weight) hashing with bounded load (Mirrokni, Thorup, Zadimoghaddam
  2016): a key stays at home unless home carries more than `bound` times its share.

A policy is handed only backends that are available, not full and not yet tried, and never an empty list.
"""

import random
from collections.abc import Sequence
from hashlib import blake2b
from math import ceil, exp, log
from typing import Protocol

from asgi_enhance.balance.backend import Endpoint
from asgi_enhance.errors import ConfigError

SCAN = 16
"""Up to so many backends are all looked at; beyond, two random ones."""

RAMP_FLOOR = 0.1
"""The share of its weight a backend begins its slow start with (Envoy's `min_weight_percent`)."""


class Policy(Protocol):
    def pick(self, endpoints: Sequence[Endpoint], now: float, rng: random.Random, key: bytes) -> Endpoint:
        """One of `endpoints`."""

    def observe(self, endpoint: Endpoint, seconds: float, now: float) -> None:
        """A request took so long to its first byte."""


class SlowStart:
    """The weight of a backend that begins to serve (again) grows to its own over `window` seconds."""

    __slots__ = ("aggression", "window")

    def __init__(self, window: float = 10.0, aggression: float = 1.0) -> None:
        if window < 0:
            raise ConfigError(f"slow_start must be at least 0 seconds, not {window!r}")
        self.window = window
        self.aggression = aggression

    def weight(self, endpoint: Endpoint, now: float) -> float:
        since = endpoint.ramp_from
        if since is None:
            return endpoint.weight
        passed = (now - since) / self.window if self.window else 1.0
        if passed >= 1.0:
            endpoint.ramp_from = None
            return endpoint.weight
        ramp: float = max(passed, 0.0) ** (1.0 / self.aggression)
        return endpoint.weight * max(RAMP_FLOOR, ramp)


class PeakEwma:
    """Peak EWMA × (in flight + 1) ÷ weight.

    decay: seconds in which an observation loses 63 % of its say.
    """

    UNKNOWN = 0.1
    """Seconds assumed of a backend that was asked and has not answered: more than most need, less than a failure."""

    def __init__(self, slow_start: SlowStart | None = None, *, decay: float = 10.0) -> None:
        if decay <= 0:
            raise ConfigError(f"decay must be more than 0 seconds, not {decay!r}")
        self._slow_start = slow_start or SlowStart()
        self._decay = decay

    def pick(self, endpoints: Sequence[Endpoint], now: float, rng: random.Random, key: bytes) -> Endpoint:
        if len(endpoints) > SCAN:
            first = int(rng.random() * len(endpoints))
            second = int(rng.random() * (len(endpoints) - 1))
            endpoints = (endpoints[first], endpoints[second + (second >= first)])
        best = endpoints[0]
        if len(endpoints) == 1:
            return best
        lowest = -1.0
        ties = 1
        for endpoint in endpoints:
            load = self.load(endpoint, now)
            if load < lowest or lowest < 0.0:
                best, lowest, ties = endpoint, load, 1
            elif load == lowest:
                ties += 1
                if rng.random() * ties < 1.0:
                    best = endpoint
        return best

    def load(self, endpoint: Endpoint, now: float) -> float:
        cost = endpoint.cost
        waiting = endpoint.in_flight
        if cost:
            cost *= exp((endpoint.cost_at - now) / self._decay)
        elif waiting:
            cost = self.UNKNOWN
        weight = endpoint.weight if endpoint.ramp_from is None else self._slow_start.weight(endpoint, now)
        return cost * (waiting + 1) / weight

    def observe(self, endpoint: Endpoint, seconds: float, now: float) -> None:
        share = exp((endpoint.cost_at - now) / self._decay) if endpoint.cost else 0.0
        decayed = endpoint.cost * share
        endpoint.cost = seconds if seconds > decayed else decayed + seconds * (1.0 - share)
        endpoint.cost_at = now


class _Unmeasured:
    def __init__(self, slow_start: SlowStart | None = None) -> None:
        self._slow_start = slow_start or SlowStart()

    def observe(self, endpoint: Endpoint, seconds: float, now: float) -> None:
        """What is not weighed need not be measured."""


class RoundRobin(_Unmeasured):
    """Smooth weighted round robin: with weights 5, 1, 1 the order is a a b a c a a."""

    def pick(self, endpoints: Sequence[Endpoint], now: float, rng: random.Random, key: bytes) -> Endpoint:
        total = 0.0
        best = endpoints[0]
        highest = float("-inf")
        for endpoint in endpoints:
            weight = self._slow_start.weight(endpoint, now)
            total += weight
            endpoint.current += weight
            if endpoint.current > highest:
                best, highest = endpoint, endpoint.current
        best.current -= total
        return best


class LeastConnections(_Unmeasured):
    """Fewest in flight for its weight."""

    def pick(self, endpoints: Sequence[Endpoint], now: float, rng: random.Random, key: bytes) -> Endpoint:
        best = endpoints[0]
        lowest = float("inf")
        ties = 1
        for endpoint in endpoints:
            load = (endpoint.in_flight + 1) / self._slow_start.weight(endpoint, now)
            if load < lowest:
                best, lowest, ties = endpoint, load, 1
            elif load == lowest:
                ties += 1
                if rng.random() * ties < 1.0:
                    best = endpoint
        return best


class IpHash(_Unmeasured):
    """Weighted rendezvous hashing with bounded load; the key is the client's address unless told otherwise.

    bound: times its share of what is in flight that a backend carries before keys overflow to their next choice; None
           never lets them: a client stays though its backend has all the load.
    """

    def __init__(self, slow_start: SlowStart | None = None, *, bound: float | None = 1.25) -> None:
        super().__init__(slow_start)
        if bound is not None and not 1.0 < bound < float("inf"):
            raise ConfigError(f"hash_bound must be more than 1, or None for no bound, not {bound!r}")
        self._bound = bound

    def pick(self, endpoints: Sequence[Endpoint], now: float, rng: random.Random, key: bytes) -> Endpoint:
        weights = [self._slow_start.weight(endpoint, now) for endpoint in endpoints]
        share = 0.0
        if self._bound is not None:
            share = self._bound * (sum(endpoint.in_flight for endpoint in endpoints) + 1) / sum(weights)
        best = endpoints[0]
        highest = -1.0
        for endpoint, weight in zip(endpoints, weights, strict=True):
            if not share or endpoint.in_flight < ceil(share * weight):
                score = rendezvous(key, endpoint.id, weight)
                if score > highest:
                    best, highest = endpoint, score
        return best


def rendezvous(key: bytes, name: str, weight: float) -> float:
    """The score of a backend for a key; the highest wins. A key moves only if its winner goes or a better one comes."""
    digest = blake2b(key, digest_size=8, key=name.encode()[:64]).digest()
    uniform = (int.from_bytes(digest, "big") + 1) / (2.0**64 + 1)
    return weight / -log(uniform) if uniform < 1.0 else float("inf")


POLICIES: dict[str, type[PeakEwma] | type[RoundRobin] | type[LeastConnections] | type[IpHash]] = {
    "peak-ewma": PeakEwma,
    "round-robin": RoundRobin,
    "least-connections": LeastConnections,
    "ip-hash": IpHash,
}
