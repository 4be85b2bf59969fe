"""The ledger's store on a real database whose clock the test moves, and all that it holds."""

from __future__ import annotations

from typing import Any

from services.kit.config import DatabaseConfig
from services.kit.db import Database
from services.monitor import sql
from tests.simulation.model import Ledger
from tests.simulation.rows import Task

Snapshot = dict[str, Any]

# Found before PostgreSQL's own now(), as its schema comes first.
_CLOCK = """
CREATE SCHEMA simulated;
CREATE TABLE simulated.clock (seconds float8 NOT NULL);
INSERT INTO simulated.clock VALUES (0);
CREATE FUNCTION simulated.now() RETURNS timestamptz LANGUAGE sql STABLE
  AS 'SELECT to_timestamp(seconds) FROM simulated.clock';
ALTER DATABASE {name} SET search_path = simulated, pg_catalog, public;
"""

_TABLES = "txn, submission, path_chunk, lane, task, failure, worker, schedule"


def simulated_clock(config: DatabaseConfig) -> Database:
    """The database, where time stands still until :func:`set_clock`."""
    before = Database(config)
    before.write_sync(sql.run, _CLOCK.format(name=config.name))
    before.close()
    return Database(config)


def set_clock(database: Database, seconds: float) -> None:
    """Let it be ``seconds`` after 1970."""
    database.write_sync(sql.run, "UPDATE simulated.clock SET seconds = %s", (seconds,))


def clear(database: Database) -> None:
    """Remove all rows; numbers begin anew."""
    database.write_sync(sql.run, f"TRUNCATE {_TABLES} RESTART IDENTITY")
    set_clock(database, 0)


def stored(database: Database) -> Snapshot:
    """What the tables say, in the model's words."""
    return database.read_sync(
        lambda connection: {name: sql.rows(connection, each) for name, each in _STORED.items()}
    )


def modelled(ledger: Ledger) -> Snapshot:
    """What the model says."""
    id_of = {seq: transaction.book.id for seq, transaction in ledger.transactions.items()}
    id_of_any = {**id_of, None: None}
    return {
        "tasks": [
            (t.id, id_of_any[t.txn], t.kind, t.state, *_rest(t))
            for t in sorted(ledger.tasks.values(), key=lambda t: t.id)
        ],
        "transactions": sorted(
            (
                b.id, b.state, b.begun, b.cancelled, dict(+b.open_by_kind), b.blocked,
                b.tasks_failed, b.files_total, b.files_done, b.files_failed, b.bytes_total,
                b.bytes_done, b.warnings, b.finished,
            )
            for b in (transaction.book for transaction in ledger.transactions.values())
        ),
        "lanes": sorted((*name, lane.vt, lane.again) for name, lane in ledger.lanes.items()),
        "workers": sorted((n, w.session, w.seen_at) for n, w in ledger.workers.items()),
        "schedules": sorted(
            (name, s.kind, s.every, s.payload, s.task, s.again, s.due_at)
            for name, s in ledger.schedules.items()
        ),
        "failures": sorted(
            (id_of_any[f.txn] or "", f.path, f.code, f.task, f.token) for f in ledger.counted
        ),
        "uncounted": sorted(
            (task, token, n, failure.path, failure.code)
            for (task, token), failures in ledger.failures.items()
            for n, failure in failures.items()
        ),
        "chunks": sorted(
            (transaction.book.id, n, paths)
            for transaction in ledger.transactions.values()
            for n, paths in enumerate(transaction.chunks)
        ),
        "arriving": sorted(
            (id_, a.spec.identity.user, a.spec.group, a.paths)
            for id_, a in ledger.arriving.items()
        ),
    }  # fmt: skip


def agree(database: Database, ledger: Ledger) -> None:
    """Assert that tables and model say the same."""
    found, expected = _comparable(stored(database)), modelled(ledger)
    for name, rows in expected.items():
        assert found[name] == rows, f"{name} differ"


def _rest(task: Task) -> tuple[object, ...]:
    user, group = task.lane[1:]
    return (
        user, group, task.vt, task.cost, task.payload, task.key, task.chunk, task.schedule,
        task.files, task.not_before, task.failing_since, task.holder, task.token,
        task.ended_token, task.ended, task.attempt, task.lost, task.note, task.files_done,
        task.files_failed, task.bytes_done, task.state in (5, 6, 7),
    )  # fmt: skip


def _comparable(found: Snapshot) -> Snapshot:
    """With driver types as Python's own."""
    plain = {name: [tuple(map(_plain, row)) for row in rows] for name, rows in found.items()}
    plain["transactions"] = [
        (*row[:4], {kind: n for kind, n in enumerate(row[4]) if n}, *row[5:])
        for row in plain["transactions"]
    ]
    return {name: rows if name == "tasks" else sorted(rows) for name, rows in plain.items()}


def _plain(value: object) -> object:
    return bytes(value) if isinstance(value, memoryview) else value


_STORED = {
    "tasks": """
        SELECT t.id, x.id::text, t.kind, t.state, l.user_name, l.group_name, t.vt, t.cost::float8,
               t.payload, t.key, t.chunk, t.schedule, t.files,
               extract(epoch FROM t.not_before)::float8,
               extract(epoch FROM t.failing_since)::float8, w.name, t.token, t.ended_token,
               t.ended, t.attempt, t.lost, t.note, t.files_done, t.files_failed, t.bytes_done,
               t.ended_at IS NOT NULL
        FROM task t JOIN lane l ON l.id = t.lane AND l.kind = t.kind
        LEFT JOIN txn x ON x.seq = t.txn LEFT JOIN worker w ON w.id = t.holder ORDER BY t.id""",
    "transactions": """
        SELECT id::text, state, begun, cancelled_at IS NOT NULL, open_by_kind, blocked,
               tasks_failed, files_total, files_done, files_failed, bytes_total, bytes_done,
               warnings, finished_at IS NOT NULL FROM txn""",
    "lanes": "SELECT kind, user_name, group_name, vt, again FROM lane",
    "workers": "SELECT name, session, extract(epoch FROM seen_at)::float8 FROM worker",
    "schedules": """
        SELECT name, kind, every_seconds, payload, task, again, extract(epoch FROM due_at)::float8
        FROM schedule""",
    "failures": """
        SELECT coalesce(x.id::text, ''), path, code, task, token
        FROM failure f LEFT JOIN txn x ON x.seq = f.txn WHERE counted""",
    "chunks": """
        SELECT x.id::text, chunk, paths FROM path_chunk JOIN txn x ON x.id = transaction_id""",
    "arriving": "SELECT id::text, user_name, group_name, next FROM submission",
    "uncounted": "SELECT task, token, position, path, code FROM failure WHERE NOT counted",
}
