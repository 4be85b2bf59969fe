"""Requests on their way in: paths are stored batch by batch, the commit makes the transaction."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence

from sqlalchemy import Connection

from nearline.monitor.v1 import monitor_pb2
from services.kit import crash
from services.kit.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
)
from services.monitor import admission, books, sql
from services.monitor.book import problem_of
from services.monitor.config import LedgerConfig
from services.monitor.queueing import Entry, entry_of

TransactionSpec = monitor_pb2.TransactionSpec

CHUNK = 1000
"""Paths of one task."""


def checked_id(text: str, field: str = "id") -> str:
    """``text`` as the canonical form of a UUID. Raises InvalidArgument."""
    try:
        return str(uuid.UUID(text))
    except ValueError as error:
        raise _invalid(field, f"{text[:60]!r} is no UUID") from error


def check_header(spec: TransactionSpec) -> TransactionSpec:
    """``spec`` with its id in canonical form. Raises InvalidArgument."""
    checked = TransactionSpec()
    checked.CopyFrom(spec)
    checked.id = checked_id(spec.id, "header.transaction.id")
    if not spec.action:
        raise _invalid("header.transaction.action", "it must say what is asked for")
    texts = (spec.group, spec.job_label, spec.label, spec.identity.user)
    if any("\0" in text for text in texts):
        raise _invalid("header.transaction", "its names must not hold a NUL")
    return checked


def check_paths(batch: monitor_pb2.SubmitRequest.Paths) -> None:
    """Raise InvalidArgument unless the ledger can store the batch."""
    if not 1 <= len(batch.paths) <= CHUNK:
        raise _invalid("paths.paths", f"send 1 to {CHUNK} at once, not {len(batch.paths)}")
    if batch.first < 0:
        raise _invalid("paths.first", "it counts from 0")
    for number, path in enumerate(batch.paths):
        if not path or "\0" in path:
            raise _invalid(f"paths.paths[{number}]", "a path is not empty and holds no NUL")


def check_commit(commit: monitor_pb2.SubmitRequest.Commit) -> None:
    """Raise InvalidArgument unless the commit makes at least one task."""
    for number, task in enumerate(commit.tasks):
        if problem := problem_of(task):
            raise _invalid(f"commit.tasks[{number}]", problem)
    if not commit.tasks and not (commit.total > 0 and commit.chunk_kind):
        raise _invalid("commit", "it needs tasks, or paths and the kind of their tasks")


def begin(connection: Connection, spec: TransactionSpec, config: LedgerConfig) -> int | None:
    """Begin or take up a submission: position of the next path; None if it is accepted already.

    Raises AlreadyExists, PermissionDenied, ResourceExhausted.
    """
    values = (spec.id, spec.SerializeToString(), spec.identity.user, spec.group)
    known, following = sql.rows(connection, _BEGIN, values)[0]
    # Looked for behind the insert, which waits for an acceptance that goes on.
    if _is_accepted(connection, spec):
        sql.run(connection, "DELETE FROM submission WHERE id = %s", (spec.id,))
        return None
    _check_same(spec, known)
    admission.check(connection, spec.identity.user, spec.group, config, fresh=not following)
    return int(following)


def store(
    connection: Connection, asked: TransactionSpec, batch: monitor_pb2.SubmitRequest.Paths
) -> int | None:
    """Keep a batch; position of the next path. What is stored already may come again.

    None when there is a transaction already: the request was cancelled, or accepted by a repeat.
    Raises FailedPrecondition for a gap, AlreadyExists when other paths stand there, and as `begin`
    does when the id has come to be another request's meanwhile.
    """
    following = _lock(connection, asked)
    if following is None:
        return None
    if batch.first > following:
        raise FailedPrecondition(
            "PATHS_MISSING",
            f"path {following} comes next, not {batch.first}; send the list from there",
            next=following,
        )
    known = min(following - batch.first, len(batch.paths))
    if known and _stored(connection, asked.id, batch.first, known) != batch.paths[:known]:
        raise AlreadyExists(
            "PATHS_DIFFER",
            f"other paths are stored from {batch.first} on; send the same list, or take a new id",
        )
    fresh = batch.paths[known:]
    for chunk, paths in _chunks(following, fresh):
        sql.run(connection, _APPEND, (asked.id, chunk, paths))
    statement = "UPDATE submission SET next = %s, updated_at = now() WHERE id = %s"
    sql.run(connection, statement, (following + len(fresh), asked.id))
    return following + len(fresh)


def accept(
    connection: Connection,
    asked: TransactionSpec,
    commit: monitor_pb2.SubmitRequest.Commit,
    config: LedgerConfig,
) -> None:
    """Make the transaction and its first tasks; nothing when it is accepted already.

    Raises FailedPrecondition, ResourceExhausted, and as `begin` does when the id has come to be
    another request's meanwhile.
    """
    stored = _lock(connection, asked)
    if stored is None:
        return
    if stored != commit.total:
        raise FailedPrecondition(
            "PATHS_MISSING",
            f"{stored} of {commit.total} paths are stored; send the rest and commit again",
            next=stored,
        )
    statement = "DELETE FROM submission WHERE id = %s RETURNING spec"
    spec = TransactionSpec.FromString(bytes(sql.rows(connection, statement, (asked.id,))[0][0]))
    admission.check(connection, spec.identity.user, spec.group, config)
    warnings = [*spec.warnings, *commit.warnings]
    spec.ClearField("warnings")
    spec.holding_id = commit.holding_id or spec.holding_id
    spec.label = commit.label or spec.label
    book = books.open_book(connection, spec, warnings)
    if book is not None:
        made = books.add_tasks(connection, book, _entries(commit, stored))
        books.settle(connection, [book], made.ready_kinds)
    crash.point("monitor.accept.before_commit")


def read_paths(connection: Connection, transaction_id: str, chunk: int) -> list[str] | None:
    """The paths of one chunk; None when there is none."""
    statement = "SELECT paths FROM path_chunk WHERE transaction_id = %s AND chunk = %s"
    found = sql.rows(connection, statement, (transaction_id, chunk))
    return list(found[0][0]) if found else None


def _entries(commit: monitor_pb2.SubmitRequest.Commit, paths: int) -> Iterator[Entry]:
    if commit.chunk_kind:
        for chunk in range(-(-paths // CHUNK)):
            yield Entry(commit.chunk_kind, chunk=chunk)
    yield from map(entry_of, commit.tasks)


def _chunks(first: int, paths: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """``paths``, the first of which has number ``first``, cut at the chunks' borders."""
    done = 0
    while done < len(paths):
        chunk, offset = divmod(first + done, CHUNK)
        part = paths[done : done + CHUNK - offset]
        yield chunk, list(part)
        done += len(part)


