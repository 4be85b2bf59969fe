"""What is worth archiving, and reserving it for one aggregate."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, Row, text

from nearline.catalog.v1.catalog_pb2 import (
    AllocateBlobsRequest,
    ClaimAggregateRequest,
    ClaimAggregateResponse,
    ListArchivableResponse,
)
from nearline.type.v1.storage_pb2 import Blob, Holding
from services.catalog import blobs
from services.catalog.filerows import holding_message
from services.catalog.locks import Lock, hold
from services.catalog.rules import CACHE, REMOVED, STORED, TAPE, WRITING, check_number, check_text
from services.kit.errors import FailedPrecondition, NotFound

PAGE = 1000
MOST_SOURCES = 100_000

_FREE = f"tier = {CACHE} AND state = {STORED} AND needs_archive AND aggregate_id IS NULL"

_ARCHIVABLE = text(f"""
    SELECT * FROM blob
    WHERE {_FREE} AND (holding_id, id) > (:holding, :blob)
        AND sealed_at <= now() - make_interval(secs => :age)
    ORDER BY holding_id, id LIMIT :limit
""")
_HOLDINGS = text("SELECT * FROM holding WHERE id = ANY(:holdings)")
_EARLIER = text("""
    SELECT a.sources, b.* FROM aggregate a JOIN blob b ON b.id = a.blob_id
    WHERE a.claim_key = :key
""")
_LOCK_FREE = text(f"""
    SELECT id FROM blob WHERE id = ANY(:blobs) AND holding_id = :holding AND {_FREE}
    ORDER BY id FOR UPDATE
""")

_INSERT = text("""
    INSERT INTO aggregate (blob_id, claim_key, sources)
    VALUES (:blob, :key, CAST(:sources AS bigint[]))
""")
_CLAIM = text("UPDATE blob SET aggregate_id = :aggregate WHERE id = ANY(:blobs)")
_LOCK_AGGREGATE = text("""
    SELECT b.id, b.tier, b.state FROM blob b
    WHERE b.id = :blob OR b.aggregate_id = :blob ORDER BY b.id FOR UPDATE
""")
_RELEASE = text("UPDATE blob SET aggregate_id = NULL WHERE aggregate_id = :blob")
_REMOVE = text(f"UPDATE blob SET state = {REMOVED} WHERE id = :blob")


def archivable(
    connection: Connection, behind: tuple[int, int], age: int, limit: int
) -> list[ListArchivableResponse]:
    """The next blobs to archive behind (holding, blob), a message per holding."""
    wanted = {"holding": behind[0], "blob": behind[1], "age": age, "limit": limit}
    rows = connection.execute(_ARCHIVABLE, wanted).all()
    runs = [(number, list(run)) for number, run in groupby(rows, lambda row: row.holding_id)]
    found = connection.execute(_HOLDINGS, {"holdings": [number for number, _ in runs]})
    owners = {row.id: holding_message(row) for row in found}
    return [_waiting(owners[number], run) for number, run in runs]


def claim(connection: Connection, request: ClaimAggregateRequest) -> ClaimAggregateResponse:
    """Reserve the sources that are free and name a tape blob for them.

    A repeat with the same key returns the same, as long as the tape blob is still to be written.
    FailedPrecondition: none of the sources is free, or the key's tape blob was sealed or given up.
    """
    key = check_text(request.claim_key, "claim_key")
    check_number(len(request.source_blob_ids), "source_blob_ids", least=1, most=MOST_SOURCES)
    hold(connection, Lock.CLAIM, key)
    earlier = connection.execute(_EARLIER, {"key": key}).one_or_none()
    if earlier is not None:
        return _again(earlier)
    blobs.require_holding(connection, request.holding_id)
    sources = _free(connection, request)
    (blob,) = blobs.insert(connection, _request(request))
    connection.execute(_INSERT, {"blob": blob.id, "key": key, "sources": sources})
    connection.execute(_CLAIM, {"aggregate": blob.id, "blobs": sources})
    return ClaimAggregateResponse(blob=blob, source_blob_ids=sources)


def _again(earlier: Row[Any]) -> ClaimAggregateResponse:
    """What the key was answered first; whoever gets that may write a tape file of this name."""
    if earlier.state != WRITING:
        raise FailedPrecondition(
            "CLAIM_OVER",
            f"tape blob {earlier.id}, claimed with this key, was written or given up since; "
            "plan anew with ListArchivable and another key",
            blob_id=earlier.id,
        )
    return ClaimAggregateResponse(blob=blobs.message(earlier), source_blob_ids=earlier.sources)


def release(connection: Connection, blob_id: int) -> None:
    """Give up an aggregate: its tape blob is REMOVED, its sources are free. A repeat is a no-op.

    NotFound: no such tape blob. FailedPrecondition: it was written.
    """
    check_number(blob_id, "blob_id", least=1)
    rows = {row.id: row for row in connection.execute(_LOCK_AGGREGATE, {"blob": blob_id})}
    blob = rows.get(blob_id)
    if blob is None or blob.tier != TAPE:
        raise NotFound("BLOB_NOT_FOUND", f"there is no tape blob {blob_id}", blob_id=blob_id)
    if blob.state == WRITING:
        connection.execute(_RELEASE, {"blob": blob_id})
        connection.execute(_REMOVE, {"blob": blob_id})
    elif blob.state != REMOVED:
        raise FailedPrecondition(
            "BLOB_SEALED",
            f"tape blob {blob_id} was written already; its sources are archived",
            blob_id=blob_id,
        )


def _waiting(owner: Holding, rows: Sequence[Row[Any]]) -> ListArchivableResponse:
    answer = ListArchivableResponse(holding=owner, blobs=map(blobs.message, rows))
    answer.oldest.FromDatetime(min(row.sealed_at for row in rows))
    return answer


def _free(connection: Connection, request: ClaimAggregateRequest) -> list[int]:
    wanted = list(dict.fromkeys(request.source_blob_ids))
    arguments = {"blobs": wanted, "holding": request.holding_id}
    free = set(connection.scalars(_LOCK_FREE, arguments))
    if not free:
        raise FailedPrecondition(
            "NOTHING_TO_ARCHIVE",
            "none of the sources is a stored cache blob of the holding that waits for archiving; "
            "plan anew with ListArchivable",
        )
    return [blob for blob in wanted if blob in free]


def _request(request: ClaimAggregateRequest) -> AllocateBlobsRequest:
    return AllocateBlobsRequest(
        holding_id=request.holding_id,
        tier=Blob.TAPE,
        format=Blob.TAR,
        count=1,
        writer=f"aggregate {request.claim_key}",
    )
