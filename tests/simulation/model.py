"""The ledger in plain Python: the store that SQL implements, with the services' own rules inside.

Every method is one database transaction at the time :attr:`Ledger.now`. The simulation runs on it;
tests/service/monitor/test_model.py holds the real store on PostgreSQL to it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from heapq import nsmallest
from typing import Any

from nearline.monitor.v1 import monitor_pb2 as pb
from nearline.type.v1.task_pb2 import Task as TaskProto
from nearline.type.v1.transaction_pb2 import Transaction as TransactionProto
from services.kit.retrying import retry_id
from services.monitor import retries, rules
from services.monitor.book import Book, Effects, Report, TaskRow, end_lease, files_failed, judge_all
from services.monitor.config import LedgerConfig
from services.monitor.queueing import NOBODY, Entry, Owner, admitted, entry_of, tidying
from services.monitor.rules import Ending, Limits, Verdict
from tests.simulation.intake import Intake
from tests.simulation.leftovers import leftovers
from tests.simulation.rows import (
    BLOCKED,
    DELAYED,
    ENDED,
    LEASED,
    READY,
    Appetite,
    Counted,
    Lease,
    Leased,
    Schedule,
    SupersededError,
    Taken,
    Task,
    Transaction,
    Worker,
)

ANYTHING = Appetite()


class Ledger(Intake):
    """All rows. ``jitter`` gives numbers in [0, 1); ``told`` hears of kinds that became ready."""

    def __init__(
        self,
        limits: Limits,
        config: LedgerConfig,
        jitter: Callable[[], float],
        told: Callable[[set[int]], None],
    ) -> None:
        super().__init__(config, told)
        self.limits = limits
        self.workers: dict[str, Worker] = {}
        self.schedules: dict[str, Schedule] = {}
        self.failures: dict[Lease, dict[int, Counted]] = defaultdict(dict)
        """By position, of leases whose failures arrived and are not counted."""
        self.counted: list[Counted] = []
        self._arrived = 0
        self._jitter = jitter

    # Requests

    def accept(
        self,
        spec: pb.TransactionSpec,
        tasks: Sequence[pb.NewTask],
        chunks: Sequence[list[str]] = (),
        chunk_kind: int = 0,
    ) -> bool:
        """Accept a request; False when it was before.

        Raises FailedPrecondition, ResourceExhausted.
        """
        if spec.id in self.numbers:
            return False
        self._on_its_way(spec.id)
        self._admit(spec)
        del self.arriving[spec.id]
        book = self._open(spec, chunks).book
        entries = [Entry(chunk_kind, chunk=n) for n in range(len(chunks))] if chunk_kind else []
        self._add_tasks(book, [*entries, *map(entry_of, tasks)])
        self._settle([book])
        return True

    def cancel(self, id_: str) -> None:
        """Stop what has not begun; a request on its way in is accepted as one that has ended."""
        if known := self.arriving.pop(id_, None):
            self._open(known.spec)
        transaction = self.transactions[self.numbers[id_]]
        book = transaction.book
        if book.finished or book.cancelled:
            return
        book.cancelled = True
        transaction.cancelled_at = self.now
        waiting = [t for t in self.of_transaction(book.seq) if t.kind != TaskProto.TIDY
                   and t.state in (READY, DELAYED, BLOCKED)]  # fmt: skip
        for task in waiting:
            self._stop(task, book)
        self._add_tasks(book, [tidying(t.id, t.payload) for t in waiting
                               if rules.must_tidy(t.kind, t.state, t.lost)])  # fmt: skip
        self._settle([book])

    def retry(self, id_: str, asked_kind: int, met_task: pb.NewTask, chunk: int) -> str:
        """Run again what failed, in ``chunk`` paths per task: the id of the one retry.

        Raises FailedPrecondition, ResourceExhausted.
        """
        old = self.transactions[self.numbers[id_]]
        again = retry_id(id_)
        if again not in self.numbers:
            retries.check_state(old.book)
            self._admit(old.spec)
            self.arriving.pop(again, None)
            entries, chunks = leftovers(self, old, asked_kind, entry_of(met_task), chunk)
            retries.check_left(old.book, entries)
            spec = pb.TransactionSpec()
            spec.CopyFrom(old.spec)
            spec.id = again
            spec.ClearField("warnings")
            book = self._open(spec, chunks).book
            book.files_total = sum(entry.files for entry in entries)
            self._add_tasks(book, entries)
            self._settle([book])
        return again

    def _stop(self, task: Task, book: Book) -> None:
        if task.state == BLOCKED:
            book.blocked -= 1
        else:
            book.open_by_kind[task.kind] -= 1
        if task.state == READY:
            lane = self.lanes[task.lane]
            if task.token:
                lane.again -= task.cost
            else:
                lane.vt -= task.cost
        self._move(task, TaskProto.CANCELLED)
        task.not_before = None

    def _open(self, spec: pb.TransactionSpec, chunks: Sequence[list[str]] = ()) -> Transaction:
        seq = len(self.transactions) + 1
        book = Book(
            seq=seq, id=spec.id, action=spec.action, user=spec.identity.user, group=spec.group,
            state=TransactionProto.QUEUED, warnings=list(spec.warnings),
        )  # fmt: skip
        self.numbers[spec.id] = seq
        self.transactions[seq] = Transaction(book, spec, list(chunks))
        return self.transactions[seq]

    # Workers

    def hello(self, name: str, held: Iterable[Lease]) -> tuple[int, list[Lease]]:
        """Register a stream: its session, and the leases that go on."""
        worker = self.workers.setdefault(name, Worker())
        worker.session += 1
        worker.seen_at = self.now
        leased, wanted = self.held_by(name), set(held)
        lost = [Report(*lease, Ending.LOST, blameless=True) for lease in leased
                if lease not in wanted]  # fmt: skip
        if lost:
            self.record(lost)
        return worker.session, [lease for lease in leased if lease in wanted]

    def heartbeat(self, name: str, session: int) -> list[tuple[Lease, bool]]:
        """Extend a worker's leases: those it has, and whether they were cancelled."""
        self._check(name, session)
        self.workers[name].seen_at = self.now
        return [(lease, self._cancelled(lease)) for lease in self.held_by(name)]

    def held_by(self, name: str) -> list[Lease]:
        """The leases of a worker."""
        return sorted((t.id, t.token) for t in self.in_state[LEASED].values() if t.holder == name)

    def lease(
        self,
        name: str,
        session: int,
        kinds: Sequence[int],
        most: int,
        appetite: Appetite = ANYTHING,
    ) -> Taken:
        """Up to ``most`` ready tasks, shared evenly among ``kinds``."""
        self._check(name, session)
        taken = Taken()
        left = list(kinds)
        while left and len(taken.leased) < most:
            kind = left.pop(0)
            share = rules.share(most - len(taken.leased), len(left) + 1)
            self._take(name, kind, share, appetite, taken)
        return taken

    def _take(self, name: str, kind: int, most: int, appetite: Appetite, taken: Taken) -> None:
        """All at once, or one by one where each may be the last that its user gets here."""
        at_once = most if appetite.most_of_one is None else 1
        for _ in range(most // at_once):
            full = self._full(name, appetite)
            found = self._choose(kind, at_once, full, small_only=appetite.small_only)
            taken.leased += [self._give(task, name) for task in found]
            if len(found) < at_once:
                if full or appetite.small_only:
                    taken.held_back = True
                else:
                    taken.empty.add(kind)
                return

    def _full(self, name: str, appetite: Appetite) -> set[str]:
        """Users that have all they may have of this worker."""
        if appetite.most_of_one is None:
            return set()
        held = Counter(t.lane[1] for t in self.in_state[LEASED].values() if t.holder == name)
        return {user for user, n in held.items() if user and n >= appetite.most_of_one}

    def _choose(self, kind: int, most: int, full: set[str], *, small_only: bool) -> list[Task]:
        busy = {task.key for task in self.in_state[LEASED].values() if task.key}
        free = (
            t for t in self.in_state[READY].values()
            if t.kind == kind and t.key not in busy and t.lane[1] not in full
            and not (small_only and t.cost > 1)
        )  # fmt: skip
        chosen: dict[str | int, Task] = {}
        for task in nsmallest(most, free, key=lambda task: task.order):
            name = task.key or task.id
            chosen[name] = min(task, chosen.get(name, task), key=lambda each: each.id)
        return sorted(chosen.values(), key=lambda task: task.order)

    def _give(self, task: Task, name: str) -> Leased:
        task.holder = name
        task.token += 1
        task.attempt += 1
        self._move(task, LEASED)
        return Leased(
            task.id, task.token, task.txn, task.kind, task.payload, task.chunk, task.attempt
        )

    def begin(self, seqs: Iterable[int]) -> None:
        """Show transactions as running."""
        books = [self.transactions[seq].book for seq in sorted(seqs)]
        fresh = [book for book in books if not book.begun and not book.finished]
        for book in fresh:
            book.begun = True
        self._settle(fresh)

    def _check(self, name: str, session: int) -> None:
        if self.workers[name].session != session:
            raise SupersededError

    def _cancelled(self, lease: Lease) -> bool:
        task = self.tasks[lease[0]]
        off = task.txn is not None and self.transactions[task.txn].book.cancelled
        return rules.is_cancelled(task.kind, cancelled=off)

    # Reports

    def record(self, reports: Sequence[Report]) -> list[bool]:
        """Apply reports in their order; for each whether its effect is recorded."""
        images = {r.task_id: self._image(self.tasks[r.task_id]) for r in reports
                  if r.task_id in self.tasks}  # fmt: skip
        verdicts = judge_all(images, reports)
        accepted = [r for r, v in zip(reports, verdicts, strict=True) if v is Verdict.APPLY]
        for report in accepted:
            if isinstance(report.body, pb.WorkRequest.Failures):
                self._store(report.body)
        endings = [report for report in accepted if report.ending is not None]
        effects = [self._end(images[report.task_id], report) for report in endings]
        for report, effect in zip(endings, effects, strict=True):
            self._settle_failures(images[report.task_id], effect)
        touched = self._follow_up([images[r.task_id] for r in endings], effects)
        self._save([images[report.task_id] for report in endings])
        self._settle(self.transactions[seq].book for seq in sorted(touched))
        return [verdict is not Verdict.LATE for verdict in verdicts]

    def _image(self, task: Task) -> TaskRow:
        since = task.failing_since
        return TaskRow(
            id=task.id, txn=task.txn, kind=task.kind, state=task.state, token=task.token,
            ended_token=task.ended_token, ended=task.ended, attempt=task.attempt, lost=task.lost,
            failing_seconds=None if since is None else self.now - since, chunk=task.chunk,
            schedule=task.schedule, files=task.files,
        )  # fmt: skip

    def _store(self, body: pb.WorkRequest.Failures) -> None:
        task, token = body.lease.task_id, body.lease.token
        for n, failure in enumerate(body.failures, body.first):
            counted = self._failure(self.tasks[task].txn, failure.path, failure.code, task, token)
            self.failures[task, token].setdefault(n, counted)

    def _failure(self, *fields: Any) -> Counted:
        self._arrived += 1
        return Counted(*fields, number=self._arrived)

    def _end(self, image: TaskRow, report: Report) -> Effects:
        claimed = files_failed(report)
        stored = len(self.failures.get((report.task_id, report.token), ())) if claimed else 0
        book = None if image.txn is None else self.transactions[image.txn].book
        return end_lease(
            image, book, report, self.limits, failures_stored=stored, jitter=self._jitter()
        )

    def _settle_failures(self, image: TaskRow, effects: Effects) -> None:
        if not effects.count_failures:
            for lease in [lease for lease in self.failures if lease[0] == image.id]:
                del self.failures[lease]
        elif image.files_failed:
            stored = self.failures.pop((image.id, image.ended_token), {})
            self.counted += stored.values()
        if effects.given_up is not None and image.txn is not None:
            self._give_up(image, image.txn, effects.given_up[0])

    def _give_up(self, image: TaskRow, seq: int, code: str) -> None:
        transaction = self.transactions[seq]
        paths = [""] if image.chunk is None else transaction.chunks[image.chunk]
        self.counted += [
            self._failure(seq, path, code, image.id, image.ended_token) for path in paths
        ]
        if image.chunk is None:
            return
        image.files_failed += len(paths)
        transaction.book.files_failed += len(paths)
        transaction.book.files_total += len(paths)

    def _follow_up(self, images: Sequence[TaskRow], effects: Sequence[Effects]) -> set[int]:
        """Make follow-ups; the transactions that were changed."""
        wanted: dict[int | None, list[Entry]] = defaultdict(list)
        ended = list(zip(images, effects, strict=True))
        for image in sorted((i for i, effect in ended if effect.tidy), key=lambda image: image.id):
            wanted[image.txn].append(tidying(image.id, self.tasks[image.id].payload))
        for image, effect in ended:
            for new in effect.follow_ups:
                wanted[self._home(image.txn, new)].append(entry_of(new))
        for home, entries in wanted.items():
            if home is None:
                self._enqueue(NOBODY, entries)
            elif not (book := self.transactions[home].book).finished:
                self._add_tasks(book, admitted(entries, cancelled=book.cancelled))
        return {seq for seq in [*(image.txn for image in images), *wanted] if seq is not None}

    def _home(self, seq: int | None, new: pb.NewTask) -> int | None:
        if not new.HasField("transaction"):
            return seq
        known = self.numbers.get(new.transaction.id)
        return known or self._open(new.transaction).book.seq

    def _save(self, images: Sequence[TaskRow]) -> None:
        back = [self.tasks[image.id] for image in images if image.state == READY]
        self._requeue(back)
        for image in images:
            self._save_one(self.tasks[image.id], image)
        for name in {image.schedule for image in images if image.state in ENDED} - {None}:
            self._schedule_ended(self.schedules[str(name)])

    def _save_one(self, task: Task, image: TaskRow) -> None:
        task.holder = None
        task.ended_token, task.ended = image.ended_token, image.ended
        task.attempt, task.lost = image.attempt, image.lost
        since = self.now if task.failing_since is None else task.failing_since
        task.failing_since = since if image.failing else None
        task.not_before = None if image.delay is None else self.now + image.delay
        task.payload = task.payload if image.payload is None else image.payload
        task.note, task.files = image.note, image.files
        task.files_done += image.files_done
        task.files_failed += image.files_failed
        task.bytes_done += image.bytes_done
        self._move(task, image.state)

    # What happens by itself

    def promote(self) -> int:
        """Make delayed tasks ready whose time has come."""
        due = [t for t in self.in_state[DELAYED].values()
               if t.not_before is not None and t.not_before <= self.now]  # fmt: skip
        self._make_ready(due)
        return len(due)

    def expire(self, lease_seconds: float) -> int:
        """Take back leases of silent workers."""
        return self._lose(
            t for t in self.in_state[LEASED].values()
            if self._long_ago(self.workers[str(t.holder)].seen_at, lease_seconds)
        )  # fmt: skip

    def abandon(self, patience_seconds: float) -> int:
        """End leases of cancelled transactions whose workers did not let go."""
        stuck = {
            seq for seq, t in self.transactions.items()
            if not t.book.finished and t.cancelled_at is not None
            and self._long_ago(t.cancelled_at, patience_seconds)
        }  # fmt: skip
        return self._lose(t for t in self.in_state[LEASED].values()
                          if t.txn in stuck and t.kind != TaskProto.TIDY)  # fmt: skip

    def _long_ago(self, time: float, seconds: float) -> bool:
        """Also what is in the future: the clock was set back since."""
        return abs(self.now - time) > seconds

    def _lose(self, tasks: Iterable[Task]) -> int:
        lost = [Report(id_, token, Ending.LOST) for id_, token in
                sorted((task.id, task.token) for task in tasks)]  # fmt: skip
        return sum(self.record(lost)) if lost else 0

    def ready_kinds(self) -> set[int]:
        """Kinds of which a task is ready."""
        return {task.kind for task in self.in_state[READY].values()}

    # Schedules

    def declare(self, name: str, kind: int, every: float, payload: bytes = b"") -> None:
        """Make a schedule, or take over what changed of it."""
        known = self.schedules.get(name)
        if known is None:
            self.schedules[name] = Schedule(kind, every, payload, self.now)
        elif (known.kind, known.every, known.payload) != (kind, every, payload):
            known.kind, known.every, known.payload = kind, every, payload
            known.due_at = min(known.due_at, self.now + every)

    def start_due(self) -> int:
        """Make the tasks of schedules that are due."""
        due = [(name, each) for name, each in sorted(self.schedules.items())
               if each.task is None
               and not self.now < each.due_at <= self.now + 2 * each.every]  # fmt: skip
        for name, each in due:
            made = self._enqueue(NOBODY, [Entry(each.kind, each.payload, schedule=name)])
            each.task, each.again = made[0].id, False
        return len(due)

    def run_now(self, name: str) -> None:
        """Make the next run due."""
        each = self.schedules[name]
        each.due_at, each.again = self.now, each.task is not None

    def _schedule_ended(self, each: Schedule) -> None:
        each.task = None
        each.due_at = self.now + (0.0 if each.again else each.every)

    # Books

    def of_transaction(self, seq: int) -> list[Task]:
        """Its tasks in their order."""
        return [self.tasks[number] for number in self.transactions[seq].tasks]

    def _add_tasks(self, book: Book, entries: Iterable[Entry]) -> None:
        for task in self._enqueue(Owner(book.seq, book.user, book.group), list(entries)):
            self.transactions[book.seq].tasks.append(task.id)
            if task.state == BLOCKED:
                book.blocked += 1
            else:
                book.open_by_kind[task.kind] += 1

    def _settle(self, books: Iterable[Book]) -> None:
        """Release what waited for the end of all else, and find the states."""
        for book in books:
            if book.must_release and not book.finished:
                blocked = [t for t in self.of_transaction(book.seq) if t.state == BLOCKED]
                self._make_ready(blocked)
                book.open_by_kind.update(Counter(task.kind for task in blocked))
                book.blocked = 0
            if not book.finished:
                book.settle()
