"""Puts a realistic directory into the store, archives, evicts, gets it back and compares it all."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.local.demo.compare import Comparison
from deploy.local.demo.make import MB, Plan
from deploy.local.demo.screen import Screen
from deploy.local.demo.story import Demo, Options
from deploy.local.errors import StackError
from deploy.local.parts import TAPE_DRIVERS
from deploy.local.site import default_directory
from deploy.local.stack import Stack
from nearline_client.auth_errors import AuthError
from nearline_client.errors import ServiceError

_SHOWN_DIFFERENCES = 50


def main(words: Sequence[str] | None = None) -> int:
    """0 when everything came back as it was, 1 when something differs, 2 when it could not be."""
    arguments = _parser().parse_args(words)
    screen = Screen()
    # So that what was started is stopped and removed then too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return _run(arguments, screen)
    except (StackError, ServiceError, AuthError, TimeoutError, OSError) as error:
        screen.line(f"error: {error}")
        screen.line(f"logs are in {arguments.dir / 'logs'}")
        return 2


def _run(arguments: argparse.Namespace, screen: Screen) -> int:
    fresh = not (arguments.dir / "ports.json").exists()
    stack = Stack(arguments.dir, tape=arguments.tape, say=screen.say)
    ran_before = any(stack.pid(name) for name in stack.parts())
    try:
        with screen.step("starting the stack"):
            stack.up()
        comparison = _demonstrate(stack, screen, arguments)
    finally:
        if not ran_before and not arguments.keep:
            with screen.step("stopping the stack"):
                stack.down()
    if fresh and not arguments.keep and not comparison.differences:
        shutil.rmtree(arguments.dir)
    screen.table()
    return report(comparison, screen)


def _demonstrate(stack: Stack, screen: Screen, arguments: argparse.Namespace) -> Comparison:
    plan = Plan(arguments.files, tuple(size * MB for size in arguments.large), arguments.seed)
    demo = Demo(stack, screen, Options(plan, arguments.limit))
    try:
        return demo.run()
    finally:
        if not arguments.keep:
            demo.clean()


def report(comparison: Comparison, screen: Screen) -> int:
    """Print the outcome as the last lines; 1 when something differs."""
    differences = comparison.differences
    screen.line("\n== outcome")
    for difference in differences[:_SHOWN_DIFFERENCES]:
        screen.line(str(difference))
    screen.line(f"entries = {comparison.entries}")
    screen.line(f"files = {comparison.files}")
    screen.line(f"bytes = {comparison.bytes}")
    screen.line("verified = all" if not differences else f"differences = {len(differences)}")
    return int(bool(differences))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deploy.local.demo", description=__doc__)
    add = parser.add_argument
    add("--dir", type=Path, default=default_directory(), help="all data of the stack")
    add("--tape", choices=TAPE_DRIVERS, default="auto", help="what tape is")
    add("--files", type=int, default=10_000, metavar="N", help="small files (default: 10000)")
    add(
        "--large", type=_sizes, default=(300, 400), metavar="MB,MB", help="sizes of the large files"
    )
    add("--seed", type=int, default=1, help="same seed, same bytes")
    add("--limit", type=float, default=300, metavar="SECONDS", help="longest wait in a step")
    add("--keep", action="store_true", help="keep all data, and the stack running")
    return parser


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(",") if size)


if __name__ == "__main__":
    sys.exit(main())
