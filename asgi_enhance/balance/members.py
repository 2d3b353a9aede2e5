"""Who belongs to the balancer, and how that changes: lists, names in DNS, the registry, draining, checks.

Every source has a list of its own; the members are their union. A backend that stays in the union, under the same name
and reached the same way, keeps its `Endpoint` and with it everything that was learnt.
"""

import asyncio
import logging
import random
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Any

from asgi_enhance.balance.backend import Backend, Endpoint
from asgi_enhance.balance.checks import probe, watch
from asgi_enhance.balance.discovery import FIRST_ANSWER, PREFIX, DnsName
from asgi_enhance.balance.dispatch import Dispatcher
from asgi_enhance.balance.failure import GoingAway
from asgi_enhance.balance.health import Roster
from asgi_enhance.balance.options import HealthCheck, Limits
from asgi_enhance.balance.registry import RedisBoard, Registry
from asgi_enhance.balance.runtime import Runtime
from asgi_enhance.errors import ConfigError
from asgi_enhance.redis import RedisManager

logger = logging.getLogger("asgi_enhance.balance")

OWN = "configured"
SHARED = "registry"


class Members:
    """The members of one balancer."""

    def __init__(
        self,
        roster: Roster,
        dispatcher: Dispatcher,
        *,
        limits: Limits,
        health: HealthCheck | None,
        redis: RedisManager | None,
        registry: Registry | None,
        registry_name: str,
        poll: float,
        rng: random.Random,
    ) -> None:
        self._roster = roster
        self._dispatcher = dispatcher
        self._limits = limits
        self._health = health
        self._redis = redis
        self._registry = registry
        self._registry_name = registry_name
        self._poll = poll
        self._rng = rng
        self._names: list[DnsName] = []
        self._sources: dict[str, list[Backend]] = {OWN: []}

    def configure(self, backends: Iterable[Backend | str] | str) -> None:
        """The backends of the constructor. Raises ConfigError."""
        if isinstance(backends, Mapping):
            raise ConfigError("backends must be a list; a weight is said by Backend(url, weight=2)")
        if isinstance(backends, str):
            backends = [part for part in (part.strip() for part in backends.split(",")) if part]
        own: list[Backend | str] = []
        for one in backends:
            if isinstance(one, str) and one.startswith(PREFIX):
                self._names.append(DnsName(one))
            else:
                own.append(one)
        self._set(OWN, Backend.all_of(own), None)

    async def start(self, runtime: Runtime) -> None:
        """Follow what changes by itself, and check who is here."""
        if not self._names and self._registry is None and not any(one.weight for one in self._roster.endpoints):
            logger.warning("there is no backend with a weight: every request is a 503 until one is added")
        first: list[asyncio.Task[None]] = []
        for index, name in enumerate(self._names):
            source = f"{PREFIX}{index}"
            ready = asyncio.Event()
            apply = partial(self._found, source, runtime, ready)
            runtime.tasks.spawn(name.follow(apply, self._poll, self._rng), name="balance-dns")
            first.append(runtime.tasks.spawn(_wait(ready), name="balance-dns-first"))
        if first:
            await asyncio.wait(first, timeout=FIRST_ANSWER)
        if self._registry is not None:
            apply = partial(self._found, SHARED, runtime, asyncio.Event())
            runtime.tasks.spawn(self._registry.follow(apply, self._rng), name="balance-registry")
        for endpoint in self._roster.endpoints:
            self._watch(endpoint, runtime)

    # Changes

    def add(self, backend: Backend, runtime: Runtime | None) -> None:
        others = [one for one in self._sources[OWN] if one.name != backend.name]
        self._set(OWN, [*others, backend], runtime)
        endpoint = self._find(backend.name)
        if endpoint.draining:
            endpoint.draining = False
            if runtime is not None:
                endpoint.ramp_from = monotonic()
                runtime.stop_draining(endpoint)
            self._roster.changed()

    def remove(self, name: str, runtime: Runtime | None) -> None:
        self._find(name)
        for source, backends in list(self._sources.items()):
            self._set(source, [one for one in backends if one.name != name], runtime)

    def set_weight(self, name: str, weight: float) -> None:
        endpoint = self._find(name)
        backend = replace(endpoint.backend, weight=weight)
        for backends in self._sources.values():
            backends[:] = [backend if one.name == name else one for one in backends]
        self._dispatcher.redescribe(endpoint, backend, self._limits)
        self._roster.changed()

    async def drain(self, name: str, runtime: Runtime, seconds: float) -> bool:
        endpoint = self._find(name)
        endpoint.draining = True
        self._roster.changed()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await runtime.drain(endpoint)
        if endpoint.in_flight and endpoint.draining and runtime.websockets(endpoint):
            _close_websockets(endpoint, runtime)
            with suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await runtime.drain(endpoint)
        return not endpoint.in_flight

    # Reports

    def report(self) -> dict[str, dict[str, Any]]:
        now = monotonic()
        return {one.name: self._state(one, now) for one in self._roster.endpoints}

    async def health_check(self) -> dict[str, dict[str, Any]]:
        check = self._health or HealthCheck(expect=range(100, 500))
        endpoints = list(self._roster.endpoints)

        async def ask(endpoint: Endpoint) -> dict[str, Any]:
            began = monotonic()
            wrong = await probe(endpoint.backend, check)
            now = monotonic()
            found = {"healthy": not wrong, "error": wrong, "seconds": round(now - began, 6)}
            return {**found, **self._state(endpoint, now)}

        reports = await asyncio.gather(*(ask(endpoint) for endpoint in endpoints))
        return {endpoint.name: report for endpoint, report in zip(endpoints, reports, strict=True)}

    def _state(self, endpoint: Endpoint, now: float) -> dict[str, Any]:
        if endpoint.draining:
            state = "draining"
        elif not endpoint.checked:
            state = "down"
        else:
            state = "ejected" if endpoint.ejected_until > now else "up"
        # no text at the top: free text makes no label of a metric
        last = {"reason": endpoint.last_failure, "seconds_ago": round(now - endpoint.failed_at, 3)}
        return {
            "state": state,
            "weight": endpoint.weight,
            "priority": endpoint.backend.priority,
            "in_flight": endpoint.in_flight,
            "requests": endpoint.requests,
            "failures": endpoint.failures,
            "ejections": endpoint.ejections,
            "latency": round(endpoint.cost, 6),
            "last_failure": last if endpoint.last_failure else None,
        }

    # Inside

    def _found(self, source: str, runtime: Runtime, ready: asyncio.Event, backends: list[Backend]) -> None:
        self._set(source, backends, runtime)
        ready.set()

    def _set(self, source: str, backends: list[Backend], runtime: Runtime | None) -> None:
        """Take a source's new list, and make the members the union of all lists."""
        self._sources[source] = backends
        wanted = {one.name: one for all_of in reversed(self._sources.values()) for one in all_of}
        endpoints: list[Endpoint] = []
        for endpoint in self._roster.endpoints:
            backend = wanted.get(endpoint.name)
            if backend is not None and _same_way(backend, endpoint.backend):
                del wanted[endpoint.name]
                self._dispatcher.redescribe(endpoint, backend, self._limits)
                endpoints.append(endpoint)
            else:
                endpoint.draining = True
                if runtime is not None:
                    _close_websockets(endpoint, runtime)
                    runtime.tasks.spawn(runtime.retire(endpoint), name="balance-retire")
        for backend in wanted.values():
            endpoint = Endpoint(backend, self._limits)
            if runtime is not None and endpoints:
                endpoint.ramp_from = monotonic()
            endpoints.append(endpoint)
            if runtime is not None:
                self._watch(endpoint, runtime)
        self._roster.endpoints = endpoints
        self._roster.changed()
        if runtime is not None:
            self._dispatcher.serve_queue(runtime)

    def _watch(self, endpoint: Endpoint, runtime: Runtime) -> None:
        if self._health is not None:
            board = None
            if self._redis is not None:
                board = RedisBoard(self._redis, self._registry_name, self._health.interval)
            loop = watch(endpoint, self._health, self._roster, self._rng, board)
            runtime.watch(endpoint, loop)

    def _find(self, name: str) -> Endpoint:
        for endpoint in self._roster.endpoints:
            if endpoint.name == name:
                return endpoint
        raise ConfigError(f"{name!r} is not one of the backends")


def _same_way(one: Backend, other: Backend) -> bool:
    """Whether both are reached by the same connections."""
    return (one.id, one.host, one.tls, one.transport) == (other.id, other.host, other.tls, other.transport)


def _close_websockets(endpoint: Endpoint, runtime: Runtime) -> None:
    for exchange in runtime.websockets(endpoint):
        exchange.interrupt(GoingAway("the backend is being taken out"))


async def _wait(event: asyncio.Event) -> None:
    await event.wait()
