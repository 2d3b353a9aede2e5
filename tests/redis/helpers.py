"""What several tests of the Redis manager need."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from asgi_enhance.redis import RedisManager


def patient(url: str, **options: Any) -> RedisManager:
    """A manager for tests in which time is not the point: a busy machine may take its own."""
    return RedisManager(url, **{"connect_timeout": 5.0, "command_timeout": 5.0, **options})


async def until(condition: Callable[[], object], *, seconds: float = 10.0) -> None:
    """Wait until the condition holds; fail when it does not in time."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.002)


async def until_true(condition: Callable[[], Awaitable[bool]], *, seconds: float = 10.0) -> None:
    """The same for a condition that has to be asked for."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def scripted(*scripts: Script, asked_for_run: bool = True) -> AsyncIterator[str]:
    """A server that plays `scripts`, one a connection (the last for all further ones), after the greetings; its URL.

    asked_for_run: connections are those of a node, which asks for the server's run first.
    """
    connections = 0  # so far
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        play = scripts[min(connections, len(scripts) - 1)]
        connections += 1
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            for _ in range(2):  # CLIENT SETINFO, twice
                await command(reader)
                writer.write(b"+OK\r\n")
            if asked_for_run:
                assert await command(reader) == [b"INFO", b"server"]
                writer.write(b"$14\r\nrun_id:1234567\r\n")
            await play(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 25)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


async def command(reader: asyncio.StreamReader) -> list[bytes]:
    """Read one command."""
    count = int((await reader.readuntil(b"\r\n"))[1:])
    words = []
    for _ in range(count):
        length = int((await reader.readuntil(b"\r\n"))[1:])
        words.append((await reader.readexactly(length + 2))[:-2])
    return words
