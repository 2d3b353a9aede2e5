"""Starting and stopping: one room (`async with resource`), three doors into it.

1. `Lifespan(app, resource, …)` as the outermost wrapper, or any layer: each passes lifespan on and starts and stops
   what it holds on the way.
2. `resource.lifespan`, for a framework that takes a lifespan context manager.
3. The first use, for sub-apps (no framework hands lifespan to a `Mount`) and servers without lifespan.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from asgi_enhance.asgi.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("asgi_enhance")

T = TypeVar("T")


class _Room(Generic[T]):
    """What a resource holds on one event loop, and how many are in it."""

    __slots__ = ("held", "lock", "opened", "users", "value")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0
        self.opened = False
        self.held = AsyncExitStack()
        self.value: T | None = None


class Resource(Generic[T]):
    """Something that is started once on an event loop and stopped by its last user.

    A subclass says in `_start` how to open what belongs to the running loop (sockets, tasks) and in `_stop` how to
    close it. `async with` is counted, so layers may share a resource. What belonged to a loop that was closed
    under it is dropped, never reused.
    """

    needs: Sequence[AbstractAsyncContextManager[Any] | None] = ()
    """What it uses itself: entered before it starts and left when it has stopped, also if either fails half-way."""

    def __init__(self) -> None:
        self._rooms: dict[asyncio.AbstractEventLoop, _Room[T]] = {}
        self._here: tuple[asyncio.AbstractEventLoop | None, T | None] = (None, None)

    async def _start(self) -> T:
        raise NotImplementedError

    async def _stop(self, value: T) -> None:
        raise NotImplementedError

    def _drop(self, value: T) -> None:
        """Let go of what belonged to a loop that is closed; nothing can be awaited any more."""

    def opened(self) -> T | None:
        """What `_start` gave on the running loop, or None if it has not been started there. Quick."""
        loop, value = self._here
        return value if loop is asyncio.get_running_loop() else self._look_up()

    async def started(self) -> T:
        """What `_start` gave on the running loop; started now if it has not been (the third door)."""
        loop, value = self._here
        if value is not None and loop is asyncio.get_running_loop():
            return value
        return await self._open(self._room())

    async def __aenter__(self) -> Self:
        room = self._room()
        room.users += 1
        try:
            await self._open(room)
        except BaseException:
            await self.__aexit__(None, None, None)  # others may have come and gone while this one waited
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        room = self._room()
        room.users = max(0, room.users - 1)
        if room.users == 0:
            await self.aclose()

    async def aclose(self) -> None:
        """Stop on the running loop, whoever still uses it. Idempotent.

        Users stay counted until they leave: one who leaves late must not close what others have started since.
        """
        loop = asyncio.get_running_loop()
        room = self._rooms.get(loop)
        if room is None:
            return
        async with room.lock:
            if not room.opened:
                return
            value, room.opened, room.value = room.value, False, None
            self._here = (None, None)
            async with room.held:
                await self._stop(value)  # type: ignore[arg-type]

    def lifespan(self, app: Any = None) -> AbstractAsyncContextManager[None]:
        """The second door: `Starlette(lifespan=resource.lifespan)`, or `enter_async_context` in one of your own."""
        return self._lifespan()

    @asynccontextmanager
    async def _lifespan(self) -> AsyncIterator[None]:
        async with self:
            yield

    def _room(self) -> _Room[T]:
        loop = asyncio.get_running_loop()
        room = self._rooms.get(loop)
        if room is None:
            for closed in [other for other in list(self._rooms) if other.is_closed()]:
                left = self._rooms.pop(closed, None)  # loops of other threads look here, too
                if left is not None and left.opened:
                    self._drop(left.value)  # type: ignore[arg-type]
            room = self._rooms[loop] = _Room()
        return room

    def _look_up(self) -> T | None:
        loop = asyncio.get_running_loop()
        room = self._rooms.get(loop)
        if room is None or not room.opened:
            return None
        self._here = (loop, room.value)
        return room.value

    async def _open(self, room: _Room[T]) -> T:
        async with room.lock:
            if not room.opened:
                async with AsyncExitStack() as held:
                    for need in self.needs:
                        if need is not None:
                            await held.enter_async_context(need)
                    room.value = await self._start()
                    room.held = held.pop_all()
                room.opened = True
            value = room.value
        self._here = (asyncio.get_running_loop(), value)
        return value  # type: ignore[return-value]


class Lifespan:
    """The first door: wraps any app, starts `resources` before its start-up and stops them after its shutdown.

    An app that does not speak lifespan is served all the same.
    """

    def __init__(self, app: ASGIApp, *resources: AbstractAsyncContextManager[Any]) -> None:
        self.app = app
        self.resources = resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await run_lifespan(self.app, scope, receive, send, self.resources)
        else:
            await self.app(scope, receive, send)


async def run_lifespan(
    app: ASGIApp | None,
    scope: Scope,
    receive: Receive,
    send: Send,
    resources: Sequence[AbstractAsyncContextManager[Any]],
) -> None:
    """Answer the lifespan protocol with `resources` around the inner app's own start-up and shutdown."""
    if app is not None and not resources:
        await app(scope, receive, send)  # nothing to hold: the very same objects pass
        return
    startup = await receive()
    async with AsyncExitStack() as stack:
        inner = _InnerLifespan(startup, receive, send, stack)
        try:
            for resource in resources:
                await stack.enter_async_context(resource)
        except Exception as error:
            await inner.send({"type": "lifespan.startup.failed", "message": f"{type(error).__name__}: {error}"})
            raise
        if app is not None:
            await inner.run(app, scope)
        await inner.complete()


class _InnerLifespan:
    """One inner app's side of the protocol, completed for it where it says nothing."""

    def __init__(self, startup: Message, receive: Receive, send: Send, stack: AsyncExitStack) -> None:
        self._startup: Message | None = startup
        self._receive = receive
        self._send = send
        self._stack = stack
        self._answered = False  # the inner app has said how its start-up went
        self._stopping = False  # lifespan.shutdown has arrived
        self._done = False  # the server has had its last message

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        try:
            await app(scope, self.receive, self.send)
        except Exception:
            if self._answered or self._startup is None:
                raise
            # It raised before it read its first message: it does not speak lifespan.
            logger.debug("the wrapped app does not support lifespan", exc_info=True)

    async def complete(self) -> None:
        self._startup = None
        if not self._answered:
            await self.send({"type": "lifespan.startup.complete"})
        if self._done:
            return
        if not self._stopping:
            await self.receive()
        await self.send({"type": "lifespan.shutdown.complete"})

    async def receive(self) -> Message:
        if self._startup is not None:
            message, self._startup = self._startup, None
            return message
        message = await self._receive()
        self._stopping = True
        return message

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind.startswith("lifespan.shutdown.") or kind == "lifespan.startup.failed":
            self._done = True
            try:
                await self._stack.aclose()  # before the word goes out: servers cancel whatever is left then
            except Exception as error:
                text = f"{type(error).__name__}: {error}"
                if kind == "lifespan.shutdown.complete":
                    await self._send({"type": "lifespan.shutdown.failed", "message": text})
                    raise
                logger.exception("a resource failed to stop")
        if kind.startswith("lifespan.startup."):
            self._answered = True
        await self._send(message)
