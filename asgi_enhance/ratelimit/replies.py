"""What the script said, as decisions: for each request of a group, and again for who comes too early after that."""

from asgi_enhance.ratelimit.decision import TAKE, Decision, Demand, Standing, refusal
from asgi_enhance.ratelimit.policy import SECOND


class Denial:
    """A refusal that is still good: the decision, and when the script said to come back (monotonic seconds)."""

    __slots__ = ("decision", "until")

    def __init__(self, decision: Decision, until: float) -> None:
        self.decision = decision
        self.until = until

    def again(self, now: float) -> Decision:
        """The same refusal, so much later."""
        left = max(0.0, self.until - now)
        passed = (self.decision.retry_after or 0.0) - left
        return Decision(
            False,
            tuple(
                Standing(standing.quota, standing.remaining, max(0.0, standing.reset - passed))
                for standing in self.decision.standings
            ),
            left,
            self.decision.violated,
            self.decision.reason,
        )


def decisions(demands: tuple[Demand, ...], want: int, reply: list[int]) -> list[Decision]:
    """One decision for each of `want` requests, in the order they came."""
    granted, now = reply[:2]
    if want == granted == len(demands) == 1:  # the most frequent case
        standing = Standing(demands[0].quota, min(reply[2], reply[3]), reply[4] / SECOND)
        return [Decision(True, (standing,), None, (), "", False, now)]
    rooms, resets, waits = map(min, reply[2::4], reply[3::4]), reply[4::4], reply[5::4]
    taken = [row for row in zip(demands, rooms, resets, strict=True) if row[0].role == TAKE]
    answers = []
    for later in range(granted - 1, -1, -1):  # how many were admitted in the same call after this one
        standings = [
            Standing(demand.quota, max(0, room + later * demand.cost), reset / SECOND) for demand, room, reset in taken
        ]
        answers.append(Decision(True, tuple(standings), None, (), "", False, now))
    if granted < want:
        left = tuple(Standing(demand.quota, max(0, room), reset / SECOND) for demand, room, reset in taken)
        answers += [refusal(demands, waits, left)] * (want - granted)
    return answers
