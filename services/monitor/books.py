"""Transaction rows: opening, locking, writing back, and telling everybody. Inside a transaction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from sqlalchemy import Connection

from nearline.monitor.v1 import monitor_pb2
from nearline.type.v1.transaction_pb2 import Transaction
from services.kit.errors import NotFound
from services.monitor import lanes, sql
from services.monitor.book import Book
from services.monitor.enqueue import Made, enqueue
from services.monitor.queueing import Entry, Owner, tidying

CHANNEL = "ledger"
"""Channel of the notifications: ``t1,2 k3``: transactions that changed, kinds that became ready;
``c1``: a transaction that was cancelled."""

_MOST_NOTIFIED = 500


def lock(connection: Connection, seqs: Collection[int]) -> dict[int, Book]:
    """The transactions of these numbers, locked in one order."""
    if not seqs:
        return {}
    found = sql.rows(connection, _LOCK, (sorted(seqs),))
    return {row[0]: _book(row) for row in found}


def lock_id(connection: Connection, transaction_id: str) -> Book | None:
    """The transaction of this id, locked; None when there is none."""
    found = sql.rows(connection, "SELECT seq FROM txn WHERE id = %s", (transaction_id,))
    return lock(connection, [seq for (seq,) in found]).get(found[0][0]) if found else None


def open_book(
    connection: Connection, spec: monitor_pb2.TransactionSpec, warnings: Sequence[str]
) -> Book | None:
    """Accept a transaction; None when its id is taken."""
    values = {
        "id": spec.id,
        "user": spec.identity.user,
        "group": spec.group,
        "action": spec.action,
        "job_label": spec.job_label,
        "holding": spec.holding_id,
        "label": spec.label,
        "spec": spec.SerializeToString(),
        "state": Transaction.QUEUED,
        "warnings": list(warnings),
        "retry_of": spec.retry_of or None,
    }
    made = sql.rows(connection, _OPEN, values)
    if not made:
        return None
    return Book(
        seq=made[0][0],
        id=spec.id,
        action=spec.action,
        user=spec.identity.user,
        group=spec.group,
        state=Transaction.QUEUED,
        warnings=list(warnings),
    )


def open_or_lock(connection: Connection, spec: monitor_pb2.TransactionSpec) -> Book:
    """Open the transaction if it is new; the existing one otherwise."""
    book = open_book(connection, spec, spec.warnings) or lock_id(connection, spec.id)
    if book is None:
        raise NotFound("TRANSACTION_GONE", f"transaction {spec.id} was removed meanwhile")
    return book


def owner_of(book: Book) -> Owner:
    """Whom its tasks are for."""
    return Owner(book.seq, book.user, book.group)


def add_tasks(connection: Connection, book: Book, entries: Iterable[Entry]) -> Made:
    """Make tasks in the transaction and count them."""
    made = enqueue(connection, owner_of(book), entries)
    book.open_by_kind.update(made.open_by_kind)
    book.blocked += made.blocked
    return made


def tidying_up(connection: Connection, tasks: Sequence[int]) -> dict[int, Entry]:
    """For each of ``tasks``, which ended, the one that removes what dead workers left of it."""
    if not tasks:
        return {}
    found = sql.rows(connection, "SELECT id, payload FROM task WHERE id = ANY(%s)", (list(tasks),))
    return {id_: tidying(id_, bytes(payload)) for id_, payload in sorted(found)}


def settle(connection: Connection, books: Iterable[Book], ready_kinds: set[int]) -> None:
    """Release blocked tasks where nothing else is left, find the states, write back and notify.

    ``ready_kinds`` are kinds of which tasks became ready in this database transaction.
    """
    changed = list(books)
    for book in changed:
        if book.must_release and not book.finished:
            ready_kinds |= _release(connection, book)
        if not book.finished:
            book.settle()
    sql.run_values(connection, _SAVE, [_values(book) for book in changed])
    notify(connection, [book.seq for book in changed], ready_kinds)


def notify(connection: Connection, seqs: Collection[int], kinds: Collection[int]) -> None:
    """Tell all replicas once this database transaction is committed."""
    if seqs or kinds:
        names = ",".join(map(str, seqs)) if len(seqs) <= _MOST_NOTIFIED else "*"
        payload = f"t{names} k{','.join(map(str, sorted(kinds)))}"
        sql.run(connection, "SELECT pg_notify(%s, %s)", (CHANNEL, payload))


def notify_cancelled(connection: Connection, seq: int) -> None:
    """Tell the replicas whose workers may hold leases of the transaction."""
    sql.run(connection, "SELECT pg_notify(%s, %s)", (CHANNEL, f"c{seq}"))


def _release(connection: Connection, book: Book) -> set[int]:
    statement = "SELECT id, kind FROM task WHERE txn = %s AND state = 4"
    blocked = sql.rows(connection, statement, (book.seq,))
    lanes.make_ready(connection, [id_ for id_, _ in blocked])
    kinds = Counter(kind for _, kind in blocked)
    book.open_by_kind.update(kinds)
    book.blocked = 0
    return set(kinds)


def _book(row: sql.Row) -> Book:
    (seq, id_, action, user, group, state, begun, cancelled, open_by_kind, *numbers, warnings) = row
    blocked, tasks_failed, total, done, failed, bytes_total, bytes_done = numbers
    return Book(
        seq=seq,
        id=id_,
        action=action,
        user=user,
        group=group,
        state=state,
        begun=begun,
        cancelled=cancelled,
        open_by_kind=counter_of(open_by_kind),
        blocked=blocked,
        tasks_failed=tasks_failed,
        files_total=total,
        files_done=done,
        files_failed=failed,
        bytes_total=bytes_total,
        bytes_done=bytes_done,
        warnings=warnings,
    )


def counter_of(open_by_kind: Sequence[int]) -> Counter[int]:
    """The column as tasks by kind."""
    return Counter({kind: count for kind, count in enumerate(open_by_kind) if count})


def _values(book: Book) -> Sequence[object]:
    top = max((kind for kind, count in book.open_by_kind.items() if count), default=0)
    return (
        book.seq, book.state, book.begun, [book.open_by_kind[kind] for kind in range(top + 1)],
        book.blocked, book.tasks_failed, book.files_total, book.files_done, book.files_failed,
        book.bytes_total, book.bytes_done, book.warnings, book.finished,
    )  # fmt: skip


_LOCK = """
SELECT seq, id::text, action, user_name, group_name, state, begun, cancelled_at IS NOT NULL,
       open_by_kind, blocked, tasks_failed, files_total, files_done, files_failed, bytes_total,
       bytes_done, warnings
