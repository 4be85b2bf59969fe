"""``python -m deploy.local COMMAND``: the one-machine stack from the command line."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from deploy.local.errors import StackError
from deploy.local.parts import PARTS, TAPE_DRIVERS
from deploy.local.site import default_directory
from deploy.local.stack import Stack


def say(text: str) -> None:
    """Tell what is going on, apart from what a command prints as its result."""
    print(text, file=sys.stderr, flush=True)


def up(stack: Stack, _arguments: argparse.Namespace) -> int:
    """Start everything and wait until it is healthy."""
    stack.up()
    say(f"the stack is up in {stack.site.directory}")
    say('to use it as alice: eval "$(.venv/bin/python -m deploy.local env alice)"')
    return 0


def down(stack: Stack, _arguments: argparse.Namespace) -> int:
    """Stop everything; the data stays."""
    stack.down()
    return 0


def status(stack: Stack, _arguments: argparse.Namespace) -> int:
    """Print a line per part; 1 when any is not healthy."""
    parts = stack.status()
    for part in parts:
        ports = " ".join(f"{name}:{port}" for name, port in sorted(part.ports.items()))
        print(f"{part.name:10} {part.pid or '-':>8}  {part.trouble or 'healthy':24} {ports}")
    return int(any(part.trouble for part in parts))


def restart(stack: Stack, arguments: argparse.Namespace) -> int:
    """Restart the parts named, or all."""
    for name in arguments.names or stack.parts():
        stack.restart(name)
    return 0


def stop(stack: Stack, arguments: argparse.Namespace) -> int:
    """Stop the parts named."""
    for name in arguments.names:
        stack.stop(name)
    return 0


def logs(stack: Stack, arguments: argparse.Namespace) -> int:
    """Print a part's log, or follow it."""
    path = stack.log_path(arguments.name)
    if not path.exists():
        raise StackError(f"{arguments.name} has not been started in {stack.site.directory}")
    command = ["tail", "-n", "100", *(["-F"] if arguments.follow else []), str(path)]
    os.execvp(command[0], command)


def environment(stack: Stack, arguments: argparse.Namespace) -> int:
    """Print what a shell needs to use nlds with this stack; logs USER in when named."""
    variables = stack.environment()
    if arguments.user:
        variables["NEARLINE_CONFIG"] = str(stack.login(arguments.user))
    for name, value in variables.items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


def home(stack: Stack, arguments: argparse.Namespace) -> int:
    """Print the home directory of a test user."""
    print(stack.home(arguments.user))
    return 0


def wipe(stack: Stack, arguments: argparse.Namespace) -> int:
    """Stop everything and delete all data."""
    directory = stack.site.directory
    if not arguments.yes:
        raise StackError(f"wipe deletes all of {directory}; say --yes if that is meant")
    stack.down()
    shutil.rmtree(directory)
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; 2 and one line on stderr when it cannot be done."""
    arguments = _parser().parse_args(words)
    command: Callable[[Stack, argparse.Namespace], int] = arguments.command
    try:
        return command(Stack(arguments.dir, tape=arguments.tape, say=say), arguments)
    except (StackError, OSError) as error:
        say(f"error: {error}")
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deploy.local", description=__doc__)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--dir",
        type=Path,
        default=default_directory(),
        help="where all its data is (default: %(default)s)",
    )
    common.add_argument(
        "--tape",
        choices=TAPE_DRIVERS,
        default="auto",
        help="tape: auto takes xrootd where it is installed",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, command: Callable[[Stack, argparse.Namespace], int]
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=command.__doc__, parents=[common])
        sub.set_defaults(command=command)
        return sub

    add("up", up)
    add("down", down)
    add("status", status)
    add("restart", restart).add_argument("names", nargs="*", metavar="NAME")
    add("stop", stop).add_argument("names", nargs="+", choices=PARTS, metavar="NAME")
    log = add("logs", logs)
    log.add_argument("name", choices=PARTS, metavar="NAME")
    log.add_argument("-f", "--follow", action="store_true", help="go on as it grows")
    add("env", environment).add_argument("user", metavar="USER", nargs="?", help="a test user")
    add("home", home).add_argument("user", metavar="USER")
    add("wipe", wipe).add_argument("--yes", action="store_true", help="really")
    return parser


if __name__ == "__main__":
    sys.exit(main())
