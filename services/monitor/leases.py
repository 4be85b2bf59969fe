"""Workers and their leases: hello, heartbeat, lease, expiry. Each function is one transaction."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from sqlalchemy import Connection

from nearline.monitor.v1 import monitor_pb2
from nearline.type.v1.task_pb2 import Task
from services.monitor import books, lanes, rules, sql
from services.monitor.book import Report
from services.monitor.results import record
from services.monitor.rules import Ending, Limits
from services.monitor.schedules import declare

Lease = tuple[int, int]
"""(task id, token)"""

_BATCH = 500


@dataclass(frozen=True, slots=True)
class Registration:
    """A worker's stream: ``session`` is the newest of the worker until it connects again."""

    worker: int
    session: int
    most_lost: int
    held: tuple[Lease, ...] = ()
    most_of_one: int | None = None
    """Tasks of one user that it may hold; None: as many as it has slots."""
    small_only: bool = False


@dataclass(frozen=True, slots=True)
class Leased:
    """A task that was just leased; ``txn`` is None for scheduled work."""

    task_id: int
    token: int
    txn: int | None
    kind: int
    payload: bytes
    chunk: int | None
    attempt: int
    lost: int = 0
    """Leases in a row that were lost."""
    failing_seconds: float | None = None
    """How long it has been failing; None: it has not."""


@dataclass(frozen=True, slots=True)
class Held:
    """A lease that a worker holds, and whether it was cancelled with its transaction."""

    lease: Lease
    cancelled: bool


@dataclass(slots=True)
class Taken:
    """What a stream was given."""

    leased: list[Leased] = field(default_factory=list)
    empty: set[int] = field(default_factory=set)
    """Kinds of which nothing is ready."""
    held_back: bool = False
    """Tasks are ready that others may take, or this stream when a user's has ended here."""


class SupersededError(Exception):
    """The worker has connected again: this stream may not act for it any more."""


def hello(
    connection: Connection, hello: monitor_pb2.WorkRequest.Hello, limits: Limits
) -> Registration:
    """Register a stream; leases of the worker that it does not hold are free again at once."""
    values = {
        "name": hello.worker_id,
        "service": hello.service,
        "host": hello.host,
        "version": hello.version,
        "slots": hello.slots,
    }
    worker, session = sql.rows(connection, _HELLO, values)[0]
    declare(connection, hello.schedules)
    held = {(lease.task_id, lease.token) for lease in hello.held}
    leased = {held.lease for held in held_by(connection, worker)}
    lost = [Report(*lease, Ending.LOST, blameless=True) for lease in sorted(leased - held)]
    if lost:
        record(connection, lost, limits)
    return Registration(
        worker,
        session,
        limits.most_lost,
        tuple(sorted(leased & held)),
        most_of_one=max(hello.slots - hello.reserved, 1) if hello.reserved else None,
        small_only=hello.small_only,
    )


def heartbeat(
    connection: Connection,
    stream: Registration,
    trouble: str,
    progress: Iterable[monitor_pb2.WorkRequest.Progress],
) -> list[Held]:
    """Extend all leases of the worker, keep what runs for display; what the worker holds.

    Raises SupersededError when the worker has a newer stream.
    """
    values = (trouble, stream.worker, stream.session)
    if not sql.run(connection, _SEEN, values):
        raise SupersededError
    rows = [
        (p.lease.task_id, p.lease.token, p.files_done, p.bytes_done, p.waiting_for)
        for p in progress
    ]
    # In the order in which results lock tasks.
    moved = sql.rows_of_values(connection, _PROGRESS, sorted(rows))
    books.notify(connection, {seq for (seq,) in moved if seq is not None}, ())
    return held_by(connection, stream.worker)


def goodbye(connection: Connection, stream: Registration) -> None:
    """Note that the stream has ended; its leases go on until they run out."""
    statement = "UPDATE worker SET connected = false WHERE id = %s AND session = %s"
    sql.run(connection, statement, (stream.worker, stream.session))


def held_by(connection: Connection, worker: int) -> list[Held]:
    """The leases of a worker."""
    return [Held((id_, token), off) for id_, token, off in sql.rows(connection, _HELD, (worker,))]


def lease(connection: Connection, stream: Registration, kinds: Sequence[int], most: int) -> Taken:
    """Up to ``most`` ready tasks, shared evenly among ``kinds``.

    Raises SupersededError when the worker has a newer stream, psycopg2.errors.UniqueViolation when
    another replica was about to lease a task of the same key.
    """
    # Shared with heartbeats of this stream only: a new stream of the worker waits, then sees all.
    statement = "SELECT 1 FROM worker WHERE id = %s AND session = %s FOR SHARE"
    if not sql.rows(connection, statement, (stream.worker, stream.session)):
        raise SupersededError
    taken = Taken()
    left = list(kinds)
    while left and len(taken.leased) < most:
        kind = left.pop(0)
        share = rules.share(most - len(taken.leased), len(left) + 1)
        take = _lease_any if stream.most_of_one is None else _lease_shared
        take(connection, stream, kind, share, taken)
    return taken


