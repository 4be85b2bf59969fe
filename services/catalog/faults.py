"""Copies that were found bad, and their way back: lists, reinstatement, what was replaced."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import structlog
from sqlalchemy import Connection, Row, text

from nearline.catalog.v1 import catalog_pb2 as api
from nearline.type.v1.storage_pb2 import Blob
from services.catalog import copies as copying
from services.catalog import cursors, removal, usage
from services.catalog.blobs import MOST_BLOBS, message
from services.catalog.copies import Copies
from services.catalog.locks import Lock, hold
from services.catalog.rules import (
    CACHE,
    FILE_LOST,
    FILE_STORED,
    LOST,
    REMOVING,
    SAFE,
    STORED,
    TAPE,
    check_number,
    check_reinstated,
    invalid,
)
from services.kit.db import Database

log = structlog.get_logger(__name__)

PAGE = 1000
MOST_LOOKED_AT = 1000
_FAULTS_LOOKED_AT = 50_000
_FILES_COUNTED = 100_000

_LISTED = text(f"""
    SELECT t.blob_id, t.file_id, t."offset", t.reason, t.reported_at, t.repaired_at, t.repair,
        b.tier, b.state AS blob_state, b.key, f.size, f.digest, f.state, f.holding_id,
        d.path || f.name AS path, h.label, h.user_name, h.group_name,
        f.state = {FILE_LOST} AS lost
    FROM fault t
    JOIN blob b ON b.id = t.blob_id
    JOIN file f ON f.id = t.file_id
    JOIN directory d ON d.id = f.dir_id
    JOIN holding h ON h.id = f.holding_id
    WHERE (t.blob_id, t.file_id) > (:blob, :file)
        AND (NOT :open OR t.repaired_at IS NULL)
        AND (:tier = 0 OR b.tier = :tier)
        AND (:any_group OR h.group_name = ANY(:groups))
        AND (:any_blob OR t.blob_id = ANY(:blobs))
        AND (:any_file OR t.file_id = ANY(:files))
    ORDER BY t.blob_id, t.file_id LIMIT :limit
""")
# Only what has an open fault in the blob, and no other copy in the tier by now.
_LOCATE = text("""
    INSERT INTO location (file_id, blob_id, "offset", tier)
    SELECT t.file_id, t.blob_id, t."offset", :tier FROM fault t JOIN file f ON f.id = t.file_id
    WHERE t.blob_id = :blob AND t.file_id = ANY(:files) AND t.repaired_at IS NULL
    ORDER BY t.file_id
    ON CONFLICT (file_id, tier, copy) DO NOTHING
    RETURNING file_id
""")
_REVIVE = text(f"""
    UPDATE file SET state = {FILE_STORED} WHERE id = ANY(:files) AND state = {FILE_LOST}
""")
_SIZES = text("""
    SELECT holding_id, count(*) AS files, CAST(sum(size) AS bigint) AS bytes
    FROM file WHERE id = ANY(:files) GROUP BY holding_id
""")
_TAKE_BACK = text(f"""
    UPDATE blob SET state = CASE WHEN state = {LOST} THEN :state ELSE state END,
        files = (SELECT count(*) FROM location WHERE blob_id = :blob),
        last_access = now()
    WHERE id = :blob
""")
_REPAIRED = text("""
    UPDATE fault SET repaired_at = now(), repair = 'read again and found good'
    WHERE blob_id = :blob AND file_id = ANY(:files) AND repaired_at IS NULL
""")
# As many blobs with faults as have about so many of them, so that no look takes long.
_WINDOW = text("""
    SELECT DISTINCT blob_id FROM (
        SELECT blob_id FROM fault WHERE blob_id > :after ORDER BY blob_id, file_id LIMIT :faults
    ) AS next ORDER BY blob_id LIMIT :blobs
