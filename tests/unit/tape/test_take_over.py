"""An attempt that takes over an aggregate which the attempt before seals at that very moment."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

from nearline.monitor.v1 import monitor_pb2
from nearline.type.v1 import storage_pb2, task_pb2
from services.kit.errors import FailedPrecondition
from services.kit.jobs import Done, Job, JobContext
from services.tape.archive import archive
from services.tape.config import ArchiveConfig
from services.tape.context import Context

Blob = storage_pb2.Blob
Task = task_pb2.Task


class _SealedMeanwhile:
    """A catalog that shows a blob as WRITING, and has it sealed when it is to be released."""

    def blobs(self, _: object) -> list[Blob]:
        return [Blob(id=7, state=Blob.WRITING)]

    def release_aggregate(self, blob_id: int) -> None:
        raise FailedPrecondition("BLOB_SEALED", f"tape blob {blob_id} was written already")


def test_what_was_sealed_meanwhile_is_confirmed() -> None:
    context = SimpleNamespace(
        catalog=_SealedMeanwhile(), config=SimpleNamespace(archive=ArchiveConfig())
    )
    payload = task_pb2.TapeBlobTask(blob_id=7, key="1/7.tar").SerializeToString()
    job = Job(1, 2, Task.ARCHIVE, payload, None, 2, monitor_pb2.TransactionSpec())
    ctx = JobContext(monitor_pb2.Lease(task_id=1, token=2), lambda _: None)
    outcome = archive(cast(Context, context), job, ctx)
    assert isinstance(outcome, Done)
    (confirm,) = outcome.follow_ups
    assert confirm.kind == Task.CONFIRM
    assert task_pb2.TapeBlobTask.FromString(confirm.payload).blob_id == 7
