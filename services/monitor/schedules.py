"""Work that comes back: a schedule is a row, and has at most one run that has not ended."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from nearline.monitor.v1 import monitor_pb2
from services.kit.errors import NotFound
from services.monitor import books, lanes, sql
from services.monitor.enqueue import enqueue
from services.monitor.queueing import NOBODY, Entry


def declare(connection: Connection, wanted: Sequence[monitor_pb2.Schedule]) -> None:
    """Make the schedules that are new, due now, and take over what changed of the others."""
    # Sorted, so that workers that connect at the same time do not deadlock.
    for schedule in sorted(wanted, key=lambda each: each.name):
        values = {
            "name": schedule.name,
            "kind": schedule.kind,
            "every": schedule.every.ToNanoseconds() / 1e9,
            "payload": schedule.payload,
        }
        sql.run(connection, _DECLARE, values)


def start_due(connection: Connection) -> int:
    """Make a task for each schedule that is due; how many were."""
    due = sql.rows(connection, _DUE)
    if len(due) > 1:
        lanes.lock(connection, {(kind, NOBODY.user, NOBODY.group) for _, kind, _ in due})
    kinds = set()
    for name, kind, payload in due:
        made = enqueue(connection, NOBODY, [Entry(kind, bytes(payload), schedule=name)])
        started = "UPDATE schedule SET task = %s, again = false WHERE name = %s"
        sql.run(connection, started, (made.ids[0], name))
        kinds |= made.ready_kinds
    books.notify(connection, (), kinds)
    return len(due)


def ended(connection: Connection, names: Sequence[str]) -> None:
    """Let the next runs of ``names`` count from now."""
    if names:
        sql.run(connection, _ENDED, (list(names),))


def run_now(connection: Connection, name: str) -> None:
    """Make the next run due now; behind the present one, if there is one. Raises NotFound."""
    if not sql.run(connection, _RUN_NOW, (name,)):
        raise NotFound(
            "SCHEDULE_NOT_FOUND",
            f"there is no schedule {name!r}; schedules are made by the workers that want them",
            schedule=name,
        )


_DECLARE = """
INSERT INTO schedule AS s (name, kind, every_seconds, payload, due_at)
VALUES (%(name)s, %(kind)s, %(every)s, %(payload)s, now())
ON CONFLICT (name) DO UPDATE
SET kind = excluded.kind, every_seconds = excluded.every_seconds, payload = excluded.payload,
    due_at = least(s.due_at, now() + excluded.every_seconds * interval '1 second')
WHERE (s.kind, s.every_seconds, s.payload)
      IS DISTINCT FROM (excluded.kind, excluded.every_seconds, excluded.payload)
"""

# What is due later than it ever can be is from before the clock was set back.
_DUE = """
SELECT name, kind, payload FROM schedule
WHERE task IS NULL
  AND (due_at <= now() OR due_at > now() + 2 * every_seconds * interval '1 second')
ORDER BY name FOR UPDATE SKIP LOCKED
"""

_ENDED = """
UPDATE schedule SET task = NULL,
  due_at = now() + CASE WHEN again THEN interval '0' ELSE every_seconds * interval '1 second' END
WHERE name = ANY(%s)
"""

_RUN_NOW = "UPDATE schedule SET due_at = now(), again = task IS NOT NULL WHERE name = %s"
