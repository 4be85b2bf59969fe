"""Taking readable copies away: eviction, steps of blobs, and faults.

All of it runs under one advisory lock, so that no two removals can each count on the copy that the
other takes. A trigger refuses to delete the last location of a file that is not marked as lost.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import structlog
from sqlalchemy import Connection, Row, text

from nearline.catalog.v1.catalog_pb2 import ReportFaultRequest
from nearline.type.v1.storage_pb2 import Blob
from services.catalog import copies as copying
from services.catalog import usage
from services.catalog.blobs import message
from services.catalog.copies import Copies, Locked
from services.catalog.locks import Lock, hold
from services.catalog.rules import (
    CACHE,
    FILE_LOST,
    FILE_STORED,
    LOST,
    READABLE,
    REMOVED,
    REMOVING,
    SAFE,
    STORED,
    TAPE,
    check_number,
    check_text,
    invalid,
    step_needed,
)
from services.kit.errors import FailedPrecondition

log = structlog.get_logger(__name__)

_REACHABLE = (SAFE, REMOVING, REMOVED, LOST)

_SET = text("UPDATE blob SET state = :state WHERE id = ANY(:blobs)")
_FREE_SOURCES = text("UPDATE blob SET aggregate_id = NULL WHERE aggregate_id = ANY(:blobs)")

_UNFINISHED = text(f"""
    SELECT * FROM blob
    WHERE tier = {CACHE} AND state = {REMOVING} AND (:holding = 0 OR holding_id = :holding)
    ORDER BY id LIMIT :limit
""")
_CANDIDATES = text(f"""
    SELECT id, last_access FROM blob
    WHERE tier = {CACHE} AND state = {STORED} AND NOT needs_archive
        AND (:holding = 0 OR holding_id = :holding)
        AND (CAST(:time AS timestamptz) IS NULL OR (last_access, id) > (:time, :id))
    ORDER BY last_access, id LIMIT :limit
""")
_LOCK_IDLE = text(f"""
    SELECT * FROM blob WHERE id = ANY(:blobs) AND state = {STORED}
    ORDER BY id FOR UPDATE SKIP LOCKED
""")
# A file that is not SAFE on tape, or that somebody pinned, keeps its whole blob. For the counts see
# the same in `seal`.
# So does a bad copy that is the only one: somebody may still want to save what is left of it.
_HELD = text(f"""
    SELECT l.blob_id FROM location l WHERE l.blob_id = ANY(:blobs) AND (
        SELECT count(*) FROM location t JOIN blob b ON b.id = t.blob_id
        WHERE t.file_id = l.file_id AND t.tier = {TAPE} AND b.state = {SAFE}) = 0
    UNION
    SELECT l.blob_id FROM pin p
    JOIN location l ON int8range(p.first, p.last, '[]') @> l.file_id
    WHERE l.blob_id = ANY(:blobs) AND p.until > now()
    UNION
    SELECT t.blob_id FROM fault t JOIN file f ON f.id = t.file_id
    WHERE t.blob_id = ANY(:blobs) AND t.repaired_at IS NULL AND f.state = {FILE_LOST}
""")
_LAST_COPIES = text("""
    SELECT count(*) FROM location l WHERE l.blob_id = ANY(:blobs) AND (
        SELECT count(*) FROM location o
        WHERE o.file_id = l.file_id AND NOT o.blob_id = ANY(:blobs)) = 0
""")
_NOTE_FAULTS = text("""
    INSERT INTO fault (blob_id, file_id, "offset", reason)
    SELECT blob_id, file_id, "offset", :reason FROM location
    WHERE blob_id = ANY(:blobs) AND (:whole OR file_id = ANY(:files))
    ON CONFLICT (blob_id, file_id) DO UPDATE
    SET reason = excluded.reason, reported_at = now(), repaired_at = NULL, repair = NULL
