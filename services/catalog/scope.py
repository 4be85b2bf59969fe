"""Which holdings a selector means: resolved to numbers once, before any file is looked at."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, select, text
from sqlalchemy.exc import DBAPIError

from nearline.type.v1.storage_pb2 import HoldingSelector
from services.catalog import rules
from services.catalog.tables import holding, put
from services.kit.errors import DeadlineExceeded, InvalidArgument

_INVALID_REGEX = "2201B"
_CANCELED = "57014"

_PUT = text("SELECT id FROM put WHERE transaction_id = CAST(:id AS uuid)")


@dataclass(frozen=True, slots=True)
class Scope:
    """Numbers of holdings, ascending, and of the PUT that files must come from (None: any)."""

    holdings: list[int]
    put_id: int | None = None


def check_selector(selector: HoldingSelector, field: str) -> None:
    """InvalidArgument for a selector that cannot mean anything."""
    if selector.label_regex:
        rules.check_pattern(selector.label, f"{field}.label")
    elif selector.label:
        rules.check_text(selector.label, f"{field}.label")
    rules.check_number(selector.holding_id, f"{field}.holding_id")
    rules.check_tags(selector.tags, f"{field}.tags")
    if selector.user:
        rules.check_text(selector.user, f"{field}.user")
    for group in selector.groups:
        rules.check_text(group, f"{field}.groups")
    if selector.transaction_id:
        rules.check_transaction(selector.transaction_id, f"{field}.transaction_id")


def find(connection: Connection, selector: HoldingSelector) -> Scope:
    """The holdings that match, and the PUT if the selector names one."""
    statement = select(holding.c.id).where(*conditions(selector)).order_by(holding.c.id)
    with search_errors():
        numbers = list(connection.scalars(statement))
    return Scope(numbers, _put_id(connection, selector))


def conditions(selector: HoldingSelector) -> list[ColumnElement[bool]]:
    """What a holding's row must satisfy."""
    wanted: list[ColumnElement[bool]] = [holding.c.group_name.in_(list(selector.groups))]
    if selector.user:
        wanted.append(holding.c.user_name == selector.user)
    if selector.label:
        label = holding.c.label
        wanted.append(
            label.regexp_match(selector.label) if selector.label_regex else label == selector.label
        )
    if selector.holding_id:
        wanted.append(holding.c.id == selector.holding_id)
    if selector.tags:
        wanted.append(holding.c.tags.contains(dict(selector.tags)))
    if selector.transaction_id:
        opened = select(put.c.holding_id).where(put.c.transaction_id == selector.transaction_id)
        wanted.append(holding.c.id.in_(opened))
    return wanted


@contextmanager
def search_errors() -> Iterator[None]:
    """Explain the two ways in which a user's search can fail in the database."""
    try:
        yield
    except DBAPIError as error:
        state = getattr(error.orig, "pgcode", None)
        if state == _INVALID_REGEX:
            raise InvalidArgument(
                "INVALID_REGEX", f"{_reason(error)}; correct the pattern"
            ) from error
        if state == _CANCELED:
            raise DeadlineExceeded(
                "SEARCH_TOO_WIDE",
                "the search took longer than the database allows; narrow it down by holding, "
                "label, tag, or a pattern that starts with ^ and a directory",
            ) from error
        raise


def _put_id(connection: Connection, selector: HoldingSelector) -> int | None:
    if not selector.transaction_id:
        return None
    number: int | None = connection.scalar(_PUT, {"id": selector.transaction_id})
    return number


def _reason(error: DBAPIError) -> str:
    return str(error.orig).strip().partition("\n")[0]
