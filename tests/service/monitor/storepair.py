"""The real store and the simulated one, asked the same things: every answer must be the same."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, TypeVar

import pytest

from nearline.monitor.v1 import monitor_pb2 as pb
from nearline.type.v1.identity_pb2 import Identity
from nearline.type.v1.task_pb2 import Task
from nearline.type.v1.transaction_pb2 import Failure, Transaction
from services.kit.db import Database
from services.kit.errors import FailedPrecondition, ResourceExhausted
from services.kit.jobs import seconds
from services.monitor import leases, results, retries, schedules, submissions, transactions
from services.monitor.book import Report, report_of
from services.monitor.config import LedgerConfig
from services.monitor.leases import Registration
from services.monitor.rules import Limits
from tests.service.monitor.modelrig import clear, set_clock
from tests.simulation.model import Ledger
from tests.simulation.rows import LEASED, Appetite, Lease, SupersededError

T = TypeVar("T")

LIMITS = Limits(retry_first=2.0, retry_most=16.0, give_up_after=64.0, most_lost=3)
CONFIG = LedgerConfig(
    running_per_user=3, running_per_group=5, tasks_per_user=12, paths_per_user=6
)  # fmt: skip
CHUNK = 2
"""Paths of a task, by the tests' setting."""
LEASE_SECONDS, PATIENCE_SECONDS = 16.0, 32.0
WORKERS = ("one", "two")
KINDS = (Task.SCAN, Task.UPLOAD, Task.STAGE, Task.DOWNLOAD, Task.TIDY)