""")
_MARK_LOST = text(f"""
    UPDATE file f SET state = {FILE_LOST} FROM location l
    WHERE l.blob_id = ANY(:blobs) AND (:whole OR l.file_id = ANY(:files)) AND f.id = l.file_id
        AND f.state = {FILE_STORED} AND (
            SELECT count(*) FROM location o
            WHERE o.file_id = f.id AND NOT o.blob_id = ANY(:blobs)) = 0
""")
_DROP = text("""
    WITH gone AS (
        DELETE FROM location WHERE blob_id = ANY(:blobs) AND (:whole OR file_id = ANY(:files))
        RETURNING file_id, tier
    )
    SELECT f.holding_id, g.tier, count(*) AS files, CAST(sum(f.size) AS bigint) AS bytes
    FROM gone g JOIN file f ON f.id = g.file_id GROUP BY f.holding_id, g.tier
""")
_RECOUNT = text("""
    UPDATE blob SET files = (SELECT count(*) FROM location WHERE blob_id = :blob)
    WHERE id = :blob RETURNING files
""")
_CLOSE_FAULTS = text(f"""
    UPDATE fault t SET repaired_at = now(), repair = 'its blob was removed' FROM file f
    WHERE t.blob_id = ANY(:blobs) AND t.repaired_at IS NULL
        AND f.id = t.file_id AND f.state <> {FILE_LOST}
""")
_ARCHIVE_NEED = text(f"""
    UPDATE blob b SET needs_archive = EXISTS (
        SELECT FROM location c WHERE c.blob_id = b.id AND (
            SELECT count(*) FROM location t WHERE t.file_id = c.file_id AND t.tier = {TAPE}) = 0)
    WHERE b.id = ANY(:blobs) AND b.tier = {CACHE}
""")
_LOST_FILES = text(f"""
    SELECT f.id FROM fault t JOIN file f ON f.id = t.file_id
    WHERE t.blob_id = ANY(:blobs) AND (:whole OR t.file_id = ANY(:files))
        AND f.state = {FILE_LOST}
    ORDER BY f.id
