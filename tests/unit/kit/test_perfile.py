"""A final error of a task is said of each of its files, once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from nearline.monitor.v1 import monitor_pb2
from nearline.type.v1 import storage_pb2, task_pb2
from services.kit.errors import NearlineError, PermissionDenied, Unavailable
from services.kit.jobs import Done, Job, JobContext
from services.kit.perfile import failing_each, of_files_task

REFUSED = PermissionDenied("USER_NOT_SERVED", "uid 12 is not served here")


class Catalog:
    """Knows files 1 and 2 of three; the first is stored."""

    def files(self, ranges: Iterable[Any]) -> Iterator[storage_pb2.StoredFile]:
        for number in (1, 2):
            attributes = storage_pb2.Attributes(size=10)
            yield storage_pb2.StoredFile(
                id=number, path=f"/{number}", stored=number == 1, attributes=attributes
            )


def run(
    kind: Any, error: NearlineError, *, reported: bool = False, payload: bytes | None = None
) -> tuple[Done, list[str]]:
    def handler(job: Job, ctx: JobContext) -> Done:
        if reported:
            ctx.failures([("/3", "CHANGED", "it changed")])
        raise error

    if payload is None:
        files = [storage_pb2.IdRange(first=1, count=3)]
        payload = task_pb2.FilesTask(files=files).SerializeToString()
    sent: list[monitor_pb2.WorkRequest] = []
    ctx = JobContext(monitor_pb2.Lease(), sent.append)
    job = Job(1, 1, kind, payload, None, 1, monitor_pb2.TransactionSpec())
    done = failing_each(handler, of_files_task, Catalog())(job, ctx)  # type: ignore[arg-type]
    assert isinstance(done, Done)
    ctx.finish()
    return done, [each.path for message in sent for each in message.failures.failures]


def test_each_file_fails_but_those_an_upload_had_stored() -> None:
    done, failed = run(task_pb2.Task.UPLOAD, REFUSED)
    assert (done.files_done, done.bytes_done, failed) == (1, 10, ["/2", ""])
    done, failed = run(task_pb2.Task.DOWNLOAD, REFUSED)
    assert (done.files_done, failed) == (0, ["/1", "/2", ""])


def test_what_may_pass_and_what_was_told_in_part_stays_with_the_task() -> None:
    with pytest.raises(Unavailable):
        run(task_pb2.Task.UPLOAD, Unavailable("OBJECT_STORE_UNREACHABLE", "no answer"))
    with pytest.raises(PermissionDenied):
        run(task_pb2.Task.UPLOAD, REFUSED, reported=True)
    with pytest.raises(PermissionDenied):
        run(task_pb2.Task.RESOLVE, REFUSED, payload=b"")
