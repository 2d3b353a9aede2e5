"""How well the policies choose: the published experiments, replayed on `policy.py` in simulated time, seeded.

`python -m benchmarks.balance_quality [--quick]`. No sockets and no clock: a run gives the same numbers everywhere.

A. One of eleven backends is slow for half a minute (Linkerd's experiment of 2016, N(167, 5) ms, 2 s while slow).
B. Ten backends with four workers, two of them four times slower, four proxies that know nothing of each other.
C. One of ten backends fails at once while the others work for 50 ms.
E. How many keys move when one of ten backends goes, and how even the rest is.
F. Bounded load: keys by Zipf's law, and how far the busiest backend is above the mean.
"""

import heapq
import random
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate

from asgi_enhance.balance.backend import Backend, Endpoint
from asgi_enhance.balance.options import Limits
from asgi_enhance.balance.policy import IpHash, LeastConnections, PeakEwma, Policy, RoundRobin
from benchmarks.harness import Table, arguments, progress, show

PENALTY = 1.0
"""Seconds a failure counts for, the default of `Ejection.penalty`."""

POLICIES: dict[str, Callable[[], Policy]] = {
    "round-robin": RoundRobin,
    "least-connections": LeastConnections,
    "peak-ewma (default)": PeakEwma,
}

Service = Callable[[int, float, random.Random], tuple[float, bool]]
"""What a request at a backend at a time takes in seconds, and whether it succeeds."""


@dataclass
class Proxy:
    """One gateway: a policy and its own knowledge of the backends."""

    policy: Policy
    endpoints: list[Endpoint]


@dataclass
class Outcome:
    """What the clients saw."""

    latencies: list[float] = field(default_factory=list)
    shares: list[int] = field(default_factory=list)
    good: int = 0

    def percentile(self, share: float) -> float:
        ranked = sorted(self.latencies)
        return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


def members(count: int, weights: list[float] | None = None) -> list[Endpoint]:
    return [
        Endpoint(
            Backend(f"http://backend-{index}", weight=weights[index] if weights else 1.0), Limits(max_connections=10**9)
        )
        for index in range(count)
    ]


def simulate(
    make: Callable[[], Policy],
    *,
    backends: int,
    rate: float,
    seconds: float,
    service: Service,
    workers: int | None = None,
    proxies: int = 1,
    seed: int = 1,
) -> Outcome:
    """Poisson arrivals, spread over the proxies; a backend with `workers` has a queue, without it none."""
    rng = random.Random(seed)
    gateways = [Proxy(make(), members(backends)) for _ in range(proxies)]
    free_at = [[0.0] * workers for _ in range(backends)] if workers else []
    outcome = Outcome(shares=[0] * backends)
    ends: list[tuple[float, int, Proxy, Endpoint, float, bool]] = []
    now, number = 0.0, 0
    while True:
        now += rng.expovariate(rate)
        if now > seconds:
            break
        while ends and ends[0][0] <= now:
            _finish(*heapq.heappop(ends), outcome)
        gateway = gateways[int(rng.random() * proxies)]
        endpoint = gateway.policy.pick(gateway.endpoints, now, rng, b"")
        index = gateway.endpoints.index(endpoint)
        endpoint.in_flight += 1
        outcome.shares[index] += 1
        taken, good = service(index, now, rng)
        start = now
        if workers:
            start = max(now, heapq.heappop(free_at[index]))
            heapq.heappush(free_at[index], start + taken)
        number += 1
        heapq.heappush(ends, (start + taken, number, gateway, endpoint, now, good))
    while ends:
        _finish(*heapq.heappop(ends), outcome)
    return outcome


def _finish(
    now: float, number: int, gateway: Proxy, endpoint: Endpoint, began: float, good: bool, outcome: Outcome
) -> None:
    endpoint.in_flight -= 1
    gateway.policy.observe(endpoint, now - began if good else max(PENALTY, now - began), now)
    outcome.latencies.append(now - began)
    outcome.good += good and now - began < 1.0


def slow_server(scale: float) -> Table:
    def service(index: int, now: float, rng: random.Random) -> tuple[float, bool]:
        slow = index == 0 and 15 * scale <= now < 45 * scale
        return (2.0 if slow else max(0.0, rng.gauss(0.167, 0.005))), True

    published = {"round-robin": "95 %", "least-connections": "99 %", "peak-ewma (default)": "99.9 %"}
    rows: dict[str, list[float | str | None]] = {}
    for name, make in POLICIES.items():
        outcome = simulate(make, backends=11, rate=1000, seconds=60 * scale, service=service)
        rows[name] = [outcome.good / len(outcome.latencies), published[name]]
    return Table("A. one of 11 slow, 1000/s", {"success under 1 s": ".2%", "published": ""}, rows)


