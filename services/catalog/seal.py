"""Sealing a blob: its members become locations, all at once, in one database transaction.

Attempts that store the same files at the same time wait for each other's file rows, taken in order
of number: the first one wins each file, and the other's member is redundant.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, text

from nearline.catalog.v1.catalog_pb2 import RecordBlobRequest, RecordBlobResponse
from nearline.type.v1.storage_pb2 import Attributes
from services.catalog import rules, usage
from services.catalog.filerows import xattrs_json
from services.catalog.rules import (
    CACHE,
    FILE_LOST,
    FILE_REGISTERED,
    FILE_STORED,
    REMOVING,
    TAPE,
    Seal,
)
from services.kit import crash
from services.kit.db import copy_into
from services.kit.errors import NotFound

Member = RecordBlobRequest.Member

MOST_MEMBERS = 200_000
MOST_BATCH = 5000

_ACCEPTED, _REDUNDANT, _MISMATCHED = 1, 2, 3
_MISSING = 0
_IS_NEW = f"verdict = {_ACCEPTED} AND was_state = {FILE_REGISTERED}"

# Kept by the connection; each database transaction finds it empty.
_MAKE_TABLE = text("""
    CREATE TEMPORARY TABLE IF NOT EXISTS member (
        file_id bigint PRIMARY KEY, "offset" bigint, length bigint, digest bytea, size bigint,
        mtime_ns bigint, uid bigint, gid bigint, mode smallint, type smallint, link_target text,
        hardlink text, xattrs jsonb, verdict smallint DEFAULT 0, was_state smallint,
        was_size bigint, put_id bigint
    ) ON COMMIT DELETE ROWS
""")
_COLUMNS = (
    "file_id", "offset", "length", "digest", "size", "mtime_ns", "uid", "gid", "mode", "type",
    "link_target", "hardlink", "xattrs",
)  # fmt: skip
_ANALYZE = text("ANALYZE member")

_LOCK_BLOBS = text("""
    SELECT id, tier, state, size, adler32, holding_id, outcome FROM blob
    WHERE id = :blob OR aggregate_id = :blob ORDER BY id FOR UPDATE
""")
_LOCK_FILES = text("""
    SELECT count(*) FROM (
        SELECT f.id FROM member m JOIN file f ON f.id = m.file_id ORDER BY f.id FOR UPDATE OF f
    ) AS locked
""")
# Here and below `(SELECT count(*) …)` where EXISTS would say the same: it stays one look-up in the
# primary key for each file. EXISTS can become a join, and the planner chooses a wrong one while its
# statistics lag behind a growing table.
_JUDGE = text(f"""
    UPDATE member m SET was_state = f.state, was_size = f.size, put_id = f.put_id,
        verdict = CASE
            WHEN f.holding_id <> :holding THEN {_MISSING}
            WHEN (
                SELECT count(*) FROM location l
                WHERE l.file_id = f.id AND l.tier = :tier AND l.copy = 1
            ) > 0 THEN {_REDUNDANT}
            WHEN f.state = {FILE_REGISTERED} THEN
                CASE WHEN m.length = coalesce(m.size, f.size)
                    AND (m.digest IS NOT NULL) = (coalesce(m.type, f.type) = {Attributes.FILE})
                    THEN {_ACCEPTED} ELSE {_MISMATCHED} END
            WHEN m.length = f.size AND m.digest IS NOT DISTINCT FROM f.digest THEN {_ACCEPTED}
            ELSE {_MISMATCHED}
        END
    FROM file f WHERE f.id = m.file_id
""")
# The first copy of a file says what the file is.
_STORE = text(f"""
    UPDATE file f SET state = {FILE_STORED}, digest = m.digest, size = m.length,
        mtime_ns = coalesce(m.mtime_ns, f.mtime_ns), uid = coalesce(m.uid, f.uid),
        gid = coalesce(m.gid, f.gid), mode = coalesce(m.mode, f.mode),
        type = coalesce(m.type, f.type),
        link_target = CASE WHEN m.type IS NULL THEN f.link_target ELSE m.link_target END,
        hardlink = CASE WHEN m.type IS NULL THEN f.hardlink ELSE m.hardlink END,
        xattrs = CASE WHEN m.type IS NULL THEN f.xattrs ELSE m.xattrs END
    FROM member m
    WHERE f.id = m.file_id AND {_IS_NEW}
