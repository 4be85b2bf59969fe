"""Locking copies before they go or come back: blobs by number, then files by number.

Among the blobs are neighbours of the copies: cache blobs that hold the same files, of which it is
then decided anew whether they wait for tape, and sources of aggregates, which become free. Which
blobs hold the same files is certain only once the files are locked, as a seal may be adding one at
this moment; and then it is too late to lock that in order. So all are let go then, and locked anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, TextClause, text

from services.catalog.rules import CACHE, READABLE
from services.kit.errors import NotFound

_LOCK = text("SELECT * FROM blob WHERE id = ANY(:blobs) ORDER BY id FOR UPDATE")
_SOURCES = text("SELECT id FROM blob WHERE aggregate_id = ANY(:blobs)")


def _of_files(table: str) -> TextClause:
    return text(f"""
        SELECT DISTINCT c.blob_id FROM {table} t
        JOIN location c ON c.file_id = t.file_id AND c.tier = {CACHE}
        WHERE t.blob_id = ANY(:blobs) AND (:whole OR t.file_id = ANY(:files))
    """)


def _lock_files(table: str) -> TextClause:
    return text(f"""
        SELECT count(*) FROM (
            SELECT f.id FROM {table} t JOIN file f ON f.id = t.file_id
            WHERE t.blob_id = ANY(:blobs) AND (:whole OR t.file_id = ANY(:files))
            ORDER BY f.id FOR UPDATE OF f
        ) AS locked
    """)


_TABLES = ("location", "fault")
_OF_FILES = {table: _of_files(table) for table in _TABLES}
_LOCK_FILES = {table: _lock_files(table) for table in _TABLES}


@dataclass(frozen=True, slots=True)
class Copies:
    """Copies of some files, or of all (``files`` is empty), in blobs: good ones, or bad ones."""

    blobs: Sequence[int]
    files: Sequence[int] = ()
    table: Literal["location", "fault"] = "location"

    @property
    def arguments(self) -> dict[str, Any]:
        """What statements about them take."""
        files = list(self.files)
        return {"blobs": list(self.blobs), "files": files, "whole": not files}


@dataclass(frozen=True, slots=True)
class Locked:
    """Blobs of copies, and the numbers of the neighbours, which may be among them; all locked."""

    rows: Sequence[Row[Any]]
    neighbours: Sequence[int]


def lock_blobs(connection: Connection, blobs: Sequence[int]) -> Sequence[Row[Any]]:
    """The rows of blobs, kept as they are until the end. NotFound: one is missing."""
    rows = connection.execute(_LOCK, {"blobs": list(blobs)}).all()
    missing = set(blobs) - {row.id for row in rows}
    if missing:
        raise NotFound("BLOB_NOT_FOUND", f"there is no blob {min(missing)}", blob_id=min(missing))
    return rows


def lock(connection: Connection, copies: Copies) -> Locked:
    """Keep copies as they are until the end, under Lock.REMOVE. NotFound: a blob is missing."""
    known = set(connection.scalars(_SOURCES, copies.arguments))
    while True:
        attempt = connection.begin_nested()
        rows, found = _attempt(connection, copies, known)
        if found <= known.union(copies.blobs):
            attempt.commit()
            return Locked(rows, sorted(known | found))
        attempt.rollback()
        known |= found


def _attempt(
    connection: Connection, copies: Copies, known: set[int]
) -> tuple[Sequence[Row[Any]], set[int]]:
    """Lock all while no other neighbours turn up; the rows of the blobs, and the neighbours."""
    wanted = set(copies.blobs)
    rows = [row for row in lock_blobs(connection, [*wanted | known]) if row.id in wanted]
    if copies.table == "location" and not any(row.state in READABLE for row in rows):
        return rows, set()
    found = _holding_the_same(connection, copies)
    if found <= known | wanted:
        connection.execute(_LOCK_FILES[copies.table], copies.arguments)
        found = _holding_the_same(connection, copies)
    return rows, found


def _holding_the_same(connection: Connection, copies: Copies) -> set[int]:
    return set(connection.scalars(_OF_FILES[copies.table], copies.arguments))
