"""Running again what failed: a transaction of its own, made from what the old one left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlalchemy import Connection

from nearline.monitor.v1 import monitor_pb2
from nearline.type.v1.task_pb2 import Task
from nearline.type.v1.transaction_pb2 import Transaction
from services.kit.errors import FailedPrecondition, InvalidArgument, PermissionDenied
from services.kit.retrying import retry_id
from services.monitor import admission, books, leases, sql, submissions, transactions
from services.monitor.book import Book
from services.monitor.config import LedgerConfig
from services.monitor.queueing import Entry, entry_of

TransactionSpec = monitor_pb2.TransactionSpec
Request = monitor_pb2.RetryTransactionRequest

CHUNK = 1000
"""Paths of one task."""

_WHAT_USERS_ASK = {
    Transaction.PUT: " | nlds putlist -l LABEL -` stores them",
    Transaction.GET: " | nlds getlist -` brings them back",
    Transaction.STAGE: "` lists them for `nlds stage`",
}
"""How users ask anew for the paths that `nlds stat -F` lists."""
# Kinds that meet the files of a request: what fails there is named as it was asked for.
_MEETING = (Task.SCAN, Task.RESOLVE)


def check(request: Request) -> None:
    """Raise InvalidArgument unless the request says who asks and what is to be made."""
    if not request.identity.user:
        raise InvalidArgument("BAD_REQUEST", "identity: a retry is asked for by a user")
    if not request.asked_kind or not request.met_task.kind:
        raise InvalidArgument("BAD_REQUEST", "asked_kind and met_task: say what is to be made")


def retry(connection: Connection, id_: str, request: Request, config: LedgerConfig) -> str:
    """The id of the transaction that runs again what failed; it is made if there is none.

    Raises NotFound, PermissionDenied, FailedPrecondition, ResourceExhausted.
    """
    seq = transactions.find(connection, id_, request.visibility)
    old = books.lock(connection, [seq])[seq]
    spec = TransactionSpec.FromString(leases.specs(connection, [seq])[seq])
    check_right(spec, request)
    again = retry_id(old.id)
    # By both: the id can be computed, so that somebody else's transaction may have it.
    if not sql.rows(connection, _MADE, (again, old.id)):
        check_state(old)
        admission.check(connection, spec.identity.user, spec.group, config)
        _make(connection, old, _again(spec, request, again), request)
    return again


def check_right(spec: TransactionSpec, request: Request) -> None:
    """Raise PermissionDenied unless the asker is who asked first, with all the groups of then."""
    if spec.identity.user != request.identity.user:
        raise PermissionDenied(
            "TRANSACTION_FOREIGN", "only who made a request can have it run again"
        )
    now = {each.group for each in request.identity.groups}
    left = sorted({each.group for each in spec.identity.groups} - now)
    if left:
        raise PermissionDenied(
            "GROUP_LEFT",
            f"you have left {', '.join(left)} since you made the request; make a new one",
        )


def check_state(old: Book) -> None:
    """Raise FailedPrecondition unless the transaction has ended with failures of its user's."""
    if old.action not in _WHAT_USERS_ASK:
        name = Transaction.Action.Name(Transaction.Action.ValueType(old.action))
        raise FailedPrecondition(
            "RETRY_NOT_OFFERED",
            f"what failed in {name} is not run again by a request; the store plans its own work"
            " anew, and other requests can be made again",
        )
    if not old.finished:
        raise FailedPrecondition(
            "STILL_RUNNING", f"transaction {old.id} still runs; wait for its end, or cancel it"
        )
    if not (old.files_failed or old.tasks_failed):
        raise FailedPrecondition(
            "NOTHING_FAILED",
            f"nothing failed in transaction {old.id}, so there is nothing to run again",
        )


def check_left(old: Book, entries: Sequence[Entry]) -> None:
    """Raise FailedPrecondition when nothing of what failed can be run again."""
    if not entries:
        raise FailedPrecondition(
            "NOTHING_FAILED",
            f"what failed in transaction {old.id} has no path any more: another put has taken it"
            " over",
        )


def _again(spec: TransactionSpec, request: Request, id_: str) -> TransactionSpec:
    again = TransactionSpec()
    again.CopyFrom(spec)
    again.origin = spec.origin or spec.id
    again.retry_of = spec.id
    again.id = id_
    again.identity.CopyFrom(request.identity)
    again.ClearField("warnings")
    return again


