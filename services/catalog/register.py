"""Registering what a PUT found: directories by hash, then one COPY of the new files of a batch.

The unique (directory, name, holding) decides which PUT a path belongs to. A path that another PUT
stored is refused. A path that another PUT registered and did not store is taken over: its upload
failed or still runs, and must not block the path for ever. The row then gets a new number, so that
a late upload of the older PUT finds its file gone (RecordBlob names it as missing) and cannot
store bytes under the newer PUT.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, text

from nearline.catalog.v1.catalog_pb2 import RegisterFilesRequest, RegisterFilesResponse
from services.catalog import paths, rules, usage
from services.catalog.filerows import xattrs_json
from services.catalog.locks import Lock, hold
from services.catalog.rules import FILE_REGISTERED
from services.catalog.tables import file as file_table
from services.kit import crash
from services.kit.db import Database, copy_into
from services.kit.errors import NotFound
from services.kit.threads import in_thread

Entry = RegisterFilesRequest.Entry

MOST_ENTRIES = 5000
_MOST_KNOWN = 100_000

_TARGET = text("""
    SELECT p.id AS put_id, h.id AS holding_id, h.group_name
    FROM holding h JOIN put p ON p.holding_id = h.id
    WHERE h.id = :holding_id AND p.transaction_id = CAST(:transaction_id AS uuid)
""")
# In order of hash: two batches with the same new directories wait for, and not on, each other.
_ADD_DIRECTORIES = text("""
    INSERT INTO directory (hash, path)
    SELECT hash, path
    FROM unnest(CAST(:hashes AS bytea[]), CAST(:paths AS text[])) AS new (hash, path)
    ORDER BY hash
    ON CONFLICT (hash) DO NOTHING
""")
_DIRECTORIES = text("SELECT hash, id FROM directory WHERE hash = ANY(CAST(:hashes AS bytea[]))")
# OFFSET 0 keeps one look-up for each path: statistics that lag behind a growing holding would let
# the planner read all of it instead.
_PRESENT = text("""
    SELECT f.*
    FROM unnest(CAST(:dirs AS bigint[]), CAST(:names AS text[])) AS w (dir_id, name)
    CROSS JOIN LATERAL (
        SELECT f.id, f.put_id, f.state, f.dir_id, f.name FROM file f
        WHERE f.dir_id = w.dir_id AND f.name = w.name AND f.holding_id = :holding_id OFFSET 0
    ) AS f
""")
_TAKE_OVER = text(f"""
    DELETE FROM file WHERE state = {FILE_REGISTERED} AND id IN (
        SELECT id FROM file WHERE id = ANY(:files) ORDER BY id FOR UPDATE
    )
    RETURNING id, put_id, size
""")
_NUMBERS = text("SELECT setval('file_number', nextval('file_number') + :count - 1)")

_COLUMNS = (
    "id", "dir_id", "size", "mtime_ns", "holding_id", "put_id", "uid", "gid", "mode", "type",
    "state", "name", "link_target", "hardlink", "xattrs",
)  # fmt: skip

_TAKEN = (
    "ALREADY_EXISTS",
    "the holding has this path; put it into another one (-l NEW_LABEL) as a new version",
)
_FULL = (
    "OVER_QUOTA",
    "the group's quota leaves no room for this file; delete something or ask for a larger quota",
)

_Place = tuple[int, str]
"""Number of the directory, and name."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a stream of batches goes, and the directories it has met."""

    put_id: int
    holding_id: int
    group: str
    reservation_hours: int
    directories: dict[str, int] = field(default_factory=dict)


def target(
    connection: Connection, header: RegisterFilesRequest.Header, reservation_hours: int
) -> Target:
    """The holding that a transaction opened; NotFound when it did not."""
    rules.check_number(header.holding_id, "header.holding_id", least=1)
    wanted = {
        "holding_id": header.holding_id,
        "transaction_id": rules.check_transaction(header.transaction_id, "header.transaction_id"),
    }
    row = connection.execute(_TARGET, wanted).one_or_none()
    if row is None:
        raise NotFound(
            "HOLDING_NOT_OPEN",
            f"transaction {header.transaction_id} has not opened holding {header.holding_id}; "
            "call OpenHolding first",
            holding_id=header.holding_id,
        )
    return Target(row.put_id, row.holding_id, row.group_name, reservation_hours)


async def register(
    database: Database, target: Target, entries: Sequence[Entry]
) -> RegisterFilesResponse:
    """Register a batch; what it answers is durable.

    A repeat returns the same numbers. An entry that comes twice counts once.
    """
    if len(entries) > MOST_ENTRIES:
        raise rules.invalid("batch.entries", f"has {len(entries)}; send at most {MOST_ENTRIES}")
    parts = await in_thread(_parts, entries)
    await _know(database, target, {directory for directory, _ in parts})
    places = [(target.directories[directory], name) for directory, name in parts]
    wanted: dict[_Place, Entry] = {}
    for place, entry in zip(places, entries, strict=True):
        wanted.setdefault(place, entry)
    first = await database.write(_first_number, len(wanted))
    found = await database.write(_register, target, wanted, first)
    crash.point("catalog.register.after_commit")
    return _answer(places, entries, found)


@dataclass(slots=True)
class _Found:
    """The outcome per place: a number, or why there is none."""

    numbers: dict[_Place, int] = field(default_factory=dict)
    refused: dict[_Place, tuple[str, str]] = field(default_factory=dict)


