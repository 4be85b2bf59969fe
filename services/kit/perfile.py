"""A final error of a whole task, said of each of its files: users are to see paths and reasons."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from nearline.type.v1 import storage_pb2, task_pb2
from services.kit import spans
from services.kit.catalogclient import CatalogClient
from services.kit.errors import NearlineError
from services.kit.jobs import Done, Handler, Job, JobContext, Outcome

FilesOf = Callable[[bytes], Iterable[storage_pb2.IdRange]]
"""The files that a payload speaks of; none when it speaks of paths, which the ledger knows."""


def failing_each(handler: Handler, files_of: FilesOf, catalog: CatalogClient) -> Handler:
    """As ``handler``, but what ends its task for good is recorded for each of the task's files.

    Not where some have been reported already: they must not count twice, so the task fails as one.
    """

    def run(job: Job, ctx: JobContext) -> Outcome:
        try:
            return handler(job, ctx)
        except NearlineError as error:
            ranges = list(files_of(job.payload))
            if error.transient or ctx.has_failures or not ranges:
                raise
            return _fail_each(job, ctx, ranges, catalog.files(ranges), error)

    return run


def _fail_each(
    job: Job,
    ctx: JobContext,
    ranges: Sequence[storage_pb2.IdRange],
    files: Iterable[storage_pb2.StoredFile],
    error: NearlineError,
) -> Done:
    stored, size, nameless = 0, 0, spans.count(ranges)
    for file in files:
        nameless -= 1
        if job.kind == task_pb2.Task.UPLOAD and file.stored:
            stored += 1
            size += file.attributes.size
        else:
            ctx.failures([(file.path, error.reason, error.message)])
    # The catalog has given these names to another put; they count all the same.
    ctx.failures([("", error.reason, error.message)] * nameless)
    return Done(files_done=stored, bytes_done=size)


def of_files_task(payload: bytes) -> Iterable[storage_pb2.IdRange]:
    """Of UPLOAD, DOWNLOAD, and a RESOLVE of files."""
    return task_pb2.FilesTask.FromString(payload).files


def of_recall(payload: bytes) -> Iterable[storage_pb2.IdRange]:
    """Of RECALL."""
    return task_pb2.RecallTask.FromString(payload).files


def of_stage(payload: bytes) -> Iterable[storage_pb2.IdRange]:
    """Of STAGE."""
    for recall in task_pb2.StageTask.FromString(payload).recalls:
        yield from recall.files
