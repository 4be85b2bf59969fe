"""What the ends of leases do to tasks and transactions, without a database."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from nearline.monitor.v1 import monitor_pb2 as pb
from nearline.type.v1.task_pb2 import Task
from nearline.type.v1.transaction_pb2 import Transaction
from services.kit.jobs import new_task, seconds
from services.monitor import book as rules
from services.monitor.book import Book, Effects, Report, TaskRow
from services.monitor.rules import Ending, Limits

LIMITS = Limits(give_up_after=100, most_lost=3)


def task(**fields: object) -> TaskRow:
    values: dict[str, object] = {
        "id": 1, "txn": 1, "kind": Task.UPLOAD, "state": Task.LEASED, "token": 5, "ended_token": 4,
        "ended": Ending.DEFER, "attempt": 1, "lost": 0, "failing_seconds": None, "chunk": None,
        "schedule": None,
    }  # fmt: skip
    return TaskRow(**{**values, **fields})  # type: ignore[arg-type]


def book(**fields: object) -> Book:
    values: dict[str, object] = {
        "seq": 1, "id": "x", "action": Transaction.PUT, "user": "u", "group": "g",
        "state": Transaction.QUEUED, "open_by_kind": Counter({Task.UPLOAD: 1}),
    }  # fmt: skip
    return Book(**{**values, **fields})  # type: ignore[arg-type]


def end(row: TaskRow, of: Book | None, stored: int = 0, **message: object) -> Effects:
    report = rules.report_of(pb.WorkRequest(**message))  # type: ignore[arg-type]
    report = Report(row.id, row.token, report.ending, report.body)
    return rules.end_lease(row, of, report, LIMITS, failures_stored=stored, jitter=0.0)


def lose(row: TaskRow, of: Book, *, blameless: bool = False) -> Effects:
    report = Report(row.id, row.token, Ending.LOST, blameless=blameless)
    return rules.end_lease(row, of, report, LIMITS, failures_stored=0, jitter=0.0)


def test_complete_adds_up_and_ends() -> None:
    row, of = task(), book()
    done = pb.WorkRequest.Complete(files_total=3, files_done=2, bytes_done=9, files_failed=1)
    effects = end(row, of, stored=1, complete=done)
    assert (row.state, row.ended_token, row.ended) == (Task.DONE, 5, Ending.COMPLETE)
    assert (of.files_total, of.files_done, of.files_failed, of.bytes_done) == (3, 2, 1, 9)
    assert effects.count_failures
    of.settle()
    assert of.state == Transaction.COMPLETE_WITH_ERRORS


def test_a_result_whose_failures_got_lost_is_tried_again() -> None:
    row, of = task(), book()
    end(row, of, stored=1, complete=pb.WorkRequest.Complete(files_done=5, files_failed=2))
    assert row.state == Task.DELAYED
    assert of.files_done == 0


def test_a_follow_up_that_cannot_be_made_fails_the_task() -> None:
    row, of = task(), book()
    bad = pb.WorkRequest.Complete(follow_ups=[pb.NewTask()])
    effects = end(row, of, complete=bad)
    assert row.state == Task.FAILED
    assert effects.given_up == (rules.BAD_FOLLOW_UP, "a new task has no kind")


def test_deferring_is_no_failed_attempt() -> None:
    row, of = task(attempt=7, lost=2, failing_seconds=50.0), book()
    defer = pb.WorkRequest.Defer(delay=seconds(9), payload=b"p", waiting_for="tape")
    end(row, of, defer=defer)
    assert (row.state, row.delay, row.payload, row.note) == (Task.DELAYED, 9.0, b"p", "tape")
    assert (row.attempt, row.lost, row.failing) == (0, 0, False)
    assert of.open_by_kind[Task.UPLOAD] == 1


def test_transient_failures_wait_and_at_last_give_up() -> None:
    row, of = task(attempt=3, failing_seconds=99.0), book()
    fail = pb.WorkRequest.Fail(code="DOWN", reason="no store", transient=True, files=4)
    end(row, of, fail=fail)
    assert (row.state, row.note, row.failing) == (Task.DELAYED, "no store", True)
    assert row.delay == 2.0
    row = task(failing_seconds=100.0)
    effects = end(row, of, fail=fail)
    assert (row.state, of.files_failed, effects.given_up) == (Task.FAILED, 4, ("DOWN", "no store"))


def test_names_count_in_place_of_numbers_when_a_task_is_given_up() -> None:
    fail = pb.WorkRequest.Fail(code="DOWN", reason="no store", transient=True, files=4)
    fail.files_failed, fail.files_done, fail.bytes_done, fail.files_total = 3, 1, 10, 1
    row, of = task(failing_seconds=50.0, files=4), book(files_total=4)
    effects = end(row, of, stored=3, fail=fail)
    assert (row.state, of.files_failed, of.files_done) == (Task.DELAYED, 0, 0)
    assert not effects.count_failures, "it is tried again, so nothing has failed"
    row = task(failing_seconds=100.0, files=4)
    of = book(files_total=4)
    effects = end(row, of, stored=3, fail=fail)
    assert (row.state, row.files_failed, effects.count_failures) == (Task.FAILED, 3, True)
    assert (of.files_failed, of.files_done, of.bytes_done, of.tasks_failed) == (3, 1, 10, 1)
    assert of.files_total == 5, "what was newly met"
    assert effects.given_up == ("DOWN", "no store")


def test_a_failure_whose_names_got_lost_is_tried_again() -> None:
    row, of = task(), book()
    end(row, of, stored=1, fail=pb.WorkRequest.Fail(code="WORKER_LOST", files_failed=2))
    assert (row.state, of.files_failed) == (Task.DELAYED, 0)


def test_retry_after_is_respected() -> None:
    row = task()
    fail = pb.WorkRequest.Fail(code="B", reason="busy", transient=True, retry_after=seconds(30))
    end(row, book(), fail=fail)
    assert row.delay == 30.0


def test_permanent_failures_end_at_once() -> None:
    row, of = task(), book()
    end(row, of, fail=pb.WorkRequest.Fail(code="QUOTA", reason="full", files=2))
    assert row.state == Task.FAILED
    of.settle()
    assert of.state == Transaction.FAILED


def test_a_lost_worker_is_replaced_until_it_looks_like_poison() -> None:
    row, of = task(), book()
    lose(row, of)
    assert (row.state, row.lost) == (Task.READY, 1)
    row = task(lost=2)
    effects = lose(row, of)
    assert row.state == Task.FAILED
    assert effects.given_up is not None
    assert effects.given_up[0] == rules.POISON


def test_leases_that_never_arrived_are_nobodys_fault() -> None:
    row = task(attempt=4)
    lose(row, book(), blameless=True)
    assert (row.state, row.lost, row.attempt, row.ended) == (Task.READY, 0, 3, Ending.LOST)


def test_cancelled_work_ends_however_the_lease_ends() -> None:
    for message in (
        {"hand_back": pb.WorkRequest.HandBack()},
        {"defer": pb.WorkRequest.Defer(delay=seconds(5))},
        {"fail": pb.WorkRequest.Fail(code="X", transient=True)},
    ):
        row, of = task(), book(cancelled=True)
        end(row, of, **message)
        assert row.state == Task.CANCELLED
        of.settle()
        assert of.state == Transaction.CANCELLED


def test_what_the_dead_left_of_cancelled_work_is_tidied_up() -> None:
    for message in (
        {"hand_back": pb.WorkRequest.HandBack()},
        {"defer": pb.WorkRequest.Defer(delay=seconds(5))},
        {"fail": pb.WorkRequest.Fail(code="X", transient=True)},
    ):
        for lost in (0, 1):
            row, of = task(kind=Task.DOWNLOAD, lost=lost), book(cancelled=True)
            assert end(row, of, **message).tidy == (lost > 0)
    for kind in (Task.DOWNLOAD, Task.FINISH_DIRECTORIES, Task.UPLOAD):
        row, of = task(kind=kind), book(cancelled=True)
        assert lose(row, of).tidy == (kind != Task.UPLOAD)
        assert (row.state, row.lost) == (Task.CANCELLED, 1)
    assert not lose(task(kind=Task.DOWNLOAD), book(cancelled=True), blameless=True).tidy


def test_what_the_dead_left_of_work_that_is_given_up_is_tidied_up() -> None:
    assert lose(task(kind=Task.DOWNLOAD, lost=2), book()).tidy
    final = pb.WorkRequest.Fail(code="X")
    for lost in (0, 1):
        assert end(task(kind=Task.DOWNLOAD, lost=lost), book(), fail=final).tidy == (lost > 0)
    effects = end(task(kind=Task.DOWNLOAD, lost=1), book(), complete=pb.WorkRequest.Complete())
    assert not effects.tidy, "the attempt that was done has removed it"
    assert not lose(task(kind=Task.DOWNLOAD), book()).tidy, "the next attempt does"


def test_tidying_up_is_not_cancelled_and_is_not_tidied_up_after() -> None:
    row, of = task(kind=Task.TIDY), book(cancelled=True, open_by_kind=Counter({Task.TIDY: 1}))
    lose(row, of)
    of.settle()
    assert (row.state, row.lost, of.finished) == (Task.READY, 1, False)
    row.state, row.lost = Task.LEASED, 2
    assert not lose(row, of).tidy
    of.settle()
    assert (row.state, of.state) == (Task.FAILED, Transaction.CANCELLED)


def test_work_done_in_spite_of_a_cancel_counts_but_leads_nowhere() -> None:
    row, of = task(), book(cancelled=True)
    done = pb.WorkRequest.Complete(files_done=2, follow_ups=[new_task(Task.UPLOAD)])
    effects = end(row, of, complete=done)
    assert (row.state, of.files_done, list(effects.follow_ups)) == (Task.DONE, 2, [])


def test_scheduled_work_belongs_to_no_transaction() -> None:
    row = task(txn=None, schedule="plan")
    effects = end(row, None, complete=pb.WorkRequest.Complete(follow_ups=[new_task(Task.ARCHIVE)]))
    assert row.state == Task.DONE
    assert len(effects.follow_ups) == 1


_MESSAGES = st.sampled_from([
    {"complete": pb.WorkRequest.Complete(files_done=1)},
    {"defer": pb.WorkRequest.Defer()},
    {"fail": pb.WorkRequest.Fail(code="A", transient=True)},
    {"fail": pb.WorkRequest.Fail(code="A")},
    {"hand_back": pb.WorkRequest.HandBack()},
])  # fmt: skip


@given(st.lists(_MESSAGES, max_size=30), st.booleans())
def test_open_tasks_are_counted_exactly(messages: list[dict[str, object]], cancelled: bool) -> None:
    """Whatever is reported in whatever order, the count of open tasks is that of the tasks."""
    of = book(cancelled=cancelled, open_by_kind=Counter({Task.UPLOAD: 3}))
    rows = [task(id=n) for n in range(3)]
    for number, message in enumerate(messages):
        row = rows[number % 3]
        if row.state in (Task.READY, Task.DELAYED):
            row = rows[number % 3] = task(id=row.id, token=row.token + 1, attempt=row.attempt + 1)
        if row.state == Task.LEASED:
            end(row, of, **message)
        still = sum(r.state in (Task.READY, Task.LEASED, Task.DELAYED) for r in rows)
        assert of.open_by_kind[Task.UPLOAD] == still
        of.settle()
        assert of.finished == (still == 0)
