"""Starts backends and gateways, walks through what the stack does with real clients, and checks each step."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from time import perf_counter
from typing import Any, Self

import httpx2
from websockets.asyncio.client import connect

from asgi_enhance.demo.transcript import StepFailed, Transcript
from asgi_enhance.errors import RedisUnavailable
from asgi_enhance.redis import RedisManager
from asgi_enhance.testing.live import LiveServer, free_port

BACKENDS = 3
LIMIT = 5  # requests a minute on /limited, as in gateway.py


class House:
    """The processes of the tour: three backends, and one gateway, or two that share Redis."""

    def __init__(self, redis_url: str | None) -> None:
        self.backends = [
            LiveServer("asgi_enhance.demo.backend:app", env={"DEMO_NAME": f"backend-{number}"})
            for number in range(1, BACKENDS + 1)
        ]
        env = {"DEMO_BACKENDS": ",".join(backend.url for backend in self.backends)}
        if redis_url:
            env |= {"DEMO_REDIS": redis_url, "DEMO_PREFIX": f"asgi_enhance_demo_{free_port()}"}
        self.gateways = [
            LiveServer("asgi_enhance.demo.gateway:app", env={**env, "DEMO_NAME": f"gateway-{number}"})
            for number in range(1, 3 if redis_url else 2)
        ]

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for server in (*self.backends, *self.gateways):
                stack.enter_context(server)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class Tour:
    """The steps. With two gateways every step crosses from one to the other, which only works if they share."""

    def __init__(self, house: House, transcript: Transcript) -> None:
        self.house = house
        self.out = transcript
        self.first = house.gateways[0]
        self.last = house.gateways[-1]
        self.shared = self.first is not self.last

    async def run(self) -> None:
        # One site behind both gateways: the host is part of what a cache goes by.
        async with httpx2.AsyncClient(timeout=10, headers={"host": "tour.example"}) as client:
            self.client = client
            for step in (self.cache, self.rate_limit, self.balance, self.failover, self.broadcast, self.metrics):
                await step()

    async def cache(self) -> None:
        self.out.title("Cache: the second request does not reach the app")
        miss, hit = await self._get(self.first, "/report"), await self._get(self.last, "/report")
        for label, (response, seconds) in (("first", miss), ("second", hit)):
            shown = f"age {response.headers.get('age', '-')}, cache-status: {response.headers.get('cache-status')}"
            self.out.fact(f"GET /report ({label}) {response.status_code} in {seconds * 1000:.0f} ms", shown)
        self.out.check("fwd=" in miss[0].headers["cache-status"], "the first was forwarded to the app")
        self.out.check("hit" in hit[0].headers["cache-status"], "the second was a hit")
        self.out.check(int(hit[0].headers["age"]) >= 0, "a hit tells its age")
        self.out.check(hit[0].content == miss[0].content, "both are the same report")
        self.out.check(hit[1] < miss[1], "and the hit was quicker")

    async def rate_limit(self) -> None:
        self.out.title(f"Rate limit: {LIMIT} a minute on /limited, and not one more")
        answers = []
        for number in range(LIMIT + 1):
            response, _ = await self._get((self.first, self.last)[number % 2], "/limited")
            answers.append(response)
            self.out.fact(f"GET /limited {response.status_code}", f"ratelimit: {response.headers.get('ratelimit')}")
        refused = answers[-1]
        self.out.fact("the refusal", f"retry-after: {refused.headers.get('retry-after')}  {refused.text}")
        statuses = [answer.status_code for answer in answers]
        self.out.check(statuses == [200] * LIMIT + [429], f"{LIMIT} were admitted, the next was refused")
        self.out.check(int(refused.headers["retry-after"]) >= 1, "it was told when to come back")
        self.out.check(refused.headers["content-type"] == "application/problem+json", "in a problem response")

    async def balance(self) -> None:
        self.out.title("Load balance: requests spread over the backends")
        spread = await self._spread(60)
        self.out.fact("60 requests to /backends/", "  ".join(f"{name}: {n}" for name, n in sorted(spread.items())))
        self.out.check(sum(spread.values()) == 60, "all were answered")
        self.out.check(len(spread) == BACKENDS, f"by all {BACKENDS} backends")

    async def failover(self) -> None:
        self.out.title("Failover: a backend is killed under load, and nobody notices")
        victim = self.house.backends[0]

        async def kill() -> None:
            await asyncio.to_thread(victim.kill)

        spread, _ = await asyncio.gather(self._spread(300), kill())
        after = await self._spread(60)
        self.out.fact("300 requests while backend-1 is killed", f"{sum(spread.values())} answered")
        self.out.fact("60 more", "  ".join(f"{name}: {n}" for name, n in sorted(after.items())))
        self.out.check(sum(spread.values()) == 300, "no request was lost")
        self.out.check("backend-1" not in after, "the dead backend gets nothing any more")
        await asyncio.to_thread(victim.start)

    async def broadcast(self) -> None:
        where = "two gateways" if self.shared else "one gateway"
        self.out.title(f"Broadcast: two WebSocket clients of {where}, one group")
        async with (
            connect(f"{self.first.ws_url}/ws/ada") as ada,
            connect(f"{self.last.ws_url}/ws/bob") as bob,
        ):
            for client in (ada, bob):
                await client.send(json.dumps({"type": "join", "group": "room"}))
                joined = json.loads(await asyncio.wait_for(client.recv(), 5))
                self.out.check(joined.get("type") == "joined", "joined the group")
            response = await self.client.post(f"{self.first.url}/say", json={"text": "hello, both"})
            response.raise_for_status()
            for name, client in (("ada", ada), ("bob", bob)):
                heard = json.loads(await asyncio.wait_for(client.recv(), 5))
                self.out.fact(f"{name} heard", json.dumps(heard))
                self.out.check("hello, both" in json.dumps(heard), f"{name} got the message")

    async def metrics(self) -> None:
        self.out.title("Metrics: what all that came to")
        for gateway in self.house.gateways:
            snapshot = (await self.client.get(f"{gateway.url}/stats")).json()
            self.out.say(f"{gateway.url}")
            for what, value in summary(snapshot):
                self.out.fact(what, value)
        text = (await self.client.get(f"{self.first.url}/metrics")).text
        shown = [line for line in text.splitlines() if line.startswith("http_server_request_duration_seconds_count")]
        for line in shown:
            self.out.say(line)
        self.out.check(any("/backends" in line for line in shown), "requests are counted by route")
        self.out.check("/limited" in text, "and refused ones, too")

    async def _get(self, gateway: LiveServer, path: str) -> tuple[httpx2.Response, float]:
        began = perf_counter()
        response = await self.client.get(gateway.url + path)
        return response, perf_counter() - began

    async def _spread(self, requests: int) -> Counter[str]:
        """Who answered, by name; only answers with status 200 count."""
        spread: Counter[str] = Counter()
        todo = iter(range(requests))

        async def worker() -> None:
            for number in todo:
                gateway = (self.first, self.last)[number % 2]
                response = await self.client.get(f"{gateway.url}/backends/")
                if response.status_code == 200:
                    spread[response.json()["backend"]] += 1

        await asyncio.gather(*(worker() for _ in range(8)))
        return spread


def summary(snapshot: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What a gateway's snapshot says, in a few lines."""
    latency = snapshot["latency"]["start"]
    percentiles = "  ".join(f"{rank} {latency[rank] * 1000:.2f} ms" for rank in ("p50", "p95", "p99"))
    yield "requests", f"{snapshot['requests']['total']}, {snapshot['requests']['errors']} errors"
    yield "latency", percentiles
    for name in ("cache", "ratelimit", "balance", "broadcast", "redis"):
        counted = {field: value for field, value in snapshot.get(name, {}).items() if value}
        if counted:
            yield name, "  ".join(f"{field} {value}" for field, value in counted.items())


