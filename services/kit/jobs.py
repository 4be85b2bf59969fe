"""What a handler of leased work sees: the job, the context it reports to, and its outcomes.

Handlers are plain blocking functions ``(Job, JobContext) -> Done | Deferred`` that run in threads
of :class:`services.kit.worker.Worker`, which re-exports everything here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import structlog
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from nearline.monitor.v1 import monitor_pb2
from nearline.type.v1 import task_pb2, transaction_pb2
from services.kit.errors import NearlineError

if TYPE_CHECKING:
    Kind: TypeAlias = task_pb2.Task.Kind.ValueType

log = structlog.get_logger(__name__)

WorkRequest = monitor_pb2.WorkRequest
PathFailure = tuple[str, str, str]
"""(path in its wire form, code in upper snake case, reason for a person)."""

MAX_RESULT_BYTES = 3_500_000
"""Largest Complete or Defer; more work for one follow-up belongs behind another task."""
MAX_FOLLOW_UPS = 10_000
MAX_BATCH = 500
"""Failures in one message."""
_MAX_BATCH_BYTES = 1_000_000
_MAX_REASON = 2_000
# Batches of failures that may be on their way; a handler that fails more files waits for acks.
_BATCHES_IN_FLIGHT = 8
_POLL_SECONDS = 0.5
# Names that were sent too early are dropped; those that were not sent are missed.
_CLOCK_SLACK_SECONDS = 60.0


class JobCancelled(Exception):
    """The lease was lost, the transaction was cancelled or the worker stops; let it pass."""


@dataclass(frozen=True, slots=True)
class Job:
    """One leased task. ``token`` changes with every lease of the task.

    ``attempt`` counts leases that were neither deferred nor handed back, this one included.
    ``chunk`` is set when the task is about one chunk of the transaction's paths. For scheduled work
    ``transaction.id`` is empty.
    """

    task_id: int
    token: int
    kind: Kind
    payload: bytes
    chunk: int | None
    attempt: int
    transaction: monitor_pb2.TransactionSpec
    given_up_at: float | None = None
    """By the monotonic clock: a failure from then on is the task's last."""
    workers_lost: int = 0
    """Above 0: so many were lost with it, and the ledger gives it up if this one is lost too."""


@dataclass(frozen=True, slots=True)
class Done:
    """The task is done. Counts are what this attempt met and served, whatever earlier ones did.

    ``files_total`` and ``bytes_total`` are files newly met, failed ones included; ``files_done``
    and ``bytes_done`` those served. Failed ones are those given to :meth:`JobContext.failures`.
    """

    files_total: int = 0
    bytes_total: int = 0
    files_done: int = 0
    bytes_done: int = 0
    follow_ups: Sequence[monitor_pb2.NewTask] = ()
    warnings: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Deferred:
    """Run the task again after ``delay_seconds`` with ``payload`` (empty: as it was).

    Not a failed attempt. Failures reported in this attempt count, so leave their files out of
    ``payload``.
    """

    delay_seconds: float
    payload: bytes = b""
    waiting_for: str = ""
    follow_ups: Sequence[monitor_pb2.NewTask] = ()


Outcome = Done | Deferred


