"""Commands about one transaction, and what all commands do once theirs is accepted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from nearline_client.cli import options as opt
from nearline_client.cli.progress import follow
from nearline_client.cli.render import print_json
from nearline_client.cli.session import connected
from nearline_client.cli.views import show_transaction
from nearline_client.states import exit_code, is_final

if TYPE_CHECKING:
    from nearline.type.v1.transaction_pb2 import Transaction
    from nearline_client.client import Client


@click.command()
@opt.options(opt.id_argument, opt.json_option, opt.verbose_option)
def watch(id: str, as_json: bool) -> int:
    """Show the progress of transaction ID until its end.

    The exit code is that of its final state. With --json the final transaction is printed.
    """
    with connected() as client:
        follow(client, id, quiet=as_json)
        return show_final(client, id, as_json)


@click.command()
@opt.options(opt.id_argument, opt.json_option, opt.verbose_option)
def cancel(id: str, as_json: bool) -> None:
    """Stop transaction ID. Files that are served already stay."""
    with connected() as client:
        _show(client.cancel(id), as_json)


@click.command()
@opt.options(opt.id_argument, opt.wait_option, opt.json_option, opt.verbose_option)
def retry(id: str, wait: bool, as_json: bool) -> int:
    """Run again what failed in transaction ID, as a new transaction.

    A transaction has one retry, which a repeat of this command shows. What failed in the retry is
    run again by `nlds retry` with the id of that one.
    """
    with connected() as client:
        again = client.retry(id)
        if is_final(again.state):
            click.echo(f"it was run again already, as {again.id}", err=True)
        return accepted(client, again, wait, as_json)


COMMANDS = (watch, cancel, retry)


def accepted(client: Client, transaction: Transaction, wait: bool, as_json: bool) -> int:
    """Show an accepted transaction, with `wait` its progress and end; the exit code."""
    if wait:
        follow(client, transaction.id, quiet=as_json)
        return show_final(client, transaction.id, as_json)
    _show(transaction, as_json)
    if not as_json and not is_final(transaction.state):
        click.echo(f"accepted; `nlds watch {transaction.id}` shows the progress", err=True)
    return 0


def show_final(client: Client, id: str, as_json: bool) -> int:
    """Show how a transaction ended, failed files included; the exit code."""
    transaction = client.transaction(id)
    _show(transaction, as_json)
    return exit_code(transaction.state)


def _show(transaction: Transaction, as_json: bool) -> None:
    if as_json:
        print_json([transaction])
    else:
        show_transaction(transaction)
