"""Random histories of an app, its clients and the clock, against a small model of RFC 9111.

The model does not predict what the cache does; it says what no cache may do: answer from the store with a response
that was not to be stored, is not this request's, is stale without permission, was written over, or was purged; or
with fields from an answer that was for somebody else. What it could not see, if the cache did nothing, is counted.
"""

import asyncio
from collections import Counter
from collections.abc import Coroutine
from itertools import count
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from asgi_enhance.cache import CacheMiddleware, MemoryCache
from asgi_enhance.cache.core import Fetch
from asgi_enhance.cache.entry import Entry, decode, encode
from asgi_enhance.cache.policy.reuse import DIRECTIVES as HONOURED
from asgi_enhance.cache.request import Request
from asgi_enhance.testing.driver import Driver, Response, http_scope
from tests.cache.model import DIRECTIVES, FIELDS, GOOD, PATHS, VARY, WANTED, WINDOWS, Said, body
from tests.cache.origin import Answer, Clock, fields

FAILED = 599

seen: Counter[str] = Counter()
"""How often what the model judges has come about."""


def mostly(usual: st.SearchStrategy[Any], unusual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """What is stored and found again has to come often, or nothing that is forbidden could happen to it."""
    return now_and_then(5).flatmap(lambda rare: unusual if rare else usual)


def now_and_then(rarity: int) -> st.SearchStrategy[bool]:
    return st.integers(0, rarity).map(lambda number: number == rarity)


any_client = st.lists(st.sampled_from(FIELDS), unique_by=lambda line: line.partition(":")[0], max_size=2)
clients = mostly(st.sampled_from([[], ["X-Tenant: 1"], ["X-Tenant: 2"]]), any_client)


class FlakyCache(MemoryCache):
    """A memory that forgets what it should keep and fails to keep what it is given, and writes all in frames."""

    failing = False

    async def _put(self, request: Request, entry: Entry, fetch: Fetch) -> bool:
        if self.failing:
            return False
        written = decode(encode(entry), entry.vary_values)
        assert written is not None
        assert written == entry
        return await super()._put(request, written, fetch)

    def peek(self, request: Request) -> Entry | None:
        return None if self.failing else super().peek(request)


def undisturbed(history: "History") -> bool:
    """Between what clears the store there has to be time for something to be found in it."""
    return history.undisturbed > 4


class History(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = Clock()
        self.cache = FlakyCache(clock=self.clock, max_bytes=20_000)
        self.layer = CacheMiddleware(self.app, cache=self.cache, honour=HONOURED)
        self.said: list[Said] = []
        self.made: list[Said] = []
        self.next: dict[str, Any] = {}
        self.names = count()
        self.reached: set[int] = set()
        self.gone: dict[int, set[int]] = {}
        """By client: what was written over or purged when it was answered."""
        self.undisturbed = 0

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        headers, next_ = dict(scope["headers"]), self.next
        client = int(headers[b"x-client"])
        if asyncio.current_task().get_name() != "asgi_enhance.cache.refresh":  # type: ignore[union-attr]
            self.reached.add(client)
        if scope["method"] == "POST":
            lines = [f"Location: {next_['location']}"] if next_["location"] else []
            await self._send(Answer(*lines, status=next_["status"]), scope, send)
            return
        await asyncio.sleep(0)
        if next_["fails"]:
            raise ConnectionError("the app is down")
        number = len(self.made)
        validator = headers.get(b"if-none-match")
        path = scope["path"] + ("?" + scope["query_string"].decode() if scope["query_string"] else "")
        validated = validator is not None and next_["same"] and self.made[int(validator.strip(b'"'))].path == path
        if validated:
            number = int(validator.strip(b'"'))  # type: ignore[union-attr]
        vary = self.made[number].vary if validated else next_["vary"]
        said = Said(client, number, path, self.clock.now, scope["method"] == "HEAD", {**next_, "vary": vary})
        self.said.append(said)
        if not validated:
            self.made.append(said)
        lines = [f"X-Answer: {len(self.said) - 1}", f"Cache-Control: {', '.join(['x', *next_['directives']])}", *vary]
        lines += [f'ETag: "{number}"'] if next_["has_etag"] or validated else []
        lines += ["Set-Cookie: a=1"] if next_["cookie"] else []
        lines += [f"Age: {next_['age']}"] if next_["age"] else []
        lines += ["Cache-Tag: news", f"Content-Length: {len(body(number))}"]
        if next_["meanwhile"]:
            await self._purge({"tags": ["news"]}, soft=False)
        answer = Answer(*lines, status=304) if validated else Answer(*lines, body=body(number))
        await self._send(answer, scope, send)

    async def _send(self, answer: Answer, scope: Any, send: Any) -> None:
        await send(answer.start)
        for chunk in [{"type": "http.response.body"}] if scope["method"] == "HEAD" else answer.chunks:
            await send(chunk)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Do it, and whatever it has set going in the background."""

        async def whole() -> Any:
            try:
                return await work
            finally:
                running = self.cache.opened()
                while running is not None and len(running.tasks):  # noqa: ASYNC110 they end by themselves
                    await asyncio.sleep(0)

        return self.runner.run(whole())

    def teardown(self) -> None:
        self.runner.run(self.cache.aclose())
        self.runner.close()

    async def ask(self, client: int, method: str, path: str, lines: list[str]) -> Response:
        scope = http_scope(path, method=method, headers=fields([f"X-Client: {client}", *lines]))

        async def noted(scope: Any, receive: Any, send: Any) -> None:
            def note(message: Any) -> Any:
                if message["type"] == "http.response.start":  # what goes after that may have been served
                    self.gone[client] = {said.number for said in self.made if said.gone}
                return send(message)

            await self.layer(scope, receive, note)

        try:
            return Response(await Driver(noted, scope, [{"type": "http.request"}]).run())
        except ConnectionError:
            return Response([{"type": "http.response.start", "status": FAILED, "headers": []}])

    @rule(
        method=mostly(st.just("GET"), st.just("HEAD")),
        path=st.sampled_from(PATHS),
        asked=st.lists(clients, min_size=1, max_size=3),
        wants=mostly(
            st.sampled_from([[], [], [], ["max-stale=4"]]),
            st.lists(st.sampled_from(WANTED), unique=True, min_size=1, max_size=2),
        ),
        has=mostly(st.none(), st.integers(0, 9)),
        directives=mostly(
            st.sampled_from(GOOD), st.lists(st.sampled_from([*DIRECTIVES, *WINDOWS]), unique=True, max_size=4)
        ),
        vary=mostly(st.sampled_from(VARY[:2]), st.sampled_from(VARY)),
        cookie=now_and_then(9),
        age=mostly(st.just(0), st.sampled_from([4, 9])),
        has_etag=mostly(st.just(True), st.just(False)),
        same=st.booleans(),
        fails=now_and_then(3),
        meanwhile=now_and_then(9),
    )
    def read(
        self, method: str, path: str, asked: list[list[str]], wants: list[str], has: int | None, **answer: Any
    ) -> None:
        self.undisturbed += 1
        together = {next(self.names): lines for lines in asked}
        self.next = {"clients": together, "wants": wants, **answer}
        more = [f"Cache-Control: {', '.join(wants)}"] if wants else []
        more += [f'If-None-Match: "{has}"'] if has is not None and has < len(self.made) else []

        async def all_together() -> list[Response]:
            return await asyncio.gather(
                *(self.ask(client, method, path, [*lines, *more]) for client, lines in together.items())
            )

        for (client, lines), response in zip(together.items(), self.run(all_together()), strict=True):
            self.judge(client, method, path, lines, wants, response)

    def judge(
        self, client: int, method: str, path: str, asked: list[str], wants: list[str], response: Response
    ) -> None:
        if "only-if-cached" in wants:
            assert client not in self.reached, "the app was asked for what was wanted from the store only"
        if response.status == FAILED or (response.status == 504 and "only-if-cached" in wants):
            return
        assert response.status in (200, 304)
        told = response.header("x-answer")
        if told is None:  # a 304 of the cache's own carries only what it must
            etag = response.header("etag")
            assert response.status == 304
            assert etag is not None
            answers = [said for said in self.said if said.number == int(etag.strip('"'))]
        else:
            answers = [self.said[int(told)]]
        made = self.made[answers[0].number]
        its_own = any(said.client == client for said in answers)
        if its_own and (made.client == client or response.status == 304):
            return  # the app's own, made for it, or in answer to its own condition
        assert response.status == 304 or method == "HEAD" or response.body == body(made.number)
        assert made.path == path, f"{made.number} is of another URL"
        assert made.selected_by(asked), f"{made.number} is another variant"
        assert made.forbidden() is None, f"{made.number} was served again: {made.forbidden()}"
        if its_own:
            seen["validated"] += 1
            return
        assert made.number not in self.gone[client], f"{made.number} was written over or purged"
        assert not made.head, f"{made.number} was said of HEAD"
        answers = [said for said in answers if said.forbidden() is None and said.selected_by(asked)]
        assert answers, "the fields are from an answer that was for somebody else"
        how = {said.usable(self.clock.now, wants, error=self.next["fails"]) for said in answers} - {None}
        assert how, f"{made.number} is stale"
        seen.update(str(one) for one in how)
        seen["of a variant"] += bool(made.vary)
        seen["304"] += response.status == 304
        seen["HEAD"] += method == "HEAD"
        seen["shared"] += any(said.client in self.next["clients"] for said in answers)
        seen["freshened"] += any(said is not made for said in answers)
        assert response.header("age") is not None, "a stored response must tell its age"

    @precondition(undisturbed)
    @rule(
        path=st.sampled_from(PATHS),
        status=st.sampled_from([200, 204, 303, 404, 500]),
        location=st.sampled_from([None, *PATHS]),
    )
    def write(self, path: str, status: int, location: str | None) -> None:
        self.undisturbed = 0
        self.next = {"status": status, "location": location}
        self.run(self.ask(next(self.names), "POST", path, []))
        for said in self.said if status < 400 else ():
            said.gone |= said.path in (path, location)

    @precondition(undisturbed)
    @rule(
        what=st.sampled_from([{"tags": ["news"]}, {"everything": True}, {"prefix": "http://testserver/a"}]),
        soft=st.booleans(),
    )
    def purge(self, what: dict[str, Any], soft: bool) -> None:
        self.undisturbed = 0
        self.run(self._purge(what, soft=soft))

    async def _purge(self, what: dict[str, Any], *, soft: bool) -> None:
        await self.cache.purge(**what, soft=soft)
        for said in self.said:
            if "prefix" not in what or said.path.startswith("/a"):
                said.soft, said.gone = said.soft or soft, said.gone or not soft

    @rule(seconds=mostly(st.sampled_from([0.5, 4, 6, 11]), st.sampled_from([100, -3])))
    def time_passes(self, seconds: float) -> None:
        self.clock.step(seconds)

    @rule(failing=now_and_then(4))
    def the_store_fails(self, failing: bool) -> None:
        self.cache.failing = failing

    @invariant()
    def the_store_keeps_within_its_bounds(self) -> None:
        assert 0 <= self.cache.stats.bytes <= self.cache.max_bytes


def test_nothing_is_ever_served_that_the_model_forbids() -> None:
    usual = {"fresh", "of a variant", "shared", "HEAD", "freshened", "validated"}
    seen.clear()
    for _ in range(5):  # what is rare does not come about in each run
        run_state_machine_as_test(History, settings=settings(max_examples=120, stateful_step_count=50, deadline=None))
        if usual <= (+seen).keys():
            break
    assert usual <= (+seen).keys(), f"not all of what the model judges has come about: {seen}"
