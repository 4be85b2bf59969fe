"""Turns in the queue: where lanes stand, and turns for tasks that come back. Inside a transaction.

Lanes are locked by ascending number, behind transactions, tasks and keys; who comes to several one
after the other locks all of them before. Otherwise two that meet crosswise wait for the deadlock's
discovery, a second each time.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import Connection

from services.monitor import rules, sql
from services.monitor.queueing import Owner

LaneName = tuple[int, str, str]
"""(kind, user, group)"""


def lock(
    connection: Connection,
    names: Collection[LaneName],
    tasks: Sequence[int] = (),
    releasing: Sequence[int] = (),
) -> None:
    """Lock these lanes, those of ``tasks`` and of blocked tasks of the transactions ``releasing``.

    Lanes that do not exist yet are left out.
    """
    kinds, users, groups = zip(*names, strict=True) if names else ((), (), ())
    values = {
        "kinds": list(kinds), "users": list(users), "groups": list(groups),
        "tasks": list(tasks), "releasing": list(releasing),
    }  # fmt: skip
    sql.run(connection, _LOCK, values)


def standing(
    connection: Connection, owner: Owner, kinds: Sequence[int]
) -> list[tuple[int, int, float]]:
    """(kind, lane, virtual time to start from) for each of ``kinds``, with the lanes locked."""
    values = {"kinds": list(kinds), "user": owner.user, "group": owner.group}
    found = sql.rows(connection, _LANES, values)
    if len(found) < len(kinds):
        sql.run(connection, _NEW_LANES, values)
        found = sql.rows(connection, _LANES, values)
    return sorted((kind, lane, max(vt, clock)) for kind, lane, vt, clock in found)


def move(connection: Connection, lane: int, vt: float) -> None:
    """Note how far a locked lane has asked for new tasks."""
    sql.run(connection, "UPDATE lane SET vt = %s WHERE id = %s", (vt, lane))


def requeue(connection: Connection, tasks: Sequence[int]) -> None:
    """Give tasks that are not ready yet their turns; the caller has locked and makes them ready."""
    if tasks:
        sql.run(connection, _REQUEUE, (list(tasks),))


def make_ready(connection: Connection, tasks: Sequence[int]) -> None:
    """Let tasks that waited take their turns; the caller has locked them."""
    requeue(connection, tasks)
    if tasks:
        sql.run(connection, _MAKE_READY, (list(tasks),))


# The clock of a kind is the virtual time that is served: that of the next task, or of the last.
_CLOCK = """coalesce(
  (SELECT t.vt FROM task t WHERE t.state = 1 AND t.kind = l.kind
   ORDER BY t.priority, t.vt, t.id LIMIT 1),
  (SELECT max(greatest(m.vt, m.again)) FROM lane m WHERE m.kind = l.kind))"""

_LANES = f"""
SELECT l.kind, l.id, l.vt, {_CLOCK} FROM lane l
WHERE l.kind = ANY(%(kinds)s::smallint[]) AND l.user_name = %(user)s AND l.group_name = %(group)s
ORDER BY l.id FOR UPDATE OF l
"""

_LOCK = """
SELECT FROM lane WHERE id IN (
  SELECT l.id FROM lane l
  JOIN unnest(%(kinds)s::smallint[], %(users)s::text[], %(groups)s::text[])
       AS named (kind, user_name, group_name) USING (kind, user_name, group_name)
  UNION SELECT lane FROM task WHERE id = ANY(%(tasks)s::bigint[])
  UNION SELECT lane FROM task WHERE txn = ANY(%(releasing)s::bigint[]) AND state = 4
) ORDER BY id FOR UPDATE
"""

_NEW_LANES = """
INSERT INTO lane (kind, user_name, group_name)
SELECT kind, %(user)s, %(group)s FROM unnest(%(kinds)s::smallint[]) AS kind
ON CONFLICT DO NOTHING
"""

# They keep their order among themselves.
_REQUEUE = f"""
WITH back AS (
  SELECT id, lane, sum(greatest(cost::float8, {rules.LEAST_COST}))
                   OVER (PARTITION BY lane ORDER BY vt, id) AS cost
  FROM task WHERE id = ANY(%s)
), stands AS MATERIALIZED (
  SELECT l.id, greatest(l.again, {_CLOCK}) AS start FROM lane l
  WHERE l.id IN (SELECT lane FROM back) ORDER BY l.id FOR UPDATE OF l
), moved AS (
  UPDATE lane SET again = start + (SELECT max(cost) FROM back WHERE back.lane = stands.id)
  FROM stands WHERE lane.id = stands.id
)
UPDATE task SET vt = start + back.cost
FROM back JOIN stands ON stands.id = back.lane WHERE task.id = back.id
"""

_MAKE_READY = "UPDATE task SET state = 1, not_before = NULL WHERE id = ANY(%s)"