FROM txn WHERE seq = ANY(%s) ORDER BY seq FOR NO KEY UPDATE
"""

_OPEN = """
INSERT INTO txn (id, user_name, group_name, action, job_label, holding_id, label, spec, state,
                 open_by_kind, warnings, retry_of)
VALUES (%(id)s::uuid, %(user)s, %(group)s, %(action)s, %(job_label)s, %(holding)s, %(label)s,
        %(spec)s, %(state)s, '{}', %(warnings)s, %(retry_of)s::uuid)
ON CONFLICT (id) DO NOTHING RETURNING seq
"""

_SAVE = """
UPDATE txn SET
  state = v.state, begun = v.begun, open_by_kind = v.open_by_kind, blocked = v.blocked,
  tasks_failed = v.tasks_failed, files_total = v.files_total, files_done = v.files_done,
  files_failed = v.files_failed, bytes_total = v.bytes_total, bytes_done = v.bytes_done,
  warnings = v.warnings, updated_at = now(),
  finished_at = CASE WHEN v.finished THEN coalesce(txn.finished_at, now()) END
FROM (VALUES (NULL::bigint, NULL::smallint, NULL::bool, NULL::int[], NULL::int, NULL::int,
              NULL::bigint, NULL::bigint, NULL::bigint, NULL::bigint, NULL::bigint, NULL::text[],
              NULL::bool), %s)
     AS v (seq, state, begun, open_by_kind, blocked, tasks_failed, files_total, files_done,
           files_failed, bytes_total, bytes_done, warnings, finished)
WHERE txn.seq = v.seq
"""
