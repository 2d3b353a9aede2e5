"""Long work in slices, so that no scrape and no shipment holds the loop."""

import asyncio
from collections.abc import AsyncIterator, Generator, Iterable
from time import perf_counter
from typing import TypeVar

T = TypeVar("T")

SLICE = 0.002
"""Seconds of work after which other tasks get their turn."""


async def slowly(items: Iterable[T]) -> AsyncIterator[T]:
    """The items, with a turn for other tasks whenever the work on them has taken long enough."""
    until = perf_counter() + SLICE
    for item in items:
        yield item
        if perf_counter() >= until:
            await asyncio.sleep(0)
            until = perf_counter() + SLICE


def at_once(steps: Generator[None, None, T]) -> T:
    """What work gives that is written as steps, without a pause."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


async def in_slices(steps: Generator[None, None, T]) -> T:
    """What work gives that is written as steps, with a turn for other tasks whenever it has taken long enough."""
    until = perf_counter() + SLICE
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        if perf_counter() >= until:
            await asyncio.sleep(0)
            until = perf_counter() + SLICE
