"""TIDY: removes temporary files of a task whose workers died and that nobody works on any more."""

from collections.abc import Iterable

import structlog

from nearline.type.v1 import storage_pb2, task_pb2
from nearline_client import names
from services.kit.jobs import Done, Job, JobContext
from services.transfer.context import Context, unavailable
from services.transfer.filefailures import FileError
from services.transfer.userfs import UserFiles

log = structlog.get_logger(__name__)


def tidy(context: Context, job: Job, ctx: JobContext) -> Done:
    """Look into the directories that the task which ended wrote into."""
    task = task_pb2.TidyTask.FromString(job.payload)
    files = task_pb2.FilesTask.FromString(task.payload).files
    target = names.decode(task_pb2.GetOptions.FromString(job.transaction.options).target)
    found = list(context.catalog.files(files))
    with context.serving(job, target, task.task_id) as user:
        remove_leftovers(user, target, found, ctx)
    return Done()


def place(target: bytes, path: str) -> bytes:
    """Where a file goes: its whole path below ``target``, or its own path without one."""
    return target.rstrip(b"/") + names.decode(path)


def parent_of(path: bytes) -> bytes:
    """The directory of an absolute path."""
    return path.rpartition(b"/")[0] or b"/"


def remove_leftovers(
    user: UserFiles, target: bytes, files: Iterable[storage_pb2.StoredFile], ctx: JobContext
) -> None:
    """Remove what killed attempts of the task left beside ``files``.

    Directories that are not there, or that the user may not enter, are passed by. Raises
    Unavailable where the file system does not answer.
    """
    for directory in sorted({parent_of(place(target, file.path)) for file in files}):
        ctx.check()
        try:
            user.remove_leftovers(directory)
        except FileError as error:
            if error.failure.transient:
                raise unavailable(error) from error
            log.info("not_tidied", code=error.failure.code)
