"""The workers and the length of the queue, for operators."""

from __future__ import annotations

from sqlalchemy import Connection

from nearline.monitor.v1 import monitor_pb2
from nearline.type.v1.task_pb2 import Task
from services.monitor import sql


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
    return answer


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
"""

_COUNT = """
SELECT count(*) FROM task
WHERE key = %(key)s AND ended_at IS NULL AND %(kind)s IN (0, kind)
"""

_COUNT_ONE = """
SELECT count(*) FROM task
WHERE id = %(task_id)s AND ended_at IS NULL AND %(kind)s IN (0, kind)
"""
