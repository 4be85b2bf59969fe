"""What handlers report and how it becomes messages."""

from __future__ import annotations

import threading

import pytest

from nearline.monitor.v1 import monitor_pb2 as pb
from nearline.type.v1.task_pb2 import FilesTask, Task
from services.kit import errors, jobs
from services.kit.jobs import Deferred, Done, JobCancelled, JobContext, new_task

LEASE = pb.Lease(task_id=7, token=2)


class Sink:
    """Collects messages and acknowledges them at once, unless told not to."""

    def __init__(self) -> None:
        self.sent: list[pb.WorkRequest] = []
        self.acknowledges = True
        self.context = JobContext(LEASE, self._send)

    def _send(self, request: pb.WorkRequest) -> None:
        self.sent.append(request)
        if self.acknowledges:
            self.context.batch_acknowledged()


def test_failures_go_out_in_numbered_batches() -> None:
    sink = Sink()
    sink.context.failures((f"/{n}", "NOT_FOUND", "gone") for n in range(1200))
    assert sink.context.finish() == 1200
    batches = [request.failures for request in sink.sent]
    assert [len(batch.failures) for batch in batches] == [500, 500, 200]
    assert [batch.first for batch in batches] == [0, 500, 1000]
    assert all(batch.lease == LEASE for batch in batches)


def test_what_the_ledger_could_not_keep_is_made_readable() -> None:
    said, kept = "drive 3\0 is \udcff out", "drive 3\N{REPLACEMENT CHARACTER} is ? out"
    sink = Sink()
    sink.context.failures([("/a", "TAPE", said)])
    sink.context.waiting_for(said)
    assert sink.context.finish() == 1
    assert sink.sent[0].failures.failures[0].reason == kept
    assert sink.context.snapshot().waiting_for == kept
    complete = jobs.to_request(LEASE, Done(warnings=[said]), 0).complete
    assert list(complete.warnings) == [kept]
    assert jobs.to_request(LEASE, Deferred(1.0, waiting_for=said), 0).defer.waiting_for == kept
    assert jobs.to_fail(LEASE, errors.Unavailable("TAPE", said), 1).fail.reason == kept


def test_long_paths_make_smaller_batches() -> None:
    sink = Sink()
    sink.context.failures(("/" + "x" * 16_000, "NOT_FOUND", "y" * 9000) for _ in range(300))
    sink.context.finish()
    assert all(request.ByteSize() < 1_100_000 for request in sink.sent)
    failures = [failure for request in sink.sent for failure in request.failures.failures]
    assert len(failures) == 300
    assert all(len(failure.reason) == 2000 for failure in failures)


def test_a_flood_of_failures_waits_for_the_ledger_or_a_cancel() -> None:
    sink = Sink()
    sink.acknowledges = False
    ended = threading.Event()

    def fail_much() -> None:
        with pytest.raises(JobCancelled):
            sink.context.failures(("/x", "X", "y") for _ in range(1_000_000))
        ended.set()

    threading.Thread(target=fail_much, daemon=True).start()
    sink.context.cancel("enough")
    assert ended.wait(30)
    assert len(sink.sent) < 10


def test_progress_adds_up_and_ends_a_wait() -> None:
    context = Sink().context
    context.progress(files=1, bytes=10)
    context.waiting_for("a lock")
    shown = context.snapshot()
    assert (shown.files_done, shown.bytes_done, shown.waiting_for) == (1, 10, "a lock")
    context.progress(bytes=5)
    shown = context.snapshot()
    assert (shown.files_done, shown.bytes_done, shown.waiting_for) == (1, 15, "")


def test_cancelling_shows_and_raises() -> None:
    context = Sink().context
    context.check()
    context.cancel("stop")
    context.cancel("later")
    assert context.cancelled
    with pytest.raises(JobCancelled, match="stop"):
        context.check()


def test_outcomes_become_messages() -> None:
    done = Done(4, 40, 3, 30, [new_task(Task.UPLOAD)], ["careful"])
    complete = jobs.to_request(LEASE, done, 1).complete
    assert complete.lease == LEASE
    assert (complete.files_total, complete.bytes_total) == (4, 40)
    assert (complete.files_done, complete.bytes_done, complete.files_failed) == (3, 30, 1)
    assert [task.kind for task in complete.follow_ups] == [Task.UPLOAD]
    assert list(complete.warnings) == ["careful"]
    defer = jobs.to_request(LEASE, Deferred(1.5, b"p", "tape"), 2).defer
    assert (defer.delay.ToNanoseconds(), defer.payload, defer.waiting_for) == (15e8, b"p", "tape")
    assert defer.files_failed == 2


@pytest.mark.parametrize(
    "outcome",
    [
        Done(follow_ups=[new_task(Task.UPLOAD)] * (jobs.MAX_FOLLOW_UPS + 1)),
        Deferred(1.0, b"x" * (jobs.MAX_RESULT_BYTES + 1)),
    ],
)
def test_results_that_no_message_holds_fail_for_good(outcome: jobs.Outcome) -> None:
    fail = jobs.to_request(LEASE, outcome, 3).fail
    assert (fail.code, fail.transient, fail.files) == ("RESULT_TOO_LARGE", False, 3)


def test_errors_say_whether_another_try_helps() -> None:
    lasting = jobs.to_fail(LEASE, errors.NotFound("GONE", "it is gone"), 5).fail
    assert (lasting.code, lasting.reason, lasting.transient) == ("GONE", "it is gone", False)
    assert lasting.files == 5
    passing = jobs.to_fail(LEASE, errors.Unavailable("DOWN", "down", retry_after=2.5), 0).fail
    assert passing.transient
    assert passing.retry_after.ToNanoseconds() == 25e8
    bug = jobs.to_fail(LEASE, ValueError("secret"), 0).fail
    assert (bug.code, bug.transient) == ("INTERNAL", True)
    assert "secret" not in bug.reason


def test_follow_ups_carry_what_they_are_told() -> None:
    task = new_task(
        Task.RECALL, FilesTask(bytes=9), cost=3, delay=2, key="k", unique=True, last=True,
        transaction=pb.TransactionSpec(id="x"),
    )  # fmt: skip
    assert FilesTask.FromString(task.payload).bytes == 9
    assert (task.cost, task.delay.seconds, task.key) == (3, 2, "k")
    assert (task.unique, task.last, task.transaction.id) == (True, True, "x")
    assert not new_task(Task.RECALL).HasField("delay")
