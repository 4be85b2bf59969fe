"""Putting tasks into the queue: lanes, virtual times, uniqueness. Runs inside of a transaction."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection

from nearline.type.v1.task_pb2 import Task
from services.monitor import lanes, queueing, sql
from services.monitor.queueing import Entry, Name, Owner


@dataclass(slots=True)
class Made:
    """What was put into the queue."""

    ids: list[int] = field(default_factory=list)
    open_by_kind: Counter[int] = field(default_factory=Counter)
    blocked: int = 0
    ready_kinds: set[int] = field(default_factory=set)


def enqueue(connection: Connection, owner: Owner, entries: Iterable[Entry]) -> Made:
    """Make a task of each entry, but for unique ones of which one is open."""
    by_kind: dict[int, list[Entry]] = defaultdict(list)
    wanted = list(entries)
    for entry in queueing.without_open(wanted, _open_names(connection, wanted)):
        by_kind[entry.kind].append(entry)
    made = Made()
    if not by_kind:
        return made
    rows = []
    for kind, lane, start in lanes.standing(connection, owner, sorted(by_kind)):
        times, following = queueing.place(by_kind[kind], start)
        if following > start:
            lanes.move(connection, lane, following)
        rows += [_row(owner, lane, e, vt) for e, vt in zip(by_kind[kind], times, strict=True)]
        _note(made, by_kind[kind])
    made.ids = [id_ for (id_,) in sql.rows_of_values(connection, _INSERT, rows)]
    return made


def lock_keys(connection: Connection, entries: Iterable[Entry]) -> list[str]:
    """Lock the keys of unique ones of ``entries``, in one order until the commit; these keys.

    So two replicas cannot both find that none of a key is open.
    """
    keys = sorted({entry.key for entry in entries if entry.unique and entry.key})
    if keys:
        sql.run(connection, _LOCK_KEYS, {"keys": keys})
    return keys


def _row(owner: Owner, lane: int, entry: Entry, vt: float) -> Sequence[object]:
    delay = f"{entry.delay} s" if entry.state == Task.DELAYED else None
    return (
        vt, owner.seq, delay, lane, entry.kind, entry.state, entry.cost, entry.chunk, entry.key,
        entry.schedule, entry.payload, entry.files,
    )  # fmt: skip


def _note(made: Made, entries: Sequence[Entry]) -> None:
    for entry in entries:
        if entry.last:
            made.blocked += 1
        else:
            made.open_by_kind[entry.kind] += 1
        if entry.state == Task.READY:
            made.ready_kinds.add(entry.kind)


def _open_names(connection: Connection, entries: Iterable[Entry]) -> list[Name]:
    """Kinds and keys of open tasks that unique ones of ``entries`` may be left out for."""
    if not (keys := lock_keys(connection, entries)):
        return []
    return [(kind, key) for kind, key in sql.rows(connection, _OPEN_KEYS, {"keys": keys})]


_INSERT = """
INSERT INTO task (vt, txn, not_before, lane, kind, state, cost, chunk, key, schedule, payload,
                  files)
SELECT v.vt, v.txn, now() + v.delay, v.lane, v.kind, v.state, v.cost, v.chunk, v.key, v.schedule,
       v.payload, v.files
FROM (VALUES (NULL::float8, NULL::bigint, NULL::interval, NULL::int, NULL::smallint, NULL::smallint,
              NULL::real, NULL::int, NULL::text, NULL::text, NULL::bytea, NULL::bigint), %s)
     AS v (vt, txn, delay, lane, kind, state, cost, chunk, key, schedule, payload, files)
WHERE v.vt IS NOT NULL
RETURNING id
"""

_LOCK_KEYS = """
SELECT pg_advisory_xact_lock(number)
FROM (SELECT DISTINCT hashtextextended(key, 0) AS number
      FROM unnest(%(keys)s::text[]) AS key ORDER BY 1) AS locks
"""

_OPEN_KEYS = "SELECT kind, key FROM task WHERE key = ANY(%(keys)s) AND ended_at IS NULL"
