"""The queue in plain Python: tasks by state, lanes, and turns."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from services.monitor import queueing, rules
from services.monitor.queueing import Entry, Owner
from tests.simulation.rows import (
    BLOCKED,
    DELAYED,
    ENDED,
    LEASED,
    READY,
    Lane,
    LaneName,
    Task,
)


class Queue:
    """Tasks and lanes. ``told`` hears of kinds that became ready."""

    def __init__(self, told: Callable[[set[int]], None]) -> None:
        self.now = 0.0
        self.tasks: dict[int, Task] = {}
        self.lanes: dict[LaneName, Lane] = {}
        self.in_state: dict[int, dict[int, Task]] = defaultdict(dict)
        self._told = told

    def clock(self, kind: int) -> float:
        """The virtual time that is served: of the next ready task, or of the furthest lane."""
        ready = [task.order for task in self.in_state[READY].values() if task.kind == kind]
        if ready:
            return min(ready)[0]
        places = [max(lane.vt, lane.again) for name, lane in self.lanes.items() if name[0] == kind]
        return max(places, default=0.0)

    def _enqueue(self, owner: Owner, entries: list[Entry]) -> list[Task]:
        names = {entry.key for entry in entries if entry.unique}
        open_names = [(t.kind, t.key) for t in self._open_tasks() if t.key in names]
        by_kind: dict[int, list[Entry]] = defaultdict(list)
        for entry in queueing.without_open(entries, open_names):
            by_kind[entry.kind].append(entry)
        for kind in by_kind:
            self.lanes.setdefault((kind, owner.user, owner.group), Lane())
        starts = {kind: self._start(kind, owner) for kind in by_kind}
        return [task for kind in sorted(by_kind)
                for task in self._place(owner, kind, starts[kind], by_kind[kind])]  # fmt: skip

    def _start(self, kind: int, owner: Owner) -> float:
        return max(self.lanes[kind, owner.user, owner.group].vt, self.clock(kind))

    def _place(self, owner: Owner, kind: int, start: float, entries: list[Entry]) -> list[Task]:
        name = (kind, owner.user, owner.group)
        times, following = queueing.place(entries, start)
        if following > start:
            self.lanes[name].vt = following
        return [self._make(owner, name, e, vt) for e, vt in zip(entries, times, strict=True)]

    def _make(self, owner: Owner, lane: LaneName, entry: Entry, vt: float) -> Task:
        task = Task(
            id=len(self.tasks) + 1, txn=owner.seq, kind=entry.kind, state=0, lane=lane, vt=vt,
            cost=entry.cost, payload=entry.payload, key=entry.key, chunk=entry.chunk,
            schedule=entry.schedule, files=entry.files,
            not_before=self.now + entry.delay if entry.state == DELAYED else None,
        )  # fmt: skip
        self.tasks[task.id] = task
        self._move(task, entry.state)
        return task

    def _requeue(self, tasks: Iterable[Task]) -> None:
        """Give tasks that are not ready yet their turns."""
        by_lane: dict[LaneName, list[Task]] = defaultdict(list)
        for task in sorted(tasks, key=lambda task: task.order):
            by_lane[task.lane].append(task)
        starts = {name: max(self.lanes[name].again, self.clock(name[0])) for name in by_lane}
        for name, back in by_lane.items():
            times = rules.tags(starts[name], [task.cost for task in back])
            for task, vt in zip(back, times, strict=True):
                task.vt = vt
            self.lanes[name].again = times[-1]

    def _make_ready(self, tasks: Sequence[Task]) -> None:
        self._requeue(tasks)
        for task in tasks:
            task.not_before = None
            self._move(task, READY)

    def _open_tasks(self) -> Iterable[Task]:
        return (t for state in (READY, LEASED, DELAYED, BLOCKED)
                for t in self.in_state[state].values())  # fmt: skip

    def _move(self, task: Task, state: int) -> None:
        if task.state in self.in_state:
            self.in_state[task.state].pop(task.id, None)
        task.state = state
        if state not in ENDED:
            self.in_state[state][task.id] = task
        if state == READY:
            self._told({task.kind})