""")
# A good copy: one that is safe on tape, or for a bad object another one in the cache.
# `(SELECT … LIMIT 1) IS NULL` as in `seal`: a join could read all locations after a disk was lost.
_REPLACED = text(f"""
    SELECT b.* FROM blob b
    WHERE b.id = ANY(:window) AND b.tier = :tier AND b.state = {LOST}
        AND b.created_at <= now() - make_interval(secs => :age)
        AND (
            SELECT t.file_id FROM fault t WHERE t.blob_id = b.id AND (
                SELECT count(*) FROM location l JOIN blob o ON o.id = l.blob_id
                WHERE l.file_id = t.file_id
                    AND (o.state = {SAFE} OR :tier = {CACHE} AND o.state = {STORED})
            ) = 0 LIMIT 1
        ) IS NULL
    ORDER BY b.id
""")
# Objects with a fault in which only directories, links and empty files are left to read.
_HOLLOW = text(f"""
    SELECT b.id FROM blob b
    WHERE b.id = ANY(:window) AND b.tier = {CACHE} AND b.state = {STORED} AND NOT b.needs_archive
        AND b.created_at <= now() - make_interval(secs => :age)
        AND (
            SELECT f.id FROM location l JOIN file f ON f.id = l.file_id
            WHERE l.blob_id = b.id AND f.size > 0 LIMIT 1
        ) IS NULL
    ORDER BY b.id
""")
# Both touch only rows of open faults: a join with `file` could read all files there are.
_OPEN = text("""
    SELECT b.tier, CAST(sum(o.faults) AS bigint) AS faults FROM (
        SELECT blob_id, count(*) AS faults FROM fault WHERE repaired_at IS NULL GROUP BY blob_id
    ) AS o JOIN blob b ON b.id = o.blob_id
    GROUP BY b.tier
""")
_LOST_FILES = text(f"""
    SELECT max(o.file_id) AS last, count(*) FILTER (
        WHERE (SELECT f.state FROM file f WHERE f.id = o.file_id) = {FILE_LOST}) AS lost
    FROM (
        SELECT DISTINCT file_id FROM fault WHERE repaired_at IS NULL AND file_id > :after
        ORDER BY file_id LIMIT :files
    ) AS o