def _lease_any(
    connection: Connection, stream: Registration, kind: int, most: int, taken: Taken
) -> None:
    values = {"kind": kind, "most": most, "worker": stream.worker, "last": stream.most_lost - 1}
    statement = _LEASE.format(only=_SMALL if stream.small_only else "")
    found = sql.rows(connection, statement, values)
    taken.leased += [_leased(*row) for row in found]
    if len(found) < most and stream.small_only:
        taken.held_back = True
    elif len(found) < most:
        taken.empty.add(kind)


def _lease_shared(
    connection: Connection, stream: Registration, kind: int, most: int, taken: Taken
) -> None:
    """One by one, because each may be the last that its user gets here."""
    only = _SMALL if stream.small_only else ""
    near, anywhere = (_LEASE.format(only=each.format(only=only)) for each in (_NEAR, _ANYWHERE))
    for _ in range(most):
        full = sql.rows(connection, _FULL, (stream.worker, stream.most_of_one))
        values = {"kind": kind, "most": 1, "worker": stream.worker, "last": stream.most_lost - 1,
                  "full": [user for (user,) in full]}  # fmt: skip
        found = sql.rows(connection, near, values) or sql.rows(connection, anywhere, values)
        if not found:
            if full or stream.small_only:
                taken.held_back = True
            else:
                taken.empty.add(kind)
            return
        taken.leased += [_leased(*row) for row in found]


def _leased(
    id_: int, token: int, txn: int | None, kind: int, payload: object, *rest: Any
) -> Leased:
    return Leased(id_, token, txn, kind, bytes(cast(memoryview, payload)), *rest)


def begin(connection: Connection, seqs: Collection[int]) -> None:
    """Show transactions as running, of which a task was leased for the first time."""
    found = books.lock(connection, seqs)
    fresh = [book for book in found.values() if not book.begun and not book.finished]
    for book in fresh:
        book.begun = True
    books.settle(connection, fresh, set())


def specs(connection: Connection, seqs: Collection[int]) -> dict[int, bytes]:
    """The serialized TransactionSpec of each transaction."""
    statement = "SELECT seq, spec FROM txn WHERE seq = ANY(%s)"
    return {seq: bytes(spec) for seq, spec in sql.rows(connection, statement, (list(seqs),))}


def ready_kinds(connection: Connection) -> set[int]:
    """Kinds of which at least one task is ready."""
    return {kind for (kind,) in sql.rows(connection, _READY_KINDS, (list(Task.Kind.values()),))}


def promote(connection: Connection) -> int:
    """Make delayed tasks ready whose time has come; how many."""
    due = sql.rows(connection, _DUE, (_BATCH,))
    lanes.make_ready(connection, [id_ for id_, _ in due])
    books.notify(connection, (), {kind for _, kind in due})
    return len(due)


def clock(connection: Connection) -> float:
    """Seconds of the clock by which signs of life are dated."""
    return float(sql.rows(connection, "SELECT extract(epoch FROM now())")[0][0])


def expire(connection: Connection, lease_seconds: float, limits: Limits) -> int:
    """Take back leases of workers that gave no sign of life; how many leases."""
    values = {"seconds": lease_seconds, "most": _BATCH}
    return _lose(connection, sql.rows(connection, _EXPIRED, values), limits)


def abandon(connection: Connection, patience_seconds: float, limits: Limits) -> int:
    """End leases of cancelled transactions whose workers did not let go; how many."""
    values = {"seconds": patience_seconds, "most": _BATCH}
    return _lose(connection, sql.rows(connection, _STUCK, values), limits)


def _lose(connection: Connection, leases: Sequence[sql.Row], limits: Limits) -> int:
    if leases:
        reports = [Report(task, token, Ending.LOST) for task, token in leases]
        return sum(record(connection, reports, limits))
    return 0


_HELLO = """
INSERT INTO worker AS w (name, service, host, version, slots, session, connected, seen_at)
VALUES (%(name)s, %(service)s, %(host)s, %(version)s, %(slots)s, 1, true, now())
ON CONFLICT (name) DO UPDATE
SET service = excluded.service, host = excluded.host, version = excluded.version,
    slots = excluded.slots, session = w.session + 1, connected = true, seen_at = now(), trouble = ''
RETURNING id, session
"""

_SEEN = "UPDATE worker SET seen_at = now(), trouble = %s WHERE id = %s AND session = %s"

