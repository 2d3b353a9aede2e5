"""The command line: `asgi-enhance`, or `python -m asgi_enhance`."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit code."""
    parser = argparse.ArgumentParser(prog="asgi-enhance", description="ASGI layers for applications in production.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser("demo", help="a tour of the whole stack on real servers")
    demo.add_argument("--redis", metavar="URL", help="run two gateway processes that share this Redis")
    demo.add_argument("--serve", action="store_true", help="only start the servers, and stay up until interrupted")
    return _demo(parser.parse_args(argv))


def _demo(arguments: argparse.Namespace) -> int:
    if find_spec("uvicorn") is None:
        print("the demo runs real servers: pip install 'asgi-enhance[server]'", file=sys.stderr)
        return 2
    from asgi_enhance.demo.tour import run

    with suppress(KeyboardInterrupt):
        return asyncio.run(run(arguments.redis, serve=arguments.serve))
    return 0
