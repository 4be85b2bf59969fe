"""What an ended transaction left undone, as tasks of its retry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

from nearline.type.v1.task_pb2 import Task as TaskProto
from services.monitor.queueing import Entry
from tests.simulation.rows import Counted, Task, Transaction

_MEETING = (TaskProto.SCAN, TaskProto.RESOLVE)


class Rows(Protocol):
    """The ledger's rows."""

    tasks: dict[int, Task]
    counted: list[Counted]


def leftovers(
    rows: Rows, old: Transaction, asked_kind: int, met: Entry, chunk: int
) -> tuple[list[Entry], list[list[str]]]:
    """Tasks for what failed, and the chunks of paths of some of them."""
    entries: list[Entry] = []
    chunks: list[list[str]] = []
    for task in (rows.tasks[number] for number in old.tasks):
        if task.state == TaskProto.FAILED and task.chunk is not None:
            entries.append(Entry(task.kind, task.payload, chunk=len(chunks)))
            chunks.append(old.chunks[task.chunk])
        elif task.state == TaskProto.FAILED and task.kind != TaskProto.TIDY:
            entries.append(_as_it_was(rows, task))
    met = Entry(met.kind, met.payload, met.cost)
    for meeting, like in ((True, Entry(asked_kind)), (False, met)):
        paths = list(dict.fromkeys(_failed_paths(rows, old.book.seq, meeting)))
        for at in range(0, len(paths), chunk):
            entries.append(replace(like, chunk=len(chunks)))
            chunks.append(paths[at : at + chunk])
    return entries, chunks


def _as_it_was(rows: Rows, task: Task) -> Entry:
    before = sum(f.task == task.id and f.token != task.ended_token for f in rows.counted)
    files = 0 if task.kind == TaskProto.SCAN else task.files or task.files_failed - before
    last = task.kind == TaskProto.FINISH_DIRECTORIES
    return Entry(task.kind, task.payload, task.cost, key=task.key, last=last, files=files)


def _failed_paths(rows: Rows, seq: int, meeting: bool) -> Iterator[str]:
    """One by one, not with the whole of their task."""
    for failure in sorted(rows.counted, key=lambda failure: failure.number):
        task = rows.tasks[failure.task]
        whole = task.state == TaskProto.FAILED and failure.token == task.ended_token
        mine = failure.txn == seq and (task.kind in _MEETING) == meeting
        if mine and failure.path and not whole:
            yield failure.path
