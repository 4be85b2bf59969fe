"""Looking at transactions, their failures and tasks, and cancelling them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import psycopg2.errors
from sqlalchemy import Connection

from nearline.monitor.v1 import monitor_pb2
from nearline.type.v1.task_pb2 import Task
from nearline.type.v1.transaction_pb2 import Failure, Transaction
from services.kit.errors import InvalidArgument, NotFound
from services.monitor import books, rules, sql
from services.monitor.rules import Service, Wait

PAGE = 500
PAGE_WITH_FAILURES = 20
"""Each can bring 100 failures of a few kilobytes."""
ROWS = 1000


def find(connection: Connection, id_: str, visible: monitor_pb2.Visibility) -> int:
    """The number of a transaction that may be seen. Raises NotFound."""
    values = {"id": id_, "groups": list(visible.groups), "user": visible.user}
    found = sql.rows(connection, _FIND, values)
    if not found:
        raise NotFound(
            "TRANSACTION_NOT_FOUND", f"there is no transaction {id_} that you may see", id=id_
        )
    return int(found[0][0])


def get(
    connection: Connection, id_: str, visible: monitor_pb2.Visibility, *, with_failures: bool
) -> Transaction:
    """One transaction as it is now. Raises NotFound."""
    seq = find(connection, id_, visible)
    return fetch(connection, [seq], with_failures=with_failures)[seq]


def fetch(
    connection: Connection, seqs: Sequence[int], *, with_failures: bool = False
) -> dict[int, Transaction]:
    """Transactions by number, with what running tasks have done so far."""
    if not seqs:
        return {}
    found = {row[0]: row for row in sql.rows(connection, _FETCH, (list(seqs),))}
    answers = {seq: _transaction(row) for seq, row in found.items()}
    running = [seq for seq, answer in answers.items() if not rules.is_final(answer.state)]
    if running:
        _add_live(connection, answers, found, running)
    if with_failures:
        for seq, *failure in sql.rows(connection, _FIRST_FAILURES, (list(seqs),)):
            answers[seq].failures.append(_failure(*failure))
    return answers


def page(
    connection: Connection, request: monitor_pb2.ListTransactionsRequest, cursor: str, most: int
) -> tuple[list[Transaction], str]:
    """Up to ``most`` transactions behind ``cursor``, and the cursor behind the last of them."""
    order, sign = ("DESC", "<") if request.descending else ("ASC", ">")
    values = {
        "groups": list(request.visibility.groups),
        "user": request.visibility.user,
        "actions": list(request.actions),
        "states": list(request.states),
        "job_label": request.job_label,
        "holding": request.holding_id,
        "label": request.label,
        "cursor": position(cursor),
        "most": most,
    }
    equals = "~" if request.regex else "="
    where = _filters(values, equals) + ([f"seq {sign} %(cursor)s"] if cursor else [])
    condition = " AND ".join(where) or "true"
    statement = f"SELECT seq FROM txn WHERE {condition} ORDER BY seq {order} LIMIT %(most)s"
    try:
        seqs = [seq for (seq,) in sql.rows(connection, statement, values)]
    except psycopg2.errors.InvalidRegularExpression as error:
        problem = str(error).partition("\n")[0]
        raise InvalidArgument(
            "BAD_REGEX",
            f"{problem}; correct the regular expression",
            violations=[("regex", problem)],
        ) from error
    answers = fetch(connection, seqs, with_failures=request.with_failures)
    return [answers[seq] for seq in seqs], str(seqs[-1]) if seqs else cursor


def failures(connection: Connection, seq: int, cursor: str) -> tuple[list[Failure], str]:
    """Failures behind ``cursor``, and the cursor behind the last of them."""
    found = sql.rows(connection, _FAILURES, (seq, position(cursor), ROWS))
    listed = [_failure(*row[1:]) for row in found]
    return listed, str(found[-1][0]) if found else cursor


def tasks(connection: Connection, seq: int, id_: str, after: int) -> list[Task]:
    """Tasks with numbers above ``after``, in their order."""
    return [
        Task(
            id=number,
            transaction_id=id_,
            kind=kind,
            state=state,
            attempt=attempt,
            worker=worker or "",
            note=note,
            files_done=done,
            files_failed=failed,
            bytes_done=moved,
        )
        for number, kind, state, attempt, worker, note, done, failed, moved in sql.rows(
            connection, _TASKS, (seq, after, ROWS)
        )
    ]


def cancel(connection: Connection, id_: str, visible: monitor_pb2.Visibility) -> None:
    """Stop what has not begun and ask workers to stop the rest. Raises NotFound."""
    seq = find(connection, id_, visible)
    book = books.lock(connection, [seq])[seq]
    if book.finished or book.cancelled:
        return
    book.cancelled = True
    sql.run(connection, "UPDATE txn SET cancelled_at = now() WHERE seq = %s", (seq,))
    values = {"seq": seq, "user": book.user, "group": book.group}
    untidy: list[int] = []
    for state, kind, count, left in sql.rows(connection, _CANCEL, values):
        if state == Task.BLOCKED:
            book.blocked -= count
        else:
            book.open_by_kind[kind] -= count
        untidy += left or ()
    tidying = books.tidying_up(connection, untidy).values()
    made = books.add_tasks(connection, book, tidying)
    books.settle(connection, [book], made.ready_kinds)
    books.notify_cancelled(connection, seq)


def position(cursor: str) -> int:
    """The number in a cursor of ours. Raises InvalidArgument."""
    if cursor and not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
        problem = "it is not a cursor of an earlier response"
        raise InvalidArgument("BAD_CURSOR", f"cursor: {problem}", violations=[("cursor", problem)])
    return int(cursor or 0)


def _filters(values: Mapping[str, object], equals: str) -> list[str]:
    tests = {
        "groups": "group_name = ANY(%(groups)s)",
        "user": "user_name = %(user)s",
        "actions": "action = ANY(%(actions)s)",
        "states": "state = ANY(%(states)s)",
        "job_label": f"job_label {equals} %(job_label)s",
        "holding": "holding_id = %(holding)s",
        "label": f"label {equals} %(label)s",
    }
    return [test for name, test in tests.items() if values[name]]


@dataclass(frozen=True, slots=True)
class _Live:
    """What leased tasks of a transaction have done so far."""

    files: int
    bytes: int
    notes: tuple[str, ...]
    leased: bool


def _add_live(
    connection: Connection,
    answers: Mapping[int, Transaction],
    found: Mapping[int, sql.Row],
    running: Sequence[int],
) -> None:
    waits = {
        seq: Wait(note, until, since)
        for seq, note, until, since in sql.rows(connection, _WAITS, (running,))
    }
    now: datetime = sql.rows(connection, "SELECT now()")[0][0]
    services = _services(connection)
    for seq in running:
        answer, moving = answers[seq], _live(found[seq])
        answer.files_done += moving.files
        answer.bytes_done += moving.bytes
        answer.waiting_for = rules.waiting_for(
            now=now,
            live_notes=moving.notes,
            waits=[waits[seq]] if seq in waits else [],
            leased=moving.leased,
            open_by_kind=books.counter_of(found[seq][_OPEN_BY_KIND]),
            services=services,
        )


def _live(row: sql.Row) -> _Live:
    leased, files, moved, notes = row[_LIVE:]
    return _Live(int(files or 0), int(moved or 0), tuple(notes or ()), bool(leased))


def _services(connection: Connection) -> dict[str, Service]:
    rows = sql.rows(connection, _SERVICES)
    return {
        name: Service(count, tuple(troubles or ()), seen.astimezone(UTC))
        for name, count, troubles, seen in rows
    }


def _transaction(row: sql.Row) -> Transaction:
    (_, id_, user, group, action, state, job_label, holding, label, *numbers) = row
    total, done, failed, bytes_total, bytes_done, created, updated, finished, *rest = numbers
    warnings, retry_of, *_ = rest
    answer = Transaction(
        id=id_,
        user=user,
        group=group,
        action=action,
        state=state,
        job_label=job_label,
        holding_id=holding,
        label=label,
        files_total=total,
        files_done=done,
        files_failed=failed,
        bytes_total=bytes_total,
        bytes_done=bytes_done,
        warnings=warnings,
        retry_of=retry_of or "",
    )
    answer.created_at.FromDatetime(created)
    answer.updated_at.FromDatetime(updated)
    if finished is not None:
        answer.finished_at.FromDatetime(finished)
    return answer


def _failure(path: str, code: str, reason: str) -> Failure:
    return Failure(path=path, code=code, reason=reason)


_FIND = """
SELECT seq FROM txn WHERE id = %(id)s::uuid
  AND (%(groups)s::text[] = '{}' OR group_name = ANY(%(groups)s::text[]))
  AND (%(user)s = '' OR user_name = %(user)s)