""")
_REVIVE = text(f"""
    UPDATE file f SET state = {FILE_STORED} FROM member m
    WHERE f.id = m.file_id AND m.verdict = {_ACCEPTED} AND m.was_state = {FILE_LOST}
""")
_LOCATE = text(f"""
    INSERT INTO location (file_id, blob_id, "offset", tier)
    SELECT file_id, :blob, "offset", :tier FROM member WHERE verdict = {_ACCEPTED}
    ORDER BY file_id
""")
_REPAIR = text(f"""
    UPDATE fault t SET repaired_at = now(), repair = CAST(:repair AS text)
    FROM member m, blob b
    WHERE t.repaired_at IS NULL AND t.file_id = m.file_id AND m.verdict = {_ACCEPTED}
        AND b.id = t.blob_id AND b.tier = :tier
""")
_COUNTS = text(f"""
    SELECT count(*) FILTER (WHERE verdict = {_ACCEPTED}) AS accepted,
        count(*) FILTER (WHERE verdict = {_REDUNDANT}) AS redundant,
        CAST(coalesce(sum(length) FILTER (WHERE verdict = {_ACCEPTED}), 0) AS bigint) AS bytes,
        count(*) FILTER (WHERE {_IS_NEW}) AS new_files,
        CAST(coalesce(sum(length) FILTER (WHERE {_IS_NEW}), 0) AS bigint) AS new_bytes
    FROM member
""")
_REFUSED = text(f"""
    SELECT file_id, verdict FROM member
    WHERE verdict IN ({_MISMATCHED}, {_MISSING}) ORDER BY file_id
""")
_RESERVED = text(f"""
    SELECT put_id, count(*) AS files, CAST(sum(was_size) AS bigint) AS bytes FROM member
    WHERE {_IS_NEW} GROUP BY put_id
""")
_SEAL = text(f"""
    UPDATE blob b SET state = :state, size = :size, adler32 = :adler32, files = :files,
        sealed_at = now(), last_access = now(), outcome = CAST(:outcome AS jsonb),
        needs_archive = b.tier = {CACHE} AND EXISTS (
            SELECT FROM member m WHERE m.verdict = {_ACCEPTED} AND (
                SELECT count(*) FROM location l
                WHERE l.file_id = m.file_id AND l.tier = {TAPE}) = 0)
    WHERE id = :blob
""")
# The sources of an aggregate are free again; what it could not take is left to be archived.
_ARCHIVED = text(f"""
    UPDATE blob b SET aggregate_id = NULL, needs_archive = EXISTS (
        SELECT FROM location c WHERE c.blob_id = b.id AND (
            SELECT count(*) FROM location t WHERE t.file_id = c.file_id AND t.tier = {TAPE}) = 0)
    WHERE aggregate_id = :blob
""")


@dataclass(slots=True)
class Members:
    """Members of a blob as they arrive, checked and ready for COPY."""

    rows: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    end: int = 0
    """Least size of a blob that holds them all."""

    def add(self, batch: Sequence[Member]) -> None:
        """Take a batch; InvalidArgument for a member that no blob can have."""
        if len(batch) > MOST_BATCH:
            raise rules.invalid("batch.members", f"has {len(batch)}; send at most {MOST_BATCH}")
        for member in batch:
            if member.file_id in self.rows:
                raise rules.invalid("member.file_id", f"{member.file_id} comes twice in one blob")
            self.rows[member.file_id] = _row(member)
            self.end = max(self.end, member.offset + member.length)
        if len(self.rows) > MOST_MEMBERS:
            raise rules.invalid(
                "batch", f"a blob has at most {MOST_MEMBERS} members; write several"
            )


def checked(message: RecordBlobRequest.Seal) -> Seal:
    """A seal as it came; InvalidArgument for values that no blob can have."""
    return Seal(
        rules.check_number(message.blob_id, "seal.blob_id", least=1),
        rules.check_number(message.size, "seal.size"),
        message.adler32,
        message.state,
        message.pack_adler32,
    )


def seal(connection: Connection, seal: Seal, members: Members) -> RecordBlobResponse:
    """Record that a blob is complete. A repeat returns what the first one returned.

    NotFound: no such blob. FailedPrecondition: the blob is neither WRITING nor was sealed alike.
    """
    if members.end > seal.size:
        raise rules.invalid("seal.size", f"is {seal.size}, but a member ends at {members.end}")
    blobs = {row.id: row for row in connection.execute(_LOCK_BLOBS, {"blob": seal.blob_id})}
    blob = blobs.get(seal.blob_id)
    if blob is None:
        raise NotFound("BLOB_NOT_FOUND", f"there is no blob {seal.blob_id}; allocate it first")
    rules.check_seal(seal, blob.tier)
    answered = blob.outcome is not None
    if rules.seal_is_repeat(seal, blob.state, blob.size, blob.adler32, answered):
        return _response(seal.blob_id, blob.outcome)
    _judge(connection, blob, members)
    outcome = _store(connection, seal, blob)
    if blob.tier == TAPE:
        connection.execute(_ARCHIVED, {"blob": seal.blob_id})
    crash.point("catalog.seal.before_commit")
    return _response(seal.blob_id, outcome)


def _judge(connection: Connection, blob: Row[Any], members: Members) -> None:
    """Lock the files and decide each member's fate."""
    connection.execute(_MAKE_TABLE)
    copy_into(connection, "member", _COLUMNS, members.rows.values())
    connection.execute(_ANALYZE)
    connection.execute(_LOCK_FILES)
    connection.execute(_JUDGE, {"holding": blob.holding_id, "tier": blob.tier})