def heterogeneous(scale: float) -> Table:
    def service(index: int, now: float, rng: random.Random) -> tuple[float, bool]:
        return rng.expovariate(1 / (0.200 if index < 2 else 0.050)), True

    capacity = 8 * 4 / 0.050 + 2 * 4 / 0.200
    columns = {"p50 ms": ",.0f", "p99 ms": ",.0f", "p99.9 ms": ",.0f"}
    rows: dict[str, list[float | str | None]] = {}
    for load in (0.8, 0.95):
        for name, make in POLICIES.items():
            outcome = simulate(
                make, backends=10, rate=load * capacity, seconds=120 * scale, service=service, workers=4, proxies=4
            )
            rows[f"{name}, load {load}"] = [1000 * outcome.percentile(share) for share in (0.5, 0.99, 0.999)]
    return Table("B. two of 10 four times slower", columns, rows, drawn="p99 ms")


def black_hole(scale: float) -> Table:
    def service(index: int, now: float, rng: random.Random) -> tuple[float, bool]:
        return (0.001, False) if index == 0 else (rng.expovariate(1 / 0.050), True)

    rows: dict[str, list[float | str | None]] = {}
    for name, make in POLICIES.items():
        outcome = simulate(make, backends=10, rate=400, seconds=120 * scale, service=service)
        rows[name] = [outcome.shares[0] / sum(outcome.shares)]
    return Table("C. one of 10 fails in 1 ms", {"its share of the traffic": ".2%"}, rows)


def key_movement(scale: float) -> Table:
    keys = [b"key-%d" % number for number in range(int(40_000 * scale))]
    rng = random.Random(1)
    columns = {"keys moved": ".1%", "of them without need": ".1%", "max ÷ mean": ".2f"}
    rows: dict[str, list[float | str | None]] = {}
    for count in (10, 50):
        policy = IpHash(bound=1e9)
        endpoints = members(count)
        before = [policy.pick(endpoints, 0.0, rng, key) for key in keys]
        homes = [sum(one is endpoint for one in before) for endpoint in endpoints]
        gone = endpoints.pop(count // 2)
        after = [policy.pick(endpoints, 0.0, rng, key) for key in keys]
        moved = sum(one is not other for one, other in zip(before, after, strict=True))
        extra = sum(one is not other and one is not gone for one, other in zip(before, after, strict=True))
        size = len(keys)
        rows[f"rendezvous, N = {count}"] = [moved / size, extra / size, max(homes) * count / size]
    return Table("E. one of N goes", columns, rows)


def bounded_load(scale: float) -> Table:
    requests, in_flight = int(40_000 * scale), 400
    cumulative = list(accumulate(1 / (rank + 1) ** 1.1 for rank in range(10_000)))
    rows: dict[str, list[float | str | None]] = {}
    for bound in (1e9, 2.0, 1.5, 1.25):
        rng = random.Random(1)
        policy, free = IpHash(bound=bound), IpHash(bound=1e9)
        endpoints = members(10)
        active: list[Endpoint] = []
        peak = home = 0.0
        for _ in range(requests):
            if len(active) >= in_flight:
                at = int(rng.random() * len(active))
                active[at], active[-1] = active[-1], active[at]
                active.pop().in_flight -= 1
            key = b"%d" % bisect_left(cumulative, rng.random() * cumulative[-1])
            endpoint = policy.pick(endpoints, 0.0, rng, key)
            home += endpoint is free.pick(endpoints, 0.0, rng, key)
            endpoint.in_flight += 1
            active.append(endpoint)
            if len(active) >= in_flight:
                peak = max(peak, endpoint.in_flight * 10 / in_flight)
        name = "none" if bound > 1e6 else f"{bound}"
        rows[f"bound {name}"] = [peak, home / requests]
    return Table("F. Zipf 1.1, 10 backends", {"peak ÷ mean": ".2f", "at home": ".0%"}, rows)


def main() -> None:
    scale = 0.1 if arguments((__doc__ or "").partition("\n")[0]).quick else 1.0
    experiments = (slow_server, heterogeneous, black_hole, key_movement, bounded_load)
    for number, experiment in enumerate(experiments):
        progress(experiment.__name__, number, len(experiments))
        show(experiment(scale))


if __name__ == "__main__":
    main()
