"""Follows a transaction to its end: a bar on a terminal, else a line for each change."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from nearline_client.cli.render import one_line
from nearline_client.cli.views import action_name, progress_line, state_name
from nearline_client.states import is_final

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from nearline.type.v1.transaction_pb2 import Transaction
    from nearline_client.client import Client
    from nearline_client.errors import ServiceError

Show = Callable[["Transaction"], None]
Trouble = Callable[["ServiceError"], None]


def follow(client: Client, id: str, *, quiet: bool = False) -> Transaction:
    """The transaction in its final state. `quiet` keeps standard output free for a result.

    Ctrl-C ends only this; the person is told so, and how to go on.
    """
    with _display(quiet) as (show, trouble):
        try:
            for transaction in client.watch(id, on_trouble=trouble):
                show(transaction)
        except KeyboardInterrupt:
            raise StoppedFollowing(id) from None
    return transaction


class StoppedFollowing(click.ClickException):
    """A person does not want to wait any more."""

    exit_code = 130

    def __init__(self, id: str) -> None:
        super().__init__(
            f"transaction {id} goes on; `nlds watch {id}` shows it, `nlds cancel {id}` stops it"
        )


@contextmanager
def _display(quiet: bool) -> Iterator[tuple[Show, Trouble]]:
    if sys.stderr.isatty() and (quiet or sys.stdout.isatty()):
        with _bar() as shown:
            yield shown
    else:
        lines = _Lines(quiet)
        yield lines.show, lines.trouble


class _Lines:
    """A line for each change that shows."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._last = ""

    def show(self, transaction: Transaction) -> None:
        """A line on standard output, when it says something new."""
        line = f"{action_name(transaction)} {transaction.id} {progress_line(transaction)}"
        if line != self._last and not self._quiet:
            click.echo(f"{time.strftime('%H:%M:%S')} {one_line(line)}")
            # Whoever reads it through a pipe wants to see it now.
            sys.stdout.flush()
        self._last = line

    def trouble(self, error: ServiceError) -> None:
        """A line on standard error, once for each interruption."""
        line = f"the connection is lost, trying again: {error}"
        if line != self._last:
            click.echo(f"nlds: {one_line(line)}", err=True)
        self._last = line


@contextmanager
def _bar() -> Iterator[tuple[Show, Trouble]]:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    progress = _rich_progress()
    task = progress.add_task("", total=None, counts="")
    # What others wrote is no markup of rich: Text takes it as it is.
    note = Text("", style="yellow")

    live = Live(Group(progress, note), console=Console(stderr=True), refresh_per_second=2)

    def show(transaction: Transaction) -> None:
        note.plain = f"waiting: {waits}" if (waits := one_line(transaction.waiting_for)) else ""
        _update(progress, task, transaction)
        live.refresh()

    def trouble(error: ServiceError) -> None:
        note.plain = one_line(f"connection lost, trying again: {error}")
        live.refresh()

    with live:
        yield show, trouble


def _rich_progress() -> Progress:
    from rich import progress as rich

    return rich.Progress(
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(bar_width=24),
        rich.TextColumn("{task.fields[counts]}", markup=False),
        rich.DownloadColumn(binary_units=True),
        rich.TransferSpeedColumn(),
        rich.TimeRemainingColumn(),
        rich.TimeElapsedColumn(),
    )


def _update(progress: Progress, task: TaskID, transaction: Transaction) -> None:
    failed = f", {transaction.files_failed} failed" if transaction.files_failed else ""
    progress.update(
        task,
        description=f"{action_name(transaction)} {state_name(transaction)}",
        completed=transaction.bytes_done,
        total=_bar_total(transaction),
        counts=f"{transaction.files_done}/{transaction.files_total} files{failed}",
    )


def _bar_total(transaction: Transaction) -> int | None:
    """What is full: unknown (None) before the files are known."""
    if is_final(transaction.state):
        # Empty files, and files that failed, leave the bar where a person would ask why.
        return max(transaction.bytes_done, 1) if transaction.files_done else 1
    return transaction.bytes_total or None