"""

# One statement, one snapshot: a task that ends between two would count twice, or not at all.
_FETCH = """
SELECT seq, id::text, user_name, group_name, action, state, job_label, holding_id, label,
       files_total, files_done, files_failed, bytes_total, bytes_done, created_at, updated_at,
       finished_at, warnings, retry_of::text, open_by_kind, live.leased, live.files, live.bytes,
       live.notes
FROM txn CROSS JOIN LATERAL (
  SELECT count(*), sum(live_files), sum(live_bytes),
         array_agg(live_note ORDER BY id) FILTER (WHERE live_note <> '')
  FROM task WHERE task.txn = seq AND holder IS NOT NULL AND finished_at IS NULL
) AS live (leased, files, bytes, notes)
WHERE seq = ANY(%s)
"""
# Places in a row of it.
_OPEN_BY_KIND, _LIVE = 19, 20

_FIRST_FAILURES = """
SELECT x.seq, f.path, f.code, f.reason
FROM unnest(%s::bigint[]) AS x (seq)
CROSS JOIN LATERAL (SELECT path, code, reason FROM failure
                    WHERE txn = x.seq AND counted ORDER BY id LIMIT 100) AS f
"""

_FAILURES = """
SELECT id, path, code, reason FROM failure
WHERE txn = %s AND counted AND id > %s ORDER BY id LIMIT %s
"""

_TASKS = """
SELECT t.id, t.kind, t.state, t.attempt, w.name, coalesce(nullif(t.live_note, ''), t.note),
       t.files_done + t.live_files, t.files_failed, t.bytes_done + t.live_bytes
