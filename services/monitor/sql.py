"""Running written-out SQL on the driver's own cursor: the ledger's statements are hot and fixed."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from psycopg2.extras import execute_values
from sqlalchemy import Connection

Parameters = Mapping[str, Any] | Sequence[Any]
Row = tuple[Any, ...]

_PAGE = 1000


def rows(connection: Connection, statement: str, parameters: Parameters = ()) -> list[Row]:
    """What ``statement`` returns."""
    cursor: Any = connection.connection.cursor()
    try:
        cursor.execute(statement, parameters)
        return list(cursor.fetchall())
    finally:
        cursor.close()


def run(connection: Connection, statement: str, parameters: Parameters = ()) -> int:
    """Run a statement that returns nothing; the number of rows it touched."""
    cursor: Any = connection.connection.cursor()
    try:
        cursor.execute(statement, parameters)
        return int(cursor.rowcount)
    finally:
        cursor.close()


def run_values(connection: Connection, statement: str, values: Iterable[Sequence[Any]]) -> None:
    """Run ``statement`` with ``values`` in the place of its ``VALUES %s``."""
    _values(connection, statement, values, fetch=False)


def rows_of_values(
    connection: Connection, statement: str, values: Iterable[Sequence[Any]]
) -> list[Row]:
    """As :func:`run_values` for a statement that returns rows."""
    return _values(connection, statement, values, fetch=True)


def _values(
    connection: Connection, statement: str, values: Iterable[Sequence[Any]], *, fetch: bool
) -> list[Row]:
    batch = list(values)
    if not batch:
        return []
    cursor: Any = connection.connection.cursor()
    try:
        found = execute_values(cursor, statement, batch, page_size=_PAGE, fetch=fetch)
        return list(found) if fetch else []
    finally:
        cursor.close()
