"""Commands that ask what there is: list, find, stat, meta, usage and system."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nearline_client.cli import options as opt
from nearline_client.cli import views
from nearline_client.cli.render import print_json, print_lines
from nearline_client.cli.session import connected

if TYPE_CHECKING:
    from nearline.type.v1.transaction_pb2 import Transaction
    from nearline_client.client import Client

_M = TypeVar("_M")
Sub = Callable[["Client", str, bool], None]


@click.command(name="list")
@opt.options(
    opt.holdings_options,
    opt.regex_option,
    opt.order_options,
    opt.json_option,
    opt.verbose_option,
)
def list_holdings(
    regex: bool, ascending: bool, descending: bool, limit: int, as_json: bool, **where: Any
) -> None:
    """List holdings, oldest first. With -x the label is a regular expression.

    \b
    nlds list
    nlds list -x -l '^run-' -t model:um
    """
    opt.check_order(descending, ascending)
    with connected() as client:
        found = client.list(descending=descending, limit=limit, label_regex=regex, **where)
        _print(found, as_json, views.show_holdings)


@click.command()
@opt.options(
    click.option(
        "-p",
        "--path",
        type=click.Path(path_type=str),
        help="This path and all below it; with -x a regular expression.",
    ),
    click.option("--exact", is_flag=True, help="Only the path itself, not what is below it."),
    click.option("-1", "paths_only", is_flag=True, help="Only paths, one a line, for getlist."),
    click.option("-U", "--url", "urls", is_flag=True, help="Only URLs, one a line."),
    opt.regex_option,
    opt.holdings_options,
    opt.order_options,
    opt.json_option,
    opt.verbose_option,
)
def find(
    path: str | None,
    exact: bool,
    paths_only: bool,
    urls: bool,
    regex: bool,
    ascending: bool,
    descending: bool,
    limit: int,
    as_json: bool,
    **where: Any,
) -> None:
    """Find stored files, oldest first. With -x path and label are regular expressions.

    \b
    nlds find -l run-7 -p results/
    nlds find -1 -x -p '[.]nc$' | nlds getlist -
    """
    opt.check_order(descending, ascending)
    if paths_only + urls + as_json > 1:
        raise click.UsageError("-1, -U and -j exclude each other")
    with connected() as client:
        found = client.find(
            path,
            regex=regex and path is not None,
            exact=exact,
            descending=descending,
            limit=limit,
            label_regex=regex,
            **where,
        )
        if paths_only:
            print_lines(file.path for file in found)
        elif urls:
            print_lines(file.url for file in found)
        else:
            _print(found, as_json, views.show_files)


@click.command()
@opt.options(
    opt.optional_id_argument,
    opt.user_option,
    opt.group_option,
    opt.groupall_option,
    opt.label_option,
    opt.holding_option,
    opt.transaction_option,
    opt.job_option,
    opt.regex_option,
    opt.order_options,
    click.option("-S", "--sub_records", "sub", is_flag=True, help="The tasks of transaction ID."),
    click.option("-E", "--errors", is_flag=True, help="Failed files and why."),
    click.option(
        "-F", "--failed", is_flag=True, help="Failed paths of transaction ID, one a line."
    ),
    opt.json_option,
    opt.verbose_option,
)
def stat(
    id: str, transaction_id: str, sub: bool, errors: bool, failed: bool, as_json: bool, **query: Any
) -> None:
    """Show transaction ID, or your transactions, newest last.

    With -L these are the newest ones; -0 asks for the oldest.

    \b
    nlds stat -L 10
    nlds stat -F ID | nlds putlist -l run-7 -
    """
    id = id or transaction_id
    if sub + errors + failed > 1:
        raise click.UsageError("-S, -E and -F exclude each other")
    if (sub or failed) and not id:
        raise click.UsageError("-S and -F need the ID of a transaction")
    with connected() as client:
        if id:
            _choose_view(sub, errors, failed)(client, id, as_json)
        else:
            _stat_all(client, errors, as_json, **query)


@click.command()
@opt.options(
    opt.user_option,
    opt.group_option,
    opt.label_option,
    opt.holding_option,
    opt.transaction_option,
    opt.tag_option,
    click.option("-L", "--new_label", default="", help="New label."),
    opt.set_tag_option,
    opt.delete_tag_option,
    opt.json_option,
    opt.verbose_option,
)
def meta(
    new_label: str, set_tags: dict[str, str], delete_tags: list[str], as_json: bool, **where: Any
) -> None:
    """Change label and tags of one holding.

    \b
    nlds meta -l run-7 -L run-7-final -T checked:yes -D draft
    """
    if not any(where[name] for name in ("label", "holding_id", "transaction_id", "tags")):
        raise click.UsageError("say which holding: -l, -i, -n or -t")
    if not (new_label or set_tags or delete_tags):
        raise click.UsageError("say what to change: -L, -T or -D")
    with connected() as client:
        holding = client.update_holding(
            new_label=new_label, set_tags=set_tags, delete_tags=delete_tags, **where
        )
        _print([holding], as_json, views.show_holdings)


@click.command()
@opt.options(opt.group_option, opt.json_option, opt.verbose_option)
def usage(group: str, as_json: bool) -> None:
    """Show files and bytes of your groups, per tier and against the quota."""
    with connected() as client:
        _print(client.usage(group), as_json, views.show_usage)


@click.command()
@opt.options(
    click.option(
        "-P", "--parked", is_flag=True, help="Tasks that were given up; for a MANAGER of groups."
    ),
    opt.group_option,
    opt.json_option,
    opt.verbose_option,
)
def system(parked: bool, group: str, as_json: bool) -> None:
    """Show how well the services and their workers are."""
    if group and not parked:
        raise click.UsageError("-g goes with -P")
    with connected() as client:
        if parked:
            _print(client.parked(group), as_json, views.show_parked)
            return
        answer = client.system()
        if as_json:
            print_json([answer])
        else:
            views.show_system(answer)


COMMANDS = (list_holdings, find, stat, meta, usage, system)


def _print(found: Iterable[Any], as_json: bool, show: Callable[[Iterable[Any]], None]) -> None:
    (print_json if as_json else show)(found)


def _choose_view(sub: bool, errors: bool, failed: bool) -> Sub:
    if sub:
        return _stat_tasks
    if errors:
        return _stat_errors
    return _stat_failed if failed else _stat_one


def _stat_one(client: Client, id: str, as_json: bool) -> None:
    transaction = client.transaction(id)
    if as_json:
        print_json([transaction])
    else:
        views.show_transaction(transaction)


def _stat_tasks(client: Client, id: str, as_json: bool) -> None:
    _print(client.tasks(id), as_json, views.show_tasks)


def _stat_errors(client: Client, id: str, as_json: bool) -> None:
    _print(client.failures(id), as_json, views.show_failures)


def _stat_failed(client: Client, id: str, as_json: bool) -> None:
    if as_json:
        print_json(client.failures(id))
    else:
        # Some are said of files whose names are not known.
        print_lines(failure.path for failure in client.failures(id) if failure.path)


def _stat_all(
    client: Client,
    errors: bool,
    as_json: bool,
    *,
    ascending: bool,
    descending: bool,
    limit: int,
    **query: Any,
) -> None:
    opt.check_order(descending, ascending)
    # The newest ones are wanted, and the newest of them last, where a person looks.
    turned = bool(limit) and not ascending and not descending
    found: Iterable[Transaction] = client.stat(
        descending=descending or turned, limit=limit, failures=errors or as_json, **query
    )
    if turned:
        found = reversed(list(found))
    if errors and not as_json:
        _show_each(found)
    else:
        _print(found, as_json, views.show_transactions)


def _show_each(transactions: Iterable[Transaction]) -> None:
    for transaction in _separated(transactions):
        views.show_transaction(transaction)


def _separated(each: Iterable[_M]) -> Iterator[_M]:
    for number, one in enumerate(each):
        if number:
            click.echo()
        yield one
