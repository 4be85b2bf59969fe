"""Naming blobs, listing them and their members, and noting that they were read."""

import secrets
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Row, select, text

from nearline.catalog.v1.catalog_pb2 import (
    AllocateBlobsRequest,
    ListBlobsRequest,
    ListMembersResponse,
)
from nearline.type.v1.storage_pb2 import Blob
from services.catalog.filerows import COLUMNS, stored_file
from services.catalog.rules import check_number, check_text, invalid
from services.catalog.tables import blob as blob_table
from services.kit.errors import NotFound
from services.kit.ownership import blob_key

PAGE = 1000
MOST_BLOBS = 10_000
_MOST_ALLOCATED = 1000
_SUFFIX = {Blob.RAW: "raw", Blob.TAR: "tar"}

_HOLDING = text("SELECT id FROM holding WHERE id = :id")
_NUMBERS = text("SELECT nextval('blob_number') FROM generate_series(1, :count)")
_INSERT = text("""
    INSERT INTO blob (id, tier, format, key, holding_id, writer)
    VALUES (:id, :tier, :format, :key, :holding_id, :writer)
""")
_TOUCH = text("""
    UPDATE blob SET last_access = now() WHERE id IN (
        SELECT id FROM blob WHERE id = ANY(:blobs) AND last_access < now() - interval '1 hour'
        ORDER BY id FOR UPDATE SKIP LOCKED
    )
""")
_SIZES = text("SELECT id, files FROM blob WHERE id = ANY(:blobs)")
_MEMBERS = text(f"""
    SELECT w.n, l.blob_id, l."offset", {COLUMNS}
    FROM unnest(CAST(:blobs AS bigint[])) WITH ORDINALITY AS w (blob_id, n)
    JOIN location l ON l.blob_id = w.blob_id
    JOIN file f ON f.id = l.file_id
    JOIN directory d ON d.id = f.dir_id
    ORDER BY w.n, l."offset", l.file_id
""")
_MEMBERS_OF_ONE = text(f"""
    SELECT l.blob_id, l."offset", {COLUMNS}
    FROM location l JOIN file f ON f.id = l.file_id JOIN directory d ON d.id = f.dir_id
    WHERE l.blob_id = :blob AND (l."offset", l.file_id) > (:offset, :file)
    ORDER BY l."offset", l.file_id LIMIT :limit
""")


def allocate(connection: Connection, request: AllocateBlobsRequest) -> list[Blob]:
    """Name new blobs in state WRITING. NotFound: no such holding."""
    check_number(request.count, "count", least=1, most=_MOST_ALLOCATED)
    if request.tier == Blob.TIER_UNSPECIFIED or request.format == Blob.FORMAT_UNSPECIFIED:
        raise invalid("tier", "and format must be set")
    check_text(request.writer, "writer")
    require_holding(connection, request.holding_id)
    return insert(connection, request)


def insert(connection: Connection, request: AllocateBlobsRequest) -> list[Blob]:
    """As :func:`allocate`, for a request that was checked."""
    numbers = connection.scalars(_NUMBERS, {"count": request.count}).all()
    blobs = [_named(number, request) for number in numbers]
    connection.execute(
        _INSERT,
        [
            {
                "id": blob.id,
                "tier": blob.tier,
                "format": blob.format,
                "key": blob.key,
                "holding_id": blob.holding_id,
                "writer": request.writer,
            }
            for blob in blobs
        ],
    )
    return blobs


def require_holding(connection: Connection, holding_id: int) -> None:
    """NotFound when there is no such holding."""
    check_number(holding_id, "holding_id", least=1)
    if connection.scalar(_HOLDING, {"id": holding_id}) is None:
        raise NotFound("HOLDING_NOT_FOUND", f"there is no holding {holding_id}")


def listed(
    connection: Connection, request: ListBlobsRequest, after: int, limit: int = PAGE
) -> list[Blob]:
    """The next page of blobs with numbers above ``after``."""
    columns = blob_table.c
    statement = select(blob_table).where(columns.id > after).order_by(columns.id).limit(limit)
    if request.tier:
        statement = statement.where(columns.tier == request.tier)
    if request.states:
        statement = statement.where(columns.state.in_(list(request.states)))
    if request.holding_id:
        statement = statement.where(columns.holding_id == request.holding_id)
    if request.blob_ids:
        statement = statement.where(columns.id.in_(request.blob_ids))
    if request.min_age_seconds:
        oldest = text("now() - make_interval(secs => :age)").bindparams(age=request.min_age_seconds)
        statement = statement.where(columns.created_at <= oldest)
    return [_described(row) for row in connection.execute(statement)]


def message(row: Row[Any]) -> Blob:
    """A row of the blob table."""
    return Blob(
        id=row.id,
        tier=row.tier,
        format=row.format,
        state=row.state,
        key=row.key,
        size=row.size,
        adler32=row.adler32,
        holding_id=row.holding_id,
        files=row.files,
    )


def _described(row: Row[Any]) -> Blob:
    blob = message(row)
    blob.writer = row.writer
    blob.created_at.FromDatetime(row.created_at)
    return blob


def touch(connection: Connection, blobs: Iterable[int]) -> None:
    """Note that cache blobs were read, at most once an hour each."""
    connection.execute(_TOUCH, {"blobs": list(blobs)})


def windows(connection: Connection, blobs: Sequence[int]) -> list[list[int]]:
    """The blobs in their order, cut so that those of a window have about a page of members."""
    sizes = {row.id: row.files for row in connection.execute(_SIZES, {"blobs": list(blobs)})}
    return cut(list(dict.fromkeys(blobs)), sizes)


def cut(blobs: Iterable[int], sizes: dict[int, int]) -> list[list[int]]:
    """Windows of blobs that have at most a page of members together; a larger blob stands alone."""
    done: list[list[int]] = []
    room = 0
    for blob in blobs:
        size = max(1, sizes.get(blob, 0))
        if not done or size > room:
            done.append([])
            room = PAGE
        done[-1].append(blob)
        room -= size
    return done


Position = tuple[int, int]
"""Offset and file number to go on behind."""


def members(
    connection: Connection, window: Sequence[int], after: Position
) -> tuple[list[ListMembersResponse.Member], Position | None]:
    """A page of the members of a window, and where to go on (None: at its end)."""
    if len(window) > 1:
        rows = connection.execute(_MEMBERS, {"blobs": list(window)}).all()
        return [_member(row) for row in rows], None
    wanted = {"blob": window[0], "offset": after[0], "file": after[1], "limit": PAGE}
    rows = connection.execute(_MEMBERS_OF_ONE, wanted).all()
    last = (rows[-1].offset, rows[-1].id) if len(rows) == PAGE else None
    return [_member(row) for row in rows], last


def _named(number: int, request: AllocateBlobsRequest) -> Blob:
    # The random part keeps keys unique even if a database was set back to an older state.
    salt, suffix = secrets.token_hex(4), _SUFFIX[request.format]
    return Blob(
        id=number,
        tier=request.tier,
        format=request.format,
        state=Blob.WRITING,
        key=blob_key(request.holding_id, number, salt, suffix),
        holding_id=request.holding_id,
    )


def _member(row: Row[Any]) -> ListMembersResponse.Member:
    return ListMembersResponse.Member(blob_id=row.blob_id, offset=row.offset, file=stored_file(row))