class StorePair:
    """Every action takes its details from ``random`` and leaves both stores in the same state."""

    def __init__(self, database: Database) -> None:
        self.database = database
        clear(database)
        self.model = Ledger(LIMITS, CONFIG, lambda: 0.5, lambda kinds: None)
        self._streams: dict[str, list[Registration]] = {name: [] for name in WORKERS}
        self._tokens: list[Lease] = []
        for name in WORKERS:
            self._hello(name, [])

    # Requests

    def submit(self, random: Random) -> None:
        """A new request, or one of before again."""
        known = len(self.model.numbers) and random.random() < 0.2
        number = random.randint(1, 5) if known else len(self.model.numbers) + 1
        asked = self._known(_spec(number, random.choice(("alice", "bob"))))
        paths = [f"/{n}" for n in range((0, 0, 1, 4, 5)[number % 5])]
        begun = _answer(self.database.write_sync, submissions.begin, asked, CONFIG)
        assert begun == _answer(self.model.arrive, asked)
        if isinstance(begun, int) and len(paths) > begun:
            self._send(asked, paths[begun:], begun)
        if random.random() < 0.9:
            self._commit(asked, paths, [_new_task(random) for _ in range(random.randint(1, 4))])

    def _known(self, asked: pb.TransactionSpec) -> pb.TransactionSpec:
        """As it was asked first."""
        if seq := self.model.numbers.get(asked.id):
            return self.model.transactions[seq].spec
        known = self.model.arriving.get(asked.id)
        return known.spec if known else asked

    def _send(self, asked: pb.TransactionSpec, paths: list[str], first: int) -> None:
        batch = pb.SubmitRequest.Paths(first=first, paths=paths)
        stored = self.database.write_sync(submissions.store, asked, batch)
        assert stored == self.model.store(asked.id, len(paths))

    def _commit(
        self, asked: pb.TransactionSpec, paths: list[str], tasks: Sequence[pb.NewTask]
    ) -> None:
        chunks = [paths[at : at + CHUNK] for at in range(0, len(paths), CHUNK)]
        commit = pb.SubmitRequest.Commit(total=len(paths), chunk_kind=Task.SCAN, tasks=tasks)
        for _ in range(2):
            expected = _answer(self.model.accept, asked, tasks, chunks, Task.SCAN)
            found = _answer(self.database.write_sync, submissions.accept, asked, commit, CONFIG)
            assert found == (expected if isinstance(expected, str) else None)

    def cancel(self, random: Random) -> None:
        """Any request: on its way in, running, ended."""
        if ids := sorted(self.model.numbers.keys() | self.model.arriving.keys()):
            id_ = random.choice(ids)
            if not self.database.write_sync(submissions.cancel, id_, pb.Visibility()):
                self.database.write_sync(transactions.cancel, id_, pb.Visibility())
            self.model.cancel(id_)

    def retry(self, random: Random) -> None:
        """What failed in any transaction, if it has ended and something failed."""
        if not self.model.numbers:
            return
        id_ = random.choice(sorted(self.model.numbers))
        old = self.model.transactions[self.model.numbers[id_]].spec
        request = retries.Request(
            id=id_, identity=old.identity, asked_kind=Task.SCAN,
            met_task=pb.NewTask(kind=Task.UPLOAD, payload=b"met", cost=4),
        )  # fmt: skip
        expected = _answer(self.model.retry, id_, request.asked_kind, request.met_task, CHUNK)
        found = _answer(self.database.write_sync, retries.retry, id_, request, CONFIG)
        assert found == expected

    # Workers

    def hello(self, random: Random) -> None:
        """A worker connects again with some of what it held, and with what it never had."""
        name = random.choice(WORKERS)
        held = [lease for lease in self.model.held_by(name) if random.random() < 0.6]
        if self._tokens and random.random() < 0.3:
            held.append(random.choice(self._tokens))
        appetite = {"reserved": random.choice((0, 0, 2, 3)), "small_only": random.random() < 0.4}
        self._hello(name, held, **appetite)

    def _hello(self, name: str, held: list[Lease], **appetite: Any) -> None:
        message = pb.WorkRequest.Hello(
            worker_id=name, service="transfer", kinds=KINDS, slots=4,
            held=[pb.Lease(task_id=task, token=token) for task, token in held], **appetite,
        )  # fmt: skip
        registered = self.database.write_sync(leases.hello, message, LIMITS)
        self._streams[name].append(registered)
        session, goes_on = self.model.hello(name, held)
        assert (registered.session, list(registered.held)) == (session, goes_on)

    def heartbeat(self, random: Random) -> None:
        """Of the newest stream, mostly."""
        name, stream = self._stream(random)
        try:
            expected = self.model.heartbeat(name, stream.session)
        except SupersededError:
            with pytest.raises(leases.SupersededError):
                self.database.write_sync(leases.heartbeat, stream, "", [])
            return
        held = self.database.write_sync(leases.heartbeat, stream, "", [])
        assert sorted((each.lease, each.cancelled) for each in held) == expected

    def lease(self, random: Random) -> None:
        """Some tasks of all kinds."""
        name, stream = self._stream(random)
        kinds, most = random.sample(KINDS, len(KINDS)), random.randint(1, 6)
        appetite = Appetite(stream.most_of_one, stream.small_only)
        try:
            expected = self.model.lease(name, stream.session, kinds, most, appetite)
        except SupersededError:
            with pytest.raises(leases.SupersededError):
                self.database.write_sync(leases.lease, stream, kinds, most)
            return
        taken = self.database.write_sync(leases.lease, stream, kinds, most)
        assert _comparable(taken) == _comparable(expected)
        self._tokens += [(task.task_id, task.token) for task in taken.leased]
        self._begin({task.txn for task in taken.leased}, {task.txn for task in expected.leased})

    def _begin(self, seqs: set[int | None], modelled: set[int | None]) -> None:
        self.database.write_sync(leases.begin, {seq for seq in seqs if seq is not None})
        self.model.begin({seq for seq in modelled if seq is not None})

    def _stream(self, random: Random) -> tuple[str, Registration]:
        name = random.choice(WORKERS)
        streams = self._streams[name]
        return name, random.choice(streams) if random.random() < 0.1 else streams[-1]

    # Reports

    def report(self, random: Random) -> None:
        """Whatever a worker may say of leases that it has, some of it twice."""
        held = self._held()
        chosen = random.sample(held, min(len(held), random.choice((1, 1, 2, 4))))
        reports = [self._message(random, *lease) for lease in chosen]
        again = [each for each in reports if random.random() < 0.2]
        self._record(reports + again)

    def report_late_or_again(self, random: Random) -> None:
        """Whatever a worker may say of leases that it once had."""
        if self._tokens:
            self._record([self._message(random, *random.choice(self._tokens))])

    def serve_in_part(self, random: Random) -> None:
        """A task that is done but for some files, whose failures come along."""
        if not (held := self._held()):
            return
        task, token = random.choice(held)
        failures = _failures(task, token, 0, random.randint(1, 2))
        known = self.model.failures.get((task, token), {})
        complete = pb.WorkRequest.Complete(
            lease=failures.lease, files_total=3, files_done=random.randint(0, 2),
            files_failed=len(known.keys() | set(range(len(failures.failures)))),
        )  # fmt: skip
        requests = (pb.WorkRequest(failures=failures), pb.WorkRequest(complete=complete))
        self._record([report_of(request) for request in requests])

    def fail_and_try_again(self, random: Random) -> None:
        """What fails is tried again, and fails again, until it is given up."""
        for _ in range(random.randint(1, 4)):
            if not (held := self._held()):
                return
            lease = pb.Lease(task_id=held[0][0], token=held[0][1])
            fail = pb.WorkRequest.Fail(lease=lease, code="DOWN", reason="down", transient=True)
            self._record([report_of(pb.WorkRequest(fail=fail))])
            self._pass(20)
            self.wake(random)
            self.lease(random)

    def _held(self) -> list[Lease]:
        return sorted((t.id, t.token) for t in self.model.in_state[LEASED].values())

    def _message(self, random: Random, task: int, token: int) -> Report:
        arrived = len(self.model.failures.get((task, token), ()))
        return report_of(_message(random, task, token, arrived))

    def _record(self, reports: Sequence[Report]) -> None:
        answers = self.database.write_sync(results.record, reports, LIMITS)
        assert answers == self.model.record(reports)

    # What happens by itself

    def time_passes(self, random: Random) -> None:
        """A while, mostly less than a lease lasts; or the clock is set back."""
        self._pass(random.choice((1, 1, 1, 8, 8, 20, 20, 40, 40, -20, -80)))

    def _pass(self, passed: int) -> None:
        self.model.now += passed
        set_clock(self.database, self.model.now)

    def wake(self, random: Random) -> None:
        """What is due becomes ready."""
        assert self.database.write_sync(schedules.start_due) == self.model.start_due()
        assert self.database.write_sync(leases.promote) == self.model.promote()
        assert self.database.read_sync(leases.ready_kinds) == self.model.ready_kinds()

    def sweep(self, random: Random) -> None:
        """Leases of the silent come back, and of those that do not let go."""
        stuck = self.database.write_sync(leases.abandon, PATIENCE_SECONDS, LIMITS)
        assert stuck == self.model.abandon(PATIENCE_SECONDS)
        lost = self.database.write_sync(leases.expire, LEASE_SECONDS, LIMITS)
        assert lost == self.model.expire(LEASE_SECONDS)

    def schedule(self, random: Random) -> None:
        """A schedule is declared, changed, or asked to run now."""
        if self.model.schedules and random.random() < 0.5:
            self.database.write_sync(schedules.run_now, "plan")
            self.model.run_now("plan")
            return
        every = random.choice((8, 8, 32))
        wanted = pb.Schedule(name="plan", kind=Task.STAGE, every=seconds(every), payload=b"all")
        self.database.write_sync(schedules.declare, [wanted])
        self.model.declare("plan", Task.STAGE, every, b"all")


