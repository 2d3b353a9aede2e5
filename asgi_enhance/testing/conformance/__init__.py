"""The transparency kit: is a middleware invisible to what is not its business?

`check(factory)` builds the middleware round small scripted apps, plays every situation of the ASGI contract to it, and
returns a `Finding` for each line it breaks. `assert_transparent(factory)` raises with all of them. A middleware may add
headers to a response; it may take nothing away, and delay, reorder or invent nothing.

    def test_my_middleware_is_transparent():
        asyncio.run(assert_transparent(lambda app: MyMiddleware(app, option=1)))
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from asgi_enhance.testing.conformance import failures, kit, others, requests, responses
from asgi_enhance.testing.conformance.kit import Factory

SITUATIONS: tuple[Callable[[Factory], Awaitable[None]], ...] = (
    *responses.SITUATIONS,
    *requests.SITUATIONS,
    *failures.SITUATIONS,
    *others.SITUATIONS,
)
"""Each is named after what is expected."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One broken line of the contract: the situation that was played, and what went wrong."""

    situation: str
    problem: str

    def __str__(self) -> str:
        return f"{self.situation}: {self.problem}"


async def check(factory: Factory) -> list[Finding]:
    """Play every situation to a new middleware each; what it broke, in order. Empty means transparent."""
    findings = []
    for situation in SITUATIONS:
        try:
            async with asyncio.timeout(5 * kit.WAIT):
                await situation(factory)
        except AssertionError as error:
            findings.append(Finding(situation.__name__, str(error)))
        except TimeoutError:
            findings.append(Finding(situation.__name__, "nothing happened any more"))
        except Exception as error:
            findings.append(Finding(situation.__name__, f"{type(error).__name__}: {error}"))
    return findings


async def assert_transparent(factory: Factory) -> None:
    """AssertionError naming every broken line of the contract."""
    findings = await check(factory)
    assert not findings, "not transparent:\n" + "\n".join(f"  {finding}" for finding in findings)
