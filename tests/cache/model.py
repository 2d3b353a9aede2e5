"""What no cache may do after RFC 9111, in the words of one app: judged by what it said, and to whom."""

from typing import Any

PATHS = ["/a", "/b?x=1"]
FIELDS = ["X-Tenant: 1", "X-Tenant: 2", "X-Tenant:", "Cookie: user=1", "Authorization: user", "X-Forwarded-Host: evil"]
DIRECTIVES = ["no-store", "private", "no-cache", "public", "must-revalidate", "max-age=10", "max-age=0", "s-maxage=5"]
WINDOWS = {"stale-while-revalidate=5": 5, "stale-if-error=8": 8}
GOOD = [["max-age=10"], ["max-age=10", "stale-while-revalidate=5"], ["max-age=10", "stale-if-error=8"]]
VARY = [(), ("Vary: X-Tenant",), ("Vary: *",), ("Vary: x-tenant, Cookie",)]
WANTED = ["no-cache", "max-age=3", "min-fresh=6", "max-stale=4", "only-if-cached", "no-store"]


class Said:
    """One answer of the app, as it gave it: what the model judges by."""

    def __init__(self, client: int, number: int, path: str, at: float, head: bool, more: dict[str, Any]) -> None:
        self.client = client
        self.number = number
        """Of the body it is about: a 304 is about an older one."""
        self.path = path
        self.at = at
        self.head = head
        self.asked: set[str] = set(more["clients"][client])
        self.wants: set[str] = set(more["wants"])
        self.directives: set[str] = set(more["directives"])
        self.vary: tuple[str, ...] = more["vary"]
        self.cookie: bool = more["cookie"]
        self.age: int = more["age"]
        self.gone = self.soft = False

    @property
    def lifetime(self) -> float:
        if "s-maxage=5" in self.directives:
            return 5
        if "max-age=0" in self.directives:
            return 0
        return 10 if "max-age=10" in self.directives else 0

    def forbidden(self) -> str | None:
        """Why this may never be used for another request."""
        if self.directives & {"no-store", "private"} or "no-store" in self.wants:
            return "it was said that it must not be stored"
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

    def usable(self, now: float, wants: list[str], *, error: bool) -> str | None:
        """How it may be used without asking: fresh, or stale with permission; None: not at all."""
        if "no-cache" in self.directives:
            return None
        age = now - self.at + self.age
        stale_for = age - self.lifetime
        new_enough = now - self.at < 1 or not (
            "no-cache" in wants
            or ("max-age=3" in wants and int(max(age, 0)) > 3)
            or ("min-fresh=6" in wants and -stale_for < 6)
        )
        if stale_for < 0 and not self.soft and new_enough:
            return "fresh"
        if self.directives & {"must-revalidate", "s-maxage=5"}:
            return None
        if new_enough and "max-stale=4" in wants and stale_for < 4 and not self.soft:
            return "stale, which the client puts up with"
        if new_enough and stale_for < 5 and "stale-while-revalidate=5" in self.directives:
            return "stale while it is renewed"
        if error and stale_for < 8 and "stale-if-error=8" in self.directives:
            return "stale in place of an error"
        return None


def _named(asked: set[str], names: set[str]) -> set[str]:
    return {line for line in asked if line.partition(":")[0].lower() in names}


def body(number: int) -> bytes:
    return b"%d" % number + b"." * number  # no two have one length, which is what a response to HEAD tells
