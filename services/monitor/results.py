"""Recording what workers report: one database transaction for any number of reports."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import structlog
from sqlalchemy import Connection

from nearline.monitor.v1 import monitor_pb2
from nearline.type.v1.task_pb2 import Task
from services.kit import crash
from services.kit.errors import Internal
from services.monitor import books, lanes, schedules, sql
from services.monitor.book import Book, Effects, Report, TaskRow, end_lease, files_failed, judge_all
from services.monitor.enqueue import enqueue, lock_keys
from services.monitor.queueing import NOBODY, Entry, admitted, entry_of
from services.monitor.rules import Limits, Verdict

log = structlog.get_logger(__name__)

_ENDED = frozenset({Task.DONE, Task.FAILED, Task.CANCELLED})


def record(connection: Connection, reports: Sequence[Report], limits: Limits) -> list[bool]:
    """Apply ``reports`` in their order; for each whether its effect is recorded, now or before.

    Reports under a token that is no longer the task's change nothing and give False.
    """
    return _Recording(connection, limits).run(reports)


@dataclass(slots=True)
class _Recording:
    """The images of all rows that one batch of reports touches. Locks transactions, then tasks."""

    connection: Connection
    limits: Limits
    books: dict[int, Book] = field(default_factory=dict)
    tasks: dict[int, TaskRow] = field(default_factory=dict)
    touched: dict[int, TaskRow] = field(default_factory=dict)
    ready_kinds: set[int] = field(default_factory=set)
    follow_ups: dict[int | None, list[Entry]] = field(default_factory=lambda: defaultdict(list))

    def run(self, reports: Sequence[Report]) -> list[bool]:
        self._lock(sorted({report.task_id for report in reports}))
        verdicts = judge_all(self.tasks, reports)
        accepted = [r for r, v in zip(reports, verdicts, strict=True) if v is Verdict.APPLY]
        self._store_failures(accepted)
        endings = [report for report in accepted if report.ending is not None]
        stored = self._count_failures(endings)
        effects = {r.task_id: self._end(r, stored.get(r.task_id, 0)) for r in endings}
        self._settle_failures(effects)
        self._follow_up(effects)
        self._save()
        crash.point("monitor.record.before_commit")
        return [verdict is not Verdict.LATE for verdict in verdicts]

    def _lock(self, ids: Sequence[int]) -> None:
        found = sql.rows(
            self.connection, "SELECT DISTINCT txn FROM task WHERE id = ANY(%s)", (ids,)
        )
        self.books = books.lock(self.connection, [seq for (seq,) in found if seq is not None])
        rows = sql.rows(self.connection, _LOCK_TASKS, (ids,))
        self.tasks = {row[0]: TaskRow(*row) for row in rows}

    def _store_failures(self, reports: Iterable[Report]) -> None:
        rows = [
            (
                self.tasks[r.task_id].txn,
                r.task_id,
                r.token,
                r.body.first + n,
                f.path,
                f.code,
                f.reason,
            )
            for r in reports
            if isinstance(r.body, monitor_pb2.WorkRequest.Failures)
            for n, f in enumerate(r.body.failures)
        ]
        sql.run_values(self.connection, _STORE_FAILURES, rows)

    def _count_failures(self, endings: Iterable[Report]) -> dict[int, int]:
        claimed = [(r.task_id, r.token) for r in endings if files_failed(r)]
        return dict(sql.rows_of_values(self.connection, _COUNT_FAILURES, claimed))

    def _end(self, report: Report, stored: int) -> Effects:
        task = self.tasks[report.task_id]
        self.touched[task.id] = task
        book = self.books.get(task.txn) if task.txn is not None else None
        if task.txn is not None and book is None:
            raise Internal("LEDGER_BROKEN", f"task {task.id} belongs to no transaction")
        effects = end_lease(
            task, book, report, self.limits, failures_stored=stored, jitter=random.random()
        )
        if task.state == Task.READY:
            self.ready_kinds.add(task.kind)
        return effects

    def _settle_failures(self, effects: dict[int, Effects]) -> None:
        counted = [(id_, self.tasks[id_].ended_token) for id_, e in effects.items()
                   if e.count_failures and self.tasks[id_].files_failed]  # fmt: skip
        sql.run_values(self.connection, _KEEP_FAILURES, counted)
        dropped = [id_ for id_, e in effects.items() if not e.count_failures]
        if dropped:
            sql.run(self.connection, _DROP_FAILURES, (dropped,))
        for id_, effect in effects.items():
            if effect.given_up is not None:
                code, reason = effect.given_up
                log.warning("task_given_up", task=id_, kind=self.tasks[id_].kind, code=code,
                            reason=reason)  # fmt: skip
                if not effect.count_failures:
                    self._give_up(self.tasks[id_], code, reason)

    def _give_up(self, task: TaskRow, code: str, reason: str) -> None:
        """Say why a task failed for good, whose worker did not name its files.

        For each path of its chunk, or once without a path.
        """
        if task.txn is None:
            return
        book = self.books[task.txn]
        values = {
            "txn": task.txn, "task": task.id, "token": task.ended_token, "code": code,
            "reason": reason, "id": book.id, "chunk": task.chunk,
        }  # fmt: skip
        if task.chunk is None:
            if task.files_failed:
                values["reason"] = f"{reason}; so for {task.files_failed} files without names"
            sql.run(self.connection, _FAIL_TASK, values)
            return
        paths = sql.run(self.connection, _FAIL_PATHS, values)
        task.files_failed += paths
        book.files_failed += paths
        book.files_total += paths

    def _follow_up(self, effects: dict[int, Effects]) -> None:
        tidying = [id_ for id_, effect in effects.items() if effect.tidy]
        for id_, entry in books.tidying_up(self.connection, tidying).items():
            self.follow_ups[self.tasks[id_].txn].append(entry)
        for id_, effect in effects.items():
            for new in effect.follow_ups:
                seq = self.tasks[id_].txn
                if new.HasField("transaction"):
                    seq = self._open(new.transaction)
                self.follow_ups[seq].append(entry_of(new))
        self._lock_queue()
        for seq, entries in self.follow_ups.items():
            self._enqueue(seq, entries)

    def _lock_queue(self) -> None:
        """Lock at once whatever of the queue this batch will come to."""
        back = self._back()
        releasing = [seq for seq, book in self.books.items() if book.must_release]
        if len(self.follow_ups) + bool(back) + len(releasing) > 1:
            lock_keys(self.connection, itertools.chain(*self.follow_ups.values()))
            names = {
                (entry.kind, *self._whose(seq))
                for seq, entries in self.follow_ups.items()
                for entry in entries
            }
            lanes.lock(self.connection, names, back, releasing)

    def _whose(self, seq: int | None) -> tuple[str, str]:
        owner = NOBODY if seq is None else books.owner_of(self.books[seq])
        return owner.user, owner.group

    def _back(self) -> list[int]:
        """Tasks that go back to the queue at once."""
        return [task.id for task in self.touched.values() if task.state == Task.READY]

    def _open(self, spec: monitor_pb2.TransactionSpec) -> int:
        known = next((book for book in self.books.values() if book.id == spec.id), None)
        book = known or books.open_or_lock(self.connection, spec)
        self.books[book.seq] = book
        return book.seq

    def _enqueue(self, seq: int | None, entries: list[Entry]) -> None:
        if seq is None:
            self.ready_kinds |= enqueue(self.connection, NOBODY, entries).ready_kinds
            return
        book = self.books[seq]
        taken = [] if book.finished else admitted(entries, cancelled=book.cancelled)
        if left_out := len(entries) - len(taken):
            log.info("follow_ups_left_out", transaction=book.id, tasks=left_out)
        self.ready_kinds |= books.add_tasks(self.connection, book, taken).ready_kinds

    def _save(self) -> None:
        if not self.touched:
            return
        lanes.requeue(self.connection, self._back())
        sql.run_values(self.connection, _SAVE_TASKS, map(_values, self.touched.values()))
        ended = [task for task in self.touched.values() if task.state in _ENDED]
        schedules.ended(self.connection, [task.schedule for task in ended if task.schedule])
        changed = {task.txn for task in self.touched.values()} | set(self.follow_ups)
        changed_books = [book for seq, book in self.books.items() if seq in changed]
        books.settle(self.connection, changed_books, self.ready_kinds)


def _values(task: TaskRow) -> Sequence[object]:
    return (
        task.id, task.state, task.ended_token, task.ended, task.attempt, task.lost, task.failing,
        None if task.delay is None else f"{task.delay} s", task.payload, task.note,
        task.files_done, task.files_failed, task.bytes_done, task.state in _ENDED, task.files,
    )  # fmt: skip


_LOCK_TASKS = """
SELECT id, txn, kind, state, token, ended_token, ended, attempt, lost,
       extract(epoch FROM now() - failing_since)::float8, chunk, schedule, files
