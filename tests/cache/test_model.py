"""Random histories of an app, its clients and the clock, against a small model of RFC 9111.

The model does not predict what the cache does; it says what no cache may do: answer from the store with a response
that was not to be stored, is not this request's, is stale without permission, was written over, or was purged.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from asgi_enhance.cache import CacheMiddleware, MemoryCache
from asgi_enhance.cache.core import Fetch
from asgi_enhance.cache.entry import Entry, decode, encode
from asgi_enhance.cache.request import Request
from asgi_enhance.testing.driver import Driver, Response, http_scope
from tests.cache.origin import Answer, Clock, fields

PATHS = ["/a", "/b?x=1"]
FIELDS = ["X-Tenant: 1", "X-Tenant: 2", "X-Tenant:", "Cookie: user=1", "Authorization: user", "X-Forwarded-Host: evil"]
DIRECTIVES = ["no-store", "private", "no-cache", "public", "must-revalidate", "max-age=10", "max-age=0", "s-maxage=5"]
WINDOWS = ["stale-while-revalidate=5", "stale-if-error=8"]
STALE_FOR = {"stale-while-revalidate=5": 5, "stale-if-error=8": 8}
VARY = [(), ("Vary: X-Tenant",), ("Vary: *",), ("Vary: x-tenant, Cookie",)]


def mostly(usual: Any, unusual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """What is stored and found again has to come often, or nothing that is forbidden could happen to it."""
    return st.one_of(st.just(usual), unusual)


class FlakyCache(MemoryCache):
    """A memory that forgets what it should keep and fails to keep what it is given, and writes all in frames."""

    failing = False

    async def _put(self, request: Request, entry: Entry, fetch: Fetch) -> bool:
        if self.failing:
            return False
        written = decode(encode(entry))
        assert written is not None
        assert written == entry
        return await super()._put(request, written, fetch)

    def peek(self, request: Request) -> Entry | None:
        return None if self.failing else super().peek(request)


class Made:
    """A response as the app made it: what the model judges by."""

    def __init__(self, number: int, path: str, asked: list[str], directives: list[str], **more: Any) -> None:
        self.number = number
        self.path = path
        self.asked = set(asked)
        self.directives = set(directives)
        self.vary: tuple[str, ...] = more["vary"]
        self.etag: str | None = more["etag"]
        self.status: int = more["status"]
        self.cookie: bool = more["cookie"]
        self.at: float = more["at"]
        self.gone = False

    @property
    def lifetime(self) -> float:
        if "s-maxage=5" in self.directives:
            return 5
        if "max-age=0" in self.directives:
            return 0
        return 10 if "max-age=10" in self.directives else 0

    def forbidden(self) -> str | None:
        """Why this may never be used for another request."""
        if self.directives & {"no-store", "private"}:
            return "it said that it must not be stored"
        if self.cookie:
            return "it sets a cookie"
        if self.vary == ("Vary: *",):
            return "it varies by what no cache can see"
        for_all = self.directives & {"public", "s-maxage=5"}
        if "Authorization: user" in self.asked and not (for_all or "must-revalidate" in self.directives):
            return "it was made for somebody who was authorized"
        if "Cookie: user=1" in self.asked and not for_all and "Cookie" not in "".join(self.vary):
            return "it was made for somebody with a cookie"
        if "X-Forwarded-Host: evil" in self.asked:
            return "it was made for a request with a field that no key holds"
        return None

    def selected_by(self, asked: list[str]) -> bool:
        names = {"x-tenant", "cookie"} if "Cookie" in "".join(self.vary) else {"x-tenant"} if self.vary else set()
        return _named(self.asked, names) == _named(set(asked), names)

    def usable(self, now: float, *, error: bool) -> bool:
        """Fresh, or stale with permission."""
        if "no-cache" in self.directives:
            return False
        age = now - self.at
        if age < self.lifetime:
            return True
        if self.directives & {"must-revalidate", "s-maxage=5"}:
            return False
        windows = self.directives & {WINDOWS[0], *(WINDOWS[1:] if error else ())}
        return any(age < self.lifetime + STALE_FOR[window] for window in windows)


def _named(asked: set[str], names: set[str]) -> set[str]:
    return {line for line in asked if line.partition(":")[0].lower() in names}


class History(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = Clock()
        self.cache = FlakyCache(clock=self.clock, max_bytes=20_000)
        self.layer = CacheMiddleware(self.app, cache=self.cache)
        self.made: dict[int, Made] = {}
        self.next: dict[str, Any] = {}
        self.calls = 0
        self.validated: int | None = None

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        self.calls += 1
        if self.next["fails"]:
            raise ConnectionError("the app is down")
        if scope["method"] != "GET":
            await self._say(Answer(status=self.next["status"]), send)
            return
        validator = dict(scope["headers"]).get(b"if-none-match")
        if validator is not None and self.next["same"]:
            number = int(validator.strip(b'"'))
            self.validated = number
            self.made[number].at = self.clock.now
            await self._say(Answer(f'ETag: "{number}"', status=304), send)
            return
        number = len(self.made)
        etag = f'ETag: "{number}"'
        self.made[number] = Made(
            number, self.next["path"], self.next["asked"], self.next["directives"],
            vary=self.next["vary"], etag=etag, status=200, cookie=self.next["cookie"], at=self.clock.now,
        )  # fmt: skip
        lines = [f"Cache-Control: {', '.join(self.next['directives'])}"] if self.next["directives"] else []
        lines += [*self.next["vary"], *([etag] if self.next["has_etag"] else [])]
        lines += ["Set-Cookie: a=1"] if self.next["cookie"] else []
        await self._say(Answer(*lines, "Cache-Tag: news", body=b"%d" % number), send)

    async def _say(self, answer: Answer, send: Any) -> None:
        await send(answer.start)
        for chunk in answer.chunks:
            await send(chunk)

    def run(self, work: Coroutine[Any, Any, Any]) -> None:
        """Do it, and whatever it has set going in the background."""

        async def whole() -> None:
            try:
                await work
            finally:
                running = self.cache.opened()
                while running is not None and len(running.tasks):  # noqa: ASYNC110 they end by themselves
                    await asyncio.sleep(0)

        self.runner.run(whole())

    def teardown(self) -> None:
        self.runner.run(self.cache.aclose())
        self.runner.close()

    def ask(self, method: str, path: str, asked: list[str]) -> Response | None:
        """One exchange; None if the app has failed and nothing stood in for it."""
        driver = Driver(self.layer, http_scope(path, method=method, headers=fields(asked)), [{"type": "http.request"}])
        try:
            self.run(driver.run())
        except ConnectionError:
            return None
        return Response(driver.sent)

    @rule(
        path=st.sampled_from(PATHS),
        asked=mostly([], st.lists(st.sampled_from(FIELDS), unique_by=lambda line: line.partition(":")[0], max_size=2)),
        directives=mostly(["max-age=10"], st.lists(st.sampled_from(DIRECTIVES + WINDOWS), unique=True, max_size=4)),
        vary=mostly((), st.sampled_from(VARY)),
        cookie=st.integers(0, 9).map(lambda number: number == 0),
        has_etag=st.booleans(),
        same=st.booleans(),
        fails=st.integers(0, 5).map(lambda number: number == 0),
    )
    def get(self, path: str, asked: list[str], fails: bool, **answer: Any) -> None:
        self.next = {"path": path, "asked": asked, "fails": fails, "status": 200, **answer}
        self.validated = None
        known, calls = len(self.made), self.calls
        response = self.ask("GET", path, asked)
        if response is None:
            assert fails
            return
        number = int(response.body)
        if number >= known:
            return  # the app's own answer
        made = self.made[number]
        assert made.path == path, f"{number} is of another URL"
        assert made.forbidden() is None, f"{number} was served again: {made.forbidden()}"
        assert made.selected_by(asked), f"{number} is another variant"
        assert not made.gone, f"{number} was written over or purged"
        if self.validated != number:
            error = fails and self.calls > calls
            assert made.usable(self.clock.now, error=error), f"{number} is stale"
            assert response.header("age") is not None, "a stored response must tell its age"

    @rule(path=st.sampled_from(PATHS), status=st.sampled_from([200, 204, 303, 404, 500]), fails=st.just(False))
    def write(self, path: str, status: int, fails: bool) -> None:
        self.next = {"path": path, "status": status, "fails": fails}
        self.ask("POST", path, [])
        if status < 400:
            for made in self.made.values():
                made.gone |= made.path == path

    @rule(what=st.sampled_from([{"tags": ["news"]}, {"everything": True}, {"prefix": "http://testserver/a"}]))
    def purge(self, what: dict[str, Any]) -> None:
        self.run(self.cache.purge(**what))
        for made in self.made.values():
            made.gone |= "prefix" not in what or made.path.startswith("/a")

    @rule(seconds=st.sampled_from([0.5, 1, 4, 6, 11, 100, -3]))
    def time_passes(self, seconds: float) -> None:
        self.clock.step(seconds)

    @rule(failing=st.integers(0, 4).map(lambda number: number == 0))
    def the_store_fails(self, failing: bool) -> None:
        self.cache.failing = failing

    @invariant()
    def the_store_keeps_within_its_bounds(self) -> None:
        assert 0 <= self.cache.stats.bytes <= self.cache.max_bytes


TestHistory = History.TestCase
TestHistory.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
