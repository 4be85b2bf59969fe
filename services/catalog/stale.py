"""What PUTs registered and never stored, and the holdings that stayed empty.

The catalog lists PUTs that may have ended; whoever asks finds out from the ledger which have.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from sqlalchemy import Connection, Row, text

from nearline.catalog.v1 import catalog_pb2 as api
from services.catalog import rules, usage
from services.catalog.locks import Lock, hold
from services.catalog.rules import FILE_REGISTERED, REMOVED
from services.kit.db import Database

MOST_PUTS = 1000
# PUTs looked at in one statement, and rows of a holding.
_WINDOW, _ROWS = 5000, 20_000

_NEXT = text("SELECT max(id) FROM (SELECT id FROM put WHERE id > :after ORDER BY id LIMIT :n) AS w")
_LISTED = text("""
    SELECT p.id, CAST(p.transaction_id AS text) AS transaction_id, p.holding_id, p.opened_at,
        h.label, h.user_name, h.group_name, r.files, r.bytes, e.empty
    FROM put p
    JOIN holding h ON h.id = p.holding_id
    CROSS JOIN LATERAL (
        SELECT CAST(coalesce(sum(files), 0) AS bigint) AS files,
            CAST(coalesce(sum(bytes), 0) AS bigint) AS bytes
        FROM reservation WHERE put_id = p.id
    ) AS r
    CROSS JOIN LATERAL (
        SELECT NOT EXISTS (
            SELECT FROM file f WHERE f.holding_id = p.holding_id AND f.state <> :registered
        ) AS empty
    ) AS e
    WHERE p.id > :after AND p.id <= :last
        AND p.opened_at <= now() - make_interval(secs => :age) AND (r.files > 0 OR e.empty)
    ORDER BY p.id
""")
_PUT = text("SELECT id, holding_id FROM put WHERE transaction_id = CAST(:transaction AS uuid)")
_UPTO = text("""
    SELECT max(id) FROM (
        SELECT id FROM file WHERE holding_id = :holding AND id > :after ORDER BY id LIMIT :rows
    ) AS next
""")
_DELETE = text(f"""
    DELETE FROM file
    WHERE holding_id = :holding AND put_id = :put AND state = {FILE_REGISTERED}
        AND id > :after AND id <= :upto
    RETURNING size
""")
# A PUT that stored something stays known as the origin of its files. One whose blobs are not all
# removed stays too, as its holding can only go after them.
_FORGET = text(f"""
    DELETE FROM put p WHERE p.id = :put
        AND NOT EXISTS (
            SELECT FROM file f WHERE f.holding_id = p.holding_id AND f.put_id = p.id)
        AND (
            EXISTS (SELECT FROM file f WHERE f.holding_id = p.holding_id)
            OR NOT EXISTS (
                SELECT FROM blob b WHERE b.holding_id = p.holding_id AND b.state <> {REMOVED}))
""")
_LOCK_HOLDING = text("SELECT id FROM holding WHERE id = :holding FOR UPDATE")
_IN_USE = text(f"""
    SELECT EXISTS (SELECT FROM put WHERE holding_id = :holding)
        OR EXISTS (SELECT FROM file WHERE holding_id = :holding)
        OR EXISTS (SELECT FROM blob WHERE holding_id = :holding AND state <> {REMOVED})
""")
_DROP_HOLDING = [
    text(f"DELETE FROM {table} WHERE blob_id IN (SELECT id FROM blob WHERE holding_id = :holding)")
    for table in ("fault", "aggregate")
] + [
    text("DELETE FROM blob WHERE holding_id = :holding"),
    text("DELETE FROM usage WHERE holding_id = :holding"),
    text("DELETE FROM holding WHERE id = :holding"),
]


async def list_puts(
    database: Database, request: api.ListStalePutsRequest
) -> AsyncIterator[api.ListStalePutsResponse]:
    """PUTs that left registered files or an empty holding, oldest first."""
    after = 0
    while last := await database.read(_window, after):
        rows = await database.read(_stale, after, last, request.min_age_seconds)
        for at in range(0, len(rows), MOST_PUTS):
            yield api.ListStalePutsResponse(puts=map(_message, rows[at : at + MOST_PUTS]))
        after = last


async def forget(database: Database, request: api.ForgetPutsRequest) -> api.ForgetPutsResponse:
    """Remove what ended PUTs left; in many short database transactions, a repeat goes on."""
    names = list(request.transaction_ids)
    rules.check_number(len(names), "transaction_ids", most=MOST_PUTS)
    answer = api.ForgetPutsResponse()
    for name in names:
        rules.check_transaction(name, "transaction_ids")
        put = await database.read(_put, name)
        if put is not None:
            answer.files += await _forget_files(database, put)
            answer.holdings += await database.write(_forget_put, put)
    return answer


async def _forget_files(database: Database, put: Row[Any]) -> int:
    count = after = 0
    while upto := await database.read(_upto, put.holding_id, after):
        count += await database.write(_delete, put, after, upto)
        after = upto
    return count


def _window(connection: Connection, after: int) -> int:
    return int(connection.scalar(_NEXT, {"after": after, "n": _WINDOW}) or 0)


def _stale(connection: Connection, after: int, last: int, age: int) -> Sequence[Row[Any]]:
    wanted = {"after": after, "last": last, "age": age, "registered": FILE_REGISTERED}
    return connection.execute(_LISTED, wanted).all()


def _put(connection: Connection, name: str) -> Row[Any] | None:
    return connection.execute(_PUT, {"transaction": name}).one_or_none()


def _upto(connection: Connection, holding_id: int, after: int) -> int:
    wanted = {"holding": holding_id, "after": after, "rows": _ROWS}
    return int(connection.scalar(_UPTO, wanted) or 0)


def _delete(connection: Connection, put: Row[Any], after: int, upto: int) -> int:
    wanted = {"holding": put.holding_id, "put": put.id, "after": after, "upto": upto}
    sizes = list(connection.scalars(_DELETE, wanted))
    if sizes:
        usage.reserve(connection, {put.id: (-len(sizes), -sum(sizes))})
    return len(sizes)


def _forget_put(connection: Connection, put: Row[Any]) -> int:
    """Drop a PUT without files, and its holding when nothing else is in it: how many holdings."""
    wanted = {"put": put.id, "holding": put.holding_id}
    hold(connection, Lock.REGISTER, put.holding_id)
    connection.execute(_LOCK_HOLDING, wanted)
    connection.execute(_FORGET, wanted)
    if connection.scalar(_IN_USE, wanted):
        return 0
    for statement in _DROP_HOLDING:
        connection.execute(statement, wanted)
    return 1


def _message(row: Row[Any]) -> api.ListStalePutsResponse.Put:
    message = api.ListStalePutsResponse.Put(
        transaction_id=row.transaction_id,
        holding_id=row.holding_id,
        label=row.label,
        user=row.user_name,
        group=row.group_name,
        files=row.files,
        bytes=row.bytes,
        empty_holding=row.empty,
    )
    message.opened_at.FromDatetime(row.opened_at)
    return message