FROM task WHERE id = ANY(%s) ORDER BY id FOR NO KEY UPDATE
"""

_STORE_FAILURES = """
INSERT INTO failure (txn, task, token, position, path, code, reason) VALUES %s
ON CONFLICT (task, token, position) DO NOTHING
"""

_COUNT_FAILURES = """
SELECT f.task, count(*) FROM failure f
JOIN (VALUES %s) AS v (task, token) ON f.task = v.task AND f.token = v.token
GROUP BY f.task
"""

_KEEP_FAILURES = """
UPDATE failure f SET counted = true
FROM (VALUES %s) AS v (task, token) WHERE f.task = v.task AND f.token = v.token
"""

_DROP_FAILURES = "DELETE FROM failure WHERE task = ANY(%s) AND NOT counted"

_FAIL_TASK = """
INSERT INTO failure (txn, task, token, position, counted, path, code, reason)
VALUES (%(txn)s, %(task)s, %(token)s, 0, true, '', %(code)s, %(reason)s)
"""

_FAIL_PATHS = """
INSERT INTO failure (txn, task, token, position, counted, path, code, reason)
SELECT %(txn)s, %(task)s, %(token)s, p.n, true, p.path, %(code)s, %(reason)s
FROM path_chunk c, unnest(c.paths) WITH ORDINALITY AS p (path, n)
WHERE c.transaction_id = %(id)s::uuid AND c.chunk = %(chunk)s
"""

_SAVE_TASKS = """
UPDATE task SET
  state = v.state, holder = NULL, ended_token = v.ended_token, ended = v.ended,
  attempt = v.attempt, lost = v.lost,
  failing_since = CASE WHEN v.failing THEN coalesce(task.failing_since, now()) END,
  not_before = now() + v.delay, payload = coalesce(v.payload, task.payload), note = v.note,
  files_done = task.files_done + v.files_done, files_failed = task.files_failed + v.files_failed,
  bytes_done = task.bytes_done + v.bytes_done, live_files = 0, live_bytes = 0, live_note = '',
  ended_at = CASE WHEN v.over THEN now() END, files = v.files
FROM (VALUES (NULL::bigint, NULL::smallint, NULL::int, NULL::smallint, NULL::int, NULL::smallint,
              NULL::bool, NULL::interval, NULL::bytea, NULL::text, NULL::bigint, NULL::bigint,
              NULL::bigint, NULL::bool, NULL::bigint), %s)
     AS v (id, state, ended_token, ended, attempt, lost, failing, delay, payload, note, files_done,
           files_failed, bytes_done, over, files)
WHERE task.id = v.id
"""
