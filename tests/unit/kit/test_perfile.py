"""A final error of a task is said of each of its files, once."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from nearline.monitor.v1 import monitor_pb2
from nearline.type.v1 import storage_pb2, task_pb2
from services.kit.errors import NearlineError, PermissionDenied, Unavailable
from services.kit.jobs import Done, Job, JobCancelled, JobContext
from services.kit.perfile import Whose, failing_each, of_files_task, of_scan

DOWN = Unavailable("OBJECT_STORE_UNREACHABLE", "no answer")
REFUSED = PermissionDenied("USER_NOT_SERVED", "uid 12 is not served here")


class Catalog:
    """Knows files 1 and 2 of three; the first is stored."""

    def files(self, ranges: Iterable[Any]) -> Iterator[storage_pb2.StoredFile]:
        for number in (1, 2):
            attributes = storage_pb2.Attributes(size=10)
            yield storage_pb2.StoredFile(
                id=number, path=f"/{number}", stored=number == 1, attributes=attributes
            )


class Run:
    """A task of three files, whose handler may report one of them before it fails."""

    def __init__(
        self,
        kind: Any = task_pb2.Task.UPLOAD,
        payload: bytes | None = None,
        whose: Whose = of_files_task,
    ) -> None:
        self.whose = whose
        files = [storage_pb2.IdRange(first=1, count=3)]
        three = task_pb2.FilesTask(files=files).SerializeToString()
        spec = monitor_pb2.TransactionSpec()
        self.job = Job(1, 1, kind, three if payload is None else payload, None, 1, spec)
        self.catalog: Any = Catalog()
        self.sent: list[monitor_pb2.WorkRequest] = []
        self.ctx = JobContext(monitor_pb2.Lease(), self.sent.append)
        self.worked = False

    def ends(self, error: Exception, *, reported: str = "") -> Done:
        def handler(job: Job, ctx: JobContext) -> Done:
            self.worked = True
            if reported:
                ctx.failures([(reported, "CHANGED", "it changed")])
            raise error

        done = failing_each(handler, self.whose, self.catalog)(self.job, self.ctx)
        assert isinstance(done, Done)
        self.ctx.finish()
        return done

    def fails(self, error: Exception, **options: Any) -> monitor_pb2.WorkRequest.Fail:
        with pytest.raises(Exception) as caught:  # noqa: PT011
            self.ends(error, **options)
        assert isinstance(caught.value, Exception)
        return self.ctx.fail(caught.value).fail

    @property
    def failed(self) -> list[tuple[str, str]]:
        return [(f.path, f.code) for message in self.sent for f in message.failures.failures]


def test_each_file_fails_once_but_those_an_upload_had_stored() -> None:
    code = REFUSED.reason
    run = Run()
    done = run.ends(REFUSED)
    assert (done.files_done, done.bytes_done) == (1, 10)
    assert run.failed == [("/2", code), ("", code)]
    run = Run(task_pb2.Task.DOWNLOAD)
    assert run.ends(REFUSED, reported="/2").files_done == 0
    assert run.failed == [("/2", "CHANGED"), ("/1", code), ("", code)]


def test_what_may_pass_and_what_speaks_of_paths_stays_with_the_task() -> None:
    run = Run()
    assert run.fails(DOWN).transient
    assert run.failed == []
    run = Run(task_pb2.Task.RESOLVE, b"")
    assert not run.fails(REFUSED).transient
    assert run.failed == []


@pytest.mark.parametrize("error", [DOWN, RuntimeError("a bug")])
def test_a_task_that_is_given_up_names_its_files(error: Exception) -> None:
    early, late = Run(), Run()
    early.job = replace(early.job, given_up_at=time.monotonic() + 3600)
    assert early.fails(error).files_failed == 0
    late.job = replace(late.job, given_up_at=time.monotonic())
    fail = late.fails(error, reported="/2")
    assert fail.transient
    assert (fail.files_failed, fail.files_done, fail.bytes_done) == (2, 1, 10)
    assert late.failed == [("/2", "CHANGED"), ("", fail.code)]


def test_a_task_that_killed_its_workers_is_not_worked_on_but_named() -> None:
    run = Run(task_pb2.Task.DOWNLOAD)
    run.job = replace(run.job, workers_lost=9)
    fail = run.fails(DOWN)
    assert not run.worked
    assert (fail.code, fail.transient, fail.files_failed) == ("WORKER_LOST", False, 3)
    assert "9 workers" in fail.reason
    assert [path for path, _ in run.failed] == ["/1", "/2", ""]


def test_without_a_catalog_a_poisonous_task_waits_and_a_late_one_is_given_up_without_names() -> (
    None
):
    class Away:
        def files(self, ranges: Iterable[Any]) -> Iterator[storage_pb2.StoredFile]:
            raise Unavailable("CATALOG", "away")

    poison, late = Run(), Run()
    poison.catalog = late.catalog = Away()
    poison.job = replace(poison.job, workers_lost=9)
    assert poison.fails(DOWN).code == "CATALOG"
    late.job = replace(late.job, given_up_at=time.monotonic())
    fail = late.fails(DOWN)
    assert (fail.code, fail.files_failed) == (DOWN.reason, 0)


@pytest.mark.parametrize("error", [DOWN, REFUSED])
def test_directories_that_were_never_looked_into_are_named(error: NearlineError) -> None:
    directories = ["/a", "/b"]
    payload = task_pb2.ScanTask(directories=directories).SerializeToString()
    run = Run(task_pb2.Task.SCAN, payload, of_scan)
    run.job = replace(run.job, given_up_at=time.monotonic())
    if error.transient:
        fail = run.fails(error)
        assert (fail.files_total, fail.files_failed) == (2, 2)
    else:
        assert run.ends(error).files_total == 2
    assert run.failed == [(path, error.reason) for path in directories]


def test_work_that_was_called_off_is_nobodys_failure() -> None:
    run = Run()
    run.job = replace(run.job, given_up_at=time.monotonic())
    with pytest.raises(JobCancelled):
        run.ends(JobCancelled("cancelled"))
    assert run.failed == []
