"""Backends by name: `dns+http://api.internal:8000` is every address the name has, asked again and again.

The resolver runs in a thread of the loop's, never in the path of a request. A failure or an empty answer changes
nothing: the last good list stays.
"""

import asyncio
import logging
import random
import socket
from collections.abc import Callable

from asgi_enhance.balance.backend import Backend

logger = logging.getLogger("asgi_enhance.balance")

PREFIX = "dns+"
FIRST_ANSWER = 1.0
"""Seconds the start of the balancer waits for a first answer."""


class DnsName:
    """One name that stands for many backends."""

    def __init__(self, url: str) -> None:
        self.pattern = Backend(url.removeprefix(PREFIX))

    async def resolve(self) -> list[Backend]:
        """The backends behind the name now. Raises OSError."""
        pattern = self.pattern
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(pattern.hostname, pattern.port, type=socket.SOCK_STREAM)
        addresses = sorted({str(entry[4][0]) for entry in found})
        return [Backend(pattern.url, address=address) for address in addresses]

    async def follow(self, apply: Callable[[list[Backend]], None], interval: float, rng: random.Random) -> None:
        """Hand on the addresses at every change, for ever."""
        last: list[Backend] = []
        failing = False
        while True:
            try:
                backends = await self.resolve()
            except (OSError, UnicodeError) as error:  # the second for what cannot be a name
                if not failing:
                    logger.warning("cannot resolve %s, its last addresses stay: %s", self.pattern.hostname, error)
                failing = True
            else:
                if failing:
                    logger.warning("%s is resolved again", self.pattern.hostname)
                failing = False
                if backends and backends != last:
                    last = backends
                    apply(backends)
            await asyncio.sleep(interval * (0.9 + 0.2 * rng.random()))
