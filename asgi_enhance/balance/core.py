"""The balancer: its options, its members, and what user code calls.

`LoadBalanceApp` is the same by ASGI. Members may change at run time: a backend that stays keeps its connections, its
requests in flight and everything that was learnt about it.
"""

import os
import random
from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Any, Literal, TypedDict

from starlette.requests import Request
from starlette.responses import Response

from asgi_enhance.asgi.lifespan import Resource
from asgi_enhance.asgi.response import receive_of
from asgi_enhance.asgi.tasks import Tasks
from asgi_enhance.asgi.types import Scope
from asgi_enhance.balance.backend import Backend, Endpoint
from asgi_enhance.balance.dispatch import Dispatcher, Stats
from asgi_enhance.balance.exchange import Upstream
from asgi_enhance.balance.failure import Rejected, Unavailable
from asgi_enhance.balance.headers import Forwarding, HeaderRules
from asgi_enhance.balance.health import Roster
from asgi_enhance.balance.hedge import Hedge
from asgi_enhance.balance.members import Members
from asgi_enhance.balance.options import Ejection, HealthCheck, Limits, Retries, Timeouts
from asgi_enhance.balance.policy import POLICIES, IpHash, Policy, SlowStart
from asgi_enhance.balance.registry import PRIVATE, Registry, allowed
from asgi_enhance.balance.response import ForwardedResponse
from asgi_enhance.balance.runtime import Runtime
from asgi_enhance.balance.sticky import Sticky, StickyCookie
from asgi_enhance.balance.translate import Translator
from asgi_enhance.balance.upstream.pool import Http1Upstream
from asgi_enhance.balance.upstream.transport import TransportUpstream
from asgi_enhance.balance.upstream.websocket import WebSocketUpstream
from asgi_enhance.errors import ConfigError
from asgi_enhance.options import checked
from asgi_enhance.redis import RedisManager

Algorithm = Literal["peak-ewma", "round-robin", "least-connections", "ip-hash"]

ENVIRONMENT = "API_LOAD_BALANCER_BACKENDS"


class Options(TypedDict, total=False):
    """The keyword arguments of `LoadBalancer`, for whoever passes them on."""

    redis: RedisManager | str | None
    algorithm: Algorithm
    timeouts: Timeouts
    limits: Limits
    retries: Retries
    ejection: Ejection | None
    health: HealthCheck | None
    hedge: Hedge | None
    sticky: Sticky | None
    forwarding: Forwarding
    slow_start: float
    hash_key: Callable[[Scope], str | None] | None
    hash_bound: float | None
    strip_mount: bool
    strict_query: bool
    registry: str
    registry_networks: Sequence[str]
    poll: float
    seed: int | None


