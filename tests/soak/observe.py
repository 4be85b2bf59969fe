"""What is there, asked behind the product's back: databases, bucket, tape and disks."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg2

from nearline.type.v1.storage_pb2 import Blob
from nearline_client.states import is_final
from services.catalog.rules import FILE_STORED, READABLE
from tests.soak.rig import Rig

_OPEN_TASKS = "(1, 2, 3, 4)"
_TEMPORARY = re.compile(rb"\.nl-[0-9a-f]+-[0-9a-f]{12}")

# Files whose cache copy is gone although tape has not confirmed one.
_UNSAFE = f"""
SELECT f.id FROM file f
WHERE f.state = {FILE_STORED}
  AND NOT EXISTS (SELECT FROM location l JOIN blob b ON b.id = l.blob_id
                  WHERE l.file_id = f.id AND b.tier = {Blob.CACHE} AND b.state = {Blob.STORED})
  AND NOT EXISTS (SELECT FROM location l JOIN blob b ON b.id = l.blob_id
                  WHERE l.file_id = f.id AND b.tier = {Blob.TAPE} AND b.state = {Blob.SAFE})
"""


@dataclass(frozen=True)
class Ledger:
    """Transactions by id, their counted failures, and what is open."""

    transactions: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    open_tasks: list[dict[str, Any]] = field(default_factory=list)

    @property
    def running(self) -> list[str]:
        """Transactions that have not ended."""
        return [id for id, row in self.transactions.items() if not is_final(row["state"])]


@dataclass(frozen=True)
class Catalog:
    """Rows of the catalog: files and blobs by number, (file, blob, tier) of each location."""

    files: dict[int, dict[str, Any]] = field(default_factory=dict)
    blobs: dict[int, dict[str, Any]] = field(default_factory=dict)
    locations: list[tuple[int, int, int]] = field(default_factory=list)
    faults: list[tuple[int, int, str]] = field(default_factory=list)
    unsafe: list[int] = field(default_factory=list)
    usage: dict[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class World:
    """All of it at one moment at which nothing moves. Sizes in bytes by key.

    ``unlisted``: objects that are there although the store does not list them, as SeaweedFS does
    not when its disk was full while their directory was to be made.
    """

    ledger: Ledger
    catalog: Catalog
    objects: dict[str, int]
    uploads: list[str]
    tape: dict[str, int]
    unlisted: dict[str, int] = field(default_factory=dict)
    temporary: list[bytes] = field(default_factory=list)
    """Temporary files in users' directories."""


def look(rig: Rig) -> World:
    """See everything. Raises psycopg2.Error and botocore's errors while a part is away."""
    known, listed = catalog(rig), objects(rig)
    keys = [
        blob["key"]
        for blob in known.blobs.values()
        if blob["tier"] == Blob.CACHE and blob["state"] in READABLE
    ]
    unlisted = _unlisted(rig, [key for key in keys if key not in listed])
    return World(
        ledger(rig), known, listed | unlisted, uploads(rig), tape(rig), unlisted, temporary(rig)
    )


def ledger(rig: Rig) -> Ledger:
    """What the monitor has on record."""
    with _database(rig, "monitor") as cursor:
        transactions = _rows(
            cursor,
            "SELECT id::text AS id, action, state, files_total, files_done, files_failed,"
            " tasks_failed, job_label, cancelled_at IS NOT NULL AS cancelled FROM txn",
        )
        failures = _rows(
            cursor,
            "SELECT t.id::text AS id, count(*) AS n FROM failure f JOIN txn t ON t.seq = f.txn"
            " WHERE f.counted GROUP BY t.id",
        )
        tasks = _rows(
            cursor,
            "SELECT k.id, t.id::text AS txn, k.kind, k.state, k.attempt, k.note, k.schedule"
            f" FROM task k LEFT JOIN txn t ON t.seq = k.txn WHERE k.state IN {_OPEN_TASKS}",
        )
    return Ledger(
        {row["id"]: row for row in transactions},
        {row["id"]: row["n"] for row in failures},
        [task for task in tasks if not task["schedule"]],
    )