def _make(connection: Connection, old: Book, spec: TransactionSpec, request: Request) -> None:
    submissions.displace(connection, spec.id)
    book = books.open_book(connection, spec, ())
    if book is None:  # Somebody else's transaction has taken an id that is not random.
        raise FailedPrecondition("RETRY_ID_TAKEN", f"{spec.id} is the id of another transaction")
    entries = list(_entries(connection, old, spec.id, request))
    check_left(old, entries)
    # A scan counts what it meets; everything else was counted by the old transaction only.
    book.files_total = sum(entry.files for entry in entries)
    made = books.add_tasks(connection, book, entries)
    books.settle(connection, [book], made.ready_kinds)


def _entries(connection: Connection, old: Book, id_: str, request: Request) -> Iterator[Entry]:
    """The tasks that were given up, as they were, and new ones for files that failed in others."""
    if sql.rows(connection, _FORGOTTEN, (old.seq,)):
        how = _WHAT_USERS_ASK[Transaction.Action.ValueType(old.action)]
        raise FailedPrecondition(
            "RETRY_TOO_LATE",
            f"transaction {old.id} ended so long ago that only the paths that failed are known, not"
            f" its work; make a new request for them: `nlds stat -F {old.id}{how}",
        )
    chunk = 0
    for row in sql.rows(connection, _GIVEN_UP, (old.seq,)):
        kind, payload, cost, key, of_chunk, files = row
        if of_chunk is not None:
            sql.run(connection, _COPY_CHUNK, (id_, chunk, old.id, of_chunk))
            yield Entry(kind, bytes(payload), chunk=chunk)
            chunk += 1
        else:
            counted = 0 if kind in _MEETING and not files else files
            last = kind == Task.FINISH_DIRECTORIES
            yield Entry(kind, bytes(payload), cost, key=key, last=last, files=counted)
    for asked, template in _TEMPLATES:
        values = {"txn": old.seq, "id": id_, "first": chunk, "size": CHUNK,
                  "meeting": list(_MEETING), "asked": asked}  # fmt: skip
        for _ in range(sql.run(connection, _STORE_CHUNKS, values)):
            yield template(request, chunk)
            chunk += 1


def _asked(request: Request, chunk: int) -> Entry:
    return Entry(request.asked_kind, chunk=chunk)


def _met(request: Request, chunk: int) -> Entry:
    made = entry_of(request.met_task)
    return Entry(made.kind, made.payload, made.cost, chunk=chunk)


_TEMPLATES = ((True, _asked), (False, _met))


_MADE = "SELECT 1 FROM txn WHERE id = %s AND retry_of = %s"

# What a task that was given up could not serve. `files` of a task that a replica without that
# column made is 0; then it failed with as many as its worker said, besides those that earlier
# leases of it had failed one by one.
_GIVEN_UP = f"""
SELECT kind, payload, cost, key, chunk, CASE WHEN kind = 1 THEN 0 WHEN files > 0 THEN files
       ELSE files_failed - (SELECT count(*) FROM failure f
                            WHERE f.task = t.id AND f.counted AND f.token <> t.ended_token) END
FROM task t WHERE txn = %s AND state = 6 AND kind <> {Task.TIDY} ORDER BY id
"""

_FORGOTTEN = """
SELECT 1 FROM failure f WHERE f.txn = %s AND f.counted
  AND NOT EXISTS (SELECT FROM task t WHERE t.id = f.task) LIMIT 1
"""

_COPY_CHUNK = """
INSERT INTO path_chunk (transaction_id, chunk, paths)
SELECT %s::uuid, %s, paths FROM path_chunk WHERE transaction_id = %s::uuid AND chunk = %s
"""

# What is said of a task that was given up is not said of files that failed one by one.
_STORE_CHUNKS = """
INSERT INTO path_chunk (transaction_id, chunk, paths)
SELECT %(id)s::uuid, %(first)s + (n - 1) / %(size)s, array_agg(path ORDER BY n)
FROM (
  SELECT f.path, row_number() OVER (ORDER BY min(f.id)) AS n
  FROM failure f JOIN task t ON t.id = f.task
  WHERE f.txn = %(txn)s AND f.counted AND f.path <> ''
    AND NOT (t.state = 6 AND f.token = t.ended_token)
    AND (t.kind = ANY(%(meeting)s::smallint[])) = %(asked)s
  GROUP BY f.path
) AS failed
GROUP BY (n - 1) / %(size)s
"""
