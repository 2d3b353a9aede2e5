"""The kit is only worth something if it finds what is broken: a known defect for every situation it plays."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware

from asgi_enhance.asgi.types import ASGIApp, Message, Receive, Scope, Send
from asgi_enhance.testing.conformance import SITUATIONS, assert_transparent, check

Call = Callable[[ASGIApp, Scope, Receive, Send], Any]


def middleware(call: Call) -> Callable[[ASGIApp], ASGIApp]:
    """A factory of the middleware that does `call`."""

    def factory(app: ASGIApp) -> ASGIApp:
        async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
            await call(app, scope, receive, send)

        return wrapped

    return factory


def sending(change: Callable[[Message, Send], Any]) -> Callable[[ASGIApp], ASGIApp]:
    """A factory of a middleware that does `change` to every message of the app."""

    async def call(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        async def changed(message: Message) -> None:
            await change(message, send)

        await app(scope, receive, changed)

    return middleware(call)


async def transparent(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    await app(scope, receive, send)


async def drops_the_second_header_line(message: Message, send: Send) -> None:
    if message["type"] == "http.response.start":
        message = {**message, "headers": list(dict(message.get("headers", ())).items())}
    await send(message)


async def expects_headers_in_every_start(message: Message, send: Send) -> None:
    if message["type"] == "http.response.start":
        message = {**message, "headers": [*message["headers"], (b"x-layer", b"1")]}
    await send(message)


async def copies_the_scope_always(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    await app({**scope}, receive, send)


async def keeps_lifespan_to_itself(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "lifespan":
        return await app(scope, receive, send)
    for phase in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{phase}.complete"})


async def writes_into_the_scope(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    scope["x-layer"] = True
    await app(scope, receive, send)


async def writes_into_the_message(message: Message, send: Send) -> None:
    if message["type"] == "http.response.start":
        message.setdefault("headers", []).append((b"x-layer", b"1"))
    await send(message)


async def buffers_the_response(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    kept: list[Message] = []

    async def keep(message: Message) -> None:
        kept.append(message)

    await app(scope, receive, keep if scope["type"] == "http" else send)
    for message in kept:
        await send(message)


async def believes_the_first_message_is_the_start(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    first = True

    async def checked(message: Message) -> None:
        nonlocal first
        if first and scope["type"] == "http":
            message["status"]
        first = False
        await send(message)

    await app(scope, receive, checked)


async def lets_only_known_messages_pass(message: Message, send: Send) -> None:
    if message["type"] in ("http.response.start", "http.response.body") or "http" not in message["type"]:
        await send(message)


async def ends_at_the_last_body(message: Message, send: Send) -> None:
    if message["type"] == "http.response.start":
        message = {**message, "trailers": False}
    await send(message)


async def makes_a_body_of_a_file(message: Message, send: Send) -> None:
    if message["type"] in ("http.response.pathsend", "http.response.zerocopysend"):
        message = {"type": "http.response.body", "body": b"", "more_body": message.get("more_body", False)}
    await send(message)


async def forgets_state(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    await app({**scope, "state": {}} if "state" in scope else scope, receive, send)


async def expects_a_client(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        scope["client"][0]
    await app(scope, receive, send)


async def reads_the_body_first(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    messages: list[Message] = []
    while scope["type"] == "http":
        messages.append(await receive())
        if not messages[-1].get("more_body", False):
            break

    async def replay() -> Message:
        return messages.pop(0) if messages else await receive()

    await app(scope, replay, send)


async def invents_a_disconnect(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    finished = False

    async def gone() -> Message:
        return {"type": "http.disconnect"} if finished else await receive()

    async def watch(message: Message) -> None:
        nonlocal finished
        await send(message)
        finished = message["type"] == "http.response.body" and not message.get("more_body", False)

    await app(scope, gone, watch)


async def hides_the_disconnect(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    async def stays() -> Message:
        message = await receive()
        return {"type": "http.request", "body": b""} if message["type"] == "http.disconnect" else message

    await app(scope, stays, send)


async def watches_with_a_second_reader(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return await app(scope, receive, send)
    messages: asyncio.Queue[Message] = asyncio.Queue()

    async def read() -> None:
        while True:
            messages.put_nowait(await receive())

    readers = [asyncio.create_task(read()) for _ in range(2)]
    try:
        await app(scope, messages.get, send)
    finally:
        for reader in readers:
            reader.cancel()


async def queues_without_a_bound(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return await app(scope, receive, send)
    messages: asyncio.Queue[Message | None] = asyncio.Queue()

    async def write() -> None:
        while (message := await messages.get()) is not None:
            await send(message)

    async with asyncio.TaskGroup() as group:
        group.create_task(write())
        await app(scope, receive, messages.put)
        messages.put_nowait(None)


async def wraps_exceptions(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    try:
        await app(scope, receive, send)
    except ValueError as error:
        raise ValueError("in the app") from error


async def makes_500_of_every_exception(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    try:
        await app(scope, receive, send)
    except ValueError:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def swallows_cancellation(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    try:
        await app(scope, receive, send)
    except asyncio.CancelledError:
        return


async def swallows_errors_of_send(message: Message, send: Send) -> None:
    try:
        await send(message)
    except OSError:
        return


async def runs_the_app_in_a_task(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.create_task(app(scope, receive, send))  # type: ignore[arg-type]


class KeepsTheRequestOnItself:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.send = send
        await self.app(scope, receive, self.forward)

    async def forward(self, message: Message) -> None:
        await self.send(message)


async def stops_the_app_at_the_end_of_the_response(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return await app(scope, receive, send)
    finished = asyncio.Event()

    async def watch(message: Message) -> None:
        await send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            finished.set()

    task: asyncio.Task[None] = asyncio.create_task(app(scope, receive, watch))  # type: ignore[arg-type]
    task.add_done_callback(lambda _: finished.set())
    await finished.wait()
    if task.done():
        return task.result()
    task.cancel()
    await asyncio.wait([task])


async def accepts_websockets_for_the_app(message: Message, send: Send) -> None:
    await send({"type": "websocket.accept"} if message["type"] == "websocket.accept" else message)


async def makes_403_of_every_denial(message: Message, send: Send) -> None:
    if message["type"] == "websocket.http.response.start":
        message = {**message, "status": 403}
    await send(message)


async def keeps_hints_for_the_start(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    kept: list[Message] = []

    async def keep(message: Message) -> None:
        if message["type"] == "http.response.early_hint":
            kept.append(message)
            return
        while kept:
            await send(kept.pop())
        await send(message)

    await app(scope, receive, keep)


async def makes_its_own_start(message: Message, send: Send) -> None:
    if message["type"] == "http.response.start":
        message = {key: message[key] for key in ("type", "status", "headers", "trailers") if key in message}
    await send(message)


def receiving(change: Callable[[Message], Message | None]) -> Callable[[ASGIApp], ASGIApp]:
    """A factory of a middleware that does `change` to every message of the server; None means drop it."""

    async def call(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        async def changed() -> Message:
            while (message := change(await receive())) is None:
                pass
            return message

        await app(scope, changed if scope["type"] == "http" else receive, send)

    return middleware(call)


def hands_on_only_what_it_knows(message: Message) -> Message | None:
    return message if message["type"] in ("http.request", "http.disconnect") else None


def marks_the_servers_message(message: Message) -> Message:
    message["seen"] = True
    return message


async def makes_its_own_scope(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    known = ("type", "asgi", "http_version", "method", "path", "query_string", "headers", "state", "extensions")
    await app({key: scope[key] for key in known if key in scope}, receive, send)


async def reads_ahead(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return await app(scope, receive, send)
    messages: asyncio.Queue[Message] = asyncio.Queue()

    async def read() -> None:
        while True:
            messages.put_nowait(await receive())

    reader = asyncio.create_task(read())
    try:
        await app(scope, messages.get, send)
    finally:
        reader.cancel()


_left_behind: list[asyncio.Future[Message]] = []


async def watches_on_for_ever(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    await app(scope, receive, send)
    if scope["type"] == "http":
        _left_behind.append(asyncio.ensure_future(receive()))
        await asyncio.sleep(0)


async def swallows_what_it_does_not_expect(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    try:
        await app(scope, receive, send)
    except ValueError:
        if scope["type"] == "http":
            raise


async def closes_websockets_without_a_word(message: Message, send: Send) -> None:
    await send({"type": "websocket.close"} if message["type"] == "websocket.close" else message)


async def queues_for_websockets(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "websocket":
        return await app(scope, receive, send)
    messages: asyncio.Queue[Message | None] = asyncio.Queue()

    async def write() -> None:
        while (message := await messages.get()) is not None:
            await send(message)

    async with asyncio.TaskGroup() as group:
        group.create_task(write())
        await app(scope, receive, messages.put)
        messages.put_nowait(None)


async def reports_start_up_as_complete(message: Message, send: Send) -> None:
    await send({"type": "lifespan.startup.complete"} if message["type"] == "lifespan.startup.failed" else message)


DEFECTS: list[tuple[Callable[[ASGIApp], ASGIApp], set[str]]] = [
    (sending(drops_the_second_header_line), {"a_plain_response_arrives_whole"}),
    (sending(expects_headers_in_every_start), {"a_start_without_headers_is_a_start"}),
    (
        middleware(copies_the_scope_always),
        {"an_unknown_scope_type_passes_with_the_very_same_objects"},
    ),
    (middleware(keeps_lifespan_to_itself), {"lifespan_reaches_the_app", "a_failing_start_up_is_reported"}),
    (sending(reports_start_up_as_complete), {"a_failing_start_up_is_reported"}),
    (middleware(writes_into_the_scope), {"the_scope_is_not_changed_in_place"}),
    (sending(writes_into_the_message), {"messages_are_not_changed_in_place"}),
    (middleware(buffers_the_response), {"every_message_goes_out_at_once", "back_pressure_reaches_the_app"}),
    (
        middleware(believes_the_first_message_is_the_start),
        {"early_hints_come_before_the_start", "debug_comes_before_the_start", "unknown_messages_and_keys_pass"},
    ),
    (
        sending(lets_only_known_messages_pass),
        {"early_hints_come_before_the_start", "push_passes", "trailers_come_after_the_last_body"},
    ),
    (sending(ends_at_the_last_body), {"trailers_come_after_the_last_body"}),
    (
        sending(makes_a_body_of_a_file),
        {"pathsend_passes_or_is_not_offered", "zerocopysend_passes_or_is_not_offered"},
    ),
    (middleware(forgets_state), {"state_and_tls_reach_the_app", "lifespan_reaches_the_app"}),
    (middleware(expects_a_client), {"a_scope_with_only_what_must_be_there_is_enough"}),
    (middleware(reads_the_body_first), {"the_body_streams_in_order_to_the_app"}),
    (middleware(invents_a_disconnect), {"no_disconnect_is_invented"}),
    (middleware(hides_the_disconnect), {"a_client_that_leaves_is_seen_by_the_app"}),
    (middleware(watches_with_a_second_reader), {"a_client_that_leaves_is_seen_by_the_app"}),
    (middleware(queues_without_a_bound), {"back_pressure_reaches_the_app"}),
    (
        middleware(wraps_exceptions),
        {"an_exception_before_the_start_passes_unchanged", "an_exception_after_the_start_passes_unchanged"},
    ),
    (middleware(makes_500_of_every_exception), {"an_exception_before_the_start_passes_unchanged"}),
    (middleware(swallows_cancellation), {"a_cancellation_passes"}),
    (sending(swallows_errors_of_send), {"an_error_of_send_reaches_the_app"}),
    (middleware(runs_the_app_in_a_task), {"the_app_runs_in_the_callers_task_and_context"}),
    (KeepsTheRequestOnItself, {"concurrent_requests_do_not_mix"}),
    (middleware(stops_the_app_at_the_end_of_the_response), {"work_after_the_response_goes_on"}),
    (sending(accepts_websockets_for_the_app), {"a_websocket_conversation_passes"}),
    (sending(makes_403_of_every_denial), {"a_websocket_is_refused_in_the_apps_own_words"}),
    (middleware(keeps_hints_for_the_start), {"every_message_goes_out_at_once"}),
    (sending(makes_its_own_start), {"unknown_messages_and_keys_pass"}),
    (receiving(hands_on_only_what_it_knows), {"unknown_messages_reach_the_app"}),
    (receiving(marks_the_servers_message), {"messages_are_not_changed_in_place"}),
    (middleware(makes_its_own_scope), {"the_request_reaches_the_app_as_it_came"}),
    (middleware(reads_ahead), {"an_upload_is_read_no_faster_than_the_app_reads"}),
    (middleware(watches_on_for_ever), {"nobody_reads_on_when_the_app_has_returned"}),
    (
        middleware(swallows_what_it_does_not_expect),
        {"an_exception_of_a_websocket_or_lifespan_passes_unchanged"},
    ),
    (sending(closes_websockets_without_a_word), {"a_websocket_is_closed_in_the_apps_own_words"}),
    (middleware(queues_for_websockets), {"back_pressure_of_a_websocket_reaches_the_app"}),
    (GZipMiddleware, {"zerocopysend_passes_or_is_not_offered", "push_passes"}),
    (lambda app: BaseHTTPMiddleware(app, lambda r, n: n(r)), {"trailers_come_after_the_last_body"}),
]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken middlewares hang; that need not take long."""
    monkeypatch.setattr("asgi_enhance.testing.conformance.kit.WAIT", 0.1)


