"""What clients send: read, limited, understood and answered. An error is an answer, never the end of a connection."""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from asgi_enhance.asgi.types import Message, Receive
from asgi_enhance.broadcast.connection import Connection
from asgi_enhance.broadcast.hub import Hub
from asgi_enhance.broadcast.log import Position, Start
from asgi_enhance.broadcast.policy import Action, TokenBucket, checked_name
from asgi_enhance.broadcast.wire import Frame, asgi_message, control, decode, encode
from asgi_enhance.errors import EnhanceError, RedisUnavailable, WebSocketError

logger = logging.getLogger("asgi_enhance.broadcast")

TOO_BIG = 1009

Handler = Callable[[str, Any], Any]
"""`handler(client_id, message)`, sync or async; what it returns, if not None, is sent back."""


@dataclass(frozen=True, slots=True)
class Processor:
    """A handler, and the type its messages are converted to (None: the decoded JSON object)."""

    handle: Handler
    schema: Any = None


class Rejected(EnhanceError):
    """A request of a client that is answered with an error frame: its code, and a detail fit for the client."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class Requests(Protocol):
    """What a client may ask the processor for."""

    async def disconnect(self, connection: Connection) -> None: ...

    async def allowed(self, client_id: str, group: str, action: Action) -> bool: ...

    async def enter(
        self,
        connection: Connection,
        name: str,
        since: Start = None,
        *,
        asked: bool = False,
        ref: object = None,
    ) -> None: ...

    def exit(self, connection: Connection, name: str) -> None: ...

    async def publish(self, group: str, data: bytes, key: str | None, idempotency_key: str | None) -> str | None: ...

    async def presence(self, group: str) -> list[str]: ...


RESERVED = ("join", "leave", "publish", "presence", "ping")


class Inbound:
    """The receive loops of all connections on one event loop, and their handlers."""

    def __init__(self, hub: Hub, processors: Mapping[str, Processor], requests: Requests) -> None:
        self._hub = hub
        self._shared = shared = hub.shared
        self._processors = processors
        self._requests = requests
        self._slots = asyncio.Semaphore(shared.limits.handlers)
        self._control: dict[str, Callable[[Connection, dict[str, Any]], Awaitable[None]]] = {
            "join": self._join,
            "leave": self._leave,
            "publish": self._publish,
            "presence": self._presence,
            "ping": self._ping,
        }

    async def listen(self, connection: Connection, receive: Receive) -> None:
        """Serve a connection until its client has left or it is let go; then forget it.

        An idle connection waits in here: what called this keeps its frame for as long, so it is called from the top.
        """
        task = connection.reader = asyncio.current_task()
        assert task is not None
        try:
            while not connection.released:
                message = await receive()
                if message["type"] == "websocket.receive":
                    await self._received(connection, message)
                elif message["type"] in ("websocket.disconnect", "http.disconnect"):
                    break
        except asyncio.CancelledError:
            if not connection.released or task.uncancel() > 0:
                raise
        finally:
            connection.reader = None
            await self._requests.disconnect(connection)

    async def _received(self, connection: Connection, message: Message) -> None:
        shared, limits = self._shared, self._shared.limits
        shared.stats.received += 1
        payload = message.get("text")
        if payload is None:
            payload = message.get("bytes") or b""
        if len(payload) > limits.message_bytes or (
            4 * len(payload) > limits.message_bytes
            and isinstance(payload, str)
            and len(payload.encode()) > limits.message_bytes
        ):
            connection.close(TOO_BIG, f"messages are limited to {limits.message_bytes} bytes")
            return
        now = shared.loop.time()
        if connection.last_seen is not None:
            connection.last_seen = now
        if connection.bucket is None:
            connection.bucket = TokenBucket(limits.inbound_burst, now)
        wait = connection.bucket.take(limits.inbound_rate, limits.inbound_burst, now)
        if wait:
            shared.stats.throttled += 1
            await asyncio.sleep(wait)
        # who does not read his answers gets no further ones
        await connection.flushed()
        await self._answer(connection, payload)

    async def _answer(self, connection: Connection, payload: str | bytes) -> None:
        ref: object = None
        try:
            try:
                request = decode(payload)
            except (msgspec.DecodeError, RecursionError):
                raise Rejected("bad-json", "the message is not JSON") from None
            if not isinstance(request, dict) or not isinstance(request.get("type"), str):
                raise Rejected("bad-message", "a message is a JSON object with a string as its 'type'")
            if not isinstance(request.get("ref"), str | int | float | None):
                raise Rejected("bad-message", "a 'ref' is a string or a number")
            ref = request.get("ref")
            known = self._control.get(request["type"])
            if known is not None:
                await known(connection, request)
            else:
                await self._hand_over(connection, request)
        except Rejected as error:
            self._reject(connection, error.code, str(error), ref)
        except ValueError as error:  # a name that is not fit to be one, a key without a history
            self._reject(connection, "bad-message", str(error), ref)
        except (RedisUnavailable, WebSocketError):  # Redis is away, or a limit of the process is reached
            self._reject(connection, "unavailable", "try again later", ref)
        except Exception:
            logger.exception("a request of client %r failed", connection.client_id)
            self._reject(connection, "failed", "the request failed", ref)

    def _reject(self, connection: Connection, code: str, detail: str, ref: object) -> None:
        self._shared.stats.rejected += 1
        self._reply(connection, control(connection.encoding, "error", code=code, detail=detail, ref=ref))

    def _reply(self, connection: Connection, frame: Frame) -> None:
        self._hub.rounds.catch_up(connection)
        connection.deliver(frame, bounded=False)

    # -- the protocol's own requests

    async def _join(self, connection: Connection, request: dict[str, Any]) -> None:
        group = await self._permitted(connection, request, "join")
        since: Start = request.get("last")
        if since is not None and (type(since) is not int or since < 1):
            raise Rejected("bad-message", "'last' is a number of messages, at least 1")
        if request.get("since") is not None:
            # a position that cannot be read is one that cannot be continued
            since = Position.parse(str(request["since"])) or Position("", 0)
        await self._requests.enter(connection, group, since, asked=True, ref=request.get("ref"))

    async def _leave(self, connection: Connection, request: dict[str, Any]) -> None:
        group = checked_name(request.get("group"), "group")
        self._requests.exit(connection, group)
        self._reply(connection, control(connection.encoding, "left", group=group, ref=request.get("ref")))

    async def _publish(self, connection: Connection, request: dict[str, Any]) -> None:
        group = await self._permitted(connection, request, "publish")
        if "data" not in request:
            raise Rejected("bad-message", "what is to be published is its 'data'")
        key = request.get("idempotency_key")
        if key is not None:
            # The key is the client's own: another's equal key is another message. No name has a NUL in it.
            key = f"{connection.client_id}\0{checked_name(key, 'idempotency_key')}"
        position = await self._requests.publish(group, encode(request["data"]), None, key)
        frame = control(connection.encoding, "published", group=group, id=position, ref=request.get("ref"))
        self._reply(connection, frame)

    async def _presence(self, connection: Connection, request: dict[str, Any]) -> None:
        group = await self._permitted(connection, request, "presence")
        clients = await self._requests.presence(group)
        frame = control(connection.encoding, "presence", group=group, clients=clients, ref=request.get("ref"))
        self._reply(connection, frame)

    async def _ping(self, connection: Connection, request: dict[str, Any]) -> None:
        connection.last_seen = self._shared.loop.time()
        self._reply(connection, control(connection.encoding, "pong", ref=request.get("ref")))

    async def _permitted(self, connection: Connection, request: dict[str, Any], action: Action) -> str:
        group = checked_name(request.get("group"), "group")
        if not await self._requests.allowed(connection.client_id, group, action):
            raise Rejected("forbidden", f"not allowed: {action}")
        return group

    # -- the application's handlers

    async def _hand_over(self, connection: Connection, request: dict[str, Any]) -> None:
        processor = self._processors.get(request["type"])
        if processor is None:
            raise Rejected("unknown-type", "nothing here handles messages of this type")
        message: Any = request
        if processor.schema is not None:
            try:
                message = msgspec.convert(request, processor.schema)
            except msgspec.ValidationError as error:
                raise Rejected("invalid", str(error)) from None
        if connection.inbox is None:
            connection.inbox = asyncio.Queue(self._shared.limits.inbox_messages)
        await connection.inbox.put((processor.handle, message, request))
        if connection.worker is None:
            name = f"broadcast handlers {connection.client_id}"
            connection.worker = self._shared.tasks.spawn(self._work(connection, connection.inbox), name=name)

    async def _work(self, connection: Connection, inbox: asyncio.Queue[tuple[Handler, Any, dict[str, Any]]]) -> None:
        """Run the handlers of one connection, one after the other; what was received is handled, also after its end."""
        try:
            while not inbox.empty():
                handle, message, request = inbox.get_nowait()
                async with self._slots:
                    await self._run(connection, handle, message, request)
        finally:
            connection.worker = None

    async def _run(self, connection: Connection, handle: Handler, message: Any, request: dict[str, Any]) -> None:
        ref = request.get("ref")
        try:
            async with asyncio.timeout(self._shared.limits.handler_seconds):
                answer = handle(connection.client_id, message)
                if inspect.isawaitable(answer):
                    answer = await answer
            if answer is not None:
                if ref is not None and isinstance(answer, dict):
                    answer = {"ref": ref, **answer}
                body = encode(answer)
                self._reply(connection, Frame(asgi_message(connection.encoding, body), len(body)))
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            assert task is not None
            if isinstance(error, asyncio.CancelledError) and task.cancelling():
                raise  # it is this task that is cancelled, not something that the handler has awaited
            self._shared.stats.handler_errors += 1
            logger.exception(
                "the handler of messages of type %r failed on one of client %r, or gave what is no JSON",
                request["type"],
                connection.client_id,
            )
            self._reject(connection, "failed", "the message could not be handled", ref)