FROM task t LEFT JOIN worker w ON w.id = t.worker
WHERE t.txn = %s AND t.id > %s ORDER BY t.id LIMIT %s
"""

# Of several, a failing one says most.
_WAITS = """
SELECT DISTINCT ON (txn) txn, note, not_before, failing_since
FROM task WHERE txn = ANY(%s) AND state = 3
ORDER BY txn, failing_since IS NULL, not_before
"""

_SERVICES = """
SELECT service, count(*) FILTER (WHERE here),
       array_agg(trouble ORDER BY name) FILTER (WHERE here AND trouble <> ''), max(seen_at)
FROM (SELECT *, connected AND seen_at > now() - interval '1 minute' AS here FROM worker) AS known
GROUP BY service
"""

_WRITING = f"({', '.join(str(kind) for kind in sorted(rules.WRITING))})"

# Turns that were not taken are given back: who cancels a large request must not wait for it.
# The lane of what is made next is locked with the others.
_CANCEL = f"""
WITH stopped AS (
  SELECT id, state, kind, lane, cost, token, lost FROM task
  WHERE txn = %(seq)s AND state IN (1, 3, 4) AND kind <> {Task.TIDY} ORDER BY id FOR UPDATE
), ended AS (
  UPDATE task SET state = 7, ended_at = now(), not_before = NULL
  FROM stopped WHERE task.id = stopped.id
), unused AS (
  SELECT lane, coalesce(sum(cost::float8) FILTER (WHERE token = 0), 0) AS vt,
         coalesce(sum(cost::float8) FILTER (WHERE token > 0), 0) AS again
  FROM stopped WHERE state = 1 GROUP BY lane
), locked AS MATERIALIZED (
  SELECT id FROM lane WHERE id IN (
    SELECT lane FROM unused UNION ALL SELECT id FROM lane
    WHERE kind = {Task.TIDY} AND user_name = %(user)s AND group_name = %(group)s
  ) ORDER BY id FOR UPDATE
), given_back AS (
  UPDATE lane SET vt = lane.vt - unused.vt, again = lane.again - unused.again
  FROM unused JOIN locked ON locked.id = unused.lane WHERE lane.id = locked.id
)
SELECT state, kind, count(*), array_agg(id) FILTER (WHERE kind IN {_WRITING} AND lost > 0)
FROM stopped GROUP BY state, kind
"""