class JobContext:
    """What a running handler reports, and how it learns that it should stop. Thread-safe.

    ``files_at_stake`` is how many files count as failed if the ledger gives the task up.
    """

    def __init__(
        self,
        lease: monitor_pb2.Lease,
        send: Callable[[monitor_pb2.WorkRequest], None],
        give_way: Callable[[], None] = lambda: None,
    ) -> None:
        self.files_at_stake = 0
        self._give_way = give_way
        self._lease = lease
        self._send = send
        self._lock = threading.Lock()
        self._files = self._bytes = 0
        self._waiting_for = ""
        self._buffer: list[transaction_pb2.Failure] = []
        self._buffered_bytes = 0
        self._failed = 0
        self._failed_paths: set[str] = set()
        self._named: Done | None = None
        self._sent = 0
        self._reason: str | None = None
        self._room = threading.Semaphore(_BATCHES_IN_FLIGHT)

    @property
    def cancelled(self) -> bool:
        """Whether the work is of no more use."""
        return self._reason is not None

    @property
    def failed(self) -> int:
        """How many failed files were reported in this attempt."""
        return self._failed

    def has_failed(self, path: str) -> bool:
        """Whether a file of this path was reported in this attempt."""
        return path in self._failed_paths

    def all_named(self, counted: Done) -> None:
        """Say that the reported failures, and the files done, are all of the task.

        If it fails and the ledger gives it up, they count.
        """
        self._named = counted

    def check(self) -> None:
        """Raise JobCancelled when the work is of no more use; call it every second or so.

        May pause for a moment, where other work comes first.
        """
        self._give_way()
        if self._reason is not None:
            raise JobCancelled(self._reason)

    def progress(self, files: int = 0, bytes: int = 0) -> None:
        """Add to what users see of the running task, and say that it moves. Not counted."""
        with self._lock:
            self._files += files
            self._bytes += bytes
            self._waiting_for = ""

    def waiting_for(self, text: str) -> None:
        """Show users what the task waits for until it makes progress; empty: nothing."""
        with self._lock:
            self._waiting_for = readable(text)

    def failures(self, failed: Iterable[PathFailure]) -> None:
        """Record files that failed for good.

        They are streamed in batches and count when the job is done or deferred. Blocks while many
        are unacknowledged. Raises JobCancelled.
        """
        for path, code, reason in failed:
            reason = readable(reason[:_MAX_REASON])
            failure = transaction_pb2.Failure(path=path, code=code, reason=reason)
            size = failure.ByteSize()
            if self._buffered_bytes + size > _MAX_BATCH_BYTES:
                self._flush()
            self._buffer.append(failure)
            self._buffered_bytes += size
            self._failed += 1
            self._failed_paths.add(path)
            if len(self._buffer) == MAX_BATCH:
                self._flush()

    def cancel(self, reason: str) -> None:
        """Ask the handler to stop (the worker's side of :meth:`check`)."""
        if self._reason is None:
            self._reason = reason

    def snapshot(self) -> WorkRequest.Progress:
        """What the next heartbeat says of the task."""
        with self._lock:
            return WorkRequest.Progress(
                lease=self._lease,
                files_done=self._files,
                bytes_done=self._bytes,
                waiting_for=self._waiting_for,
            )

    def batch_acknowledged(self) -> None:
        """Let a handler that waits in :meth:`failures` go on."""
        self._room.release()

    def finish(self) -> int:
        """Send what is buffered; how many failures were reported. Raises JobCancelled."""
        self._flush()
        return self._failed

    def fail(self, error: Exception) -> WorkRequest:
        """The message that ends the lease with what the handler raised. Raises JobCancelled."""
        request = to_fail(self._lease, error, self.files_at_stake)
        if self._named is not None:
            request.fail.files_failed = self.finish()
            request.fail.files_total = self._named.files_total
            request.fail.files_done = self._named.files_done
            request.fail.bytes_done = self._named.bytes_done
        return request

    def _flush(self) -> None:
        if not self._buffer:
            return
        while not self._room.acquire(timeout=_POLL_SECONDS):
            self.check()
        batch = WorkRequest.Failures(lease=self._lease, failures=self._buffer, first=self._sent)
        self._sent += len(self._buffer)
        self._buffer = []
        self._buffered_bytes = 0
        self._send(WorkRequest(failures=batch))


Handler = Callable[[Job, JobContext], Outcome]


def new_task(
    kind: Kind,
    payload: Message | None = None,
    *,
    cost: float = 1.0,
    delay: float = 0.0,
    key: str = "",
    unique: bool = False,
    last: bool = False,
    files: int = 0,
    transaction: monitor_pb2.TransactionSpec | None = None,
) -> monitor_pb2.NewTask:
    """A follow-up; ``cost`` in seconds of work, ``delay`` in seconds.

    ``key``: two tasks of the same key never run at the same time; ``unique``: left out while one of
    the same kind and key is open; ``last``: runs when nothing else of its transaction is open;
    ``files``: that were counted as met and fail with it when it is given up;
    ``transaction``: opens it, if it is new, and puts the task there.
    """
    task = monitor_pb2.NewTask(kind=kind, cost=cost, key=key, unique=unique, last=last, files=files)
    if payload is not None:
        task.payload = payload.SerializeToString()
    if delay > 0:
        task.delay.CopyFrom(seconds(delay))
    if transaction is not None:
        task.transaction.CopyFrom(transaction)
    return task


