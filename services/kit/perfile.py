"""An error that ends a task, said of each of its files: users are to see paths and reasons."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from nearline.type.v1 import storage_pb2, task_pb2
from services.kit import spans
from services.kit.catalogclient import CatalogClient
from services.kit.errors import Internal, NearlineError
from services.kit.jobs import Done, Handler, Job, JobCancelled, JobContext, Outcome, described

Ranges = Sequence[storage_pb2.IdRange]
Whose = Callable[[bytes], Ranges | Sequence[str]]
"""The files that a payload speaks of, by number, or the directories that are to be looked into.

Empty where the task is about a chunk of paths, which the ledger knows.
"""


def failing_each(handler: Handler, whose: Whose, catalog: CatalogClient) -> Handler:
    """As ``handler``, but what ends its task for good is recorded for each of the task's files.

    A final error of the handler makes the task Done, with failed files. When the ledger is about
    to give the task up, it fails as before, and names its files: operators are to see it then.
    """

    def run(job: Job, ctx: JobContext) -> Outcome:
        files = whose(job.payload)
        try:
            if job.workers_lost and files:
                raise _poisonous(job)
            return handler(job, ctx)
        except JobCancelled:
            raise
        except Exception as error:
            _, _, transient = described(error)
            if not files:
                raise
            if job.workers_lost:
                # Where the catalog fails, that is what is tried again.
                ctx.all_named(_fail_each(job, ctx, files, catalog, error))
            elif not transient:
                return _fail_each(job, ctx, files, catalog, error)
            elif job.given_up_at is not None and time.monotonic() >= job.given_up_at:
                with suppress(NearlineError):  # Given up without names then.
                    ctx.all_named(_fail_each(job, ctx, files, catalog, error))
            raise

    return run


def _poisonous(job: Job) -> NearlineError:
    return Internal("WORKER_LOST", f"{job.workers_lost} workers were lost while they worked on it")


def _fail_each(
    job: Job,
    ctx: JobContext,
    files: Ranges | Sequence[str],
    catalog: CatalogClient,
    error: Exception,
) -> Done:
    """Report those that were not reported yet; files that an upload has stored are done."""
    code, reason, _ = described(error)
    ranges = [each for each in files if not isinstance(each, str)]
    paths = [each for each in files if isinstance(each, str)]
    stored = size = 0
    for file in catalog.files(ranges) if ranges else ():
        if job.kind == task_pb2.Task.UPLOAD and file.stored:
            stored += 1
            size += file.attributes.size
        else:
            paths.append(file.path)
    ctx.failures((path, code, reason) for path in paths if not ctx.has_failed(path))
    if not ranges:
        return Done(files_total=ctx.failed)
    # The catalog has given these names to another put; they count all the same.
    nameless = spans.count(ranges) - stored - ctx.failed
    ctx.failures([("", code, reason)] * nameless)
    return Done(files_done=stored, bytes_done=size)


def of_scan(payload: bytes) -> Sequence[str]:
    """Of SCAN."""
    return task_pb2.ScanTask.FromString(payload).directories


def of_files_task(payload: bytes) -> Ranges:
    """Of UPLOAD, DOWNLOAD, and a RESOLVE of files."""
    return task_pb2.FilesTask.FromString(payload).files


def of_recall(payload: bytes) -> Ranges:
    """Of RECALL."""
    return task_pb2.RecallTask.FromString(payload).files


def of_stage(payload: bytes) -> Ranges:
    """Of STAGE."""
    recalls = task_pb2.StageTask.FromString(payload).recalls
    return [numbers for recall in recalls for numbers in recall.files]