def name_of(value: Any) -> str:
    return "+".join(sorted(value)) if isinstance(value, set) else "broken"


@pytest.mark.parametrize(("factory", "broken"), DEFECTS, ids=name_of)
async def test_a_known_defect_is_found(factory: Callable[[ASGIApp], ASGIApp], broken: set[str]) -> None:
    found = {finding.situation for finding in await check(factory)}
    assert broken <= found


def test_every_situation_has_a_defect_that_it_finds() -> None:
    found = {name for _, broken in DEFECTS for name in broken}
    assert found == {situation.__name__ for situation in SITUATIONS}


async def test_nothing_is_found_where_nothing_is_broken() -> None:
    assert await check(lambda app: app) == []
    await assert_transparent(middleware(transparent))


async def test_headers_may_come_out_as_lists() -> None:
    async def makes_lists(message: Message, send: Send) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [list(pair) for pair in message.get("headers", ())]}
        await send(message)

    found = {finding.situation for finding in await check(sending(makes_lists))}
    assert found == {"an_unknown_scope_type_passes_with_the_very_same_objects"}


async def test_what_one_middleware_breaks_is_not_held_against_the_next() -> None:
    def empties(message: Message) -> Message:
        message["body"] = None
        return message

    await check(receiving(empties))
    await check(sending(writes_into_the_message))
    await assert_transparent(middleware(transparent))
    seen: list[Any] = []

    async def remembers(message: Message, send: Send) -> None:
        seen.extend(pair for pair in message.get("headers", ()) if pair == (b"x-layer", b"1"))
        await send(message)

    await check(sending(remembers))
    assert seen == []


async def test_a_broken_middleware_is_named_with_all_it_breaks() -> None:
    with pytest.raises(AssertionError, match="hint") as error:
        await assert_transparent(sending(lets_only_known_messages_pass))
    assert "push_passes" in str(error.value)
