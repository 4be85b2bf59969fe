"""What groups and holdings hold, kept as changes that are summed, and folded from time to time."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, text

from nearline.catalog.v1.catalog_pb2 import GetUsageResponse, SetQuotaRequest
from services.catalog.rules import CACHE, check_number, check_text

_ADD = text("""
    INSERT INTO usage (holding_id, files, bytes, cache_files, cache_bytes, tape_files, tape_bytes)
    VALUES (:holding_id, :files, :bytes, :cache_files, :cache_bytes, :tape_files, :tape_bytes)
""")
_RESERVE = text("INSERT INTO reservation (put_id, files, bytes) VALUES (:put_id, :files, :bytes)")
_OF_HOLDINGS = text("""
    SELECT holding_id, CAST(sum(files) AS bigint) AS files, CAST(sum(bytes) AS bigint) AS bytes
    FROM usage WHERE holding_id = ANY(:holdings) GROUP BY holding_id
""")
_FILES = text(
    "SELECT CAST(coalesce(sum(files), 0) AS bigint) FROM usage WHERE holding_id = ANY(:holdings)"
)
_GROUPS = text("""
    WITH used AS (
        SELECT h.group_name,
            CAST(sum(u.files) AS bigint) AS files, CAST(sum(u.bytes) AS bigint) AS bytes,
            CAST(sum(u.cache_files) AS bigint) AS cache_files,
            CAST(sum(u.cache_bytes) AS bigint) AS cache_bytes,
            CAST(sum(u.tape_files) AS bigint) AS tape_files,
            CAST(sum(u.tape_bytes) AS bigint) AS tape_bytes
        FROM holding h LEFT JOIN usage u ON u.holding_id = h.id
        WHERE :every OR h.group_name = ANY(:groups)
        GROUP BY h.group_name
    )
    SELECT group_name, coalesce(u.files, 0) AS files, coalesce(u.bytes, 0) AS bytes,
        coalesce(cache_files, 0) AS cache_files, coalesce(cache_bytes, 0) AS cache_bytes,
        coalesce(tape_files, 0) AS tape_files, coalesce(tape_bytes, 0) AS tape_bytes,
        coalesce(q.bytes, 0) AS quota_bytes, coalesce(q.files, 0) AS quota_files
    FROM used u FULL JOIN (SELECT * FROM quota WHERE :every OR group_name = ANY(:groups)) q
        USING (group_name)
    ORDER BY group_name
""")
_QUOTA = text("SELECT files, bytes FROM quota WHERE group_name = :group_name")
_SET_QUOTA = text("""
    INSERT INTO quota (group_name, bytes, files) VALUES (:group_name, :bytes, :files)
    ON CONFLICT (group_name) DO UPDATE SET bytes = excluded.bytes, files = excluded.files
""")
_RESERVED = text("""
    SELECT coalesce(CAST(sum(r.files) AS bigint), 0), coalesce(CAST(sum(r.bytes) AS bigint), 0)
    FROM holding h JOIN put p ON p.holding_id = h.id JOIN reservation r ON r.put_id = p.id
    WHERE h.group_name = :group_name AND p.opened_at > now() - make_interval(hours => :hours)
""")
# A row is summed by whoever deleted it, so folds may run at the same time, and beside writers.
_FOLD_USAGE = text("""
    WITH many AS (
        SELECT holding_id FROM usage GROUP BY holding_id HAVING count(*) >= :least
    ), gone AS (
        DELETE FROM usage WHERE holding_id IN (SELECT holding_id FROM many) RETURNING *
    )
    INSERT INTO usage (holding_id, files, bytes, cache_files, cache_bytes, tape_files, tape_bytes)
    SELECT holding_id, sum(files), sum(bytes), sum(cache_files), sum(cache_bytes), sum(tape_files),
        sum(tape_bytes)
    FROM gone GROUP BY holding_id