def _store(connection: Connection, seal: Seal, blob: Row[Any]) -> dict[str, Any]:
    """Carry out what was decided; what to answer."""
    connection.execute(_STORE)
    connection.execute(_REVIVE)
    connection.execute(_LOCATE, {"blob": seal.blob_id, "tier": blob.tier})
    repair = f"written anew into blob {seal.blob_id}"
    connection.execute(_REPAIR, {"repair": repair, "tier": blob.tier})
    counts = connection.execute(_COUNTS).one()
    _account(connection, blob, counts)
    refused = connection.execute(_REFUSED).all()
    outcome = {
        "accepted": counts.accepted,
        "redundant": counts.redundant,
        "mismatched": [row.file_id for row in refused if row.verdict == _MISMATCHED],
        "missing": [row.file_id for row in refused if row.verdict == _MISSING],
    }
    wanted = {
        "blob": seal.blob_id,
        "state": seal.state if counts.accepted else REMOVING,
        "size": seal.size,
        "adler32": seal.checksum,
        "files": counts.accepted,
        "outcome": json.dumps(outcome),
    }
    connection.execute(_SEAL, wanted)
    return outcome


def _account(connection: Connection, blob: Row[Any], counts: Row[Any]) -> None:
    if not counts.accepted:
        return
    stored = (counts.new_files, counts.new_bytes)
    usage.add(connection, blob.holding_id, blob.tier, stored, (counts.accepted, counts.bytes))
    rows = connection.execute(_RESERVED)
    usage.reserve(connection, {row.put_id: (-row.files, -row.bytes) for row in rows})


def _response(blob_id: int, outcome: dict[str, Any]) -> RecordBlobResponse:
    return RecordBlobResponse(
        blob_id=blob_id,
        accepted=outcome["accepted"],
        redundant=outcome["redundant"],
        mismatched_file_ids=outcome["mismatched"],
        missing_file_ids=outcome["missing"],
        unused=outcome["accepted"] == 0,
    )


def _row(member: Member) -> tuple[Any, ...]:
    rules.check_number(member.file_id, "member.file_id", least=1)
    rules.check_number(member.offset, "member.offset")
    rules.check_number(member.length, "member.length")
    found = member.attributes if member.HasField("attributes") else None
    kind = rules.check_attributes(found, "member.attributes").type if found else None
    digest = rules.check_digest(member.digest, kind, "member.digest") or None
    if found is None:
        return (member.file_id, member.offset, member.length, digest, *[None] * 9)
    if found.size != member.length:
        raise rules.invalid("member.length", "must be the size in member.attributes")
    xattrs = xattrs_json(found)
    return (
        member.file_id, member.offset, member.length, digest, found.size, found.mtime_ns, found.uid,
        found.gid, found.mode, found.type, found.link_target or None, found.hardlink or None,
        xattrs and json.dumps(xattrs),
    )  # fmt: skip
