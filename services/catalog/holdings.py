"""Opening, listing and changing holdings."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, select, text
from sqlalchemy.exc import IntegrityError

from nearline.catalog.v1.catalog_pb2 import (
    ListHoldingsRequest,
    OpenHoldingRequest,
    OpenHoldingResponse,
    UpdateHoldingRequest,
)
from nearline.type.v1.storage_pb2 import Holding
from services.catalog import rules, usage
from services.catalog.filerows import holding_message
from services.catalog.locks import Lock, hold
from services.catalog.scope import conditions, search_errors
from services.catalog.tables import holding
from services.kit.errors import (
    AlreadyExists,
    FailedPrecondition,
    NotFound,
    PermissionDenied,
)

PAGE = 500
MOST_TRANSACTIONS = 100

_OPENED = text("""
    SELECT h.*, p.created_holding FROM put p JOIN holding h ON h.id = p.holding_id
    WHERE p.transaction_id = CAST(:transaction_id AS uuid) FOR UPDATE OF h
""")
_BY_ID = text("SELECT * FROM holding WHERE id = :id FOR UPDATE")
_BY_LABEL = text("""
    SELECT * FROM holding WHERE user_name = :user AND group_name = :group AND label = :label
    FOR UPDATE
""")
_INSERT = text("""
    INSERT INTO holding (label, user_name, group_name) VALUES (:label, :user, :group)
    ON CONFLICT (user_name, group_name, label) DO NOTHING RETURNING *
""")
_OPEN = text("""
    INSERT INTO put (transaction_id, holding_id, created_holding)
    VALUES (CAST(:transaction_id AS uuid), :holding_id, :created)
""")
_TRANSACTIONS = text("""
    SELECT h.id, ARRAY(
        SELECT CAST(transaction_id AS text) FROM (
            SELECT id, transaction_id FROM put WHERE holding_id = h.id ORDER BY id DESC LIMIT :most
        ) AS newest ORDER BY newest.id
    ) AS transactions
    FROM unnest(CAST(:holdings AS bigint[])) AS h (id)
""")


def open_holding(connection: Connection, request: OpenHoldingRequest) -> OpenHoldingResponse:
    """Find or make the holding of a PUT and add tags. Errors: see the contract of OpenHolding."""
    transaction_id = _check(request)
    hold(connection, Lock.OPEN, transaction_id)
    row = connection.execute(_OPENED, {"transaction_id": transaction_id}).one_or_none()
    if row is not None:
        created = row.created_holding
        _require_owner(row, request)
    else:
        row, created = _found_or_made(connection, request, transaction_id)
        opened = {"transaction_id": transaction_id, "holding_id": row.id, "created": created}
        connection.execute(_OPEN, opened)
    tags, warnings = rules.merge_tags(row.tags, request.tags)
    message = holding_message(_changed(connection, row, row.label, tags))
    return OpenHoldingResponse(holding=message, created=created, warnings=warnings)


def page(
    connection: Connection, request: ListHoldingsRequest, behind: int | None, limit: int
) -> list[Holding]:
    """The next holdings that match, with counts and transactions."""
    number = holding.c.id
    statement = select(holding).where(*conditions(request.selector)).limit(limit)
    if behind is not None:
        statement = statement.where(number < behind if request.descending else number > behind)
    order = number.desc() if request.descending else number
    with search_errors():
        rows = connection.execute(statement.order_by(order)).all()
    return _complete(connection, rows)


def update(connection: Connection, request: UpdateHoldingRequest) -> Holding:
    """Change label and tags of the one holding that matches. Errors: see UpdateHolding."""
    rules.check_tags(request.set_tags, "set_tags")
    row = _only_one(connection, request)
    label = rules.check_text(request.new_label, "new_label") if request.new_label else row.label
    tags = rules.change_tags(row.tags, request.set_tags, request.delete_tags)
    try:
        changed = _changed(connection, row, label, tags)
    except IntegrityError as error:
        raise AlreadyExists(
            "LABEL_TAKEN",
            f"{row.user_name} has another holding labelled {label!r} in {row.group_name}; "
            "choose another label",
        ) from error
    return _complete(connection, [changed])[0]


def _check(request: OpenHoldingRequest) -> str:
    rules.check_text(request.user, "user")
    rules.check_text(request.group, "group")
    if request.label:
        rules.check_text(request.label, "label")
    rules.check_number(request.holding_id, "holding_id")
    rules.check_tags(request.tags, "tags")
    return rules.check_transaction(request.transaction_id)


def _found_or_made(
    connection: Connection, request: OpenHoldingRequest, transaction_id: str
) -> tuple[Row[Any], bool]:
    if request.holding_id:
        return _by_number(connection, request), False
    labels = [request.label] if request.label else rules.default_labels(transaction_id)
    owner = {"user": request.user, "group": request.group}
    for label in labels:
        made = connection.execute(_INSERT, {**owner, "label": label}).one_or_none()
        if made is not None:
            return made, True
    return connection.execute(_BY_LABEL, {**owner, "label": labels[-1]}).one(), False


def _by_number(connection: Connection, request: OpenHoldingRequest) -> Row[Any]:
    row = connection.execute(_BY_ID, {"id": request.holding_id}).one_or_none()
    if row is None:
        raise NotFound("HOLDING_NOT_FOUND", f"there is no holding {request.holding_id}")
    _require_owner(row, request)
    if request.label and row.label != request.label:
        raise FailedPrecondition(
            "LABEL_MISMATCH",
            f"holding {row.id} is labelled {row.label!r}, not {request.label!r}; "
            "give one of the two",
        )
    return row


def _require_owner(row: Row[Any], request: OpenHoldingRequest) -> None:
    if row.user_name != request.user:
        raise PermissionDenied("NOT_OWNER", f"holding {row.id} belongs to another user")
    if row.group_name != request.group:
        raise FailedPrecondition(
            "OTHER_GROUP",
            f"holding {row.id} belongs to group {row.group_name}, not {request.group}; "
            "name that group",
        )


def _changed(connection: Connection, row: Row[Any], label: str, tags: dict[str, str]) -> Row[Any]:
    if (label, tags) == (row.label, row.tags):
        return row
    statement = holding.update().where(holding.c.id == row.id).values(label=label, tags=tags)
    return connection.execute(statement.returning(holding)).one()


def _only_one(connection: Connection, request: UpdateHoldingRequest) -> Row[Any]:
    if not request.selector.user:
        raise rules.invalid("selector.user", "must name the owner of the holding")
    statement = select(holding).where(*conditions(request.selector)).limit(2).with_for_update()
    with search_errors():
        rows = connection.execute(statement.order_by(holding.c.id)).all()
    if not rows:
        raise NotFound("HOLDING_NOT_FOUND", "no holding matches; `nlds list` shows what is there")
    if len(rows) > 1:
        raise FailedPrecondition(
            "SEVERAL_HOLDINGS", "several holdings match; name one by its number"
        )
    return rows[0]


def _complete(connection: Connection, rows: Sequence[Row[Any]]) -> list[Holding]:
    numbers = [row.id for row in rows]
    counts = usage.of_holdings(connection, numbers)
    wanted = {"holdings": numbers, "most": MOST_TRANSACTIONS}
    opened = {row.id: row.transactions for row in connection.execute(_TRANSACTIONS, wanted)}
    return [
        holding_message(row, *counts.get(row.id, (0, 0)), transactions=opened[row.id])
        for row in rows
    ]
