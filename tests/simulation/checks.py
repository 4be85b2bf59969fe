"""The invariants: what must hold after every step, judged without the rules that are under test."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from nearline.monitor.v1 import monitor_pb2 as pb
from nearline.type.v1.task_pb2 import Task as TaskProto
from nearline.type.v1.task_pb2 import TidyTask
from nearline.type.v1.transaction_pb2 import Transaction as TransactionProto
from services.kit.errors import NearlineError, ResourceExhausted
from services.monitor.book import Book, Report
from services.monitor.config import LedgerConfig
from services.monitor.queueing import Entry, Owner
from services.monitor.rules import Ending, Limits
from tests.simulation.model import Ledger
from tests.simulation.rows import (
    BLOCKED,
    DELAYED,
    ENDED,
    LEASED,
    READY,
    LaneName,
    Lease,
    Leased,
    Task,
)
from tests.simulation.world import World

TURNS = 6
"""Tasks of another lane that may be served before one that has no other open task in its lane."""


class Violation(AssertionError):
    """An invariant does not hold."""


@dataclass(slots=True)
class Sums:
    """What recorded results add up to."""

    total: int = 0
    done: int = 0
    failed: int = 0


@dataclass(slots=True)
class History:
    """What has happened to one task."""

    attempts: int = 0
    losses: int = 0
    tokens: int = 0
    overtaken: Counter[LaneName] | None = None
    """While it is alone in its lane: who was served before it, since it became ready."""
    not_before: float = 0.0
    failing_since: float | None = None
    arrived: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))


def require(holds: object, what: str, *values: object) -> None:
    """Raise Violation unless ``holds``."""
    if not holds:
        raise Violation(what.format(*values))


class CheckedLedger(Ledger):
    """Keeps its own account of leases and results beside the ledger's, and compares."""

    def __init__(
        self,
        world: World,
        limits: Limits,
        config: LedgerConfig,
        told: Callable[[set[int]], None],
    ) -> None:
        super().__init__(limits, config, world.random.random, told)
        self.world = world
        self.dirty = False
        self.seen: Counter[str] = Counter()
        """How often what happened."""
        self.finished: dict[int, tuple[object, ...]] = {}
        self._leases: dict[int, tuple[int, str]] = {}
        self._over: dict[int, tuple[int, Ending]] = {}
        self._beats: dict[str, float] = {}
        self._swept_at = -1.0
        """When leases were first taken back since the last jump of the clock."""
        self._tasks: dict[int, History] = defaultdict(History)
        self._incomplete: set[Lease] = set()
        self._retrying = False
        self._sums: dict[int, Sums] = defaultdict(Sums)
        self._wanted: set[tuple[str, bytes]] = set()
        self._unique: set[tuple[str, bytes]] = set()
        self._made: set[tuple[str, bytes]] = set()

    # Leases

    def hello(self, name: str, held: Iterable[Lease]) -> tuple[int, list[Lease]]:
        self._beats[name] = self.world.now
        return super().hello(name, held)

    def heartbeat(self, name: str, session: int) -> list[tuple[Lease, bool]]:
        held = super().heartbeat(name, session)
        self._beats[name] = self.world.now
        return held

    def off(self, lease: Lease) -> bool:
        """Whether the transaction of a lease was cancelled."""
        return self._cancelled(lease)

    def expire(self, lease_seconds: float) -> int:
        """By the clock that nobody sets: a jump of the other one costs no lease, and saves none."""
        before, now = dict(self._leases), self.world.now
        if self._swept_at < self.world.jumped_at:
            self._swept_at = now
        lost = super().expire(lease_seconds)
        for task in before.keys() - self._leases.keys():
            silent = now - self._beats[before[task][1]]
            require(silent > lease_seconds / 2, "task {} lost its lease early", task)
        for task, (_, name) in self._leases.items():
            silent = now - max(self._beats[name], self._swept_at)
            require(silent <= 2 * lease_seconds, "task {} keeps a lease of the dead", task)
        return lost

    def _give(self, task: Task, name: str) -> Leased:
        history = self._tasks[task.id]
        require(task.state == READY, "task {} is leased in state {}", task.id, task.state)
        require(task.id not in self._leases, "task {} has two holders", task.id)
        require(
            task.key is None or all(self.tasks[n].key != task.key for n in self._leases),
            "two tasks of key {} run", task.key,
        )  # fmt: skip
        require(not self._is_off(task), "task {} of cancelled work is leased", task.id)
        if task.kind == TaskProto.TIDY:
            of = self.tasks[TidyTask.FromString(task.payload).task_id]
            require(of.state in ENDED, "task {} is tidied up after before its end", of.id)
        self._count_turns(task, name)
        leased = super()._give(task, name)
        self.seen["leases"] += 1
        history.attempts += 1
        history.not_before = 0.0
        require(leased.token > history.tokens, "task {} repeats a token", task.id)
        require(leased.attempt == history.attempts, "task {}: attempt {}, not {}", task.id,
                leased.attempt, history.attempts)  # fmt: skip
        history.tokens = leased.token
        self._leases[task.id] = (leased.token, name)
        return leased

    def _count_turns(self, served: Task, name: str) -> None:
        """No lane is served more than a few times before a task that is alone in its own lane.

        A worker may be full of the waiting user's other tasks: what it takes is not counted.
        """
        self._tasks[served.id].overtaken = None
        here = {t.lane[1] for t in self.in_state[LEASED].values() if t.holder == name}
        for task in self.in_state[READY].values():
            overtaken = self._tasks[task.id].overtaken
            if overtaken is None or task.kind != served.kind or task.lane[1] in here:
                continue
            if task.lane != served.lane:
                overtaken[served.lane] += 1
                require(
                    overtaken[served.lane] <= TURNS * max(task.cost / served.cost, 1),
                    "task {} waits for {} tasks of {}", task.id, overtaken[served.lane],
                    served.lane,
                )  # fmt: skip

    # Results

    def record(self, reports: Sequence[Report]) -> list[bool]:
        valid = [self._account(report) for report in reports]
        before = None if any(valid) else self._image(reports)
        accepted = super().record(reports)
        for report, ok, was_valid in zip(reports, accepted, valid, strict=True):
            require(ok == (was_valid or self._is_repeat(report)), "{} accepted: {}", report, ok)
            self._count(report, was_valid, ok)
        if before is not None:
            require(before == self._image(reports), "a late report had an effect: {}", reports)
        for report, was_valid in zip(reports, valid, strict=True):
            if was_valid and report.ending is not None:
                self._check_ended(report)
        return accepted

    def _image(self, reports: Sequence[Report]) -> Any:  # type: ignore[override]
        if not isinstance(reports, Sequence):
            return super()._image(reports)
        rows = [self.tasks[r.task_id] for r in reports if r.task_id in self.tasks]
        books = [self.transactions[t.txn].book for t in rows if t.txn is not None]
        return repr(rows), repr(books), len(self.tasks), repr(dict(self.failures))

    def _count(self, report: Report, was_valid: bool, accepted: bool) -> None:
        if not was_valid:
            self.seen["repeated reports" if accepted else "late reports"] += 1
        elif report.ending is Ending.LOST:
            self.seen["leases lost on the way" if report.blameless else "leases lost"] += 1
        elif report.ending is Ending.FAIL:
            self.seen["failed attempts"] += 1

    def _is_repeat(self, report: Report) -> bool:
        token, ended = self._over.get(report.task_id, (0, Ending.LOST))
        same = token == report.token and report.ending in (None, ended)
        return same and ended is not Ending.LOST

    def _account(self, report: Report) -> bool:
        """Whether a report comes from who holds the task; then what it should lead to."""
        if self._leases.get(report.task_id, (0, ""))[0] != report.token:
            return False
        history = self._tasks[report.task_id]
        if isinstance(report.body, pb.WorkRequest.Failures):
            body = report.body
            history.arrived[report.token].update(range(body.first, body.first + len(body.failures)))
            return True
        assert report.ending is not None
        del self._leases[report.task_id]
        self._over[report.task_id] = (report.token, report.ending)
        self._account_end(self.tasks[report.task_id], history, report)
        return True

    def _account_end(self, task: Task, history: History, report: Report) -> None:
        body, off = report.body, self._is_off(task)
        if isinstance(body, pb.WorkRequest.Complete | pb.WorkRequest.Defer):
            if len(history.arrived[report.token]) != body.files_failed:
                self._incomplete.add((report.task_id, report.token))
                self._expect_retry(history, 0.0)
            elif isinstance(body, pb.WorkRequest.Complete) or not off:
                self._add(task, body)
        elif isinstance(body, pb.WorkRequest.Fail) and body.transient:
            self._expect_retry(history, body.retry_after.ToNanoseconds() / 1e9)
        elif report.blameless or isinstance(body, pb.WorkRequest.HandBack):
            history.attempts = max(history.attempts - 1, 0)
        elif body is None:
            history.losses += 1
            history.failing_since = history.failing_since or self.now

    def _expect_retry(self, history: History, at_least: float) -> None:
        limits = self.limits
        least = min(limits.retry_most, limits.retry_first * 2.0 ** (history.attempts - 1)) / 2
        history.not_before = self.now + max(least, at_least) - 1e-6
        history.failing_since = history.failing_since or self.now

    def _add(self, task: Task, body: pb.WorkRequest.Complete | pb.WorkRequest.Defer) -> None:
        """Count a result, and expect its follow-ups."""
        if task.txn is not None:
            sums = self._sums[task.txn]
            sums.failed += body.files_failed
            if isinstance(body, pb.WorkRequest.Complete):
                sums.total += body.files_total
                sums.done += body.files_done
        if isinstance(body, pb.WorkRequest.Defer):
            self._tasks[task.id] = History(tokens=self._tasks[task.id].tokens)
        if not self._is_off(task):
            for new in body.follow_ups:
                self._expect(self._home_of(task, new), new)

    def _home_of(self, task: Task, new: pb.NewTask) -> str:
        if new.HasField("transaction"):
            return new.transaction.id
        return "" if task.txn is None else self.transactions[task.txn].book.id

    def _check_ended(self, report: Report) -> None:
        """A lease that ended left its task in a state that follows from the report."""
        task, body = self.tasks[report.task_id], report.body
        incomplete = (report.task_id, report.token) in self._incomplete
        if isinstance(body, pb.WorkRequest.Complete) and not incomplete:
            allowed = {TaskProto.DONE}
        elif self._is_off(task):
            allowed = {TaskProto.CANCELLED}
        elif self._must_give_up(task, report, incomplete):
            allowed = {TaskProto.FAILED}
        else:
            allowed = {READY, DELAYED}
        require(task.state in allowed, "task {} is {} after {}", task.id, task.state, report)
        if task.state == TaskProto.FAILED and task.txn is not None:
            self.seen["tasks given up"] += 1
            self._count_given_up(task, task.txn)

    def _must_give_up(self, task: Task, report: Report, incomplete: bool) -> bool:
        history = self._tasks[task.id]
        if report.ending is Ending.LOST:
            return not report.blameless and history.losses >= self.limits.most_lost
        failed = isinstance(report.body, pb.WorkRequest.Fail)
        if failed and not report.body.transient:
            return True
        since = history.failing_since
        long_enough = since is not None and self.now - since >= self.limits.give_up_after
        return long_enough and (failed or incomplete)

    def _count_given_up(self, task: Task, seq: int) -> None:
        sums = self._sums[seq]
        if task.chunk is not None:
            sums.total += len(self.transactions[seq].chunks[task.chunk])
            sums.failed += len(self.transactions[seq].chunks[task.chunk])
        elif task.kind != TaskProto.TIDY:
            sums.failed += int(task.payload.split(b".")[2])

    def _is_off(self, task: Task) -> bool:
        off = task.txn is not None and self.transactions[task.txn].book.cancelled
        return off and task.kind != TaskProto.TIDY

    # Requests

    def _admit(self, spec: pb.TransactionSpec, *, fresh: bool = False) -> None:
        """Refused is who has too much, and nobody else."""
        full = bool(spec.identity.user) and self._is_full(spec, fresh)
        try:
            super()._admit(spec, fresh=fresh)
        except ResourceExhausted:
            self.seen["requests refused"] += 1
            require(full, "{} is refused though there is room", spec.id)
            raise
        require(not full, "{} is let in though there is no room", spec.id)

    def _is_full(self, spec: pb.TransactionSpec, fresh: bool) -> bool:
        config = self.config
        mine = self._load_of(lambda other: other.identity.user == spec.identity.user, fresh)
        ours = self._load_of(lambda other: other.group == spec.group, fresh)
        most = (
            config.running_per_user, config.tasks_per_user, config.paths_per_user,
            config.running_per_group, config.tasks_per_group, config.paths_per_group,
        )  # fmt: skip
        return any(has >= may for has, may in zip((*mine, *ours), most, strict=True))

    def _load_of(
        self, counts: Callable[[pb.TransactionSpec], bool], fresh: bool
    ) -> tuple[int, int, int]:
        """Transactions, tasks and paths, by the tasks themselves instead of the books."""
        running = {seq for seq, each in self.transactions.items()
                   if not each.book.finished and counts(each.spec)}  # fmt: skip
        tasks = sum(task.txn in running for task in self._open_tasks())
        paths = sum(each.paths for each in self.arriving.values() if counts(each.spec))
        return len(running), tasks, paths if fresh else 0

    def accept(
        self,
        spec: pb.TransactionSpec,
        tasks: Sequence[pb.NewTask],
        chunks: Sequence[list[str]] = (),
        chunk_kind: int = 0,
    ) -> bool:
        before = set(self._wanted), set(self._unique)
        if spec.id not in self.numbers:
            for new in tasks:
                self._expect(spec.id, new)
            self._wanted.update((spec.id, b"chunk %d" % n) for n in range(len(chunks)))
        running = self._load_of(lambda other: other.group == spec.group, fresh=False)[0]
        try:
            return super().accept(spec, tasks, chunks, chunk_kind)
        except NearlineError as refused:
            self._wanted, self._unique = before
            require(running or not isinstance(refused, ResourceExhausted),
                    "{} is refused though there is nothing whose end it can wait for",
                    spec.id)  # fmt: skip
            raise

    def cancel(self, id_: str) -> None:
        super().cancel(id_)
        self.dirty = True

    def retry(self, id_: str, asked_kind: int, met_task: pb.NewTask, chunk: int) -> str:
        known, first = len(self.transactions), len(self.tasks)
        self._retrying = True
        try:
            again = super().retry(id_, asked_kind, met_task, chunk)
        finally:
            self._retrying = False
        if len(self.transactions) > known:
            self._check_retry(self.transactions[self.numbers[id_]].book, again, first)
        return again

    def _check_retry(self, old: Book, again: str, first: int) -> None:
        """It is about each file that failed, once."""
        self.seen["retries"] += 1
        new = self.transactions[self.numbers[again]]
        self._sums[new.book.seq].total = new.book.files_total
        files = new.book.files_total + sum(map(len, new.chunks))
        require(files == old.files_failed, "{} is about {} files, {} failed", again, files,
                old.files_failed)  # fmt: skip
        of_old = {task.payload for task in self.of_transaction(old.seq)
                  if task.state == TaskProto.FAILED}  # fmt: skip
        for task in self.of_transaction(new.book.seq):
            require(task.id > first, "{} has a task of before", again)
            require(task.payload in of_old or task.chunk is not None, "{} did not fail", task)

    # Tasks

    def _expect(self, home: str, new: pb.NewTask) -> None:
        name = (home, new.payload.split(b".")[0])
        require(name not in self._wanted, "{} was asked for twice", name)
        self._wanted.add(name)
        if new.unique:
            self._unique.add(name)

    def _make(self, owner: Owner, lane: LaneName, entry: Entry, vt: float) -> Task:
        if entry.schedule is None and entry.kind != TaskProto.TIDY:
            home = "" if owner.seq is None else self.transactions[owner.seq].book.id
            chunk = entry.chunk
            part = entry.payload.split(b".")[0] if chunk is None else b"chunk %d" % chunk
            if self._retrying:
                self._wanted.add((home, part))
            require((home, part) in self._wanted, "nobody asked for {}", (home, part))
            require((home, part) not in self._made, "{} was made twice", (home, part))
            self._made.add((home, part))
        if entry.unique:
            same = [t for t in self._open_tasks() if (t.kind, t.key) == (entry.kind, entry.key)]
            require(not same, "two tasks {} {} are open", entry.kind, entry.key)
        return super()._make(owner, lane, entry, vt)

    def _move(self, task: Task, state: int) -> None:
        due = self._tasks[task.id].not_before
        require(state != READY or self.now >= due, "task {} is tried again too early", task.id)
        super()._move(task, state)
        self.dirty = True
        if state == READY and task.key is None:
            alone = all(t is task or t.lane != task.lane for t in self._open_tasks())
            self._tasks[task.id].overtaken = Counter() if alone else None

    # After every step

    def verify(self) -> None:
        """Compare the books with the tasks and with what was reported."""
        if not self.dirty:
            return
        self.dirty = False
        open_by_kind: dict[int | None, Counter[int]] = defaultdict(Counter)
        blocked: Counter[int | None] = Counter()
        for task in self._open_tasks():
            if task.state == BLOCKED:
                blocked[task.txn] += 1
            else:
                open_by_kind[task.txn][task.kind] += 1
        for seq, transaction in self.transactions.items():
            if seq in self.finished:
                self._verify_finished(transaction.book, seq in open_by_kind or seq in blocked)
            else:
                self._verify_book(transaction.book, open_by_kind[seq], blocked[seq])
        held = {task.id: (task.token, task.holder) for task in self.in_state[LEASED].values()}
        require(held == self._leases, "leases {} are not {}", held, self._leases)

    def _verify_finished(self, book: Book, has_work: bool) -> None:
        require(_row(book) == self.finished[book.seq], "{} changed after its end", book.id)
        require(not has_work, "{} has work after its end", book.id)

    def _verify_book(self, book: Book, open_by_kind: Counter[int], blocked: int) -> None:
        require(+book.open_by_kind == open_by_kind, "{} miscounts its tasks", book.id)
        require(book.blocked == blocked, "{} miscounts its blocked tasks", book.id)
        sums = self._sums[book.seq]
        counts = (book.files_total, book.files_done, book.files_failed)
        require(counts == (sums.total, sums.done, sums.failed), "{}: {}, not {}", book.id, counts,
                sums)  # fmt: skip
        if open_by_kind:
            require(not book.finished, "{} ends before its tasks", book.id)
            return
        require(book.finished and not blocked, "{} hangs: nothing of it can run", book.id)
        self._verify_end(book)

    def _verify_end(self, book: Book) -> None:
        self.finished[book.seq] = _row(book)
        self.seen["cancelled" if book.cancelled else "completed or failed"] += 1
        if not book.cancelled:
            total, served = book.files_total, book.files_done + book.files_failed
            require(total == served, "{}: {} files, {} outcomes", book.id, total, served)
        tasks = self.of_transaction(book.seq)
        self._verify_tidy(tasks)
        states = [task.state for task in tasks]
        failed = bool(book.files_failed or TaskProto.FAILED in states)
        require(book.state in _ends(book, failed), "{} ended in {}", book.id, book.state)

    def _verify_tidy(self, tasks: Sequence[Task]) -> None:
        """What the dead left half done in a user's directory was removed, or found to resist."""
        tidied = [TidyTask.FromString(task.payload) for task in tasks
                  if task.kind == TaskProto.TIDY and task.state != TaskProto.CANCELLED]  # fmt: skip
        left = [
            TidyTask(task_id=task.id, payload=task.payload) for task in tasks
            if task.kind in (TaskProto.DOWNLOAD, TaskProto.FINISH_DIRECTORIES)
            and task.state != TaskProto.DONE and self._tasks[task.id].losses
        ]  # fmt: skip
        require(sorted(tidied, key=lambda each: each.task_id) == left, "{} is left, {} was tidied",
                left, tidied)  # fmt: skip
        self.seen["tidied"] += len(tidied)

    def verify_all(self) -> None:
        """At the end: nothing is left, and no follow-up got lost."""
        homes = {book.id for t in self.transactions.values() if (book := t.book).cancelled}
        lost = {name for name in self._wanted - self._made - self._unique if name[0] not in homes}
        require(not lost, "follow-ups {} got lost", lost)
        for transaction in self.transactions.values():
            require(transaction.book.finished, "{} did not end", transaction.book.id)


def _row(book: Book) -> tuple[object, ...]:
    return (
        book.state, book.files_total, book.files_done, book.files_failed, book.bytes_total,
        book.bytes_done, book.tasks_failed, len(book.warnings), book.cancelled,
    )  # fmt: skip


def _ends(book: Book, failed: bool) -> set[int]:
    """The final states that are true of it."""
    if book.cancelled:
        return {TransactionProto.CANCELLED}
    if failed:
        return {TransactionProto.COMPLETE_WITH_ERRORS if book.files_done else
                TransactionProto.FAILED}  # fmt: skip
    if book.action == TransactionProto.PUT and not book.files_total:
        return {TransactionProto.FAILED}
    return {TransactionProto.COMPLETE_WITH_WARNINGS if book.warnings else
            TransactionProto.COMPLETE}  # fmt: skip
