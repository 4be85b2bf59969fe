"""Transactions and tasks in memory, and what the end of a lease does to them. No I/O.

The caller loads both under row locks, lets these rules change them, and writes them back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nearline.monitor.v1 import monitor_pb2
from nearline.type.v1.task_pb2 import Task as TaskProto
from services.monitor import rules
from services.monitor.rules import Ending, Limits, Totals

WorkRequest = monitor_pb2.WorkRequest
Body = (
    WorkRequest.Complete
    | WorkRequest.Defer
    | WorkRequest.Fail
    | WorkRequest.HandBack
    | WorkRequest.Failures
)

POISON = "WORKER_LOST"
RESULT_INCOMPLETE = "RESULT_INCOMPLETE"
BAD_FOLLOW_UP = "BAD_FOLLOW_UP"
_COUNTING = (WorkRequest.Complete, WorkRequest.Defer, WorkRequest.Fail)


@dataclass(slots=True)
class Book:
    """A transaction's counters and state."""

    seq: int
    id: str
    action: int
    user: str
    group: str
    state: int
    begun: bool = False
    cancelled: bool = False
    open_by_kind: Counter[int] = field(default_factory=Counter)
    blocked: int = 0
    tasks_failed: int = 0
    files_total: int = 0
    files_done: int = 0
    files_failed: int = 0
    bytes_total: int = 0
    bytes_done: int = 0
    warnings: list[str] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether it has its final state."""
        return rules.is_final(self.state)

    @property
    def must_release(self) -> bool:
        """Whether nothing but blocked tasks is left, so that they may run."""
        return self.blocked > 0 and not self.open_by_kind.total()

    def settle(self) -> None:
        """Take the state that follows from the counters."""
        if self.open_by_kind.total() or self.blocked:
            self.state = rules.running_state(self.open_by_kind, begun=self.begun)
            return
        totals = Totals(
            files_total=self.files_total,
            files_done=self.files_done,
            files_failed=self.files_failed,
            tasks_failed=self.tasks_failed,
            warnings=len(self.warnings),
        )
        self.state = rules.final_state(self.action, totals, cancelled=self.cancelled)


@dataclass(slots=True)
class TaskRow:
    """A task that was locked while LEASED or after; ``delay`` is set when it becomes DELAYED."""

    id: int
    txn: int | None
    kind: int
    state: int
    token: int
    ended_token: int
    ended: int
    attempt: int
    lost: int
    failing_seconds: float | None
    chunk: int | None
    schedule: str | None
    files: int = 0
    """Met before, for it to serve; 0 when that is not known."""
    note: str = ""
    failing: bool = False
    delay: float | None = None
    payload: bytes | None = None
    files_done: int = 0
    files_failed: int = 0
    bytes_done: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker, or the sweeper, says of a lease; ``ending`` is None for failures."""

    task_id: int
    token: int
    ending: Ending | None
    body: Body | None = None
    # A lease that never reached its worker is lost without being anybody's fault.
    blameless: bool = False

    @property
    def is_loss(self) -> bool:
        """Whether the task's worker is gone, and may have left things half done."""
        return self.ending is Ending.LOST and not self.blameless


@dataclass(slots=True)
class Effects:
    """What the end of a lease asks for beyond the rows of the task and the transaction."""

    follow_ups: Sequence[monitor_pb2.NewTask] = ()
    count_failures: bool = False
    given_up: tuple[str, str] | None = None
    """Code and reason that its files failed with."""
    tidy: bool = False
    """Whether somebody has to remove what dead workers left."""


_ENDINGS: dict[str, Ending] = {
    "complete": Ending.COMPLETE,
    "defer": Ending.DEFER,
    "fail": Ending.FAIL,
    "hand_back": Ending.HAND_BACK,
}


def report_of(request: monitor_pb2.WorkRequest) -> Report:
    """The report in a message that names a lease."""
    name = request.WhichOneof("message") or ""
    body: Body = getattr(request, name)
    return Report(body.lease.task_id, body.lease.token, _ENDINGS.get(name), body)


def files_failed(report: Report) -> int:
    """How many failures the worker says it sent before."""
    body = report.body
    return body.files_failed if isinstance(body, _COUNTING) else 0


def judge(task: TaskRow | None, report: Report) -> rules.Verdict:
    """Whether ``report`` still may change something."""
    if task is None:
        return rules.Verdict.LATE
    return rules.verdict(
        current=task.state == TaskProto.LEASED and task.token == report.token,
        token=report.token,
        ended_token=task.ended_token,
        ended=task.ended,
        ending=report.ending,
    )


def judge_all(tasks: Mapping[int, TaskRow], reports: Sequence[Report]) -> list[rules.Verdict]:
    """Judge each in its order: an ending closes the lease for what comes behind it."""
    verdicts, closed = [], set()
    for report in reports:
        verdict = judge(tasks.get(report.task_id), report)
        if verdict is rules.Verdict.APPLY and report.task_id in closed:
            verdict = rules.Verdict.REPEAT
        if verdict is rules.Verdict.APPLY and report.ending is not None:
            closed.add(report.task_id)
        verdicts.append(verdict)
    return verdicts


