"""Rows of files and their copies as messages. Every statement about files selects `COLUMNS`."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias

from sqlalchemy import Connection, Row, text

from nearline.type.v1.storage_pb2 import (
    Attributes,
    Blob,
    File,
    Holding,
    Location,
    Slice,
    StoredFile,
)
from services.catalog import paths
from services.catalog.rules import CACHE, FILE_LOST, FILE_REGISTERED

FileRow: TypeAlias = Row[Any]
SliceRow: TypeAlias = Row[Any]
Slices: TypeAlias = Mapping[int, Sequence[SliceRow]]

COLUMNS = """f.id, d.path || f.name AS path, f.size, f.mtime_ns, f.uid, f.gid, f.mode, f.type,
    f.state, f.digest, f.link_target, f.hardlink, f.xattrs, f.holding_id, f.put_id"""

_SLICES = text("""
    SELECT l.file_id, l.blob_id, l."offset", b.tier, b.state, b.format, b.key,
        b.last_access < now() - interval '1 hour' AS stale
    FROM location l JOIN blob b ON b.id = l.blob_id
    WHERE l.file_id = ANY(:files)
    ORDER BY l.file_id, b.tier, l.copy
""")
_BAD_COPIES = text("""
    SELECT DISTINCT t.file_id, b.tier FROM fault t JOIN blob b ON b.id = t.blob_id
    WHERE t.file_id = ANY(:files) AND t.repaired_at IS NULL
    ORDER BY t.file_id, b.tier
""")
_OWNERS = text("SELECT id, label, user_name, group_name FROM holding WHERE id = ANY(:holdings)")
_PUTS = text("SELECT id, CAST(transaction_id AS text) AS name FROM put WHERE id = ANY(:puts)")


def slices_of(connection: Connection, rows: Iterable[FileRow]) -> dict[int, list[SliceRow]]:
    """The readable copies of files by number, cache first."""
    found: dict[int, list[SliceRow]] = {}
    for row in connection.execute(_SLICES, {"files": [row.id for row in rows]}):
        found.setdefault(row.file_id, []).append(row)
    return found


def stale_blobs(slices: Slices) -> list[int]:
    """Cache blobs among the copies whose last access was not noted for an hour."""
    rows = (row for copies in slices.values() for row in copies)
    return sorted({row.blob_id for row in rows if row.tier == CACHE and row.stale})


def stored_files(
    connection: Connection, rows: Sequence[FileRow]
) -> tuple[list[StoredFile], Slices]:
    """The rows as workers need them, with their copies."""
    slices = slices_of(connection, rows)
    return [stored_file(row, slices.get(row.id, ())) for row in rows], slices


def stored_file(row: FileRow, copies: Sequence[SliceRow] = ()) -> StoredFile:
    """One row as workers need it."""
    return StoredFile(
        id=row.id,
        path=row.path,
        attributes=attributes(row),
        digest=bytes(row.digest or b""),
        stored=row.state != FILE_REGISTERED,
        slices=[_slice(copy, row.size) for copy in copies],
        holding_id=row.holding_id,
    )


def attributes(row: FileRow) -> Attributes:
    """The POSIX metadata of a row."""
    message = Attributes(
        type=row.type,
        size=row.size,
        mode=row.mode,
        uid=row.uid,
        gid=row.gid,
        mtime_ns=row.mtime_ns,
        link_target=row.link_target,
        hardlink=row.hardlink,
    )
    for name, value in (row.xattrs or {}).items():
        message.xattrs[name] = base64.b64decode(value)
    return message


def xattrs_json(attributes: Attributes) -> dict[str, str] | None:
    """Extended attributes as they are kept; None for none."""
    found = attributes.xattrs
    return {name: base64.b64encode(found[name]).decode() for name in found} if found else None


def found_files(connection: Connection, rows: Sequence[FileRow]) -> list[File]:
    """The rows as users see them."""
    places = _locations(connection, rows)
    holdings = {row.holding_id for row in rows}
    owners = {row.id: row for row in connection.execute(_OWNERS, {"holdings": list(holdings)})}
    puts = _transactions(connection, {row.put_id for row in rows})
    return [
        _file(row, owners[row.holding_id], puts[row.put_id], places.get(row.id, ())) for row in rows
    ]


def holding_message(
    row: Row[Any], files: int = 0, size: int = 0, transactions: Sequence[str] = ()
) -> Holding:
    """A row of the holding table, with its counts."""
    message = Holding(
        id=row.id,
        label=row.label,
        user=row.user_name,
        group=row.group_name,
        tags=row.tags,
        files=files,
        bytes=size,
        transaction_ids=transactions,
    )
    created: datetime = row.created_at
    message.created_at.FromDatetime(created)
    return message


def _transactions(connection: Connection, puts: Iterable[int]) -> dict[int, str]:
    return {row.id: row.name for row in connection.execute(_PUTS, {"puts": list(puts)})}


def _slice(row: SliceRow, length: int) -> Slice:
    return Slice(
        blob_id=row.blob_id,
        offset=row.offset,
        length=length,
        tier=row.tier,
        state=row.state,
        format=row.format,
        key=row.key,
    )


def _locations(connection: Connection, rows: Sequence[FileRow]) -> dict[int, list[Location]]:
    """The copies of files by number: readable ones, or for a lost file those that went bad."""
    places = {
        number: [Location(tier=copy.tier, state=copy.state) for copy in copies]
        for number, copies in slices_of(connection, rows).items()
    }
    lost = [row.id for row in rows if row.state == FILE_LOST]
    for bad in connection.execute(_BAD_COPIES, {"files": lost}) if lost else ():
        places.setdefault(bad.file_id, []).append(Location(tier=bad.tier, state=Blob.LOST))
    return places


def _file(row: FileRow, owner: Row[Any], transaction: str, places: Sequence[Location]) -> File:
    message = File(
        id=row.id,
        path=row.path,
        type=row.type,
        size=row.size,
        mode=row.mode,
        uid=row.uid,
        gid=row.gid,
        link_target=row.link_target,
        digest=bytes(row.digest or b"").hex(),
        holding_id=row.holding_id,
        label=owner.label,
        transaction_id=transaction,
        locations=places,
        url=paths.url(row.holding_id, row.path),
        user=owner.user_name,
        group=owner.group_name,
    )
    message.mtime.seconds, message.mtime.nanos = divmod(row.mtime_ns, 1_000_000_000)
    return message
