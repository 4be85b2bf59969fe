"""What enters the queue, and when its turn is. No I/O.

Every lane (kind, user, group) takes turns: a task's virtual time is where its lane stands plus the
task's cost, and ready tasks go by virtual time. The clock of a kind is the virtual time that is
served; no lane starts behind it. A lane stands in two places, one for new tasks and one for those
that come back, so that a retry waits neither behind its user's whole backlog nor in a crowd.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nearline.monitor.v1 import monitor_pb2
from nearline.type.v1.task_pb2 import Task, TidyTask
from services.monitor import rules

_MOST_COST = 86_400.0

Name = tuple[int, str | None]
"""(kind, key)"""


@dataclass(frozen=True, slots=True)
class Owner:
    """Whom tasks are for; ``seq`` is None outside of any transaction."""

    seq: int | None
    user: str
    group: str


NOBODY = Owner(None, "", "")


@dataclass(frozen=True, slots=True)
class Entry:
    """A task to be made; ``cost`` and ``delay`` in seconds."""

    kind: int
    payload: bytes = b""
    cost: float = 1.0
    delay: float = 0.0
    key: str | None = None
    unique: bool = False
    last: bool = False
    chunk: int | None = None
    schedule: str | None = None
    files: int = 0

    @property
    def state(self) -> int:
        """The state it begins with."""
        if self.last:
            return Task.BLOCKED
        return Task.DELAYED if self.delay > 0 else Task.READY


def entry_of(task: monitor_pb2.NewTask) -> Entry:
    """The entry that a NewTask asks for."""
    cost = task.cost if math.isfinite(task.cost) and task.cost > 0 else 1.0
    return Entry(
        kind=task.kind,
        payload=task.payload,
        cost=min(cost, _MOST_COST),
        delay=task.delay.ToNanoseconds() / 1e9,
        key=task.key or None,
        unique=task.unique,
        last=task.last,
        files=max(task.files, 0),
    )


def tidying(task: int, payload: bytes) -> Entry:
    """The task that removes what dead workers left of ``task``, which ended without being done."""
    return Entry(Task.TIDY, TidyTask(task_id=task, payload=payload).SerializeToString())


def admitted(entries: Iterable[Entry], *, cancelled: bool) -> list[Entry]:
    """Those of ``entries`` that a transaction still takes."""
    return [e for e in entries if not rules.is_cancelled(e.kind, cancelled=cancelled)]


def without_open(entries: Iterable[Entry], open_names: Iterable[Name]) -> list[Entry]:
    """``entries`` but for unique ones of which a task is open, or comes before them."""
    seen, kept = set(open_names), []
    for entry in entries:
        name = (entry.kind, entry.key)
        if not (entry.unique and name in seen):
            kept.append(entry)
        seen.add(name)
    return kept


def place(entries: Sequence[Entry], start: float) -> tuple[list[float], float]:
    """Virtual times of new tasks in a lane that stands at ``start``, and where it stands then.

    Only what is ready takes its turn; what waits is given one when it becomes ready.
    """
    turns = rules.tags(start, [entry.cost for entry in entries if entry.state == Task.READY])
    taken = iter(turns)
    times = [next(taken) if entry.state == Task.READY else start for entry in entries]
    return times, turns[-1] if turns else start
