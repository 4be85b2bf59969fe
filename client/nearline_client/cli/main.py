"""The group of commands, and how errors become one line and an exit code."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from nearline_client.auth_errors import AuthError, ConfigError, IssuerUnavailable
from nearline_client.cli import account, follow, query, transfer
from nearline_client.cli.options import State, verbose_option
from nearline_client.cli.render import one_line
from nearline_client.errors import NotAllowed, NotLoggedIn, ServiceError
from nearline_client.names import PathError

REFUSED = 1
USAGE = 2
NOT_ALLOWED = 3
INTERRUPTED = 130
BROKEN_PIPE = 141  # as the shell reports a program that SIGPIPE ended


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        """As click, but quiet when whoever reads the output has enough."""
        try:
            code = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            return _drop_output()
        return code


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done or accepted, 1 refused or failed, 2 usage, 3 not logged in or not"
    " allowed, 10 complete with errors, 11 failed, 12 cancelled. NEARLINE_URL and NEARLINE_TOKEN"
    " replace configuration and login.",
)
@click.version_option(package_name="nearline-client", prog_name="nlds")
@verbose_option
def nlds() -> None:
    """Store files in the near-line store, and bring them back.

    \b
    nlds init -U https://store.example.org --issuer https://login.example.org
    nlds put --wait -l run-7 results/
    nlds find -l run-7
    nlds get --wait -r /scratch results/
    """


for _command in (*account.COMMANDS, *transfer.COMMANDS, *query.COMMANDS, *follow.COMMANDS):
    nlds.add_command(_command)


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    code = run(args)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = _drop_output()
    sys.exit(code)


def run(args: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code. Errors are shown as one line on standard error."""
    _tolerate_any_text()
    # gRPC would log beside the one line of an error; read when it is imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    state = State()
    try:
        # A command returns its exit code; None is 0.
        return nlds.main(args, prog_name="nlds", standalone_mode=False, obj=state) or 0
    except click.UsageError as error:
        return _usage(error)
    except click.Abort:
        _say("interrupted")
        return INTERRUPTED
    except Exception as error:
        return _failed(error, state)


def _usage(error: click.UsageError) -> int:
    context = error.ctx
    command = context.command_path if context else "nlds"
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
    else:
        _say(f"{error.format_message().rstrip('.')}; see `{command} --help`", command)
    return USAGE


def _failed(error: Exception, state: State) -> int:
    text, code = _explain(error)
    _say(text)
    if state.verbose:
        _say_details(error)
    return code


def _explain(error: Exception) -> tuple[str, int]:
    if isinstance(error, (NotLoggedIn, NotAllowed)):
        return str(error), NOT_ALLOWED
    if isinstance(error, (ServiceError, ConfigError, IssuerUnavailable)):
        return str(error), REFUSED
    if isinstance(error, AuthError):
        return str(error), NOT_ALLOWED
    if isinstance(error, click.ClickException):
        return str(error), error.exit_code
    if isinstance(error, PathError):
        return str(error), USAGE
    if isinstance(error, OSError):
        return str(error), REFUSED
    return f"internal error ({type(error).__name__}: {error}); --verbose shows where", REFUSED


def _say(text: str, command: str = "nlds") -> None:
    click.echo(f"{command}: {one_line(text)}", err=True)


def _say_details(error: Exception) -> None:
    if isinstance(error, ServiceError):
        _say(f"code: {error.code}, reason: {error.reason}")
        for key, value in (*error.metadata.items(), *error.violations):
            _say(f"{key}: {value}")
    else:
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)


def _tolerate_any_text() -> None:
    """A label that the locale cannot write must not end the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _drop_output() -> int:
    """Whoever read the output has enough; Python's own flush at exit must not complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE
