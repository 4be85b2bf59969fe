"""What clients ask for and what workers will meet: made up by chance, before or as it happens."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from nearline.monitor.v1 import monitor_pb2 as pb
from nearline.type.v1.identity_pb2 import Identity
from nearline.type.v1.task_pb2 import Task
from nearline.type.v1.transaction_pb2 import Failure, Transaction
from services.kit.jobs import new_task, seconds
from tests.simulation.rows import Leased

TRANSFER = (Task.SCAN, Task.UPLOAD, Task.DOWNLOAD, Task.FINISH_DIRECTORIES, Task.TIDY)
TAPE = (Task.STAGE, Task.ARCHIVE, Task.CONFIRM, Task.PLAN_ARCHIVE)
USERS = ("alice", "bob", "carol")


@dataclass(frozen=True, slots=True)
class Node:
    """A task: how many files it is about and what befalls those who try."""

    kind: int
    files: int = 0
    polls: int = 0
    transient: int = 0
    """So many attempts fail first."""
    permanent: bool = False
    poison: bool = False
    spared: int = 0
    """So many polls go well before any of this."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a client submits."""

    spec: pb.TransactionSpec
    chunks: list[list[str]]
    tasks: list[pb.NewTask]


class Plans:
    """All tasks by the number at the start of their payload."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._nodes: dict[int, Node] = {}
        self._chunks: dict[tuple[int | None, int], int] = {}
        self._tidying: dict[int, int] = {}
        """Of tasks whose payload is the ledger's."""
        self._tried: dict[int, int] = {}
        self._ids = 0
        self.down_until = 0.0
        """Until then uploads fail at once, for a reason that passes."""

    def is_down(self, task: Leased, now: float) -> bool:
        """Whether what a task needs is down."""
        return task.kind == Task.UPLOAD and now < self.down_until

    def request(self, user: str, chunks: int) -> Request:
        """A PUT of some chunks of paths."""
        spec = self._spec(user, Transaction.PUT)
        lists = [[f"/{n}/{m}" for m in range(self._chance.randint(1, 5))] for n in range(chunks)]
        tasks = []
        if self._chance.random() < 0.4:
            tasks.append(self._task(Node(Task.FINISH_DIRECTORIES), last=True))
        if self._chance.random() < 0.1:
            tasks.append(self._task(self._node(Task.UPLOAD, 0)))
        return Request(spec, lists, tasks)

    def crowd(self, user: str, tasks: int) -> Request:
        """A request of many short tasks at once, of no files."""
        made = [self._task(Node(Task.UPLOAD)) for _ in range(tasks)]
        return Request(self._spec(user, Transaction.EVICT), [], made)

    def single(self, user: str) -> Request:
        """A request of one task."""
        return self.crowd(user, 1)

    def attempt(self, task: Leased, paths: int, now: float) -> Iterator[pb.WorkRequest] | None:
        """What one attempt at a task says; None when it kills its worker."""
        number, poll, files = self._read(task, paths)
        node = self._nodes[number]
        if poll < node.spared:
            return self._serve(task, node, number, poll, files)
        self._tried[number] = self._tried.get(number, 0) + 1
        if self.is_down(task, now):
            return iter([_fail(task, files, transient=True, retry_after=20)])
        return None if node.poison else self._say(task, node, number, poll, files)

    def _say(
        self, task: Leased, node: Node, number: int, poll: int, files: int
    ) -> Iterator[pb.WorkRequest]:
        if node.permanent or self._tried[number] <= node.transient:
            after = 20 if self._chance.random() < 0.2 else 0
            yield _fail(task, files, transient=not node.permanent, retry_after=after)
        else:
            yield from self._serve(task, node, number, poll, files)

    def _serve(
        self, task: Leased, node: Node, number: int, poll: int, files: int
    ) -> Iterator[pb.WorkRequest]:
        lease = pb.Lease(task_id=task.task_id, token=task.token)
        failed = self._chance.choice((0, 0, 0, self._chance.randint(0, files)))
        yield from _failures(lease, b"%d.%d" % (number, poll), failed, self._chance.random() < 0.5)
        if poll < node.polls:
            yield self._defer(lease, number, poll, files, failed)
        else:
            yield self._complete(lease, node, files, failed, met=task.chunk is not None)

    def _defer(
        self, lease: pb.Lease, number: int, poll: int, files: int, failed: int
    ) -> pb.WorkRequest:
        payload = b"%d.%d.%d" % (number, poll + 1, files - failed)
        defer = pb.WorkRequest.Defer(
            lease=lease, delay=seconds(self._chance.choice((0, 1, 10))), payload=payload,
            files_failed=failed, waiting_for="a tape",
        )  # fmt: skip
        return pb.WorkRequest(defer=defer)

    def _complete(
        self, lease: pb.Lease, node: Node, files: int, failed: int, *, met: bool
    ) -> pb.WorkRequest:
        served = 0 if met else files - failed
        follow_ups = self._split(files - failed) if met else self._rest(node.kind, served)
        done = pb.WorkRequest.Complete(
            lease=lease, files_total=files if met else 0, files_done=served, files_failed=failed,
            follow_ups=follow_ups,
            warnings=["odd"] if self._chance.random() < 0.1 else [],
        )  # fmt: skip
        # Two transports may hold the same failures: a worker that lost some of them says so.
        if failed and self._chance.random() < 0.02:
            done.files_failed += 1
            done.files_done = max(served - 1, 0)
        return pb.WorkRequest(complete=done)

    def _split(self, files: int) -> list[pb.NewTask]:
        """Tasks for the files that a SCAN met."""
        tasks = []
        while files:
            some = self._chance.randint(1, files)
            kind = self._chance.choice((Task.UPLOAD, Task.DOWNLOAD, Task.DOWNLOAD, Task.STAGE))
            tasks.append(self._task(self._node(kind, some)))
            files -= some
        return tasks

    def _rest(self, kind: int, files: int) -> list[pb.NewTask]:
        """What follows an upload, if anything does."""
        chance = self._chance.random()
        if kind == Task.TIDY:
            return []
        if kind in (Task.ARCHIVE, Task.PLAN_ARCHIVE) or chance < 0.1:
            spec = self._spec("", Transaction.ARCHIVE)
            return [self._task(Node(Task.CONFIRM), transaction=spec)]
        if chance < 0.25 and files:
            key = f"tape-{self._chance.randint(1, 2)}"
            return [self._task(Node(Task.CONFIRM), unique=True, key=key, delay=5)]
        return []

    def _node(self, kind: int, files: int) -> Node:
        fate = self._chance.random()
        polls = self._chance.randint(0, 3) if kind == Task.STAGE else 0
        return Node(
            kind, files, polls,
            transient=self._chance.choice((1, 3, 1000)) if fate < 0.15 else 0,
            permanent=0.15 < fate < 0.2,
            poison=0.2 < fate < 0.205,
            spared=self._chance.randint(0, polls),
        )  # fmt: skip

    def _task(self, node: Node, **options: object) -> pb.NewTask:
        number = self._add(node)
        if node.kind == Task.STAGE:
            options.setdefault("key", f"blob-{self._chance.randint(1, 3)}")
        task = new_task(node.kind, **options)  # type: ignore[arg-type]
        task.payload = b"%d.0.%d" % (number, node.files)
        task.files = node.files
        return task

    def _add(self, node: Node) -> int:
        self._ids += 1
        self._nodes[self._ids] = node
        return self._ids

    def _read(self, task: Leased, paths: int) -> tuple[int, int, int]:
        if task.kind == Task.TIDY:
            if task.task_id not in self._tidying:
                self._tidying[task.task_id] = self._add(self._node(Task.TIDY, 0))
            return self._tidying[task.task_id], 0, 0
        if task.payload:
            number, poll, files = map(int, task.payload.split(b"."))
            return number, poll, files
        if task.chunk is None:
            return self._add(Node(task.kind)), 0, 0
        where = (task.txn, task.chunk)
        if where not in self._chunks:
            self._chunks[where] = self._add(self._node(Task.SCAN, paths))
        return self._chunks[where], 0, paths

    def _spec(self, user: str, action: int) -> pb.TransactionSpec:
        self._ids += 1
        return pb.TransactionSpec(
            id=f"request-{self._ids}", identity=Identity(user=user),
            group="h" if user == "carol" else "g", action=action,  # type: ignore[arg-type]
        )  # fmt: skip


def _fail(task: Leased, files: int, *, transient: bool, retry_after: float) -> pb.WorkRequest:
    fail = pb.WorkRequest.Fail(
        lease=pb.Lease(task_id=task.task_id, token=task.token),
        code="DOWN", reason="down", transient=transient, files=files,
    )  # fmt: skip
    if retry_after:
        fail.retry_after.CopyFrom(seconds(retry_after))
    return pb.WorkRequest(fail=fail)


def _failures(lease: pb.Lease, name: bytes, count: int, in_two: bool) -> Iterator[pb.WorkRequest]:
    cut = count // 2 if in_two else 0
    for first, end in ((0, cut), (cut, count)):
        if first < end:
            found = [Failure(path=f"/{name.decode()}/{n}", code="GONE") for n in range(first, end)]
            body = pb.WorkRequest.Failures(lease=lease, failures=found, first=first)
            yield pb.WorkRequest(failures=body)