def _stored(connection: Connection, transaction_id: str, first: int, count: int) -> list[str]:
    chunks: Iterable[int] = range(first // CHUNK, (first + count - 1) // CHUNK + 1)
    paths: list[str] = []
    for chunk in chunks:
        paths += read_paths(connection, transaction_id, chunk) or []
    return paths[first % CHUNK :][:count]


def cancel(connection: Connection, transaction_id: str, visible: monitor_pb2.Visibility) -> bool:
    """End a request whose paths still arrive; whether there was one that may be seen.

    It becomes a transaction that was cancelled before anything began, so that a repeat of the
    request is told so.
    """
    statement = "SELECT spec FROM submission WHERE id = %s FOR UPDATE"
    for (data,) in sql.rows(connection, statement, (transaction_id,)):
        spec = TransactionSpec.FromString(bytes(data))
        if not _is_visible(spec, visible):
            return False
        _drop(connection, transaction_id)
        book = books.open_book(connection, spec, spec.warnings)
        if book is not None:
            book.cancelled = True
            sql.run(connection, "UPDATE txn SET cancelled_at = now() WHERE seq = %s", (book.seq,))
            books.settle(connection, [book], set())
        return True
    return False


def displace(connection: Connection, transaction_id: str) -> None:
    """Drop a request on its way in under an id that the caller gives to a transaction of its own.

    Its paths would become part of that transaction, and be taken for its user's.
    """
    # Inserted first, so that one that begins in this moment waits, and then finds the transaction.
    sql.run(connection, _BEGIN, (transaction_id, b"", "", ""))
    _drop(connection, transaction_id)


def _drop(connection: Connection, transaction_id: str) -> None:
    sql.run(connection, "DELETE FROM submission WHERE id = %s", (transaction_id,))
    sql.run(connection, "DELETE FROM path_chunk WHERE transaction_id = %s", (transaction_id,))


def _is_visible(spec: TransactionSpec, visible: monitor_pb2.Visibility) -> bool:
    in_groups = not visible.groups or spec.group in visible.groups
    return in_groups and visible.user in ("", spec.identity.user)


def _lock(connection: Connection, asked: TransactionSpec) -> int | None:
    """Lock a submission; position of its next path, None when it is a transaction by now.

    Checked at each step, not only when it begins: a retry takes its id from a submission, and one
    that was silent for long is dropped, so that somebody else may begin under the id.
    """
    statement = "SELECT spec, next FROM submission WHERE id = %s FOR UPDATE"
    for known, following in sql.rows(connection, statement, (asked.id,)):
        _check_same(asked, known)
        return int(following)
    if _is_accepted(connection, asked):
        return None
    raise FailedPrecondition(
        "SUBMISSION_GONE", "the submission was dropped meanwhile; send the request again"
    )


def _is_accepted(connection: Connection, asked: TransactionSpec) -> bool:
    """Whether there is a transaction of the request. Raises as `begin` when it is another's."""
    found = sql.rows(connection, "SELECT spec FROM txn WHERE id = %s", (asked.id,))
    for (known,) in found:
        _check_same(asked, known)
    return bool(found)


def _check_same(asked: TransactionSpec, stored: memoryview) -> None:
    """Raise PermissionDenied or AlreadyExists unless what is stored is the spec ``asked``."""
    known = TransactionSpec.FromString(bytes(stored))
    if asked.identity.user != known.identity.user:
        raise PermissionDenied(
            "TRANSACTION_FOREIGN", "this transaction id is another user's; take a new one"
        )
    same = all(
        getattr(asked, name) == getattr(known, name)
        for name in ("action", "group", "job_label", "options")
    )
    # Holding and label may have come with the commit.
    for name in ("holding_id", "label"):
        same &= getattr(asked, name) in (getattr(known, name), type(getattr(known, name))())
    if not same:
        raise AlreadyExists(
            "TRANSACTION_EXISTS", f"{known.id} is the id of another request; take a new one"
        )


def _invalid(field: str, problem: str) -> InvalidArgument:
    return InvalidArgument("BAD_REQUEST", f"{field}: {problem}", violations=[(field, problem)])


_BEGIN = """
INSERT INTO submission (id, spec, user_name, group_name) VALUES (%s, %s, %s, %s)
ON CONFLICT (id) DO UPDATE SET updated_at = now() RETURNING spec, next
"""

_APPEND = """
INSERT INTO path_chunk AS c (transaction_id, chunk, paths) VALUES (%s, %s, %s)
ON CONFLICT (transaction_id, chunk) DO UPDATE SET paths = c.paths || excluded.paths
"""
