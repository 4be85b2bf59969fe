"""The workers and the length of the queue, for operators."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection

from nearline.monitor.v1 import monitor_pb2
from nearline.type.v1.task_pb2 import Task
from services.monitor import sql

ROWS = 1000


def list_workers(connection: Connection, lease_seconds: float) -> monitor_pb2.ListWorkersResponse:
    """Workers that were seen within the last day, and how many tasks wait or run."""
    answer = monitor_pb2.ListWorkersResponse()
    for id_, service, host, version, slots, busy, connected, seen, trouble in sql.rows(
        connection, _WORKERS, (lease_seconds,)
    ):
        worker = answer.workers.add(
            id=id_,
            service=service,
            host=host,
            version=version,
            slots=slots,
            busy=busy,
            connected=connected,
            trouble=trouble,
        )
        worker.seen_at.FromDatetime(seen)
    counts: dict[int, int] = dict(sql.rows(connection, _TOTALS))
    answer.ready = counts.get(Task.READY, 0)
    answer.leased = counts.get(Task.LEASED, 0)
    answer.delayed = counts.get(Task.DELAYED, 0)
    answer.parked = counts.get(Task.FAILED, 0)
    return answer


def list_parked(
    connection: Connection, visible: monitor_pb2.Visibility, before: int
) -> list[monitor_pb2.ParkedTask]:
    """Tasks that were given up with numbers below ``before`` (0: any), the newest first."""
    values = {
        "groups": list(visible.groups),
        "user": visible.user,
        "before": before or 2**63 - 1,
        "most": ROWS,
    }
    return [_parked(*row) for row in sql.rows(connection, _PARKED, values)]


def _parked(
    number: int, id_: str | None, kind: Task.Kind.ValueType, attempt: int, worker: str | None,
    note: str, failed: int, user: str | None, group: str | None, code: str | None,
    ended: datetime,
) -> monitor_pb2.ParkedTask:  # fmt: skip
    task = Task(
        id=number,
        transaction_id=id_ or "",
        kind=kind,
        state=Task.FAILED,
        attempt=attempt,
        worker=worker or "",
        note=note,
        files_failed=failed,
    )
    parked = monitor_pb2.ParkedTask(task=task, user=user or "", group=group or "", code=code or "")
    parked.ended_at.FromDatetime(ended)
    return parked


def count_tasks(connection: Connection, key: str, kind: int, task_id: int = 0) -> int:
    """Tasks of a key, or the one of a number, that have not ended; ``kind`` 0 is any."""
    wanted = {"key": key, "kind": kind, "task_id": task_id}
    return int(sql.rows(connection, _COUNT_ONE if task_id else _COUNT, wanted)[0][0])


# A worker whose ledger died with it cannot have said goodbye: count it as gone once it is silent.
_WORKERS = """
SELECT w.name, w.service, w.host, w.version, w.slots,
       (SELECT count(*) FROM task t WHERE t.holder = w.id),
       w.connected AND w.seen_at > now() - %s * interval '1 second', w.seen_at, w.trouble
FROM worker w WHERE w.seen_at > now() - interval '1 day' ORDER BY w.service, w.name
"""

_TOTALS = """
SELECT 1, count(*) FROM task WHERE state = 1
UNION ALL SELECT 2, count(*) FROM task WHERE holder IS NOT NULL
UNION ALL SELECT 3, count(*) FROM task WHERE state = 3
UNION ALL SELECT 6, count(*) FROM task WHERE state = 6
"""

_PARKED = """
SELECT t.id, x.id::text, t.kind, t.attempt, w.name, t.note, t.files_failed, x.user_name,
       x.group_name,
       (SELECT f.code FROM failure f
        WHERE f.task = t.id AND f.token = t.ended_token AND f.position <= 1 LIMIT 1),
       t.ended_at
FROM task t LEFT JOIN txn x ON x.seq = t.txn LEFT JOIN worker w ON w.id = t.worker
WHERE t.state = 6 AND t.id < %(before)s
  AND (%(groups)s::text[] = '{}' OR x.group_name = ANY(%(groups)s::text[]))
  AND (%(user)s = '' OR x.user_name = %(user)s)
ORDER BY t.id DESC LIMIT %(most)s
"""

_COUNT = """
SELECT count(*) FROM task
WHERE key = %(key)s AND ended_at IS NULL AND %(kind)s IN (0, kind)
"""

_COUNT_ONE = """
SELECT count(*) FROM task
WHERE id = %(task_id)s AND ended_at IS NULL AND %(kind)s IN (0, kind)
"""
