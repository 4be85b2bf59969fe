"""Putting tasks into the queue: lanes, virtual times, uniqueness. Runs inside of a transaction."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection

from nearline.monitor.v1 import monitor_pb2
from nearline.type.v1.task_pb2 import Task
from services.monitor import rules, sql

_MOST_COST = 86_400.0


@dataclass(frozen=True, slots=True)
class Owner:
    """Whom tasks are for; ``seq`` is None outside of any transaction."""

    seq: int | None
    user: str
    group: str


NOBODY = Owner(None, "", "")


@dataclass(frozen=True, slots=True)
class Entry:
    """A task to be made; ``cost`` and ``delay`` in seconds."""

    kind: int
    payload: bytes = b""
    cost: float = 1.0
    delay: float = 0.0
    key: str | None = None
    unique: bool = False
    last: bool = False
    chunk: int | None = None
    schedule: str | None = None

    @property
    def state(self) -> int:
        """The state it begins with."""
        if self.last:
            return Task.BLOCKED
        return Task.DELAYED if self.delay > 0 else Task.READY


@dataclass(slots=True)
class Made:
    """What was put into the queue."""

    ids: list[int] = field(default_factory=list)
    open_by_kind: Counter[int] = field(default_factory=Counter)
    blocked: int = 0
    ready_kinds: set[int] = field(default_factory=set)


def entry_of(task: monitor_pb2.NewTask) -> Entry:
    """The entry that a NewTask asks for."""
    cost = task.cost if math.isfinite(task.cost) and task.cost > 0 else 1.0
    return Entry(
        kind=task.kind,
        payload=task.payload,
        cost=min(cost, _MOST_COST),
        delay=task.delay.ToNanoseconds() / 1e9,
        key=task.key or None,
        unique=task.unique,
        last=task.last,
    )


def enqueue(connection: Connection, owner: Owner, entries: Iterable[Entry]) -> Made:
    """Make a task of each entry, but for unique ones of which one is open."""
    by_kind: dict[int, list[Entry]] = defaultdict(list)
    for entry in _without_open(connection, list(entries)):
        by_kind[entry.kind].append(entry)
    made = Made()
    if not by_kind:
        return made
    rows = []
    for kind, lane, start in _lanes(connection, owner, sorted(by_kind)):
        tags = rules.tags(start, [entry.cost for entry in by_kind[kind]])
        sql.run(connection, "UPDATE lane SET vt = %s WHERE id = %s", (tags[-1], lane))
        rows += [
            _row(owner, lane, entry, tag) for entry, tag in zip(by_kind[kind], tags, strict=True)
        ]
        _note(made, by_kind[kind])
    made.ids = [id_ for (id_,) in sql.rows_of_values(connection, _INSERT, rows)]
    return made


def _row(owner: Owner, lane: int, entry: Entry, vt: float) -> Sequence[object]:
    delay = f"{entry.delay} s" if entry.state == Task.DELAYED else None
    return (
        vt, owner.seq, delay, lane, entry.kind, entry.state, entry.cost, entry.chunk, entry.key,
        entry.schedule, entry.payload,
    )  # fmt: skip


def _note(made: Made, entries: Sequence[Entry]) -> None:
    for entry in entries:
        if entry.last:
            made.blocked += 1
        else:
            made.open_by_kind[entry.kind] += 1
        if entry.state == Task.READY:
            made.ready_kinds.add(entry.kind)


def _without_open(connection: Connection, entries: list[Entry]) -> list[Entry]:
    wanted = {(entry.kind, entry.key) for entry in entries if entry.unique}
    if not wanted:
        return entries
    keys = sorted({key for _, key in wanted if key})
    # Locked in one order until the commit, so that two replicas cannot both find none.
    sql.run(connection, _LOCK_KEYS, {"keys": keys})
    seen: set[tuple[int, str | None]] = set()
    seen.update((kind, key) for kind, key in sql.rows(connection, _OPEN_KEYS, {"keys": keys}))
    kept = []
    for entry in entries:
        name = (entry.kind, entry.key)
        if not (entry.unique and name in seen):
            kept.append(entry)
        if name in wanted:
            seen.add(name)
    return kept


def _lanes(
    connection: Connection, owner: Owner, kinds: Sequence[int]
) -> list[tuple[int, int, float]]:
    """(kind, lane, virtual time to start from) for each of ``kinds``, with the lanes locked."""
    values = {"kinds": list(kinds), "user": owner.user, "group": owner.group}
    found = sql.rows(connection, _LANES, values)
    if len(found) < len(kinds):
        sql.run(connection, _NEW_LANES, values)
        found = sql.rows(connection, _LANES, values)
    return [(kind, lane, max(vt, clock)) for kind, lane, vt, clock in found]


_INSERT = """
INSERT INTO task (vt, txn, not_before, lane, kind, state, cost, chunk, key, schedule, payload)
SELECT v.vt, v.txn, now() + v.delay, v.lane, v.kind, v.state, v.cost, v.chunk, v.key, v.schedule,
       v.payload
FROM (VALUES (NULL::float8, NULL::bigint, NULL::interval, NULL::int, NULL::smallint, NULL::smallint,
              NULL::real, NULL::int, NULL::text, NULL::text, NULL::bytea), %s)
     AS v (vt, txn, delay, lane, kind, state, cost, chunk, key, schedule, payload)
WHERE v.vt IS NOT NULL
RETURNING id
"""

_LOCK_KEYS = """
SELECT pg_advisory_xact_lock(number)
FROM (SELECT DISTINCT hashtextextended(key, 0) AS number
      FROM unnest(%(keys)s::text[]) AS key ORDER BY 1) AS locks
"""

_OPEN_KEYS = "SELECT kind, key FROM task WHERE key = ANY(%(keys)s) AND ended_at IS NULL"

# The clock of a kind is the virtual time that is served: that of the next task, or of the last.
_LANES = """
SELECT l.kind, l.id, l.vt, coalesce(
  (SELECT t.vt FROM task t WHERE t.state = 1 AND t.kind = l.kind
   ORDER BY t.priority, t.vt, t.id LIMIT 1),
  (SELECT max(m.vt) FROM lane m WHERE m.kind = l.kind))
FROM lane l
WHERE l.kind = ANY(%(kinds)s::smallint[]) AND l.user_name = %(user)s AND l.group_name = %(group)s
ORDER BY l.kind FOR UPDATE OF l
"""

_NEW_LANES = """
INSERT INTO lane (kind, user_name, group_name)
SELECT kind, %(user)s, %(group)s FROM unnest(%(kinds)s::smallint[]) AS kind
ON CONFLICT DO NOTHING
"""