def seconds(value: float) -> Duration:
    """``value`` seconds as a protobuf Duration."""
    duration = Duration()
    duration.FromNanoseconds(round(value * 1e9))
    return duration


def readable(text: str) -> str:
    """``text`` as the ledger can keep it; what endpoints and stores say may hold anything.

    A message that it cannot keep would be sent again and again, and hold up all that come after.
    """
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()


def to_job(assignment: monitor_pb2.WorkResponse.Assignment) -> Job:
    """The job that an assignment speaks of."""
    return Job(
        task_id=assignment.lease.task_id,
        token=assignment.lease.token,
        kind=assignment.kind,
        payload=assignment.payload,
        chunk=assignment.chunk if assignment.HasField("chunk") else None,
        attempt=assignment.attempt,
        transaction=assignment.transaction,
        given_up_at=_given_up_at(assignment),
        workers_lost=assignment.workers_lost,
    )


def _given_up_at(assignment: monitor_pb2.WorkResponse.Assignment) -> float | None:
    if not assignment.HasField("gives_up_in"):
        return None
    left = assignment.gives_up_in.ToNanoseconds() / 1e9
    return time.monotonic() + left - _CLOCK_SLACK_SECONDS


def to_request(lease: monitor_pb2.Lease, outcome: Outcome, files_failed: int) -> WorkRequest:
    """The message that ends a lease with ``outcome``; a result too large becomes a final Fail."""
    if isinstance(outcome, Done):
        request = WorkRequest(complete=_complete(lease, outcome, files_failed))
    else:
        request = WorkRequest(defer=_defer(lease, outcome, files_failed))
    for problem in _too_large(request, outcome):
        log.error("result_too_large", task=lease.task_id, problem=problem)
        fail = WorkRequest.Fail(lease=lease, code="RESULT_TOO_LARGE", reason=problem)
        fail.files = max(files_failed, 1)
        return WorkRequest(fail=fail)
    return request


def to_fail(lease: monitor_pb2.Lease, error: Exception, files: int) -> WorkRequest:
    """The message that ends a lease with ``error``."""
    code, reason, transient = described(error)
    fail = WorkRequest.Fail(lease=lease, code=code, reason=reason, transient=transient, files=files)
    if isinstance(error, NearlineError) and error.retry_after is not None:
        fail.retry_after.CopyFrom(seconds(error.retry_after))
    return WorkRequest(fail=fail)


def described(error: Exception) -> tuple[str, str, bool]:
    """Code and reason of ``error``, and whether the task is tried again; a bug may be mended."""
    if isinstance(error, NearlineError):
        return error.reason, readable(error.message), error.transient
    reason = f"an unexpected error ({type(error).__name__}); the worker's log has details"
    return "INTERNAL", reason, True


def _complete(
    lease: monitor_pb2.Lease, outcome: Done, files_failed: int
) -> monitor_pb2.WorkRequest.Complete:
    return WorkRequest.Complete(
        lease=lease,
        files_total=outcome.files_total,
        bytes_total=outcome.bytes_total,
        files_done=outcome.files_done,
        bytes_done=outcome.bytes_done,
        follow_ups=outcome.follow_ups,
        warnings=map(readable, outcome.warnings),
        files_failed=files_failed,
    )


def _defer(
    lease: monitor_pb2.Lease, outcome: Deferred, files_failed: int
) -> monitor_pb2.WorkRequest.Defer:
    return WorkRequest.Defer(
        lease=lease,
        delay=seconds(max(outcome.delay_seconds, 0.0)),
        payload=outcome.payload,
        waiting_for=readable(outcome.waiting_for),
        follow_ups=outcome.follow_ups,
        files_failed=files_failed,
    )


def _too_large(request: WorkRequest, outcome: Outcome) -> Iterator[str]:
    if len(outcome.follow_ups) > MAX_FOLLOW_UPS:
        yield f"{len(outcome.follow_ups)} follow-ups of one task are more than {MAX_FOLLOW_UPS}"
    elif request.ByteSize() > MAX_RESULT_BYTES:
        yield f"the result of one task is {request.ByteSize()} bytes, more than {MAX_RESULT_BYTES}"