def end_lease(
    task: TaskRow,
    book: Book | None,
    report: Report,
    limits: Limits,
    *,
    failures_stored: int,
    jitter: float,
) -> Effects:
    """Apply an accepted report to ``task`` and ``book`` (None for scheduled work)."""
    assert report.ending is not None
    task.ended_token, task.ended = report.token, report.ending
    if book is not None:
        book.open_by_kind[task.kind] -= 1
        book.begun = True
    report = _checked(report, failures_stored)
    body = report.body
    if isinstance(body, WorkRequest.Complete):
        effects = _complete(task, book, body)
    elif book is not None and rules.is_cancelled(task.kind, cancelled=book.cancelled):
        effects = _cancel(task, report)
    elif isinstance(body, WorkRequest.Defer):
        effects = _defer(task, body)
    elif isinstance(body, WorkRequest.Fail):
        effects = _fail(task, book, body, limits, jitter)
    elif report.is_loss:
        effects = _lost(task, book, limits, jitter)
    else:
        effects = _hand_back(task)
    _count(task, book, effects, failures_stored)
    effects.tidy = rules.must_tidy(task.kind, task.state, task.lost)
    if book is not None and task.state in (TaskProto.READY, TaskProto.DELAYED):
        book.open_by_kind[task.kind] += 1
    return effects


def _checked(report: Report, failures_stored: int) -> Report:
    """``report``, or a failure in its place when it does not add up."""
    body = report.body
    if not isinstance(body, _COUNTING):
        return report
    follow_ups = () if isinstance(body, WorkRequest.Fail) else body.follow_ups
    problem = next((text for task in follow_ups if (text := problem_of(task))), "")
    if problem:
        fail = WorkRequest.Fail(code=BAD_FOLLOW_UP, reason=problem, files=body.files_failed)
    elif body.files_failed != failures_stored:
        reason = f"{failures_stored} of {body.files_failed} failures of the task arrived"
        fail = WorkRequest.Fail(code=RESULT_INCOMPLETE, reason=reason, transient=True)
    else:
        return report
    return Report(report.task_id, report.token, report.ending, fail)


def problem_of(task: monitor_pb2.NewTask) -> str:
    """Why ``task`` cannot be made; empty when it can."""
    if not task.kind:
        return "a new task has no kind"
    if task.unique and not task.key:
        return "a unique task has no key"
    if "\0" in task.key:
        return "the key of a new task has a NUL"
    if task.HasField("transaction") and not task.transaction.id:
        return "the transaction of a new task has no id"
    return ""


def _complete(task: TaskRow, book: Book | None, body: WorkRequest.Complete) -> Effects:
    _end(task, TaskProto.DONE)
    _add(task, book, body)
    if book is None:
        return Effects(follow_ups=body.follow_ups, count_failures=True)
    book.bytes_total += body.bytes_total
    book.warnings = rules.merge_warnings(book.warnings, body.warnings)
    follow_ups = () if book.cancelled else body.follow_ups
    return Effects(follow_ups=follow_ups, count_failures=True)


def _cancel(task: TaskRow, report: Report) -> Effects:
    task.lost += report.is_loss
    _end(task, TaskProto.CANCELLED)
    return Effects()


def _defer(task: TaskRow, body: WorkRequest.Defer) -> Effects:
    _wait(task, body.delay.ToNanoseconds() / 1e9, body.waiting_for)
    task.attempt = task.lost = 0
    task.payload = body.payload or None
    # What failed or went on to others is not in the new payload any more.
    gone = body.files_failed + sum(new.files for new in body.follow_ups)
    task.files = max(task.files - gone, 0)
    return Effects(follow_ups=body.follow_ups, count_failures=True)


def _fail(
    task: TaskRow, book: Book | None, body: WorkRequest.Fail, limits: Limits, jitter: float
) -> Effects:
    long_enough = rules.gives_up(task.failing_seconds or 0.0, limits)
    if not body.transient or long_enough:
        return _give_up(task, book, body)
    at_least = body.retry_after.ToNanoseconds() / 1e9
    delay = rules.retry_delay(task.attempt, limits, jitter=jitter, at_least=at_least)
    _wait(task, delay, body.reason)
    task.failing = True
    return Effects()


def _lost(task: TaskRow, book: Book | None, limits: Limits, jitter: float) -> Effects:
    task.lost += 1
    if rules.is_poison(task.lost, limits):
        reason = f"{task.lost} workers were lost while they worked on it"
        return _give_up(task, book, WorkRequest.Fail(code=POISON, reason=reason))
    delay = rules.lost_delay(task.lost, limits, jitter=jitter)
    task.failing = True
    if delay:
        _wait(task, delay, f"its worker was lost {task.lost} times")
    else:
        task.state, task.note = TaskProto.READY, "its worker was lost"
    return Effects()


def _hand_back(task: TaskRow) -> Effects:
    task.state = TaskProto.READY
    task.attempt = max(task.attempt - 1, 0)
    task.failing = task.failing_seconds is not None
    return Effects()


def _give_up(task: TaskRow, book: Book | None, fail: WorkRequest.Fail) -> Effects:
    _end(task, TaskProto.FAILED)
    task.note = fail.reason
    named = fail.files_failed > 0
    if book is not None:
        book.tasks_failed += 1
    if named:
        _add(task, book, fail)
    elif task.chunk is None:
        lost = task.files or max(fail.files, 0)
        task.files_failed += lost
        if book is not None:
            book.files_failed += lost
    return Effects(count_failures=named, given_up=(fail.code, fail.reason))


def _add(task: TaskRow, book: Book | None, body: WorkRequest.Complete | WorkRequest.Fail) -> None:
    task.files_done += body.files_done
    task.bytes_done += body.bytes_done
    if book is not None:
        book.files_total += body.files_total
        book.files_done += body.files_done
        book.bytes_done += body.bytes_done


def _count(task: TaskRow, book: Book | None, effects: Effects, failures: int) -> None:
    if effects.count_failures:
        task.files_failed += failures
        if book is not None:
            book.files_failed += failures


def _wait(task: TaskRow, delay: float, note: str) -> None:
    task.note = note
    task.state, task.delay = (TaskProto.DELAYED, delay) if delay > 0 else (TaskProto.READY, None)


def _end(task: TaskRow, state: int) -> None:
    task.state = state
    task.note = ""