def _parts(entries: Iterable[Entry]) -> list[tuple[str, str]]:
    """Directory and name of each entry; InvalidArgument when one cannot be registered."""
    parts = []
    for entry in entries:
        rules.check_attributes(entry.attributes, "entry.attributes")
        parts.append(paths.split(paths.clean(entry.path, "entry.path")))
    return parts


async def _know(database: Database, target: Target, directories: set[str]) -> None:
    """Have the numbers of all these directories at hand."""
    if len(target.directories) + len(directories) > _MOST_KNOWN:
        target.directories.clear()
    new = directories - target.directories.keys()
    if new:
        # Committed on its own: nobody then waits for a directory until a whole batch is in.
        target.directories.update(await database.write(_directories, new))


def _directories(connection: Connection, new: Iterable[str]) -> dict[str, int]:
    by_hash = {paths.directory_hash(path): path for path in new}
    wanted = {"hashes": list(by_hash), "paths": list(by_hash.values())}
    connection.execute(_ADD_DIRECTORIES, wanted)
    rows = connection.execute(_DIRECTORIES, {"hashes": list(by_hash)})
    return {by_hash[bytes(row.hash)]: row.id for row in rows}


def _register(
    connection: Connection, target: Target, wanted: Mapping[_Place, Entry], first: int
) -> _Found:
    hold(connection, Lock.REGISTER, target.holding_id)
    found, reserved = _Found(), _Reserved()
    present = _present(connection, target, wanted)
    _take_over(connection, target, present, reserved)
    for place, row in present.items():
        if row.put_id == target.put_id:
            found.numbers[place] = row.id
        else:
            found.refused[place] = _TAKEN
    new = [place for place in wanted if place not in present]
    fitting = _fitting(connection, target, wanted, new, found)
    _insert(connection, target, {place: wanted[place] for place in fitting}, first, found)
    reserved.add(target.put_id, [wanted[place].attributes.size for place in fitting])
    usage.reserve(connection, reserved.changes)
    return found


def _present(
    connection: Connection, target: Target, wanted: Iterable[_Place]
) -> dict[_Place, Row[Any]]:
    dirs, names = zip(*wanted, strict=True) if wanted else ((), ())
    arguments = {"dirs": list(dirs), "names": list(names), "holding_id": target.holding_id}
    rows = connection.execute(_PRESENT, arguments)
    return {(row.dir_id, row.name): row for row in rows}


def _take_over(
    connection: Connection,
    target: Target,
    present: dict[_Place, Row[Any]],
    reserved: "_Reserved",
) -> None:
    """Remove what other PUTs registered and did not store, from ``present`` too."""
    unstored = {
        row.id: place
        for place, row in present.items()
        if row.put_id != target.put_id and row.state == FILE_REGISTERED
    }
    if not unstored:
        return
    for row in connection.execute(_TAKE_OVER, {"files": list(unstored)}):
        del present[unstored[row.id]]
        reserved.add(row.put_id, [row.size], sign=-1)


def _fitting(
    connection: Connection,
    target: Target,
    wanted: Mapping[_Place, Entry],
    new: list[_Place],
    found: _Found,
) -> list[_Place]:
    if not new or not usage.has_quota(connection, target.group):
        return new
    hold(connection, Lock.QUOTA, target.group)
    room = usage.room(connection, target.group, target.reservation_hours)
    verdicts = rules.fits([wanted[place].attributes.size for place in new], *room)
    found.refused.update((p, _FULL) for p, fit in zip(new, verdicts, strict=True) if not fit)
    return [place for place, fit in zip(new, verdicts, strict=True) if fit]


def _insert(
    connection: Connection,
    target: Target,
    new: Mapping[_Place, Entry],
    first: int,
    found: _Found,
) -> None:
    numbers = dict(zip(new, range(first, first + len(new)), strict=True))
    rows = (_row(target, place, numbers[place], entry) for place, entry in new.items())
    copy_into(connection, file_table, _COLUMNS, rows)
    found.numbers.update(numbers)


def _first_number(connection: Connection, count: int) -> int:
    """The first of ``count`` consecutive file numbers, so that a batch is one range.

    In a database transaction of its own, as others wait for the lock meanwhile; numbers that turn
    out not to be needed are left out for ever.
    """
    hold(connection, Lock.NUMBERS)
    return int(connection.scalar(_NUMBERS, {"count": count}) or 0) - count + 1


def _row(target: Target, place: _Place, number: int, entry: Entry) -> tuple[Any, ...]:
    found = entry.attributes
    xattrs = xattrs_json(found)
    return (
        number, place[0], found.size, found.mtime_ns, target.holding_id, target.put_id, found.uid,
        found.gid, found.mode, found.type, FILE_REGISTERED, place[1], found.link_target or None,
        found.hardlink or None, xattrs and json.dumps(xattrs),
    )  # fmt: skip


def _answer(
    places: Sequence[_Place], entries: Sequence[Entry], found: _Found
) -> RegisterFilesResponse:
    answer = RegisterFilesResponse(file_ids=[found.numbers.get(place, 0) for place in places])
    for place, entry in zip(places, entries, strict=True):
        if place in found.refused:
            code, reason = found.refused[place]
            answer.rejected.add(path=entry.path, code=code, reason=reason)
    return answer


class _Reserved:
    """Changes of what PUTs have registered and not stored."""

    def __init__(self) -> None:
        self.changes: dict[int, usage.Change] = {}

    def add(self, put_id: int, sizes: Sequence[int], sign: int = 1) -> None:
        if sizes:
            files, size = self.changes.get(put_id, (0, 0))
            self.changes[put_id] = (files + sign * len(sizes), size + sign * sum(sizes))
