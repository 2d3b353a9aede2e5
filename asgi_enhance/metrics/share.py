"""Adds the metrics of all workers up: each ships what it has counted, and any of them can answer for all.

Through Redis a worker ships differences every few seconds, away from requests. A script adds each batch once, so a
batch whose fate is unknown is simply sent again. What has been counted survives the worker; its gauges are gone a few
intervals after it. While Redis is away, differences grow and are shipped later; each worker answers for itself.

Through a directory (prometheus_client's multiprocess mode) a worker writes a file of its own that the others read.
"""

import asyncio
import os
import socket
from collections.abc import Awaitable, Iterable
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from secrets import token_hex
from time import time
from typing import TYPE_CHECKING, Any, Protocol
from zlib import crc32

import msgspec

from asgi_enhance.errors import RedisUnavailable
from asgi_enhance.metrics import state
from asgi_enhance.metrics.slices import slowly
from asgi_enhance.metrics.state import Record, Records, Report
from asgi_enhance.metrics.totals import Totals
from asgi_enhance.metrics.window import SLOT, WINDOWS

if TYPE_CHECKING:
    from asgi_enhance.redis import RedisManager

Argument = str | bytes | int | float

BATCH = 64
"""Records in one call of the script: the server is busy for less than a millisecond."""

TOTALS_LIVE = 7 * 86_400
"""Seconds the sums are kept when no worker adds to them."""

_SLOTS_LIVE = 2 * max(WINDOWS.values())

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(dict[str, float]).decode
_decode_report = msgspec.msgpack.Decoder(Report).decode


class Share(Protocol):
    """Where workers meet. `local` is what this process has counted; the answers are about all of them."""

    async def ship(self, local: Totals) -> None: ...
    async def gather(self, local: Totals, buckets: tuple[float, ...]) -> Totals: ...
    async def leave(self, local: Totals) -> None: ...


def worker_name() -> str:
    return f"{socket.gethostname()}:{os.getpid()}:{token_hex(2)}"


class RedisShare:
    """Workers meet in Redis. They ship every `interval` seconds; `fingerprint` keeps apart what cannot be added."""

    def __init__(self, redis: "RedisManager", *, interval: float, fingerprint: str) -> None:
        self._redis = redis
        self._worker = worker_name()
        self._patience = max(3 * interval, interval + 5)
        self._merge = redis.script(files(__package__).joinpath("merge.lua").read_text())
        self._report = redis.script(files(__package__).joinpath("report.lua").read_text())
        self._space = f"{{{crc32(fingerprint.encode()):08x}}}"
        self._shipped: dict[str, Records] = {}
        self._open = 0  # the number of the first slot that may still have something to ship
        self._sequence = 0
        self._held: tuple[str, list[Argument], Records] | None = None
        self._lock = asyncio.Lock()

    async def ship(self, local: Totals) -> None:
        """Send what is new. RedisUnavailable leaves everything unsent for the next time."""
        async with self._lock:
            if self._held is not None:
                await self._send(*self._held)
            await self._ship_records("totals", _records(local), TOTALS_LIVE)
            for slot in local.slots:
                if slot.number >= self._open:
                    await self._ship_records(f"slot:{slot.number}", state.slot_records(slot), _SLOTS_LIVE)
            # What was pending may still be folded into a slot that has just ended.
            self._open = max(self._open, local.slots[-3:][0].number)
            current = {"totals", *(f"slot:{slot.number}" for slot in local.slots if slot.number >= self._open)}
            self._shipped = {place: records for place, records in self._shipped.items() if place in current}
            await self._tell(_encode(state.report(local)))

    async def gather(self, local: Totals, buckets: tuple[float, ...]) -> Totals:
        await self.ship(local)
        last = int(time() // SLOT)
        numbers = range(last - max(WINDOWS.values()) // SLOT, last + 2)
        replies = await asyncio.gather(
            self._read("totals"), self._read("workers"), *(self._read(f"slot:{number}") for number in numbers)
        )
        records, workers, slots = replies[0], replies[1], replies[2:]
        totals = Totals(began=local.began)
        async for name, value in slowly(records.items()):
            state.restore(totals, name.decode(), _decode(value), buckets)
        for number, found in zip(numbers, slots, strict=True):
            if found:
                pairs = [(name.decode(), _decode(value)) async for name, value in slowly(found.items())]
                totals.slots.append(state.restore_slot(number, pairs))
        for worker, value in workers.items():
            state.restore_report(totals, worker.decode(), _decode_report(value.partition(b" ")[2]))
        return totals

    async def leave(self, local: Totals) -> None:
        with suppress(RedisUnavailable):
            await self.ship(local)
            await self._tell(b"")

    async def _ship_records(self, place: str, records: Iterable[tuple[str, Record]], live: int) -> None:
        shipped = self._shipped.setdefault(place, {})
        arguments: list[Argument] = []
        sent: Records = {}
        async for name, record in slowly(records):
            new = state.difference(record, shipped.get(name, {}))
            if not new:
                continue
            arguments += (name, _encode(new))
            sent[name] = record
            if len(sent) >= BATCH:
                await self._batch(place, live, arguments, sent)
                arguments, sent = [], {}
        if sent:
            await self._batch(place, live, arguments, sent)

    async def _batch(self, place: str, live: int, arguments: list[Argument], sent: Records) -> None:
        self._sequence += 1
        await self._send(place, [self._sequence, live, *arguments], sent)

    async def _send(self, place: str, arguments: list[Argument], sent: Records) -> None:
        keys = [self._key(place), self._key(f"batch:{self._worker}")]
        try:
            await _unless_refused(self._merge(keys=keys, args=arguments, idempotent=True))
        except RedisUnavailable as error:
            # It may have been added: until that is known, the very same batch goes first.
            if error.maybe_executed:
                self._held = (place, arguments, sent)
            raise
        self._held = None
        self._shipped.setdefault(place, {}).update(sent)

    async def _tell(self, report: bytes) -> None:
        arguments: list[Argument] = [self._worker, report, round(self._patience)]
        await _unless_refused(self._report(keys=[self._key("workers")], args=arguments, idempotent=True))

    async def _read(self, place: str) -> dict[bytes, bytes]:
        reply = await _unless_refused(self._redis.execute("HGETALL", self._key(place), idempotent=True))
        return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))

    def _key(self, place: str) -> str:
        return self._redis.key("metrics", self._space, place)