ACTIONS = (
    "submit", "cancel", "retry", "hello", "heartbeat", "lease", "report", "report_late_or_again",
    "serve_in_part", "fail_and_try_again", "time_passes", "wake", "sweep", "schedule",
)  # fmt: skip


def _spec(number: int, user: str) -> pb.TransactionSpec:
    return pb.TransactionSpec(
        id=str(uuid.UUID(int=number)), identity=Identity(user=user), group="g",
        action=Transaction.PUT if number % 3 else Transaction.EVICT,
    )  # fmt: skip


def _new_task(random: Random) -> pb.NewTask:
    """Costs are powers of two, so that sums of them are exact in any order."""
    key = random.choice(("", "", "a", "b"))
    task = pb.NewTask(
        kind=random.choice(KINDS[1:-1]), cost=random.choice((0, 0.5, 1, 4)),
        payload=random.choice((b"x", b"y")), key=key, files=random.randint(0, 2),
        unique=bool(key) and random.random() < 0.3, last=random.random() < 0.2,
    )  # fmt: skip
    if random.random() < 0.3:
        task.delay.CopyFrom(seconds(random.choice((8, 32))))
    if random.random() < 0.1:
        task.transaction.CopyFrom(_spec(random.randint(100, 102), ""))
    return task


def _message(random: Random, task: int, token: int, arrived: int) -> pb.WorkRequest:
    """Anything that may be said of a lease of which ``arrived`` failures are stored."""
    kinds = ("failures", "complete", "complete", "defer", "fail", "fail", "hand_back")
    name = random.choice(kinds)
    if name == "failures":
        return pb.WorkRequest(failures=_failures(task, token, random.randint(0, 2), 2))
    message = pb.WorkRequest()
    body: Any = getattr(message, name)
    body.lease.CopyFrom(pb.Lease(task_id=task, token=token))
    if name == "fail":
        body.code, body.reason, body.files = "DOWN", "down", random.randint(0, 3)
        body.transient = random.random() < 0.7
        body.retry_after.CopyFrom(seconds(random.choice((0, 32))))
    elif name != "hand_back":
        body.files_failed = random.choice((arrived, arrived, arrived, 1))
        body.follow_ups.extend(_new_task(random) for _ in range(random.choice((0, 0, 1, 3))))
    if name == "complete":
        body.files_total, body.files_done = random.randint(0, 3), random.randint(0, 3)
        body.warnings.extend(random.choice(((), (), ("odd",))))
    elif name == "defer":
        body.delay.CopyFrom(seconds(random.choice((0, 8))))
        body.payload = random.choice((b"", b"next"))
    return message


def _failures(task: int, token: int, first: int, count: int) -> pb.WorkRequest.Failures:
    failed = [Failure(path=f"/{task}/{first + n}", code="GONE", reason="") for n in range(count)]
    lease = pb.Lease(task_id=task, token=token)
    return pb.WorkRequest.Failures(lease=lease, failures=failed, first=first)


def _answer(call: Callable[..., T], *args: Any) -> T | str:
    """What ``call`` returns, or why it refuses."""
    try:
        return call(*args)
    except (FailedPrecondition, ResourceExhausted) as refused:
        return refused.reason


def _comparable(taken: Any) -> tuple[object, ...]:
    """Without the numbers of transactions, some of which the database skips."""
    tasks = [(t.task_id, t.token, t.kind, t.payload, t.chunk, t.attempt) for t in taken.leased]
    return tasks, taken.empty, taken.held_back
