"""Making connections with redis-py: to a server, or to the primary that Sentinels name."""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

import redis.asyncio
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from asgi_enhance.asgi.tasks import check_cancelled
from asgi_enhance.errors import ConfigError, RedisUnavailable
from asgi_enhance.redis.address import Address


class Dialer:
    """Connects to one server: within `timeout` seconds, once, or `RedisUnavailable` with the bare reason."""

    def __init__(self, options: Mapping[str, Any], *, timeout: float) -> None:
        self.timeout = timeout
        # RESP2 gives every reply the same shape on all servers; `?protocol=3` in the URL asks for RESP3.
        given = {"protocol": 2, **options}
        self._connection: type[AbstractConnection] = given.pop("connection_class", Connection)
        self._options = {
            **given,
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            "health_check_interval": 0,
            "decode_responses": False,
            "retry": Retry(NoBackoff(), 0),
        }
        self._make()  # complains of options there are not

    @property
    def label(self) -> str:
        """What errors and log lines call the server."""
        if issubclass(self._connection, UnixDomainSocketConnection):
            return f"unix://{self._options.get('path', '')}"
        return f"{self._options.get('host', 'localhost')}:{self._options.get('port', 6379)}"

    @property
    def options(self) -> dict[str, Any]:
        return {**self._options, "connection_class": self._connection}

    def client_options(self, timeout: float) -> dict[str, Any]:
        """What redis-py's Sentinel and Cluster clients take, which choose hosts and classes of connections."""
        options = {**self._options, "socket_timeout": timeout, "ssl": issubclass(self._connection, SSLConnection)}
        options.pop("host", None)
        options.pop("port", None)
        return options

    def at(self, host: str, port: int, **changes: Any) -> "Dialer":
        """The same for another server."""
        return Dialer({**self.options, "host": host, "port": port, **changes}, timeout=self.timeout)

    async def connect(self) -> AbstractConnection:
        connection = self._make()
        try:
            async with asyncio.timeout(self.timeout):
                await connection.connect()  # type: ignore[no-untyped-call]
        except TimeoutError as error:
            raise RedisUnavailable(f"no connection within {self.timeout:g} s") from error
        except (RedisError, OSError) as error:
            raise RedisUnavailable(str(error)) from error
        try:
            check_cancelled()
        except asyncio.CancelledError:
            await hang_up(connection)
            raise
        return connection

    def client(self, timeout: float) -> redis.asyncio.Redis:
        """redis-py's client for the same server; its replies may take `timeout` seconds."""
        pool = redis.asyncio.ConnectionPool(**{**self.options, "socket_timeout": timeout})
        return redis.asyncio.Redis.from_pool(pool)

    def _make(self) -> AbstractConnection:
        return self._connection(**self._options)


class SentinelDialer:
    """Connects to the primary of `address.service`, as the first Sentinel that answers names it."""

    def __init__(self, address: Address, primary: Dialer, sentinel: Dialer) -> None:
        self.label = f"{address.service} (by Sentinel)"
        self._service = address.service
        self._primary = primary
        self._sentinels = [sentinel.at(host, port) for host, port in address.seeds]

    async def connect(self) -> AbstractConnection:
        connection = await self._primary.at(*await self._find()).connect()
        try:
            async with asyncio.timeout(self._primary.timeout):
                role, *_ = await _ask(connection, "ROLE")
        except BaseException as error:
            await hang_up(connection)
            if isinstance(error, TimeoutError | RedisError | OSError):
                raise RedisUnavailable(f"the primary does not tell its role: {error!r}") from error
            raise
        if role != b"master":  # a Sentinel may not know yet of a failover
            await hang_up(connection)
            raise RedisUnavailable(f"what Sentinel names as the primary is a {role.decode()}")
        return connection

    def client(self, timeout: float) -> redis.asyncio.Redis:
        """redis-py's client, which asks the Sentinels on its own."""
        options = self._primary.client_options(timeout)
        sentinel = redis.asyncio.Sentinel([], **options)  # type: ignore[no-untyped-call]
        sentinel.sentinels = [dialer.client(dialer.timeout) for dialer in self._sentinels]
        client: redis.asyncio.Redis = sentinel.master_for(self._service)
        return client

    async def _find(self) -> tuple[str, int]:
        said: list[str] = []
        for dialer in tuple(self._sentinels):
            try:
                connection = await dialer.connect()
                try:
                    async with asyncio.timeout(dialer.timeout):
                        found = await _ask(connection, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
                finally:
                    await hang_up(connection)
            except (RedisUnavailable, RedisError, OSError) as error:
                said.append(f"{dialer.label}: {error}")
                continue
            if found is not None:
                self._sentinels.remove(dialer)
                self._sentinels.insert(0, dialer)  # the first to be asked next time
                return found[0].decode(), int(found[1])
            said.append(f"{dialer.label} does not know {self._service!r}")
        raise RedisUnavailable(f"no Sentinel names a primary: {'; '.join(said)}")


def dialer_for(address: Address, *, timeout: float) -> Dialer | SentinelDialer:
    """What connects to `address`; for a cluster, to its first seed."""
    options = dict(address.options)
    login = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    try:
        dialer = Dialer(options, timeout=timeout)
        if address.kind == "cluster":
            return dialer.at(*address.seeds[0])
        if address.kind == "sentinel":
            return SentinelDialer(address, dialer, Dialer({**options, **login, "db": 0}, timeout=timeout))
    except (TypeError, ValueError, RedisError) as error:
        raise ConfigError(f"url: {address.label!r}: {error}") from None
    return dialer


async def hang_up(connection: AbstractConnection) -> None:
    with contextlib.suppress(RedisError, OSError):
        await connection.disconnect(nowait=True)


async def _ask(connection: AbstractConnection, *command: str) -> Any:
    await connection.send_command(*command)
    return await connection.read_response()
