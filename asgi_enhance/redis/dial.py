"""Making connections to one server, with redis-py."""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

from redis.asyncio.connection import AbstractConnection, Connection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from asgi_enhance.errors import ConfigError, RedisUnavailable


class Dialer:
    """Knows one server and how to connect to it: within `timeout` seconds, once, or `RedisUnavailable`."""

    def __init__(self, options: Mapping[str, Any], *, timeout: float) -> None:
        self._timeout = timeout
        given = {"protocol": 2, **options}
        self._make: type[AbstractConnection] = given.pop("connection_class", Connection)
        self._options = {
            **given,
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            "health_check_interval": 0,
            "decode_responses": False,
            "retry": Retry(NoBackoff(), 0),
        }
        try:
            self._new()
        except (TypeError, ValueError, RedisError) as error:
            raise ConfigError(f"url: {error}") from None

    @property
    def label(self) -> str:
        if issubclass(self._make, UnixDomainSocketConnection):
            return f"unix://{self._options.get('path', '')}"
        return f"{self._options.get('host', 'localhost')}:{self._options.get('port', 6379)}"

    def at(self, host: str, port: int) -> "Dialer":
        """The same for another server."""
        return Dialer(
            {**self._options, "connection_class": self._make, "host": host, "port": port}, timeout=self._timeout
        )

    def client_options(self, timeout: float) -> dict[str, Any]:
        """The options of a redis-py pool for the same server, with a deadline of its own for replies."""
        return {**self._options, "connection_class": self._make, "socket_timeout": timeout}

    async def connect(self) -> AbstractConnection:
        connection = self._new()
        try:
            async with asyncio.timeout(self._timeout):
                await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException as error:
            with contextlib.suppress(RedisError, OSError):
                await connection.disconnect(nowait=True)
            if isinstance(error, TimeoutError):
                raise RedisUnavailable(f"{self.label} did not accept within {self._timeout:g} s") from error
            if isinstance(error, RedisError | OSError):
                raise RedisUnavailable(f"{self.label}: {error}") from error
            raise
        return connection

    def _new(self) -> AbstractConnection:
        return self._make(**self._options)