""")


def unfinished(connection: Connection, holding_id: int, limit: int) -> list[Blob]:
    """Cache blobs that an earlier claim or seal left REMOVING."""
    rows = connection.execute(_UNFINISHED, {"holding": holding_id, "limit": limit})
    return [message(row) for row in rows]


def candidates(
    connection: Connection, holding_id: int, behind: Row[Any] | None, limit: int
) -> Sequence[Row[Any]]:
    """Numbers of archived cache blobs with their last access, least recently used first."""
    wanted = {
        "holding": holding_id,
        "time": behind.last_access if behind is not None else None,
        "id": behind.id if behind is not None else 0,
        "limit": limit,
    }
    return connection.execute(_CANDIDATES, wanted).all()


def evict(connection: Connection, blobs: Iterable[int], most_bytes: int) -> list[Blob]:
    """Make those of ``blobs`` REMOVING that may go, in order, until ``most_bytes`` are reached.

    Whether they may is decided here, under locks: every file SAFE on tape and not pinned.
    """
    wanted = list(blobs)
    hold(connection, Lock.REMOVE)
    locked = {row.id: row for row in connection.execute(_LOCK_IDLE, {"blobs": wanted})}
    held = set(connection.scalars(_HELD, {"blobs": list(locked)}))
    free = [locked[blob] for blob in wanted if blob in locked and blob not in held]
    chosen = _until(free, most_bytes)
    _remove(connection, [row.id for row in chosen])
    done = [message(row) for row in chosen]
    for blob in done:
        blob.state = Blob.REMOVING
    return done


def set_states(connection: Connection, blobs: Sequence[int], state: int, only_from: int = 0) -> int:
    """Move blobs to ``state``, or those that are in ``only_from``; how many were not there before.

    FailedPrecondition: a step that is not allowed, or that takes the last copy of a file.
    """
    if state not in _REACHABLE:
        raise invalid(
            "state", "must be SAFE, REMOVING, REMOVED or LOST; RecordBlob sets the others"
        )
    hold(connection, Lock.REMOVE)
    found = _locked_for(connection, blobs, state)
    rows = [row for row in found.rows if only_from in (0, row.state)]
    changing = [row for row in rows if step_needed(row.id, row.tier, row.state, state)]
    numbers = [row.id for row in changing]
    if state == LOST:
        for number in numbers:
            _fail(connection, Copies([number]), "reported as lost")
        archive_needed(connection, found.neighbours)
        return len(numbers)
    if any(row.state in READABLE for row in changing) and state != SAFE:
        _keep_last_copies(connection, numbers)
        _remove(connection, numbers)
        archive_needed(connection, found.neighbours)
    connection.execute(_SET, {"state": state, "blobs": numbers})
    if state in (REMOVING, REMOVED):
        connection.execute(_FREE_SOURCES, {"blobs": numbers})
        connection.execute(_CLOSE_FAULTS, {"blobs": numbers})
    return len(numbers)


def report_fault(connection: Connection, request: ReportFaultRequest) -> list[int]:
    """Stop reading damaged copies; numbers of the files that have none left. Repeats are no-ops."""
    check_text(request.reason[:255], "reason")
    for number in request.file_ids:
        check_number(number, "file_ids", least=1)
    hold(connection, Lock.REMOVE)
    copies = Copies([request.blob_id], list(request.file_ids))
    found = copying.lock(connection, copies)
    (row,) = found.rows
    if row.state in READABLE:
        _fail(connection, copies, request.reason)
        archive_needed(connection, found.neighbours)
    return list(connection.scalars(_LOST_FILES, copies.arguments))


def archive_needed(connection: Connection, blobs: Sequence[int]) -> None:
    """Find anew which cache blobs wait for tape: those with a file that has no tape copy."""
    connection.execute(_ARCHIVE_NEED, {"blobs": list(blobs)})


def _locked_for(connection: Connection, blobs: Sequence[int], state: int) -> Locked:
    """Blobs before a step: their copies stay where they are when they become SAFE."""
    if state == SAFE:
        return Locked(copying.lock_blobs(connection, blobs), [])
    return copying.lock(connection, Copies(blobs))


def _until(rows: Iterable[Row[Any]], most_bytes: int) -> list[Row[Any]]:
    chosen, size = [], 0
    for row in rows:
        if most_bytes and size >= most_bytes:
            break
        chosen.append(row)
        size += row.size
    return chosen


def _keep_last_copies(connection: Connection, blobs: Sequence[int]) -> None:
    last = connection.scalar(_LAST_COPIES, {"blobs": list(blobs)})
    if last:
        raise FailedPrecondition(
            "LAST_COPY",
            f"{last} files have no other readable copy; archive, recall or delete them first",
        )


def _remove(connection: Connection, blobs: Sequence[int]) -> None:
    """Make readable blobs REMOVING: nothing reads them from the commit on."""
    if not blobs:
        return
    _drop(connection, Copies(blobs))
    connection.execute(_SET, {"state": REMOVING, "blobs": list(blobs)})
    connection.execute(_CLOSE_FAULTS, {"blobs": list(blobs)})


def _fail(connection: Connection, copies: Copies, reason: str) -> None:
    """Forget copies of one blob that were found bad; it is LOST once none is left."""
    (blob,) = copies.blobs
    which = copies.arguments
    faults = connection.execute(_NOTE_FAULTS, {**which, "reason": reason}).rowcount
    log.warning("copies_faulty", blob=blob, files=faults, reason=reason)
    lost = connection.execute(_MARK_LOST, which).rowcount
    if lost:
        log.error("files_lost", blob=blob, files=lost, reason=reason)
    _drop(connection, copies)
    if not connection.scalar(_RECOUNT, {"blob": blob}):
        connection.execute(_SET, {"state": LOST, "blobs": [blob]})


def _drop(connection: Connection, copies: Copies) -> None:
    """Delete locations, and take them off the usage."""
    for row in connection.execute(_DROP, copies.arguments).all():
        usage.add(connection, row.holding_id, row.tier, (0, 0), (-row.files, -row.bytes))