async def run(redis_url: str | None = None, *, serve: bool = False) -> int:
    """The tour, or with `serve` only its servers until interrupted. The exit code."""
    out = Transcript()
    out.title("asgi_enhance: the tour")
    if redis_url:
        try:
            async with RedisManager(redis_url) as redis:
                await redis.ping()
        except RedisUnavailable as error:
            return _stopped(out, error)
    out.say(f"starting {BACKENDS} backends and {'two gateways that share Redis' if redis_url else 'a gateway'} …")
    with House(redis_url) as house:
        for number, backend in enumerate(house.backends, 1):
            out.fact(f"backend-{number}", backend.url)
        for number, gateway in enumerate(house.gateways, 1):
            out.fact(f"gateway-{number}: metrics · limit · broadcast · cache", gateway.url)
        if serve:
            out.title("Serving. Try /report /limited /backends/ /metrics/dashboard /stats and the WebSocket /ws/you")
            await asyncio.Event().wait()
        tour = Tour(house, out)
        try:
            await tour.run()
        except (StepFailed, httpx2.HTTPError, TimeoutError, KeyError) as error:
            return _stopped(out, error)
    out.title(f"The tour is complete: {out.checks} checks held.")
    return 0


def _stopped(out: Transcript, error: Exception) -> int:
    out.title(f"The tour stopped: {type(error).__name__}: {error}")
    return 1
