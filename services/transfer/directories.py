"""FINISH_DIRECTORIES: metadata of restored directories, after everything below them was written."""

from nearline.type.v1 import storage_pb2, task_pb2
from nearline_client import names
from services.kit import spans
from services.kit.jobs import Done, Job, JobContext
from services.transfer.context import Context, record_failure
from services.transfer.download import metadata_of, place
from services.transfer.filefailures import FileError
from services.transfer.userfs import UserFiles


def finish_directories(context: Context, job: Job, ctx: JobContext) -> Done:
    """Make the payload's directories that are missing, then set metadata, the deepest first.

    Deepest first, because a directory may come back unwritable, and because making an entry
    changes the times of the directory above it.
    """
    task = task_pb2.FilesTask.FromString(job.payload)
    ctx.files_at_stake = spans.count(task.files)
    target = names.decode(task_pb2.GetOptions.FromString(job.transaction.options).target)
    files = list(context.catalog.files(task.files))
    with context.serving(job, target) as user, user.acting():
        made = [file for file in files if _make(user, ctx, place(target, file.path), file)]
        made.sort(key=lambda file: names.decode(file.path).count(b"/"), reverse=True)
        done = sum(_finish(user, ctx, place(target, file.path), file) for file in made)
    return Done(files_done=done)


def _make(user: UserFiles, ctx: JobContext, path: bytes, file: storage_pb2.StoredFile) -> bool:
    try:
        user.make_dirs(path)
    except FileError as error:
        record_failure(ctx, file.path, error, target=path)
        return False
    return True


def _finish(user: UserFiles, ctx: JobContext, path: bytes, file: storage_pb2.StoredFile) -> bool:
    try:
        user.set_dir_metadata(path, metadata_of(file.attributes))
    except FileError as error:
        record_failure(ctx, file.path, error, target=path)
        return False
    ctx.progress(files=1)
    return True
