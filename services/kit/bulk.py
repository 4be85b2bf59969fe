"""Bulk loading by PostgreSQL's COPY, the fastest way in, in its text format."""

from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime
from decimal import Decimal
from io import BytesIO
from itertools import islice
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Table

_ROWS = 10_000


def copy_into(
    connection: Connection,
    table: Table | str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
) -> int:
    """Insert ``rows`` (a value for each of ``columns``) into ``table`` by COPY; their number.

    Takes None, str, bytes, bool, int, float, Decimal, UUID, dates and datetimes; ValueError for
    a string with a NUL, which PostgreSQL cannot store, TypeError for values of other types.
    Memory is bounded by 10,000 rows. Must run inside of a transaction, as ``Database.write`` does.
    """
    statement = _statement(connection, table, columns)
    cursor = connection.connection.cursor()
    try:
        remaining, count = iter(rows), 0
        while lines := [_line(row) for row in islice(remaining, _ROWS)]:
            cursor.copy_expert(statement, BytesIO("".join(lines).encode()))
            count += len(lines)
        return count
    finally:
        cursor.close()


def _statement(connection: Connection, table: Table | str, columns: Sequence[str]) -> str:
    prepare = connection.dialect.identifier_preparer
    name = prepare.quote(table) if isinstance(table, str) else prepare.format_table(table)
    return f"COPY {name} ({', '.join(map(prepare.quote, columns))}) FROM STDIN"


def _line(row: Sequence[Any]) -> str:
    return "\t".join([_ENCODERS.get(type(value), _encode_other)(value) for value in row]) + "\n"


def _escape(text: str) -> str:
    if "\0" in text:
        raise ValueError(f"{text[:80]!r} has a NUL, which PostgreSQL cannot store as text")
    if "\\" in text:
        text = text.replace("\\", "\\\\")
    return text.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def _encode_bytes(value: bytes | bytearray | memoryview) -> str:
    return "\\\\x" + value.hex()


def _encode_other(value: Any) -> str:
    """Values of subclasses, such as enums, by their base."""
    for kind, encode in _ENCODERS.items():
        if isinstance(value, kind):
            return encode(value)
    raise TypeError(f"COPY does not know how to write a {type(value).__name__}; convert it first")


# bool stands before int, whose subclass it is.
_ENCODERS: dict[type, Callable[[Any], str]] = {
    type(None): lambda value: "\\N",
    str: _escape,
    bool: lambda value: "t" if value else "f",
    int: int.__repr__,
    float: float.__repr__,
    bytes: _encode_bytes,
    bytearray: _encode_bytes,
    memoryview: _encode_bytes,
    datetime: datetime.isoformat,
    date: date.isoformat,
    UUID: str,
    Decimal: str,
}
