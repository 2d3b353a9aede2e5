"""What the tour prints: titles, facts, and checks that must hold."""

import sys
from dataclasses import dataclass, field


class StepFailed(Exception):
    """A step of the tour did not hold."""


@dataclass
class Transcript:
    """Prints as it goes; colours only on a terminal."""

    colours: bool = field(default_factory=sys.stdout.isatty)
    checks: int = 0

    def title(self, text: str) -> None:
        print(f"\n{self._styled('1', text)}", flush=True)

    def say(self, text: str) -> None:
        print(f"  {text}", flush=True)

    def fact(self, left: str, right: str) -> None:
        print(f"  {left:<44} {self._styled('2', right)}", flush=True)

    def check(self, holds: bool, text: str) -> None:
        """Print what was checked. Raises StepFailed if it does not hold."""
        self.checks += 1
        print(f"  {self._styled('32', '✓') if holds else self._styled('31', '✗')} {text}", flush=True)
        if not holds:
            raise StepFailed(text)

    def _styled(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colours else text
