"""Makes of each `Rule` what runs: everything that can be settled before the first request is settled here."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import TypeVar

from asgi_enhance.asgi.address import ClientAddress
from asgi_enhance.asgi.types import Scope
from asgi_enhance.errors import ConfigError
from asgi_enhance.ratelimit.core import STRATEGIES, RateLimiter
from asgi_enhance.ratelimit.decision import GUARD, STRIKE, TAKE, Demand
from asgi_enhance.ratelimit.keys import Identity, Key, spell
from asgi_enhance.ratelimit.notation import Limits, quotas
from asgi_enhance.ratelimit.policy import MAX_LIMIT, Quota
from asgi_enhance.ratelimit.rules import METHODS, Rule, check_cost, method_matcher, path_matcher, resolve_key

logger = logging.getLogger("asgi_enhance.ratelimit")

Exempt = str | Callable[[Scope], bool]

T = TypeVar("T")

DEFAULT = "default"


class BoundRule:
    """A rule with its name, its key and, where they do not depend on the request, its quotas.

    plain:     there is nothing to do but to take one decision.
    asks:      quotas and costs, if these are the same for all requests and its identity is known at once; else None.
    demands:   what a request of an identity asks for, if that is the same for all requests; else None.
    in_flight: requests of each identity that hold a slot of the rule's `concurrency`.
    """

    __slots__ = ("_on_error", "_told_of_cost", "asks", "demands", "in_flight", "key", "match", "name", "plain", "rule")

    def __init__(self, rule: Rule, name: str, client: Key, on_error: str, limiter: RateLimiter) -> None:
        if (rule.ban or rule.charge) and limiter.strategy != STRATEGIES[0]:
            raise ConfigError(f"Rule {name!r}: ban and charge need the strategy {STRATEGIES[0]!r}")
        self.rule = rule
        self.name = name
        self.match = rule.matcher()
        self.key = resolve_key(rule.key, client)
        self.in_flight: dict[str, int] = {}
        self._on_error = rule.on_error or on_error
        self._told_of_cost = False
        self.plain = not (rule.concurrency or rule.charge or rule.max_delay or rule.shadow)
        self.asks: tuple[tuple[Quota, int], ...] | None = None
        self.demands: Callable[[str], tuple[Demand, ...]] | None = None
        if not callable(rule.limits) and not callable(rule.cost):
            found = () if rule.limits is None else quotas(rule.limits, name)
            for quota in found:
                if rule.cost > quota.capacity:
                    raise ConfigError(f"Rule {name!r}: cost {rule.cost} never fits into {quota.name!r}")
            limiter.check(found)
            self.demands = self._asks(found, rule.cost)
            if self.plain and not rule.ban and isinstance(rule.key, str):
                self.asks = tuple((quota, rule.cost) for quota in found)

    async def identity(self, value: Identity | Awaitable[Identity]) -> str | None:
        """Whose request it is by what `key` gave for it; None if it is not this rule's."""
        value = await _result(value)
        return None if value is None else spell(value)

    async def demands_of(self, scope: Scope, identity: str) -> tuple[Demand, ...]:
        """What this very request asks for, whether the rule is static or not."""
        limits, cost = self.rule.limits, self.rule.cost
        given = await _result(limits(scope)) if callable(limits) else limits
        units = await _result(cost(scope)) if callable(cost) else cost
        try:
            check_cost(units)
        except ConfigError as error:
            if not self._told_of_cost:  # not once a request
                logger.error("rule %r: %s; such requests are refused", self.name, error)
            self._told_of_cost = True
            units = MAX_LIMIT + 1  # more than any quota holds
        return self._asks(() if given is None else quotas(given, self.name), units)(identity)

    def _asks(self, found: tuple[Quota, ...], cost: int) -> Callable[[str], tuple[Demand, ...]]:
        on_error = self._on_error
        asked = [(quota, cost, TAKE) for quota in found]
        if found and self.rule.ban:
            refusals, ban = self.rule.ban.quotas(self.name)
            asked += ((refusals, 1, STRIKE), (ban, 1, GUARD))
        if len(asked) == 1:
            only = asked[0][0]
            return lambda identity: (Demand(only, identity, cost, TAKE, on_error),)
        return lambda identity: tuple([Demand(quota, identity, units, role, on_error) for quota, units, role in asked])


async def _result(value: T | Awaitable[T]) -> T:
    return await value if isinstance(value, Awaitable) else value


def bind(
    rules: Sequence[Rule], default: Rule | Limits | None, client: Key, on_error: str, limiter: RateLimiter
) -> tuple[BoundRule, ...]:
    """All rules, the default one last. ConfigError if two have the same name."""
    bound = [BoundRule(rule, rule.name or f"rule-{i}", client, on_error, limiter) for i, rule in enumerate(rules, 1)]
    if default is not None:
        rule = default if isinstance(default, Rule) else Rule(default)
        if rule.matcher() is not None:
            raise ConfigError("default must apply to every request: give a Rule with path, methods or host to rules")
        bound.append(BoundRule(rule, rule.name or DEFAULT, client, on_error, limiter))
    names = [rule.name for rule in bound]
    if len(set(names)) < len(names):
        raise ConfigError(f"rules: names must differ, not {names}")
    slots = [demand.quota.slot for rule in bound if rule.demands is not None for demand in rule.demands("")]
    if len(set(slots)) < len(slots):
        raise ConfigError(f"rules: their quotas must differ in name or window, not {slots}")
    return tuple(bound)


def exemption(exempt: Sequence[Exempt], address: ClientAddress) -> Callable[[Scope], bool] | None:
    """Whether a request is exempt; None if none ever is."""
    tests: list[Callable[[Scope], bool]] = []
    networks: list[IPv4Network | IPv6Network] = []
    for entry in exempt:
        if callable(entry):
            tests.append(entry)
        elif "/" in entry and entry.partition(" ")[2].startswith("/"):
            method, _, path = entry.partition(" ")
            if method.upper() not in METHODS:
                raise ConfigError(f"exempt: {method!r} in {entry!r} is no method")
            tests.append(_method_and_path(method, path))
        elif entry.startswith("/"):
            tests.append(path_matcher((entry,)))
        else:
            try:
                networks.append(ip_network(entry))
            except ValueError:
                raise ConfigError(f"exempt: {entry!r} is neither a path, 'METHOD /path' nor a network") from None
    if networks:
        tests.append(_from_networks(networks, address))
    return (lambda scope: any(test(scope) for test in tests)) if tests else None


def _method_and_path(method: str, path: str) -> Callable[[Scope], bool]:
    on_method, on_path = method_matcher(method), path_matcher((path,))
    return lambda scope: on_method(scope) and on_path(scope)


def _from_networks(networks: Sequence[IPv4Network | IPv6Network], address: ClientAddress) -> Callable[[Scope], bool]:
    def test(scope: Scope) -> bool:
        try:
            client = ip_address(address(scope) or "")
        except ValueError:
            return False
        return any(client in network for network in networks)

    return test
