"""Commands that ask for work on paths: put, get, stage, del and undelete, and their list forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from nearline_client.cli import options as opt
from nearline_client.cli.follow import accepted
from nearline_client.cli.session import connected
from nearline_client.paths import read_list

if TYPE_CHECKING:
    from nearline.type.v1.transaction_pb2 import Transaction
    from nearline_client.client import Client

_put_options = opt.options(
    opt.user_option,
    opt.group_option,
    opt.label_option,
    opt.holding_option,
    click.option(
        "-n",
        "--transaction_id",
        type=click.UUID,
        callback=lambda context, parameter, value: str(value) if value else None,
        help="Id of this request; a repeat with the same id is the same request.",
    ),
    opt.tag_option,
    opt.follow_options,
)
_get_options = opt.options(
    click.option(
        "-r",
        "--target",
        type=click.Path(path_type=str),
        help="Make the whole original paths below this directory. Default: the original paths.",
    ),
    opt.regex_option,
    opt.holdings_options,
    opt.follow_options,
)
_delete_options = opt.options(
    opt.regex_option, opt.holdings_options, opt.yes_option, opt.follow_options
)
_list_help = "FILELIST has one path a line, `-` is standard input; `nlds find -1` makes such lists."


@click.command()
@opt.options(opt.paths_argument, _put_options)
def put(paths: tuple[str, ...], wait: bool, as_json: bool, **request: Any) -> int:
    """Store files and directories.

    Without -l or -i a new holding is made, labelled by the first 8 characters of the transaction
    id. A path that the holding already has fails.

    \b
    nlds put --wait -l run-7 -t model:um,year:2026 results/ notes.txt
    """
    return _request(lambda client: client.put(paths, **request), wait, as_json)


@click.command(epilog=_list_help)
@opt.options(opt.list_argument, opt.null_option, _put_options)
def putlist(filelist: BinaryIO, null: bool, wait: bool, as_json: bool, **request: Any) -> int:
    """Store the files and directories of a list.

    \b
    find . -name '*.nc' -print0 | nlds putlist --null -l run-7 -
    """
    return _request(
        lambda client: client.put(read_list(filelist, null=null), **request), wait, as_json
    )


@click.command()
@opt.options(opt.paths_argument, _get_options)
def get(paths: tuple[str, ...], wait: bool, as_json: bool, **request: Any) -> int:
    """Bring files and directories back.

    Without a holding the newest version of each path is meant.

    \b
    nlds get --wait results/
    nlds get --wait -l run-7 -r /scratch/me results/a.nc
    """
    return _request(lambda client: client.get(paths, **request), wait, as_json)


@click.command(epilog=_list_help)
@opt.options(opt.list_argument, opt.null_option, _get_options)
def getlist(filelist: BinaryIO, null: bool, wait: bool, as_json: bool, **request: Any) -> int:
    """Bring back the files and directories of a list.

    \b
    nlds find -1 -l run-7 -x -p '[.]nc$' | nlds getlist --wait -r /scratch/me -
    """
    return _request(
        lambda client: client.get(read_list(filelist, null=null), **request), wait, as_json
    )


@click.command()
@opt.options(
    opt.paths_argument,
    click.option(
        "--pin",
        "pin_days",
        type=click.IntRange(min=0),
        default=0,
        metavar="DAYS",
        help="Keep the files in the cache for this many days.",
    ),
    opt.regex_option,
    opt.holdings_options,
    opt.follow_options,
)
def stage(paths: tuple[str, ...], wait: bool, as_json: bool, **request: Any) -> int:
    """Recall files from tape to the cache, without writing them anywhere else.

    \b
    nlds stage --wait --pin 7 -l run-7 results/
    """
    return _request(lambda client: client.stage(paths, **request), wait, as_json)


@click.command(name="del")
@opt.options(opt.paths_argument, _delete_options)
def delete(paths: tuple[str, ...], yes: bool, wait: bool, as_json: bool, **request: Any) -> int:
    """Delete stored files and directories.

    \b
    nlds del -l run-7 results/scratch.nc
    """
    if not yes:
        _confirm(f"Delete {len(paths)} stored path(s) and all below?")
    return _request(lambda client: client.delete(paths, **request), wait, as_json)


@click.command(epilog=_list_help)
@opt.options(opt.list_argument, opt.null_option, _delete_options)
def dellist(
    filelist: BinaryIO, null: bool, yes: bool, wait: bool, as_json: bool, **request: Any
) -> int:
    """Delete the stored files and directories of a list."""
    if not yes:
        if filelist.fileno() == 0:
            raise click.UsageError("the list comes from standard input, so -y must be given")
        _confirm("Delete all stored paths of the list?")
    return _request(
        lambda client: client.delete(read_list(filelist, null=null), **request), wait, as_json
    )


@click.command()
@opt.options(
    opt.paths_argument,
    click.option(
        "--deleted_by",
        type=click.UUID,
        callback=lambda context, parameter, value: str(value) if value else "",
        help="Id of the deletion; default: any.",
    ),
    opt.holdings_options,
    opt.follow_options,
)
def undelete(paths: tuple[str, ...], wait: bool, as_json: bool, **request: Any) -> int:
    """Take back a deletion within the grace period."""
    return _request(lambda client: client.undelete(paths, **request), wait, as_json)


COMMANDS = (put, putlist, get, getlist, stage, delete, dellist, undelete)


class _Interrupted(click.ClickException):
    """Ctrl-C while the request was on its way."""

    exit_code = 130


class _NotConfirmed(click.ClickException):
    """A person said no, or nobody could be asked."""


def _request(ask: Callable[[Client], Transaction], wait: bool, as_json: bool) -> int:
    """Make a request, and show it as far as the options say; the exit code."""
    with connected() as client:
        try:
            transaction = ask(client)
        except KeyboardInterrupt:
            raise _Interrupted(
                "interrupted; `nlds stat` shows whether the request was accepted before"
            ) from None
        return accepted(client, transaction, wait, as_json)


def _confirm(question: str) -> None:
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort:
        agreed = False
    if not agreed:
        raise _NotConfirmed("not confirmed, so nothing was deleted; -y does not ask")
