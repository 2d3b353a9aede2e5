"""The way most requests take: rules that always ask the same, decided in memory without waiting, fields half made.

It takes what the long way takes, from the same store; or it has taken nothing and leaves the request to the long way.
"""

from collections.abc import Callable, Sequence
from typing import Any

from asgi_enhance.asgi.types import Headers, Scope
from asgi_enhance.ratelimit.bound import BoundRule
from asgi_enhance.ratelimit.decision import Decision, Standing
from asgi_enhance.ratelimit.headers import Serializer, draft10, template10
from asgi_enhance.ratelimit.keys import LONGEST, spell
from asgi_enhance.ratelimit.memory import MemoryStore
from asgi_enhance.ratelimit.policy import SECOND, Quota

Quick = Callable[[Scope], Headers | None]
"""The header fields of a request that is admitted; None: ask the long way."""

UP = SECOND - 1
"""Added before a division by SECOND, it rounds up."""

Taken = list[tuple[Quota, str, int, int, int]]
"""Quota, identity and cost of what has been taken; the room left, and the microseconds until there is more."""


def quick_way(
    rules: Sequence[BoundRule],
    exempt: Callable[[Scope], bool] | None,
    memory: MemoryStore | None,
    serialize: Serializer,
) -> Quick | None:
    """The quick way for these rules; None if there is none."""
    if memory is None or not rules or any(rule.asks is None for rule in rules):
        return None
    asks = rules[0].asks or ()
    everything = len(rules) == 1 and rules[0].match is None and exempt is None
    if everything and rules[0].rule.key == "client" and len(asks) == 1 and serialize is draft10:
        return _by_client(rules[0].key, *asks[0], memory)
    return _by_rules(rules, exempt, memory, serialize)


def _by_client(key: Callable[[Scope], Any], quota: Quota, cost: int, memory: MemoryStore) -> Quick:
    """One quota for everything: what a layer has that is told nothing else."""
    spend, clock, stats = memory.spend, memory.clock, memory.stats
    policy, item = template10((quota,))

    def decide(scope: Scope) -> Headers | None:
        identity = key(scope)
        if len(identity) > LONGEST:
            return None
        spent = spend(quota, identity, cost, clock() // 1000)
        if spent is None:
            return None
        stats.allowed += 1
        left, reset = spent
        return [policy, (b"ratelimit", item % (left, (reset + UP) // SECOND))]

    return decide


def _by_rules(
    rules: Sequence[BoundRule],
    exempt: Callable[[Scope], bool] | None,
    memory: MemoryStore,
    serialize: Serializer,
) -> Quick:
    plans = [(rule.match, rule.key, rule.asks or ()) for rule in rules]
    spend, clock, stats = memory.spend, memory.clock, memory.stats
    quotas = tuple(quota for _, _, asks in plans for quota, _ in asks)
    render = _by_draft10(quotas) if serialize is draft10 else _by(serialize)

    def decide(scope: Scope) -> Headers | None:
        if exempt is not None and exempt(scope):
            return []
        now = clock() // 1000
        taken: Taken = []
        for match, key, asks in plans:
            if match is None or match(scope):
                identity: Any = key(scope)
                if identity is None:
                    continue
                if not (identity.__class__ is str and len(identity) <= LONGEST and identity > "\1"):
                    identity = spell(identity)  # all others are spelled as they are
                for quota, cost in asks:
                    spent = spend(quota, identity, cost, now)
                    if spent is None:
                        for row in taken:
                            memory.unspend(*row[:3])
                        return None
                    taken.append((quota, identity, cost, *spent))
        if not taken:
            return []
        stats.allowed += 1
        return render(taken)

    return decide


def _by_draft10(quotas: tuple[Quota, ...]) -> Callable[[Taken], Headers]:
    every = template10(quotas)

    def render(taken: Taken) -> Headers:
        numbers: list[int] = []
        for _, _, _, left, reset in taken:
            numbers += (left, (reset + UP) // SECOND)
        policy, items = every if len(taken) == len(quotas) else template10(tuple([row[0] for row in taken]))
        return [policy, (b"ratelimit", items % tuple(numbers))]

    return render


def _by(serialize: Serializer) -> Callable[[Taken], Headers]:
    return lambda taken: serialize(
        Decision(True, tuple([Standing(quota, left, reset / SECOND) for quota, _, _, left, reset in taken]))
    )
