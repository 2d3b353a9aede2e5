"""Redis tells which keys have changed (CLIENT TRACKING, broadcasting mode), on a connection of its own.

Whoever keeps copies may believe them only while this connection is known to be alive: `current` says so. It is asked
for a sign of life every second, and everything is to be forgotten whenever it is made anew.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

import redis.asyncio
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from asgi_enhance.asgi.tasks import check_cancelled

SIGN_OF_LIFE: Final = 1.0
"""Seconds between questions; a connection that is silent for twice as long is given up."""
FIRST_DELAY: Final = 0.1
LAST_DELAY: Final = 5.0


class Tracking:
    """Keeps a tracking connection, for as long as `run` runs.

    on_change: called with the name of each key that has changed; None: with all of them.
    on_gap:    called when changes may have been missed.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        prefix: str,
        on_change: Callable[[bytes | None], None],
        on_gap: Callable[[], None],
    ) -> None:
        self.current = False
        self._client = client
        self._prefix = prefix
        self._on_change = on_change
        self._on_gap = on_gap

    async def run(self) -> None:
        delay = FIRST_DELAY
        while True:
            try:
                async with asyncio.timeout(2 * SIGN_OF_LIFE):
                    connection = await self._connect()
            except (RedisError, OSError, TimeoutError):
                await asyncio.sleep(delay)
                delay = min(delay * 2, LAST_DELAY)
                continue
            delay = FIRST_DELAY
            try:
                await self._listen(connection)
            except (RedisError, OSError, TimeoutError):
                pass
            finally:
                self.current = False
                self._on_gap()
                with contextlib.suppress(RedisError, OSError):
                    await connection.disconnect(nowait=True)

    async def _connect(self) -> AbstractConnection:
        pool = self._client.connection_pool
        # Pushes come in RESP3 only, and whenever they like: a deadline on reading would end the connection
        options = {**pool.connection_kwargs, "protocol": 3, "socket_timeout": None}
        connection: AbstractConnection = pool.connection_class(**options)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            parser: Any = connection._parser
            parser.set_invalidation_push_handler(self._changed)
            await connection.send_command("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", self._prefix)
            await connection.read_response()
            check_cancelled()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    async def _listen(self, connection: AbstractConnection) -> None:
        self._on_gap()  # what changed before this connection was there is unknown
        self.current = True
        asking = asyncio.ensure_future(self._ask(connection))
        try:
            while True:
                async with asyncio.timeout(2 * SIGN_OF_LIFE):
                    await connection.read_response()
        finally:
            asking.cancel()
            await asyncio.wait([asking])

    async def _ask(self, connection: AbstractConnection) -> None:
        while True:
            await asyncio.sleep(SIGN_OF_LIFE)
            try:
                await connection.send_command("PING")
            except (RedisError, OSError):
                return  # the reader finds out as well
            check_cancelled()

    async def _changed(self, push: list[Any]) -> None:
        keys = push[1]
        if keys is None:  # FLUSHALL, FLUSHDB
            self._on_change(None)
        else:
            for key in keys:
                self._on_change(key)
