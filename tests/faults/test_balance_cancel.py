"""A thousand requests cancelled at random points leave no slot, socket or task behind."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from asgi_enhance.asgi.types import Message
from asgi_enhance.balance import Hedge, Limits, LoadBalanceApp, Retries, Timeouts
from asgi_enhance.testing.driver import http_scope, websocket_scope
from tests.balance.wire import OK, ScriptedBackend, Wire, ask, get, serve, until

REQUESTS = 1000


def moody(rng: random.Random) -> object:
    """A backend that is slow at every step, breaks off now and then, and streams; it spares `/calm`."""

    async def answer(wire: Wire) -> None:
        while True:
            request = await wire.message()
            mood = 1.0 if request.target == b"/calm" else rng.random()
            await asyncio.sleep(rng.random() * 0.01)
            if mood < 0.1:
                return
            if mood < 0.4:
                await wire.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                for _ in range(5):
                    await wire.send(b"4\r\npart\r\n")
                    await asyncio.sleep(rng.random() * 0.003)
                if mood < 0.15:
                    return
                await wire.send(b"0\r\n\r\n")
            else:
                await wire.send(OK)

    return answer


@asynccontextmanager
async def balanced(
    rng: random.Random, **options: object
) -> AsyncIterator[tuple[LoadBalanceApp, list[ScriptedBackend]]]:
    async with ScriptedBackend(moody(rng)) as one, ScriptedBackend(moody(rng)) as two:  # type: ignore[arg-type]
        app = LoadBalanceApp(
            [one.url, two.url],
            limits=Limits(max_connections=8, max_queue=50),
            ejection=None,
            **options,  # type: ignore[arg-type]
        )
        yield app, [one, two]
        await app.balancer.close()


async def request(app: LoadBalanceApp, rng: random.Random) -> None:
    """One request of a random kind, from a server that just drops what it is sent."""
    upload = rng.random() < 0.4
    left = rng.randint(1, 5) if upload else 1
    gone = asyncio.Event()

    async def receive() -> Message:
        nonlocal left
        if left == 0:
            await gone.wait()
            return {"type": "http.disconnect"}
        left -= 1
        if upload:
            await asyncio.sleep(rng.random() * 0.003)
        return {"type": "http.request", "body": b"piece" if upload else b"", "more_body": left > 0}

    async def send(message: Message) -> None:
        await asyncio.sleep(rng.random() * 0.002)

    asyncio.get_running_loop().call_later(rng.random() * 0.3, gone.set)
    headers = [(b"transfer-encoding", b"chunked")] if upload else []
    method = rng.choice(["GET", "PUT", "POST"]) if upload else "GET"
    with suppress(Exception):
        await app(http_scope("/", method=method, headers=headers), receive, send)


async def cancelled_at_random(app: LoadBalanceApp, rng: random.Random, count: int) -> None:
    """Start requests in bursts and cancel each at a random moment, some of them twice."""

    async def one() -> None:
        task = asyncio.create_task(request(app, rng))
        await asyncio.sleep(rng.random() * 0.025)
        task.cancel()
        if rng.random() < 0.3:
            await asyncio.sleep(0)
            task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    for _ in range(count // 50):
        await asyncio.gather(*(one() for _ in range(50)))


def left_over() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("balance-")]


@pytest.mark.parametrize("hedge", [None, Hedge(initial=0.002, minimum=0.001)], ids=["plain", "hedged"])
async def test_80_a_thousand_cancellations_leave_nothing_behind(hedge: Hedge | None) -> None:
    rng = random.Random(80)
    async with balanced(rng, hedge=hedge, seed=80, timeouts=Timeouts(queue=0.02), retries=Retries(backoff=0.001)) as (
        app,
        backends,
    ):
        core = app.balancer
        await cancelled_at_random(app, rng, REQUESTS)
        await until(lambda: core.in_flight == 0)
        assert [endpoint.in_flight for endpoint in core.endpoints] == [0, 0]
        assert core.dispatcher.budget.active == 0
        runtime = core.opened()
        assert runtime is not None
        assert not runtime.queue
        assert not runtime.active
        await until(lambda: left_over() == [])
        async with serve(app) as port:  # and it still serves
            assert (await ask(port, get(b"/calm", method=b"POST"))).status == 200
        await core.close()
        await until(lambda: all(wire.over for backend in backends for wire in backend.wires))


async def test_80_websockets_cancelled_at_random_leave_nothing_behind() -> None:
    rng = random.Random(81)
    async with balanced(rng) as (app, _):

        async def one() -> None:
            messages: list[Message] = [{"type": "websocket.connect"}]

            async def receive() -> Message:
                if messages:
                    return messages.pop()
                await asyncio.sleep(rng.random() * 0.05)
                return {"type": "websocket.disconnect", "code": 1006}

            async def send(message: Message) -> None:
                await asyncio.sleep(0)

            task = asyncio.create_task(app(websocket_scope(), receive, send))
            await asyncio.sleep(rng.random() * 0.02)
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task

        for _ in range(4):
            await asyncio.gather(*(one() for _ in range(50)))
        await until(lambda: app.balancer.in_flight == 0 and left_over() == [])


async def test_a_cancellation_from_outside_stays_one() -> None:
    async def silent(wire: Wire) -> None:
        await wire.head()
        await wire.rest()

    async with ScriptedBackend(silent) as backend:
        app = LoadBalanceApp([backend.url])
        messages: list[Message] = [{"type": "http.request"}]

        async def receive() -> Message:
            if not messages:
                await asyncio.sleep(60)
            return messages.pop()

        async def send(message: Message) -> None:
            raise AssertionError("nobody is to be answered")

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.15):  # once the client is watched already
                await app(http_scope(), receive, send)
        assert app.balancer.in_flight == 0
        await app.balancer.close()
