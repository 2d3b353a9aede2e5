"""Keeps what identities have used in Redis, for all processes together: one call a decision, or less.

- Group commit: while a call for a set of demands is on its way, further requests with the same demands wait and leave
  together as one call with a count. What is granted is exact, first come first served.
- Deny memory: who was refused cannot be admitted before the time the script has told, whoever else comes. Until then,
  and at most for a few seconds, he is refused here.
- Before a set of demands is asked about, Redis is told what this process has admitted without it (see `share`).
- A decision has a budget of time. When it is used up, or Redis is away, `RedisUnavailable` is raised; nothing is
  sent twice, so the worst that can happen is a request that was counted and not made.
"""

import asyncio
import time
from collections.abc import Awaitable, Coroutine, Sequence
from contextlib import suppress
from importlib.resources import files
from typing import Any

from cachetools import TLRUCache
from redis.exceptions import RedisError

from asgi_enhance.asgi.tasks import Tasks
from asgi_enhance.errors import RedisUnavailable
from asgi_enhance.ratelimit.budget import Budget
from asgi_enhance.ratelimit.decision import TAKE, Decision, Demand, Standing, Stats
from asgi_enhance.ratelimit.keys import digest
from asgi_enhance.ratelimit.replies import Denial, decisions
from asgi_enhance.ratelimit.share import Share
from asgi_enhance.redis import RedisManager

SCRIPT = files("asgi_enhance.ratelimit").joinpath("window.lua").read_text("utf-8")

CLOSED = "the limiter was closed"

Demands = tuple[Demand, ...]


class _Lane:
    """The requests with the same demands: one call under way, the others waiting for the next."""

    __slots__ = ("since", "troubles", "waiting")

    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[Decision]] = []
        self.since = 0.0  # when the first of them came, by the loop's clock
        self.troubles = 0  # there had been by then


