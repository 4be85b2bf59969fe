"""Options that several commands share; their names are the keywords of the Python client."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
Decorator = Callable[[Decorated], Decorated]


@dataclass
class State:
    """What holds for the whole command line."""

    verbose: bool = False


def _tags(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> Any:
    """The tags of `-t a:1 -t b:2,c:3` as a dictionary."""
    tags: dict[str, str] = {}
    for pair in _comma_separated(values):
        key, colon, value = (part.strip() for part in pair.partition(":"))
        if not colon or not key or not value:
            raise click.BadParameter(f"{pair!r} is not a tag: write key:value")
        if tags.setdefault(key, value) != value:
            raise click.BadParameter(f"tag {key!r} is given two values")
    return tags


def _keys(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> Any:
    return [key.strip() for key in _comma_separated(values)]


def _comma_separated(values: tuple[str, ...]) -> list[str]:
    return [piece for value in values for piece in value.split(",") if piece.strip()]


def _note_verbose(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        context.ensure_object(State).verbose = True


def _or_zero(context: click.Context, parameter: click.Parameter, value: int | None) -> int:
    """The protos' number for "not given", which a person cannot give."""
    return value or 0


def _text_of_uuid(context: click.Context, parameter: click.Parameter, value: Any) -> str:
    return str(value) if value else ""


verbose_option = click.option(
    "--verbose",
    is_flag=True,
    expose_value=False,
    callback=_note_verbose,
    help="Say more when something goes wrong.",
)
user_option = click.option(
    "-u", "--user", default="", help="Owner; narrows, and grants nothing. Default: you."
)
group_option = click.option(
    "-g", "--group", default="", help="One of your groups. Default: as configured."
)
groupall_option = click.option(
    "-A", "--groupall", "all_users", is_flag=True, help="Of everybody in your groups."
)
label_option = click.option("-l", "--label", default="", help="Label of the holding.")
holding_option = click.option(
    "-i",
    "--holding_id",
    type=click.IntRange(min=1),
    callback=_or_zero,
    help="Number of the holding.",
)
transaction_option = click.option(
    "-n",
    "--transaction_id",
    type=click.UUID,
    callback=_text_of_uuid,
    help="Id of the put that stored it.",
)
tag_option = click.option(
    "-t",
    "--tag",
    "tags",
    multiple=True,
    callback=_tags,
    metavar="K:V",
    help="Tag; repeat it, or separate several by commas.",
)
set_tag_option = click.option(
    "-T",
    "--update_tag",
    "set_tags",
    multiple=True,
    callback=_tags,
    metavar="K:V",
    help="Add or change a tag; repeat it, or separate several by commas.",
)
delete_tag_option = click.option(
    "-D",
    "--delete_tag",
    "delete_tags",
    multiple=True,
    callback=_keys,
    metavar="K",
    help="Delete the tag of this key; repeat it, or separate several by commas.",
)
job_option = click.option(
    "-b", "--job_label", default="", help="Free label, to find the transaction again."
)
regex_option = click.option(
    "-x", "--regex", is_flag=True, help="Search by regular expression (PostgreSQL)."
)
limit_option = click.option(
    "-L", "--limit", type=click.IntRange(min=1), callback=_or_zero, help="At most this many."
)
descending_option = click.option("-9", "--descending", is_flag=True, help="Newest first.")
ascending_option = click.option("-0", "--ascending", is_flag=True, help="Oldest first.")
json_option = click.option("-j", "--json", "as_json", is_flag=True, help="JSON instead of text.")
wait_option = click.option("-w", "--wait", is_flag=True, help="Show progress until the end.")
yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask.")
null_option = click.option(
    "--null", is_flag=True, help="Names in the list end in NUL instead of a line break."
)
paths_argument = click.argument(
    "paths", nargs=-1, required=True, metavar="PATH...", type=click.Path(path_type=str)
)
list_argument = click.argument("filelist", type=click.File("rb"))
id_argument = click.argument("id", type=click.UUID, callback=_text_of_uuid)
optional_id_argument = click.argument("id", type=click.UUID, required=False, callback=_text_of_uuid)


def options(*several: Decorator[Any]) -> Decorator[Any]:
    """All of these options, in this order."""

    def decorate(function: Any) -> Any:
        for option in reversed(several):
            function = option(function)
        return function

    return decorate


#: Which holdings; the keywords of `nearline_client.client.Where`.
holdings_options = options(
    user_option,
    group_option,
    groupall_option,
    label_option,
    holding_option,
    transaction_option,
    tag_option,
)
order_options = options(limit_option, descending_option, ascending_option)
follow_options = options(job_option, wait_option, json_option, verbose_option)


def check_order(descending: bool, ascending: bool) -> None:
    """Raises UsageError when both orders are asked for."""
    if descending and ascending:
        raise click.UsageError("-9 and -0 exclude each other")