""")
_FOLD_RESERVATIONS = text("""
    WITH many AS (
        SELECT put_id FROM reservation GROUP BY put_id HAVING count(*) >= :least
    ), gone AS (
        DELETE FROM reservation WHERE put_id IN (SELECT put_id FROM many) RETURNING *
    )
    INSERT INTO reservation (put_id, files, bytes)
    SELECT put_id, sum(files), sum(bytes) FROM gone GROUP BY put_id
    HAVING sum(files) <> 0 OR sum(bytes) <> 0
""")
_FOLD_FROM = 20

Change = tuple[int, int]
"""Files and bytes to add."""


def add(connection: Connection, holding_id: int, tier: int, stored: Change, copies: Change) -> None:
    """Note that ``stored`` came to a holding, and ``copies`` to one of its tiers."""
    none = (0, 0)
    cache, tape = (copies, none) if tier == CACHE else (none, copies)
    connection.execute(
        _ADD,
        {
            "holding_id": holding_id,
            "files": stored[0],
            "bytes": stored[1],
            "cache_files": cache[0],
            "cache_bytes": cache[1],
            "tape_files": tape[0],
            "tape_bytes": tape[1],
        },
    )


def reserve(connection: Connection, changes: Mapping[int, Change]) -> None:
    """Note that PUTs (by number) have registered more files that are not stored yet, or fewer."""
    rows = [{"put_id": put, "files": n, "bytes": size} for put, (n, size) in changes.items()]
    if rows:
        connection.execute(_RESERVE, rows)


def of_holdings(connection: Connection, holdings: Iterable[int]) -> dict[int, Change]:
    """Files and bytes of holdings; those without any are left out."""
    rows = connection.execute(_OF_HOLDINGS, {"holdings": list(holdings)})
    return {row.holding_id: (row.files, row.bytes) for row in rows}


def files_in(connection: Connection, holdings: Iterable[int]) -> int:
    """How many files the holdings have together."""
    return int(connection.scalar(_FILES, {"holdings": list(holdings)}) or 0)


def of_groups(connection: Connection, groups: Iterable[str]) -> Sequence[Row[Any]]:
    """Usage and quota of groups, of all when none is named, in order of name."""
    names = list(groups)
    return connection.execute(_GROUPS, {"groups": names, "every": not names}).all()


def message(row: Row[Any]) -> GetUsageResponse:
    """A row of :func:`of_groups`."""
    return GetUsageResponse(
        group=row.group_name,
        files=row.files,
        bytes=row.bytes,
        cache_files=row.cache_files,
        cache_bytes=row.cache_bytes,
        tape_files=row.tape_files,
        tape_bytes=row.tape_bytes,
        quota_bytes=row.quota_bytes,
        quota_files=row.quota_files,
    )


def set_quota(connection: Connection, request: SetQuotaRequest) -> None:
    """Set the most bytes and files of a group; 0 is no bound."""
    wanted = {
        "group_name": check_text(request.group, "group"),
        "bytes": check_number(request.quota_bytes, "quota_bytes"),
        "files": check_number(request.quota_files, "quota_files"),
    }
    connection.execute(_SET_QUOTA, wanted)


def has_quota(connection: Connection, group: str) -> bool:
    """Whether the group is bounded."""
    quota = connection.execute(_QUOTA, {"group_name": group}).one_or_none()
    return quota is not None and bool(quota.files or quota.bytes)


def room(connection: Connection, group: str, hours: int) -> tuple[int | None, int | None]:
    """Files and bytes that the group may still register; None is no bound.

    What PUTs of the last ``hours`` registered and did not store yet counts as used, so that running
    PUTs cannot pass the quota together; older ones have failed and would block it for ever.
    """
    quota = connection.execute(_QUOTA, {"group_name": group}).one()
    (used,) = of_groups(connection, [group])
    reserved = connection.execute(_RESERVED, {"group_name": group, "hours": hours}).one()
    return (
        quota.files - used.files - reserved[0] if quota.files else None,
        quota.bytes - used.bytes - reserved[1] if quota.bytes else None,
    )


def fold(connection: Connection) -> None:
    """Sum up the changes of holdings and PUTs that have many of them."""
    connection.execute(_FOLD_USAGE, {"least": _FOLD_FROM})
    connection.execute(_FOLD_RESERVATIONS, {"least": _FOLD_FROM})