_PROGRESS = """
UPDATE task SET live_files = v.files, live_bytes = v.bytes, live_note = v.note
FROM (VALUES (NULL::bigint, NULL::int, NULL::bigint, NULL::bigint, NULL::text), %s)
     AS v (id, token, files, bytes, note)
WHERE task.id = v.id AND task.token = v.token AND task.state = 2
  AND (task.live_files, task.live_bytes, task.live_note) <> (v.files, v.bytes, v.note)
RETURNING task.txn
"""

# Who tidies up is not stopped.
_HELD = f"""
SELECT t.id, t.token, x.cancelled_at IS NOT NULL AND t.kind <> {Task.TIDY}
FROM task t LEFT JOIN txn x ON x.seq = t.txn WHERE t.holder = %s
"""

# Tasks of a key that is being worked on wait; of several of one key in the batch one is taken.
# Who takes a task for the last time only names its files: operators look for who was lost with it.
_LEASE = """
WITH candidate AS MATERIALIZED (
  SELECT id, key FROM task t
  WHERE state = 1 AND kind = %(kind)s {only}
    AND (key IS NULL OR NOT EXISTS (SELECT FROM task o WHERE o.key = t.key AND o.state = 2))
  ORDER BY priority, vt, id LIMIT %(most)s FOR UPDATE SKIP LOCKED
), chosen AS (
  SELECT id FROM candidate WHERE key IS NULL
  UNION ALL SELECT min(id) FROM candidate WHERE key IS NOT NULL GROUP BY key
), leased AS (
  UPDATE task t
  SET state = 2, holder = %(worker)s, token = token + 1, attempt = attempt + 1,
      worker = CASE WHEN lost > 0 AND lost >= %(last)s THEN worker ELSE %(worker)s END
  FROM chosen WHERE t.id = chosen.id
  RETURNING t.id, t.token, t.txn, t.kind, t.payload, t.chunk, t.attempt, t.lost,
            extract(epoch FROM now() - t.failing_since)::float8 AS failing, t.vt
)
SELECT id, token, txn, kind, payload, chunk, attempt, lost, failing FROM leased ORDER BY vt, id
"""

# Spelled as in the index of small tasks.
_SMALL = "AND cost <= 1"

# By the fair order those of others stand near the head of the queue as a rule.
_NEAR = """AND id IN (
  SELECT id FROM (
    SELECT id, lane FROM task WHERE state = 1 AND kind = %(kind)s {only}
    ORDER BY priority, vt, id LIMIT 200
  ) AS head
  WHERE lane NOT IN (
    SELECT id FROM lane WHERE kind = %(kind)s AND user_name = ANY(%(full)s::text[])
  )
)"""

# Not where many small tasks stand before a large one, or many wait for one key. Several of each
# lane, as other replicas may hold some; the cheapest, because an index finds small ones so.
# Keys are counted, as for an EXISTS the planner would rather read the whole table once.
_ANYWHERE = """AND id IN (
  SELECT head.id FROM lane l CROSS JOIN LATERAL (
    SELECT h.id FROM task h WHERE h.lane = l.id AND h.state = 1 {only}
      AND (key IS NULL OR (SELECT count(*) FROM task o WHERE o.key = h.key AND o.state = 2) = 0)
    ORDER BY cost LIMIT 4
  ) AS head
  WHERE l.kind = %(kind)s AND l.user_name <> ALL(%(full)s::text[])
)"""

_FULL = """
SELECT l.user_name FROM task t JOIN lane l ON l.id = t.lane
WHERE t.holder = %s AND l.user_name <> '' GROUP BY l.user_name HAVING count(*) >= %s
"""

_READY_KINDS = """
SELECT kind FROM unnest(%s::smallint[]) AS kind
WHERE EXISTS (SELECT FROM task t WHERE t.state = 1 AND t.kind = kind.kind)
"""

_DUE = """
SELECT id, kind FROM task WHERE state = 3 AND not_before <= now()
ORDER BY not_before LIMIT %s FOR UPDATE SKIP LOCKED
"""

# What was in the future is from before the clock was set back: nothing has come since.
_LONG_AGO = """
NOT BETWEEN now() - %(seconds)s * interval '1 second' AND now() + %(seconds)s * interval '1 second'
"""

_EXPIRED = f"""
SELECT t.id, t.token FROM task t JOIN worker w ON w.id = t.holder
WHERE w.seen_at {_LONG_AGO} ORDER BY t.id LIMIT %(most)s
"""

_STUCK = f"""
SELECT t.id, t.token FROM txn x
JOIN task t ON t.txn = x.seq AND t.holder IS NOT NULL AND t.kind <> {Task.TIDY}
WHERE x.finished_at IS NULL AND x.cancelled_at {_LONG_AGO} ORDER BY t.id LIMIT %(most)s
"""