async def _unless_refused(asked: Awaitable[Any]) -> Any:
    """The reply. A server that refuses all of its kind, for want of memory or rights, is away: the manager says so."""
    from asgi_enhance.redis.pipeline import refusal  # the manager that was asked has imported redis-py already

    try:
        return await asked
    except Exception as error:
        if refusal(error):
            raise RedisUnavailable(f"redis refuses: {error}") from error
        raise


class _File(msgspec.Struct):
    """What a worker leaves in the directory; the long parts are encoded one by one, so that nobody waits for all."""

    pid: int
    records: dict[str, msgspec.Raw]
    slots: dict[int, msgspec.Raw]
    report: Report


_decode_file = msgspec.msgpack.Decoder(_File).decode
_decode_records = msgspec.msgpack.Decoder(Records).decode


class DirectoryShare:
    """Workers meet in a directory that is emptied before they start, as prometheus_client's mode demands."""

    def __init__(self, directory: Path, *, fingerprint: str) -> None:
        self._directory = directory
        self._suffix = f"{crc32(fingerprint.encode()):08x}.metrics"
        self._lock = asyncio.Lock()

    async def ship(self, local: Totals) -> None:
        records = {name: msgspec.Raw(_encode(record)) async for name, record in slowly(_records(local))}
        slots = {
            slot.number: msgspec.Raw(_encode(dict(state.slot_records(slot)))) async for slot in slowly(local.slots)
        }
        content = _encode(_File(os.getpid(), records, slots, state.report(local)))
        async with self._lock:
            await asyncio.to_thread(self._write, content)

    async def gather(self, local: Totals, buckets: tuple[float, ...]) -> Totals:
        await self.ship(local)
        totals = Totals(began=local.began)
        sums: Records = {}
        slots: dict[int, Records] = {}
        reports: list[tuple[str, Report]] = []
        for content in await asyncio.to_thread(self._contents):
            found = _decode_file(content)
            async for name, raw in slowly(found.records.items()):
                state.add(sums, name, _decode(raw))
            async for number, raw in slowly(found.slots.items()):
                for name, record in _decode_records(raw).items():
                    state.add(slots.setdefault(number, {}), name, record)
            if _alive(found.pid):
                reports.append((f"{socket.gethostname()}:{found.pid}", found.report))
        async for name, record in slowly(sums.items()):
            state.restore(totals, name, record, buckets)
        async for number, records in slowly(sorted(slots.items())):
            totals.slots.append(state.restore_slot(number, records.items()))
        for worker, report in reports:
            state.restore_report(totals, worker, report)
        return totals

    async def leave(self, local: Totals) -> None:
        await self.ship(local)

    def _write(self, content: bytes) -> None:
        path = self._directory / f"asgi_enhance_{os.getpid()}_{self._suffix}"
        new = path.with_suffix(".new")
        new.write_bytes(content)
        new.replace(path)  # readers see the old one or the new one

    def _contents(self) -> list[bytes]:
        found = []
        for path in sorted(self._directory.glob(f"asgi_enhance_*_{self._suffix}")):
            with suppress(OSError):
                found.append(path.read_bytes())
        return found


def _records(local: Totals) -> Iterable[tuple[str, Record]]:
    for series in local.requests:
        yield state.request_record(series)
    for sockets in local.sockets:
        yield state.socket_record(sockets)
    for (route, kind), count in list(local.exceptions.items()):
        yield state.exception_record(route, kind, count)
    for row in local.rows:
        if row.kind == "counter":
            yield state.row_record(row)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