class RedisStore:
    """Takes decisions in Redis.

    budget:       seconds a decision may take.
    deny_keys:    identities the deny memory holds; 0 turns it off.
    deny_seconds: the longest that anybody is refused without asking again: how late a reset or a refund may be noticed.
    max_waiting:  requests that may wait for the call before theirs, for one set of demands.
    share:        what this process may admit without Redis; hears of each reply.
    """

    def __init__(
        self,
        manager: RedisManager,
        stats: Stats,
        *,
        budget: float,
        deny_keys: int,
        deny_seconds: float,
        max_waiting: int,
        share: Share,
    ) -> None:
        self.stats = stats
        self._manager = manager
        self._script = manager.script(SCRIPT)
        self._prefix = manager.key("ratelimit", "")
        self._budget = Budget(budget)
        self._max_waiting = max_waiting
        self._lanes: dict[Demands, _Lane] = {}
        self._loop = asyncio.get_running_loop()
        self._tasks = Tasks()
        self._deny_seconds = deny_seconds if deny_keys else 0.0
        self._denied: TLRUCache[Demands, Denial] = TLRUCache(
            max(1, deny_keys), lambda _, denial, now: min(denial.until, now + deny_seconds), time.monotonic
        )
        self._denying = 0.0  # until when somebody is denied: before that, nobody has to be looked up
        self._share = share

    def hit(self, demands: Demands) -> Awaitable[Decision]:
        """Admit all demands or none of them."""
        lane = self._lanes.get(demands)
        if lane is not None:
            return self._join(lane)
        if self._manager.clustered:
            groups = self._groups(demands)
            if len(groups) > 1:
                return self._hit_in_turn(groups)
        return self._lead(demands)

    async def _hit_in_turn(self, groups: list[Demands]) -> Decision:
        """The narrowest first, since it is the likeliest to refuse. When one does, those before it give back."""
        admitted: list[tuple[Demands, int]] = []
        standings: tuple[Standing, ...] = ()
        try:
            for group in sorted(groups, key=_rate):
                decision = await (self._join(self._lanes[group]) if group in self._lanes else self._lead(group))
                standings += decision.standings
                if not decision.allowed:
                    break
                admitted.append((group, decision.at))
            else:
                return Decision(True, standings, at=decision.at)
        except BaseException:
            self._tasks.spawn(self._give_back(admitted), name="ratelimit refund")
            raise
        await self._give_back(admitted)
        return Decision(False, standings, decision.retry_after, decision.violated, decision.reason)

    async def _give_back(self, admitted: list[tuple[Demands, int]]) -> None:
        for group, at in admitted:
            with suppress(RedisUnavailable):
                await self._ask("refund", tuple(demand for demand in group if demand.role == TAKE), admitted=at)

    async def _lead(self, demands: Demands) -> Decision:
        """Be the first in a lane, and call."""
        if time.monotonic() < self._denying and (denial := self._denied.get(demands)) is not None:
            self.stats.refused_locally += 1
            return denial.again(time.monotonic())
        lane = self._lanes.get(demands)
        if lane is not None:  # somebody was quicker
            return await self._join(lane)
        lane = self._lanes[demands] = _Lane()
        try:
            before, troubles = time.monotonic(), self._share.troubles
            reply: list[int] = await self._within(self._budget.spend(self._hit(demands, 1)))
            return self._decided(demands, 1, reply, before, troubles)[0]
        finally:
            self._pass_on(lane, demands)

    async def peek(self, demands: Demands) -> Decision:
        """What `hit` would say of one identity, without taking anything."""
        reply = await self._ask("peek", demands, 1)
        return decisions(demands, 1, reply)[0]

    async def charge(self, demands: Demands) -> None:
        """Take, whether it fits or not."""
        for group in self._groups(demands):
            await self._ask("charge", group)

    async def refund(self, demands: Demands, admitted: int) -> None:
        """Give back what was admitted at `admitted`, as far as it still counts."""
        for group in self._groups(demands):
            await self._ask("refund", group, admitted=admitted)

    async def reset(self, demands: Demands) -> None:
        """Forget what one identity has used."""
        await self._within(self._budget.spend(self._manager.execute("DEL", *map(self._key, demands))))
        self._forgive(demands)

    async def aclose(self) -> None:
        self._budget.close()
        await self._tasks.cancel()
        for lane in self._lanes.values():  # a task that is cancelled before its first step cleans nothing up
            for future in lane.waiting:
                _fail(future, CLOSED)

    def _join(self, lane: _Lane) -> asyncio.Future[Decision]:
        """Wait for the next call of a lane."""
        if len(lane.waiting) >= self._max_waiting:
            raise RedisUnavailable(f"{self._max_waiting} requests are waiting for the same decision already")
        future: asyncio.Future[Decision] = self._loop.create_future()
        if not lane.waiting:
            lane.since, lane.troubles = self._loop.time(), self._share.troubles
        lane.waiting.append(future)
        return future

    def _pass_on(self, lane: _Lane, demands: Demands) -> None:
        """The call is back: who waits is next, or the lane is closed."""
        if lane.waiting:
            self._tasks.spawn(self._serve(lane, demands), name="ratelimit group commit")
        else:
            del self._lanes[demands]

    async def _serve(self, lane: _Lane, demands: Demands) -> None:
        """Call for all that wait, until nobody does."""
        group: list[asyncio.Future[Decision]] = []
        try:
            while lane.waiting:
                deadline, troubles = lane.since + self._budget.seconds, lane.troubles
                group, lane.waiting = [future for future in lane.waiting if not future.done()], []
                if not group:  # all have been cancelled; nobody else pays for them
                    continue
                try:
                    self._check(troubles)
                    before = time.monotonic()
                    reply = await self._within(self._hit(demands, len(group)), deadline)
                    answers = self._decided(demands, len(group), reply, before, troubles)
                except RedisUnavailable as error:
                    for future in group:
                        _fail(future, str(error))
                else:
                    for future, decision in zip(group, answers, strict=True):
                        if not future.done():
                            future.set_result(decision)
                    if answers[-1].allowed:  # else whoever asks again is refused without a call
                        await asyncio.sleep(0)  # who asks again at once goes with the next call
        finally:
            del self._lanes[demands]
            for future in [*group, *lane.waiting]:
                _fail(future, CLOSED)

    async def _ask(self, mode: str, demands: Demands, want: int = 0, admitted: int = 0) -> list[int]:
        reply: list[int] = await self._within(self._budget.spend(self._call(mode, demands, want, admitted)))
        return reply

    def _decided(self, demands: Demands, want: int, reply: list[int], before: float, troubles: int) -> list[Decision]:
        """What the script said to who asked then, remembered where it has to be."""
        self._check(troubles)
        answers = decisions(demands, want, reply)
        last = answers[-1]
        if last.retry_after and self._deny_seconds and (last.reason == "ban" or not _strikes(demands)):
            until = before + last.retry_after
            self._denied[demands] = Denial(last, until)
            self._denying = max(self._denying, min(until, before + self._deny_seconds))
        self._share.learn(demands, reply[0], reply[2::4], reply[3::4])
        return answers

    def _check(self, troubles: int) -> None:
        """RedisUnavailable if there has been trouble since: at the end of a new connection may be a Redis that knows
        nothing, and it has to be told before it is asked."""
        if self._share.troubles != troubles:
            raise RedisUnavailable("redis is not the one that it was a moment ago", maybe_executed=True)

    async def tell(self, demands: Demands) -> None:
        """Tell Redis what it does not know of these."""
        if self._share.has_news:
            await self._within(self._budget.spend(self._tell(demands)))

    def _hit(self, demands: Demands, want: int) -> Coroutine[Any, Any, list[int]]:
        return self._tell_and_hit(demands, want) if self._share.has_news else self._call("hit", demands, want)

    async def _tell_and_hit(self, demands: Demands, want: int) -> list[int]:
        await self._tell(demands)
        return await self._call("hit", demands, want)

    async def _tell(self, demands: Demands) -> None:
        for demand in demands:
            news = self._share.news(demand)
            if news is not None:
                try:
                    await self._call("report", (demand,), news=news.packed)
                except BaseException:
                    self._share.keep(news)
                    raise

    def _call(
        self, mode: str, demands: Demands, want: int = 0, admitted: int = 0, news: bytes = b""
    ) -> Coroutine[Any, Any, list[int]]:
        self.stats.calls += 1
        args: list[str | int | bytes] = [mode, want, admitted]
        for demand in demands:
            quota = demand.quota
            args += (quota.limit, quota.window, quota.burst, demand.cost, demand.role)
        if news:
            args.append(news)
        return self._script(keys=[self._key(demand) for demand in demands], args=args)

    async def _within(self, call: Coroutine[Any, Any, Any], deadline: float | None = None) -> Any:
        """The reply. RedisUnavailable if there is none by the deadline, or if it is an error."""
        try:
            if deadline is None:
                return await call
            async with asyncio.timeout_at(deadline):
                return await call
        except TimeoutError:
            reason = f"redis did not decide within {self._budget.seconds * 1000:g} ms"
            raise RedisUnavailable(reason, maybe_executed=True) from None
        except RedisError as error:
            raise RedisUnavailable(f"redis cannot decide: {error}", maybe_executed=True) from error

    def _groups(self, demands: Demands) -> list[Demands]:
        """What one call can decide together. On a Cluster, where a script reaches one slot, that is an identity's."""
        if not self._manager.clustered or len(demands) == 1:
            return [demands]
        by_identity: dict[str, list[Demand]] = {}
        for demand in demands:
            by_identity.setdefault(demand.identity, []).append(demand)
        return [tuple(group) for group in by_identity.values()]

    def _key(self, demand: Demand) -> str:
        # The braces keep all quotas of one identity in one slot of a Cluster.
        return f"{self._prefix}{{{digest(demand.identity)}}}:{demand.quota.slot}"

    def _forgive(self, demands: Sequence[Demand]) -> None:
        if self._denied:
            freed = {(demand.quota.slot, demand.identity) for demand in demands}
            for denied in list(self._denied):
                if any((demand.quota.slot, demand.identity) in freed for demand in denied):
                    self._denied.pop(denied, None)


def _rate(demands: Demands) -> float:
    return min(demand.quota.drain for demand in demands if demand.role == TAKE)


def _strikes(demands: Demands) -> bool:
    return any(demand.role != TAKE for demand in demands)


def _fail(future: asyncio.Future[Any], reason: str) -> None:
    if not future.done():
        future.set_exception(RedisUnavailable(reason, maybe_executed=True))
