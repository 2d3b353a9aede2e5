"""`/livez` and `/readyz`, as an app of its own or in front of another."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import msgspec

from asgi_enhance.asgi.allow import from_this_machine
from asgi_enhance.asgi.lifespan import run_lifespan
from asgi_enhance.asgi.problem import Problem
from asgi_enhance.asgi.scope import path_below_mount
from asgi_enhance.asgi.types import ASGIApp, Message, Receive, Scope, Send
from asgi_enhance.errors import ConfigError
from asgi_enhance.health import checks as usual
from asgi_enhance.health.checks import Check
from asgi_enhance.health.core import Health
from asgi_enhance.health.policy import Phase, Status, document, readiness
from asgi_enhance.options import checked

if TYPE_CHECKING:
    from asgi_enhance.redis import RedisManager


@checked
class HealthApp:
    """Answers `/livez`, `/readyz` and, for who may see details, `/readyz/{check}`.

    health:  the Health to speak of. Default: one of its own, with `checks`.
    checks:  asked for readiness. Default: none.
    redis:   a RedisManager or URL to check as well; it is not critical. Default: none.
    allow:   a predicate on the scope that says who may see details. Default: who calls from this machine itself.
    livez:   path. Default: "/livez".
    readyz:  path. Default: "/readyz".
    about:   members of the answer for who may see details: version, releaseId, serviceId, description. Default: none.
    """

    def __init__(
        self,
        *,
        health: Health | None = None,
        checks: Iterable[Check] = (),
        redis: "RedisManager | str | None" = None,
        allow: Callable[[Scope], bool] = from_this_machine,
        livez: str = "/livez",
        readyz: str = "/readyz",
        about: dict[str, str] | None = None,
    ) -> None:
        checks = tuple(checks)
        if health is not None and (checks or redis is not None):
            raise ConfigError("checks belong to the health: give them to Health(checks)")
        for argument, path in (("livez", livez), ("readyz", readyz)):
            if not path.startswith("/") or path.endswith("/"):
                raise ConfigError(f"{argument} must begin with a slash and not end with one, not {path!r}")
        if redis is not None:
            from asgi_enhance.redis import RedisManager

            manager = RedisManager.of(redis)
            assert manager is not None
            checks = (*checks, usual.redis(manager))
        self.health = Health(checks) if health is None else health
        self._allow = allow
        self._livez = livez
        self._readyz = readyz
        self._about = about or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await run_lifespan(None, scope, receive, send, (self.health,))
        elif not await self.answer(scope, receive, send):
            await Problem(404)(scope, receive, send)

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Answer if the request is for us."""
        if scope["type"] != "http":
            return False
        path = path_below_mount(scope) if scope.get("root_path") else scope["path"]
        if path == self._livez:
            await self._respond(scope, receive, send, self._alive)
        elif path == self._readyz:
            await self._respond(scope, receive, send, self._ready)
        elif path.startswith(f"{self._readyz}/") and self._allow(scope):
            name = path[len(self._readyz) + 1 :]
            if name not in self.health.names:
                return False
            await self._respond(scope, receive, send, lambda scope: self._ready(scope, only=name))
        else:
            return False
        return True

    async def _respond(self, scope: Scope, receive: Receive, send: Send, ask: Callable[..., object]) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            await Problem(405, headers=[(b"allow", b"GET, HEAD")])(scope, receive, send)
            return
        status, body = await ask(scope)  # type: ignore[misc]
        headers = [
            (b"content-type", b"application/health+json"),
            (b"content-length", b"%d" % len(body)),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": status.http, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _alive(self, scope: Scope) -> tuple[Status, bytes]:
        about = self._about if self._allow(scope) else {}
        return Status.PASS, msgspec.json.encode({"status": Status.PASS, **about})

    async def _ready(self, scope: Scope, only: str | None = None) -> tuple[Status, bytes]:
        allowed = self._allow(scope)
        query = parse_qs(scope["query_string"].decode("latin-1")) if allowed else {}
        findings = await self.health.findings(only=only, exclude=query.get("exclude", ()))
        phase = Phase.SERVING if only is not None else self.health.phase
        status = readiness(phase, findings)
        if not allowed:
            return status, msgspec.json.encode({"status": status})
        return status, msgspec.json.encode(document(status, phase, findings, self._about), enc_hook=str)


@checked
class HealthMiddleware(HealthApp):
    """Answers the probes in front of `app`, and follows its start-up and shutdown. The options are HealthApp's.

    Not ready while the app starts, and again from the moment the server begins to shut down.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        health: Health | None = None,
        checks: Iterable[Check] = (),
        redis: "RedisManager | str | None" = None,
        allow: Callable[[Scope], bool] = from_this_machine,
        livez: str = "/livez",
        readyz: str = "/readyz",
        about: dict[str, str] | None = None,
    ) -> None:
        super().__init__(
            health=health, checks=checks, redis=redis, allow=allow, livez=livez, readyz=readyz, about=about
        )
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        elif not await self.answer(scope, receive, send):
            await self.app(scope, receive, send)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        health = self.health

        async def watched_receive() -> Message:
            message = await receive()
            if message["type"] == "lifespan.startup":
                health.phase = Phase.STARTING
            elif message["type"] == "lifespan.shutdown":
                health.drain()
            return message

        async def watched_send(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                health.serve()
            await send(message)

        await run_lifespan(self.app, scope, watched_receive, watched_send, (health,))
