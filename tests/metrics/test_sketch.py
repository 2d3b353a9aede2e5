"""The sketch: within its stated error on known distributions, alone and merged."""

import random
from collections import Counter
from collections.abc import Callable

import pytest

from asgi_enhance.metrics.sketch import RELATIVE_ERROR, Distribution, bucket_indexes, quantiles

RANKS = (0.5, 0.95, 0.99)
SIZE = 40_000


def bimodal(rng: random.Random) -> float:
    return rng.lognormvariate(-6.9, 0.2) if rng.random() < 0.9 else rng.lognormvariate(1.1, 0.2)


DISTRIBUTIONS: dict[str, Callable[[random.Random], float]] = {
    "lognormal around 20 ms": lambda rng: rng.lognormvariate(-3.9, 0.6),
    "a fast API around 0.6 ms": lambda rng: rng.lognormvariate(-7.4, 0.3),
    "bimodal, 1 ms and 3 s": bimodal,
    "exponential with mean 50 ms": lambda rng: rng.expovariate(20),
    "uniform up to 1 s": lambda rng: rng.uniform(1e-4, 1.0),
    "pareto with a heavy tail": lambda rng: 0.002 * rng.paretovariate(1.2),
}


def exact(values: list[float]) -> list[float]:
    ordered = sorted(values)
    return [ordered[max(1, -int(-rank * len(ordered) // 1)) - 1] for rank in RANKS]


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_percentiles_are_within_the_stated_error(name: str) -> None:
    rng = random.Random(name)
    values = [DISTRIBUTIONS[name](rng) for _ in range(SIZE)]
    sketch = Counter(bucket_indexes(values))
    for answer, truth in zip(quantiles(sketch, RANKS), exact(values), strict=True):
        assert answer == pytest.approx(truth, rel=RELATIVE_ERROR * 1.0001)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_merging_eight_workers_costs_no_accuracy(name: str) -> None:
    rng = random.Random(name)
    workers = [[DISTRIBUTIONS[name](rng) for _ in range(SIZE // 8)] for _ in range(8)]
    merged: Counter[int] = Counter()
    for values in workers:
        merged.update(Counter(bucket_indexes(values)))
    together = [value for values in workers for value in values]
    for answer, truth in zip(quantiles(merged, RANKS), exact(together), strict=True):
        assert answer == pytest.approx(truth, rel=RELATIVE_ERROR * 1.0001)


def test_the_stated_error_is_at_most_eleven_in_a_thousand() -> None:
    assert RELATIVE_ERROR <= 0.011


def test_a_clock_that_stands_still_is_counted() -> None:
    assert len(bucket_indexes([0.0, 0.0, 0.001])) == 3


def test_an_empty_sketch_has_no_percentiles() -> None:
    assert quantiles({}, RANKS) == [None, None, None]


def test_a_value_on_a_bound_belongs_to_the_bucket_of_that_bound() -> None:
    distribution = Distribution((0.1, 0.5, 1.0))
    distribution.add([0.5, 0.05, 0.1, 0.7, 3.0, 1.0])
    assert distribution.buckets == [2, 1, 2, 1]
    assert distribution.count == 6
    assert distribution.total == pytest.approx(5.35)


def test_a_distribution_adds_up_over_calls() -> None:
    distribution = Distribution((0.1,), sketched=True)
    distribution.add([0.05])
    distribution.add([0.05, 2.0])
    assert distribution.buckets == [2, 1]
    assert sum((distribution.sketch or {}).values()) == 3