def catalog(rig: Rig) -> Catalog:
    """What the catalog has on record."""
    with _database(rig, "catalog") as cursor:
        files = _rows(
            cursor,
            "SELECT f.id, d.path || f.name AS path, f.size, f.state, f.type, f.holding_id,"
            " encode(f.digest, 'hex') AS digest, p.transaction_id::text AS put"
            " FROM file f JOIN directory d ON d.id = f.dir_id JOIN put p ON p.id = f.put_id",
        )
        blobs = _rows(
            cursor,
            "SELECT b.id, b.tier, b.state, b.key, b.size, b.files, b.needs_archive,"
            " b.holding_id, h.group_name FROM blob b JOIN holding h ON h.id = b.holding_id",
        )
        cursor.execute("SELECT file_id, blob_id, tier FROM location")
        locations = cursor.fetchall()
        cursor.execute("SELECT blob_id, file_id, reason FROM fault")
        faults = cursor.fetchall()
        cursor.execute(
            "SELECT h.group_name, sum(files), sum(bytes), sum(cache_files), sum(cache_bytes),"
            " sum(tape_files), sum(tape_bytes) FROM usage u JOIN holding h ON h.id = u.holding_id"
            " GROUP BY h.group_name"
        )
        usage = {row[0]: tuple(map(int, row[1:])) for row in cursor.fetchall()}
        unsafe = _unsafe(cursor)
    return Catalog(
        {row["id"]: row for row in files},
        {row["id"]: row for row in blobs},
        locations,
        faults,
        unsafe,
        usage,
    )


def unsafe_files(rig: Rig) -> list[int]:
    """Files that have neither a cache copy nor a confirmed tape copy now."""
    with _database(rig, "catalog") as cursor:
        return _unsafe(cursor)


def waiting_for_tape(rig: Rig) -> int:
    """Readable cache blobs with files that are not safe on tape."""
    with _database(rig, "catalog") as cursor:
        cursor.execute(
            "SELECT count(*) FROM blob b WHERE b.tier = %s AND b.state = %s AND (b.needs_archive"
            " OR EXISTS (SELECT FROM location l WHERE l.blob_id = b.id AND NOT EXISTS ("
            "  SELECT FROM location t JOIN blob x ON x.id = t.blob_id"
            "  WHERE t.file_id = l.file_id AND x.tier = %s AND x.state = %s)))",
            (Blob.CACHE, Blob.STORED, Blob.TAPE, Blob.SAFE),
        )
        return int(cursor.fetchone()[0])


def objects(rig: Rig) -> dict[str, int]:
    """The objects of the bucket."""
    store = rig.stack.site.seaweed.store
    pages = store.client.get_paginator("list_objects_v2").paginate(Bucket=store.bucket)
    return {item["Key"]: item["Size"] for page in pages for item in page.get("Contents", ())}


def _unlisted(rig: Rig, keys: Sequence[str]) -> dict[str, int]:
    """Those of ``keys`` that are objects all the same; what is read of each is counted."""
    store, found = rig.stack.site.seaweed.store, {}
    for key in keys:
        try:
            body = store.client.get_object(Bucket=store.bucket, Key=key)["Body"]
        except store.client.exceptions.NoSuchKey:
            continue
        with body:
            found[key] = sum(map(len, body.iter_chunks(1 << 20)))
    return found


def uploads(rig: Rig) -> list[str]:
    """Keys of multipart uploads that are not finished."""
    store = rig.stack.site.seaweed.store
    pages = store.client.get_paginator("list_multipart_uploads").paginate(Bucket=store.bucket)
    return [item["Key"] for page in pages for item in page.get("Uploads", ())]


def tape(rig: Rig) -> dict[str, int]:
    """The files of the endpoint."""
    site = rig.stack.site
    server = "xrootd" in rig.stack.parts()
    root = site.xrootd.layout.data / "buffer/tape" if server else rig.directory / "tape"
    return {
        os.path.relpath(path, root): os.stat(path).st_size
        for path in map(os.fsdecode, _files(os.fsencode(root)))
        if os.path.basename(path)[:1] != "."
    }


def temporary(rig: Rig) -> list[bytes]:
    """Temporary files of gets, wherever users may have asked for files."""
    places = (rig.stack.site.homes, rig.target())
    return [path for place in places for path in _files(os.fsencode(place)) if is_temporary(path)]


def is_temporary(path: bytes) -> bool:
    """Whether a path has a name as transfer gives to what is not complete; users have similar."""
    return _TEMPORARY.fullmatch(os.path.basename(path)) is not None


def readable(catalog: Catalog) -> set[int]:
    """Files with a location in a readable blob."""
    return {file for file, blob, _ in catalog.locations if catalog.blobs[blob]["state"] in READABLE}


def _files(root: bytes) -> Iterator[bytes]:
    for directory, _, names in os.walk(root):
        yield from (os.path.join(directory, name) for name in names)


def _unsafe(cursor: Any) -> list[int]:
    cursor.execute(_UNSAFE)
    return [row[0] for row in cursor.fetchall()]


@contextmanager
def _database(rig: Rig, name: str) -> Iterator[Any]:
    """A cursor of the superuser in one database, in one snapshot."""
    server = rig.stack.site.postgres.superuser(name)
    options = "-c statement_timeout=20000"
    with closing(psycopg2.connect(server.url, connect_timeout=5, options=options)) as connection:
        connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
        yield connection.cursor()
        connection.rollback()


def _rows(cursor: Any, statement: str) -> Sequence[dict[str, Any]]:
    cursor.execute(statement)
    names = [column.name for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