@checked
class LoadBalancer(Resource[Runtime]):
    """Spreads requests over backends. Every option has a safe default; a list of URLs is enough.

    backends:     URLs or `Backend`s, or one comma-separated string; `dns+http://name:port` for every address of a name.
                  Default: those in the environment variable API_LOAD_BALANCER_BACKENDS.
    redis:        a `RedisManager` or a URL: backends and the verdicts of active checks are shared by all gateways.
    algorithm:    `"peak-ewma"` (default), `"round-robin"`, `"least-connections"` or `"ip-hash"`; see `policy`.
    timeouts:     `Timeouts`, seconds for each step.
    limits:       `Limits`, connections, queue, bodies and heads.
    retries:      `Retries`, when a request is tried again.
    ejection:     `Ejection`, passive health; None turns it off.
    health:       `HealthCheck`, active health. Default: none.
    hedge:        `Hedge`, a second backend for slow safe requests. Default: none.
    sticky:       `Sticky`, a signed cookie that keeps a client at its backend. Default: none.
    forwarding:   `Forwarding`, what backends are told about the client.
    slow_start:   seconds until a backend that was added or came back has its full weight. Default: 10.
    hash_key:     for `ip-hash`: what to hash of a scope. Default: the client's address.
    hash_bound:   for `ip-hash`: times its share of the load a backend carries at most, beyond which clients go to their
                  next choice; None: they never do. Default: 1.25 (HAProxy).
    strip_mount:  backends see the path below the mount. Default: True.
    strict_query: drop query pairs that parsers read differently (`;`, broken `%`). Default: False.
    registry:     name of the list of backends in Redis. Default: `default`.
    registry_networks: networks the addresses in that list must be in. Default: the private ones and loopback.
    poll:         seconds between two looks at the registry or at a name in DNS. Default: 3.
    seed:         of the random choices, for tests. Default: none.
    """

    def __init__(
        self,
        backends: Iterable[Backend | str] | str | None = None,
        *,
        redis: RedisManager | str | None = None,
        algorithm: Algorithm = "peak-ewma",
        timeouts: Timeouts | None = None,
        limits: Limits | None = None,
        retries: Retries | None = None,
        ejection: Ejection | None = Ejection(),  # noqa: B008 frozen
        health: HealthCheck | None = None,
        hedge: Hedge | None = None,
        sticky: Sticky | None = None,
        forwarding: Forwarding | None = None,
        slow_start: float = 10.0,
        hash_key: Callable[[Scope], str | None] | None = None,
        hash_bound: float | None = 1.25,
        strip_mount: bool = True,
        strict_query: bool = False,
        registry: str = "default",
        registry_networks: Sequence[str] = PRIVATE,
        poll: float = 3.0,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if algorithm not in POLICIES:
            raise ConfigError(f"algorithm must be one of {', '.join(POLICIES)}, not {algorithm!r}")
        if poll <= 0:
            raise ConfigError(f"poll must be more than 0 seconds, not {poll!r}")
        self.timeouts = timeouts or Timeouts()
        self.limits = limits or Limits()
        self.rules = HeaderRules(forwarding or Forwarding())
        self.redis = RedisManager.of(redis)
        self.needs = (self.redis,)
        self._rng = random.Random(seed)
        self._roster = Roster(ejection)
        self._policy = _policy(algorithm, SlowStart(slow_start), hash_bound)
        self.dispatcher = Dispatcher(
            self._roster,
            self._policy,
            retries=retries or Retries(),
            timeouts=self.timeouts,
            hedge=hedge,
            penalty=(ejection or Ejection()).penalty,
            rng=self._rng,
        )
        self.translator = Translator(
            self._roster,
            self.rules,
            self.limits,
            self.timeouts,
            sticky=StickyCookie(sticky) if sticky is not None else None,
            hash_key=(hash_key or self.rules.client_address) if algorithm == "ip-hash" else None,
            strip_mount=strip_mount,
            strict_query=strict_query,
        )
        networks = allowed(registry_networks)
        self._registry = Registry(self.redis, registry, networks, poll=poll) if self.redis is not None else None
        self._members = Members(
            self._roster,
            self.dispatcher,
            limits=self.limits,
            health=health,
            redis=self.redis,
            registry=self._registry,
            registry_name=registry,
            poll=poll,
            rng=self._rng,
        )
        self._members.configure(os.environ.get(ENVIRONMENT, "") if backends is None else backends)

    def __repr__(self) -> str:
        return f"<LoadBalancer {len(self._roster.endpoints)} backends, {self.in_flight} in flight>"

    @property
    def stats(self) -> Stats:
        return self.dispatcher.stats

    @property
    def in_flight(self) -> int:
        """Requests and WebSockets that hold a backend now."""
        return self.dispatcher.in_flight

    @property
    def endpoints(self) -> Sequence[Endpoint]:
        """The members and what is known of them; to be read only."""
        return self._roster.endpoints

    # What user code calls

    async def get_backend_url(self, key: str = "") -> str:
        """The URL of the backend the next request would go to. `key` is what `ip-hash` hashes.

        Raises LoadBalancerError if no backend is available.
        """
        await self.started()
        candidates = self._roster.candidates(monotonic(), self._rng)
        if not candidates:
            raise Unavailable("no backend is available")
        endpoint = self._policy.pick(candidates, monotonic(), self._rng, key.encode())
        return endpoint.backend.url

    async def forward_request(self, request: Request) -> Response:
        """Forward a Starlette request and return a response that streams the answer when it is sent.

        Raises LoadBalancerError when there is nobody to send it to or it must not be sent, BackendError when the
        backends that were asked have failed. A body that was read before is sent all the same; EnhanceError if it was
        read as a stream.
        """
        runtime = await self.started()
        self.stats.requests += 1
        with self.translator.request(request.scope, receive_of(request), runtime) as exchange:
            if exchange.method == "CONNECT":
                raise Rejected(405, "This proxy opens no tunnels.")
            answer = await self.dispatcher.forward(exchange, runtime)
            return ForwardedResponse(exchange, answer, self.translator.response(exchange, answer, request.scope))

    async def health_check(self) -> dict[str, dict[str, Any]]:
        """Ask every backend now and report, by backend, whether it answered and what is known of it."""
        await self.started()
        return await self._members.health_check()

    def report(self) -> dict[str, dict[str, Any]]:
        """What is known of every backend, without asking any."""
        return self._members.report()

    def add_backend(self, backend: Backend | str) -> None:
        """Add a backend, or take the new description of one that is here, or bring back one that was drained."""
        self._members.add(Backend.of(backend), self._running())

    def remove_backend(self, name: str) -> None:
        """Give a backend nothing new, let its requests end, close its WebSockets (1001) and forget it."""
        self._members.remove(name, self._running())

    def set_weight(self, name: str, weight: float) -> None:
        """Change a backend's share; 0 gives it nothing new."""
        self._members.set_weight(name, weight)

    async def drain(self, name: str, *, timeout: float = 30.0) -> bool:  # noqa: ASYNC109 a deadline of the drain itself
        """Give a backend nothing new and wait for what it has; after `timeout` its WebSockets are closed with 1001.

        True if nothing is in flight there any more. `add_backend` brings it back.
        """
        return await self._members.drain(name, await self.started(), timeout)

    async def register(self, backend: Backend | str) -> None:
        """Make a backend known to all gateways of the registry. Raises ConfigError, RedisUnavailable."""
        await self._shared().put(Backend.of(backend))

    async def deregister(self, url: str) -> None:
        """Make all gateways of the registry forget a backend. Raises ConfigError, RedisUnavailable."""
        await self._shared().drop(url)

    async def close(self) -> None:
        """End what is under way (503, WebSockets 1001), every connection and task on this event loop.

        Idempotent; a later request starts anew.
        """
        await self.aclose()

    # Inside

    def _shared(self) -> Registry:
        if self._registry is None:
            raise ConfigError("redis must be given for backends to be shared")
        return self._registry

    def _running(self) -> Runtime | None:
        """The runtime of the running loop; members may also change where no loop runs yet."""
        try:
            return self.opened()
        except RuntimeError:
            return None

    # Resource

    def _upstream(self, endpoint: Endpoint, tasks: Tasks, websocket: bool) -> Upstream:
        backend, timeouts, limits = endpoint.backend, self.timeouts, self.limits
        rewrite = self.rules.forwarding.host == "rewrite"
        if websocket:
            return WebSocketUpstream(backend, timeouts=timeouts, limits=limits, rewrite_host=rewrite)
        if backend.transport is not None:
            return TransportUpstream(backend, tasks, timeouts=timeouts, rewrite_host=rewrite)
        return Http1Upstream(backend, tasks, timeouts=timeouts, limits=limits, rewrite_host=rewrite)

    async def _start(self) -> Runtime:
        runtime = Runtime(self._upstream, self.dispatcher.ended)
        try:
            await self._members.start(runtime)
        except BaseException:
            await runtime.aclose()
            raise
        return runtime

    async def _stop(self, value: Runtime) -> None:
        await value.aclose()


def _policy(algorithm: Algorithm, slow_start: SlowStart, bound: float | None) -> Policy:
    if algorithm == "ip-hash":
        return IpHash(slow_start, bound=bound)
    return POLICIES[algorithm](slow_start)