""")


async def list_faults(
    database: Database, request: api.ListFaultsRequest
) -> AsyncIterator[api.ListFaultsResponse]:
    """Faults that match, page by page."""
    for name in ("blob_ids", "file_ids"):
        check_number(len(getattr(request, name)), name, most=MOST_BLOBS)
    left = check_number(request.limit, "limit") or None
    asked = _question(request)
    behind = cursors.decode(request.cursor, asked) or (0, 0)
    while left is None or left > 0:
        limit = PAGE if left is None else min(PAGE, left)
        rows = await database.read(_page, request, behind, limit)
        if rows:
            behind = rows[-1].blob_id, rows[-1].file_id
            cursor = cursors.encode(asked, *behind)
            yield api.ListFaultsResponse(faults=map(_fault, rows), cursor=cursor)
        if len(rows) < limit:
            return
        left = None if left is None else left - len(rows)


def reinstate(connection: Connection, request: api.ReinstateCopiesRequest) -> int:
    """Read copies with a fault again; how many. A repeat is a no-op.

    NotFound: no such blob. FailedPrecondition: its bytes are being removed.
    """
    files = list(request.file_ids)
    check_number(len(files), "file_ids", least=1, most=MOST_BLOBS)
    hold(connection, Lock.REMOVE)
    found = copying.lock(connection, Copies([request.blob_id], files, "fault"))
    (row,) = found.rows
    check_reinstated(row.id, row.tier, row.state, request.state)
    wanted = {"blob": row.id, "files": files, "tier": row.tier, "state": request.state}
    back = list(connection.scalars(_LOCATE, wanted))
    connection.execute(_REPAIRED, wanted)
    if not back:
        return 0
    for part in connection.execute(_SIZES, {"files": back}).all():
        usage.add(connection, part.holding_id, row.tier, (0, 0), (part.files, part.bytes))
    connection.execute(_REVIVE, {"files": back})
    connection.execute(_TAKE_BACK, wanted)
    removal.archive_needed(connection, [row.id, *found.neighbours])
    log.warning("copies_reinstated", blob=row.id, key=row.key, files=len(back))
    return len(back)


def claim_replaced(
    connection: Connection, request: api.ClaimReplacedRequest
) -> api.ClaimReplacedResponse:
    """Make blobs REMOVING that no file needs after a fault; in a dry run only name them.

    Looks at some blobs behind ``after``, and tells where to go on: what must stay for now keeps
    nothing behind it from being found.
    """
    if request.tier not in (Blob.CACHE, Blob.TAPE):
        raise invalid("tier", "must be CACHE or TAPE")
    hold(connection, Lock.REMOVE)
    window = _window(connection, request)
    attempt = connection.begin_nested()
    claimed = _claim_replaced(connection, request, window)
    if request.dry_run:
        attempt.rollback()
    else:
        attempt.commit()
    return api.ClaimReplacedResponse(blobs=claimed, next_after=window[-1] if window else 0)


def _window(connection: Connection, request: api.ClaimReplacedRequest) -> list[int]:
    wanted = {
        "after": check_number(request.after, "after"),
        "blobs": min(request.limit or MOST_LOOKED_AT, MOST_LOOKED_AT),
        "faults": _FAULTS_LOOKED_AT,
    }
    return list(connection.scalars(_WINDOW, wanted))


def _claim_replaced(
    connection: Connection, request: api.ClaimReplacedRequest, window: Sequence[int]
) -> list[Blob]:
    wanted = {"window": window, "tier": request.tier, "age": request.min_age_seconds}
    lost = [message(row) for row in connection.execute(_REPLACED, wanted)]
    removal.set_states(connection, [blob.id for blob in lost], REMOVING)
    for blob in lost:
        blob.state = Blob.REMOVING
    if request.tier == TAPE:
        return lost
    return lost + removal.evict(connection, connection.scalars(_HOLLOW, wanted), 0)


async def open_counts(database: Database) -> tuple[dict[int, int], int]:
    """Open faults by tier, and files without any readable copy. Seconds for a million faults."""
    faults = await database.read(_open)
    lost = after = 0
    while (counted := await database.read(_lost_files, after)).last is not None:
        lost, after = lost + counted.lost, counted.last
    return faults, lost


def _open(connection: Connection) -> dict[int, int]:
    return {row.tier: row.faults for row in connection.execute(_OPEN)}


def _lost_files(connection: Connection, after: int) -> Row[Any]:
    return connection.execute(_LOST_FILES, {"after": after, "files": _FILES_COUNTED}).one()


def _page(
    connection: Connection, request: api.ListFaultsRequest, behind: tuple[int, int], limit: int
) -> Sequence[Row[Any]]:
    wanted = {
        "blob": behind[0],
        "file": behind[1],
        "open": request.open,
        "tier": request.tier,
        "groups": list(request.groups),
        "any_group": not request.groups,
        "blobs": list(request.blob_ids),
        "any_blob": not request.blob_ids,
        "files": list(request.file_ids),
        "any_file": not request.file_ids,
        "limit": limit,
    }
    return connection.execute(_LISTED, wanted).all()


def _question(request: api.ListFaultsRequest) -> bytes:
    """What a cursor is bound to: the request without its place and size."""
    question = api.ListFaultsRequest()
    question.CopyFrom(request)
    question.ClearField("cursor")
    question.ClearField("limit")
    return cursors.fingerprint(question, descending=False)


def _fault(row: Row[Any]) -> api.Fault:
    fault = api.Fault(
        blob_id=row.blob_id,
        tier=row.tier,
        state=row.blob_state,
        key=row.key,
        file_id=row.file_id,
        path=row.path,
        offset=row.offset,
        length=row.size,
        digest=bytes(row.digest or b""),
        reason=row.reason,
        repair=row.repair,
        lost=row.lost,
        holding_id=row.holding_id,
        label=row.label,
        user=row.user_name,
        group=row.group_name,
    )
    fault.reported_at.FromDatetime(row.reported_at)
    if row.repaired_at is not None:
        fault.repaired_at.FromDatetime(row.repaired_at)
    return fault
