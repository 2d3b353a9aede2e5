"""Active health checks: one loop a backend, a GET on a connection of its own, redirects not followed.

A backend with a `transport` is asked by that: it may be reached no other way.

With a `Shared` board (Redis) only the holder of a backend's lease asks it; the others take its verdict while that is
fresh, and ask themselves when it is not. Good news from elsewhere is believed only after a good check of one's own.
"""

import asyncio
import logging
import random
from time import monotonic
from typing import Protocol

from asgi_enhance.balance.backend import Backend, Endpoint
from asgi_enhance.balance.health import Roster
from asgi_enhance.balance.options import HealthCheck
from asgi_enhance.balance.upstream.http1 import Connection
from asgi_enhance.balance.upstream.pool import dial, tls_of
from asgi_enhance.balance.upstream.transport import get

logger = logging.getLogger("asgi_enhance.balance")

JITTER = 0.2
MAX_BODY = 65_536
MAX_HEAD = 16_384


class Board(Protocol):
    """Where gateways share what their checks found. Never raises: without Redis nobody leads and nothing is known."""

    async def leads(self, endpoint: Endpoint) -> bool:
        """Whether this gateway is the one to ask the backend now."""

    async def tell(self, endpoint: Endpoint) -> None:
        """Publish the verdict."""

    async def verdict(self, endpoint: Endpoint) -> bool | None:
        """The leader's verdict while it is fresh."""


async def watch(
    endpoint: Endpoint, check: HealthCheck, roster: Roster, rng: random.Random, board: Board | None
) -> None:
    """Check one backend for ever."""
    await asyncio.sleep(check.interval * rng.random() * JITTER)
    while True:
        told = None
        leads = board is None or await board.leads(endpoint)
        if board is not None and not leads:
            told = await board.verdict(endpoint)
        if told is False:
            if roster.judged(endpoint, False, monotonic()):
                _log(endpoint, "another gateway found it so")
        elif told is None or not endpoint.checked:
            wrong = await probe(endpoint.backend, check)
            rise = 1 if told else check.rise
            now = monotonic()
            if wrong:
                endpoint.last_failure, endpoint.failed_at = wrong, now
            if roster.checked(endpoint, not wrong, now, rise=rise, fall=check.fall, uneject=check.uneject):
                _log(endpoint, wrong)
            if board is not None and leads:
                await board.tell(endpoint)
        pause = check.fast if endpoint.verdicts else check.interval
        await asyncio.sleep(pause * (1 + JITTER * (2 * rng.random() - 1)))


def _log(endpoint: Endpoint, why: str) -> None:
    if endpoint.checked:
        logger.warning("%s is up again", endpoint.name)
    else:
        logger.warning("%s is down: %s", endpoint.name, why)


async def probe(backend: Backend, check: HealthCheck) -> str:
    """One check: does the backend answer the path in time with a status that is expected? What is wrong, or nothing."""
    target = backend.target(*_split(check.path))
    host = (check.host or backend.host or backend.authority.decode()).encode()
    try:
        async with asyncio.timeout(check.timeout):
            if backend.transport is not None:
                status = await get(backend, target, host, max_body=MAX_BODY)
            else:
                status = await _get(backend, target, host)
        return "" if status in check.expect else f"GET {check.path} was answered {status}"
    except TimeoutError:
        return f"GET {check.path} was not answered within {check.timeout:g} s"
    except Exception as error:
        return f"GET {check.path}: {error}"


async def _get(backend: Backend, target: bytes, host: bytes) -> int:
    """The status of an answer that has arrived whole, or up to what is read of it."""
    connection = Connection(asyncio.get_running_loop(), _Nobody(), max_head=MAX_HEAD)
    try:
        await dial(backend, connection, tls_of(backend))
        request = b"GET %b HTTP/1.1\r\nhost: %b\r\nconnection: close\r\n\r\n" % (target, host)
        connection.begin(request, to_head=False, whole=True)
        while (status := connection.status) is None:
            await connection.progress()
        size = 0
        while size <= MAX_BODY and (piece := await connection.read()):
            size += len(piece)
        return status
    finally:
        connection.abort()


def _split(path: str) -> tuple[bytes, bytes]:
    before, _, query = path.encode().partition(b"?")
    return before, query


class _Nobody:
    """A connection for one check has no pool."""

    def lost(self, connection: Connection) -> None:
        pass
