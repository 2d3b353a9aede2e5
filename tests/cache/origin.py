"""An app that says what the test tells it to, and remembers what it was asked."""

import asyncio
from collections.abc import Callable, Iterable

from asgi_enhance.asgi.scope import header
from asgi_enhance.asgi.types import Headers, Message, Receive, Scope, Send


async def until(condition: Callable[[], bool], patience: float = 5.0) -> None:
    """Wait for what other tasks bring about."""
    async with asyncio.timeout(patience):
        while not condition():  # noqa: ASYNC110 what is waited for has no event
            await asyncio.sleep(0.001)


class Clock:
    """The time of day, as the test wants it."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def step(self, seconds: float) -> None:
        self.now += seconds


def fields(lines: str | Iterable[str]) -> Headers:
    """Header fields from lines as in a message: `"ETag: "a""`."""
    parts = [line.partition(":") for line in ([lines] if isinstance(lines, str) else lines)]
    return [(name.strip().lower().encode("latin-1"), value.strip().encode("latin-1")) for name, _, value in parts]


class Answer:
    def __init__(self, *lines: str, status: int = 200, body: bytes | list[bytes] = b"", trailers: bool = False) -> None:
        self.start: Message = {"type": "http.response.start", "status": status, "headers": fields(lines)}
        if trailers:
            self.start["trailers"] = True
        chunks = body if isinstance(body, list) else [body]
        self.chunks: list[Message] = [
            {"type": "http.response.body", "body": chunk, "more_body": at < len(chunks) - 1}
            for at, chunk in enumerate(chunks)
        ]


class Origin:
    """Answers with `answers` in turn, the last one for ever. `gate`, if it is set to be one, holds it up."""

    def __init__(self, *answers: Answer | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[Scope] = []
        self.gate: asyncio.Event | None = None
        self.called = asyncio.Event()

    @property
    def calls(self) -> int:
        return len(self.asked)

    def sent(self, name: str, call: int = -1) -> str | None:
        """A request field as the origin saw it."""
        value = header(self.asked[call]["headers"], name.lower().encode())
        return None if value is None else value.decode("latin-1")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        at = len(self.asked)
        self.asked.append(scope)
        self.called.set()
        await receive()
        if self.gate is not None:
            await self.gate.wait()
        answer = self.answers[min(at, len(self.answers) - 1)]
        if isinstance(answer, Exception):
            raise answer
        await send(answer.start)
        if answer.start["status"] != 304 and scope["method"] == "HEAD":
            await send({"type": "http.response.body", "body": b""})
            return
        for chunk in answer.chunks:
            await send(chunk)
