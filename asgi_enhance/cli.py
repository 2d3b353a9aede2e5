"""The command line: `asgi-enhance`, or `python -m asgi_enhance`."""

import argparse
import asyncio
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from asgi_enhance.errors import EnhanceError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit code: 0 done, 1 something does not hold, 2 used wrongly."""
    arguments = parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
    except (EnhanceError, ImportError) as error:
        print(f"asgi-enhance {arguments.command}: {error}", file=sys.stderr)
        return 2
    return code


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="asgi-enhance", description="ASGI layers for applications in production.")
    parser.add_argument("--version", action="version", version=f"asgi-enhance {version('asgi-enhance')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="a tour of the whole stack on real servers")
    demo.add_argument("--redis", metavar="URL", help="run two gateway processes that share this Redis")
    demo.add_argument("--serve", action="store_true", help="only start the servers, and stay up until interrupted")
    demo.set_defaults(run=_demo)

    serve = commands.add_parser("serve", help="a gateway that balances to backends")
    serve.add_argument("--backend", metavar="URL", action="append", required=True, help="once for each backend")
    _stack_options(serve)
    serve.set_defaults(run=_serve, app=None)

    wrap = commands.add_parser("wrap", help="an app of yours inside the stack")
    wrap.add_argument("app", metavar="MODULE:APP", help="to be imported; MODULE:FUNCTION() is called for the app")
    _stack_options(wrap)
    wrap.set_defaults(run=_serve, backend=[])

    check = commands.add_parser("check", help="are the settings right, and what they name within reach?")
    check.set_defaults(run=_check)
    return parser


def _stack_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cache", action="store_true", help="keep responses that may be kept")
    parser.add_argument("--rate-limit", metavar="LIMIT", help='for each client, e.g. "100/minute burst 20"')
    parser.add_argument("--metrics", action="store_true", help="count requests, serve the metrics at /metrics")
    parser.add_argument("--broadcast", metavar="PATH", help="take WebSockets at PATH, e.g. /ws/{client_id}")
    parser.add_argument("--redis", metavar="URL", help="share state through this Redis (default: REDIS_URL)")
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--port", type=_whole(0, 65535), default=8000, help="default: %(default)s")
    parser.add_argument("--workers", type=_whole(1), default=1, metavar="N", help="processes (default: %(default)s)")
    parser.add_argument(
        "--grace",
        type=_whole(0),
        default=30,
        metavar="SECONDS",
        help="for requests to end on a stop (default: %(default)s)",
    )
    parser.add_argument("--access-log", action="store_true", help="a line for each request")


def _whole(least: int, most: int = sys.maxsize) -> Callable[[str], int]:
    """Reads a whole number within bounds."""

    def number(text: str) -> int:
        if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
        return int(text)

    return number


def _demo(arguments: argparse.Namespace) -> int:
    _need_uvicorn()
    from asgi_enhance.demo.tour import run

    for number in (signal.SIGTERM, signal.SIGHUP):  # like Ctrl-C: its servers are processes of their own, and must end
        signal.signal(number, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        return asyncio.run(run(arguments.redis, serve=arguments.serve))
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    _need_uvicorn()
    import uvicorn

    from asgi_enhance.gateway import Gateway

    sys.path.insert(0, "")  # the user's app is found from where he stands, as under uvicorn
    gateway = Gateway(
        backends=tuple(arguments.backend),
        app=arguments.app,
        cache=arguments.cache,
        rate_limit=arguments.rate_limit,
        metrics=arguments.metrics,
        broadcast=arguments.broadcast,
        redis_url=arguments.redis,
    )
    api = gateway.build().api  # what is wrong is said here, once, and not by every worker
    for warning in _warnings(arguments, shared=api.redis is not None):
        print(f"asgi-enhance {arguments.command}: {warning}", file=sys.stderr)
    gateway.to_env()
    config = uvicorn.Config(
        "asgi_enhance.gateway:create",
        factory=True,
        host=arguments.host,
        port=arguments.port,
        workers=arguments.workers,
        timeout_graceful_shutdown=arguments.grace,
        proxy_headers=False,  # who is believed is the settings' business
        ws="websockets-sansio",
        access_log=arguments.access_log,
    )
    try:
        return 0 if _run(config) else 1
    except KeyboardInterrupt:
        return 0
    except SystemExit as left:  # uvicorn has said why it could not start
        return 1 if left.code else 0


def _run(config: Any) -> bool:
    """Serve until the end; whether it could start. Of several workers that could not `uvicorn.run` does not tell."""
    from uvicorn import Server
    from uvicorn.config import STARTUP_FAILURE
    from uvicorn.supervisors import Multiprocess

    if config.workers == 1:
        server = Server(config)
        server.run()
        return server.started
    workers = Multiprocess(config, sockets=[config.bind_socket()])
    workers.run()
    return all(worker.exitcode != STARTUP_FAILURE for worker in workers.processes)


def _warnings(arguments: argparse.Namespace, *, shared: bool) -> list[str]:
    """What works, but not as one may think: each worker is a process of its own, and so is whoever publishes."""
    said = []
    if arguments.workers > 1 and not shared:
        apart = [name for name in ("rate_limit", "cache", "metrics", "broadcast") if getattr(arguments, name)]
        if apart:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in apart)
            said.append(f"without --redis each of the {arguments.workers} workers has its own state: {names}")
    if arguments.broadcast and arguments.backend and not shared:
        said.append("without --redis no other process can publish to the clients of --broadcast")
    return said


def _check(arguments: argparse.Namespace) -> int:
    from asgi_enhance.api import EnhancedAPI
    from asgi_enhance.settings import Settings

    settings = Settings.from_env()
    print(settings)
    EnhancedAPI(settings=settings)  # what cannot work together is said before anybody is asked
    problems = asyncio.run(_problems(settings))
    for problem in problems:
        print(f"✗ {problem}")
    if not problems:
        print("✓ everything the settings name is within reach")
    return bool(problems)


async def _problems(settings: Any) -> list[str]:
    """What the settings name and cannot be reached, each in one line."""
    from asgi_enhance.balance import LoadBalancer
    from asgi_enhance.balance.discovery import PREFIX, DnsName
    from asgi_enhance.redis import RedisManager

    problems = []
    if settings.redis_url is not None:
        async with RedisManager(settings.redis_url) as redis:
            try:
                print(f"✓ {redis!r} answers within {await redis.ping() * 1000:.1f} ms")
            except EnhanceError as error:
                problems.append(f"REDIS_URL: {error}")
    for url in settings.backends:
        if url.startswith(PREFIX):
            try:
                await DnsName(url).resolve()
            except (OSError, UnicodeError) as error:
                problems.append(f"API_LOAD_BALANCER_BACKENDS: {url}: {error}")
    if settings.backends:
        async with LoadBalancer(settings.backends) as balancer:
            for backend, report in (await balancer.health_check()).items():
                if report["healthy"]:
                    print(f"✓ {backend} answers")
                else:
                    problems.append(f"API_LOAD_BALANCER_BACKENDS: {backend}: {report['error']}")
    return problems


def _need_uvicorn() -> None:
    if find_spec("uvicorn") is None:
        raise ImportError("this runs real servers: pip install 'asgi-enhance[server]'")
