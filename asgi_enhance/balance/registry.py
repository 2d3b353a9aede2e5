"""The list of backends shared by all gateways through Redis, and what their active checks found.

One hash and a version that only grows. A published hint makes a change known at once, a poll makes it known anyway,
and while Redis is away the last good list stays. Whoever may write to Redis could point the balancer anywhere, so only
addresses inside the allowed networks are taken. Load, latency and ejections stay local: no request waits for Redis.
"""

import asyncio
import logging
import random
import secrets
from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import msgspec
from redis.exceptions import RedisError

from asgi_enhance.balance.backend import Backend, Endpoint
from asgi_enhance.errors import ConfigError, RedisUnavailable
from asgi_enhance.redis import RedisManager

logger = logging.getLogger("asgi_enhance.balance")

PRIVATE = ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7")
MAX_BACKENDS = 4096

_FAILURES = (RedisUnavailable, RedisError)


class Entry(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """How a backend is described in the registry."""

    weight: float = 1.0
    priority: int = 0


def allowed(networks: Iterable[str]) -> list[IPv4Network | IPv6Network]:
    """Networks as the registry needs them. Raises ConfigError."""
    try:
        return [ip_network(network) for network in networks]
    except ValueError as error:
        raise ConfigError(f"registry_networks: {error}") from None


class Registry:
    """One named list of backends in Redis."""

    def __init__(
        self, redis: RedisManager, name: str, networks: Sequence[IPv4Network | IPv6Network], *, poll: float
    ) -> None:
        self._redis = redis
        self._networks = networks
        self._poll = poll
        self._keys = [redis.key("balance", f"{{{name}}}", part) for part in ("backends", "version")]
        self._channel = redis.key("balance", f"{{{name}}}", "changed")
        self._read = redis.script(_lua("registry_read"))
        self._write = redis.script(_lua("registry_write"))
        self._version = b""

    async def put(self, backend: Backend) -> None:
        """Make a backend known to all gateways. Raises ConfigError for one they would not take, RedisUnavailable."""
        if not self._may(backend):
            raise ConfigError(f"{backend.url!r} is not an address inside registry_networks")
        if backend != Backend(backend.url, weight=backend.weight, priority=backend.priority):
            raise ConfigError(f"of {backend.url!r} only url, weight and priority can be shared")
        entry = msgspec.json.encode(Entry(weight=backend.weight, priority=backend.priority))
        await self._write(keys=self._keys, args=[backend.url, entry, self._channel])

    async def drop(self, url: str) -> None:
        """Make all gateways forget a backend. Raises RedisUnavailable."""
        await self._write(keys=self._keys, args=[url, b"", self._channel])

    async def follow(self, apply: Callable[[list[Backend]], None], rng: random.Random) -> None:
        """Hand on the list now and after every change, for ever."""
        hint = asyncio.Event()
        self._version = b""
        subscription = self._redis.subscribe(self._channel, lambda _: hint.set(), on_gap=hint.set)
        try:
            while True:
                hint.clear()
                try:
                    backends = await self.read()
                    if backends is not None:
                        apply(backends)
                except _FAILURES as error:
                    logger.debug("the registry cannot be read, the last list stays: %s", error)
                try:
                    async with asyncio.timeout(self._poll * (0.8 + 0.4 * rng.random())):
                        await hint.wait()
                except TimeoutError:
                    pass
        finally:
            await subscription.close()

    async def read(self) -> list[Backend] | None:
        """The list, or None if it has not changed since the last read or there is none."""
        reply = await self._read(keys=self._keys, args=[self._version], idempotent=True)
        version: bytes = reply[0]
        if not version or len(reply) == 1:
            return None
        flat: list[bytes] = reply[1]
        backends: list[Backend] = []
        for url, description in zip(flat[::2][:MAX_BACKENDS], flat[1::2], strict=False):
            backend = self._backend(url, description)
            if backend is not None:
                backends.append(backend)
        self._version = version
        return backends

    def _backend(self, url: bytes, description: bytes) -> Backend | None:
        try:
            entry = msgspec.json.decode(description, type=Entry)
            backend = Backend(url.decode(), weight=entry.weight, priority=entry.priority)
        except (ConfigError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            logger.warning("the registry holds something that is no backend: %r (%s)", url, error)
            return None
        if not self._may(backend):
            logger.warning("the registry holds %s, which is not inside registry_networks", backend.url)
            return None
        return backend

    def _may(self, backend: Backend) -> bool:
        try:
            address = ip_address(backend.hostname)
        except ValueError:
            return False
        return any(address in network for network in self._networks if network.version == address.version)


class RedisBoard:
    """`checks.Board` in Redis: a lease a backend, and the verdict of its holder for three intervals."""

    def __init__(self, redis: RedisManager, name: str, interval: float) -> None:
        self._redis = redis
        self._name = f"{{{name}}}"
        self._token = secrets.token_bytes(12)
        self._life = max(1, int(3000 * interval))

    async def leads(self, endpoint: Endpoint) -> bool:
        key = self._redis.key("balance", self._name, "lease", endpoint.id)
        try:
            holder = await self._redis.execute("SET", key, self._token, "NX", "GET", "PX", self._life)
            if holder == self._token:
                await self._redis.execute("SET", key, self._token, "XX", "PX", self._life)
            return holder is None or holder == self._token
        except _FAILURES:
            return True

    async def tell(self, endpoint: Endpoint) -> None:
        key = self._redis.key("balance", self._name, "verdict", endpoint.id)
        try:
            await self._redis.execute("SET", key, b"1" if endpoint.checked else b"0", "PX", self._life)
        except _FAILURES as error:
            logger.debug("the verdict on %s stays here: %s", endpoint.name, error)

    async def verdict(self, endpoint: Endpoint) -> bool | None:
        key = self._redis.key("balance", self._name, "verdict", endpoint.id)
        try:
            value = await self._redis.execute("GET", key, idempotent=True)
        except _FAILURES:
            return None
        return None if value is None else value == b"1"


def _lua(name: str) -> str:
    return files(__package__ or "asgi_enhance.balance").joinpath(f"{name}.lua").read_text()
