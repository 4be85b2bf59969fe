"""FINISH_DIRECTORIES: what has to wait until everything was written: hard links and directories."""

from collections.abc import Iterable

import structlog

from nearline.type.v1 import storage_pb2, task_pb2
from nearline_client import names
from services.kit.jobs import Done, Job, JobContext
from services.transfer.context import Context, record_failure
from services.transfer.download import metadata_of
from services.transfer.entries import Entry, Kind
from services.transfer.filefailures import FileError
from services.transfer.planning import Inode, inode
from services.transfer.tidy import place, remove_leftovers
from services.transfer.userfs import UserFiles

log = structlog.get_logger(__name__)

Attributes = storage_pb2.Attributes
StoredFile = storage_pb2.StoredFile


def finish_directories(context: Context, job: Job, ctx: JobContext) -> Done:
    """Join hard links, make directories that are missing, then set metadata, the deepest first.

    Deepest first, because a directory may come back unwritable, and because making an entry
    changes the times of the directory above it.
    """
    task = task_pb2.FilesTask.FromString(job.payload)
    target = names.decode(task_pb2.GetOptions.FromString(job.transaction.options).target)
    files = list(context.catalog.files(task.files))
    directories = [file for file in files if file.attributes.type == Attributes.DIRECTORY]
    ctx.files_at_stake = len(directories)
    with context.serving(job, target) as user, user.acting():
        if job.attempt > 1:
            remove_leftovers(user, target, files, ctx)
        _join_links(user, ctx, target, [file for file in files if file.attributes.hardlink])
        made = [file for file in directories if _make(user, ctx, place(target, file.path), file)]
        made.sort(key=lambda file: names.decode(file.path).count(b"/"), reverse=True)
        done = sum(_finish(user, ctx, place(target, file.path), file) for file in made)
    return Done(files_done=done)


def _join_links(
    user: UserFiles, ctx: JobContext, target: bytes, files: Iterable[StoredFile]
) -> None:
    """Make names of one file that were restored apart share it again, where nothing else came."""
    first: dict[Inode, tuple[bytes, Entry]] = {}
    for file in files:
        ctx.check()
        path = place(target, file.path)
        try:
            found = user.stat(path)
            if not _is_restored(found, file.attributes):
                continue
            other, entry = first.setdefault(inode(file), (path, found))
            # Of another owner it is not what was restored, even if it looks the same.
            if entry.uid == found.uid and (entry.dev, entry.ino) != (found.dev, found.ino):
                user.make_hardlink(other, path)
        except FileError as error:
            # Its bytes are there, or their failure is on record.
            log.info("hard_link_not_restored", file=file.id, code=error.failure.code)


def _is_restored(found: Entry, wanted: Attributes) -> bool:
    return found.kind is Kind.FILE and (found.size, found.mtime_ns) == (
        wanted.size,
        wanted.mtime_ns,
    )


def _make(user: UserFiles, ctx: JobContext, path: bytes, file: StoredFile) -> bool:
    ctx.check()
    try:
        user.make_dirs(path)
    except FileError as error:
        record_failure(ctx, file.path, error, target=path)
        return False
    return True


def _finish(user: UserFiles, ctx: JobContext, path: bytes, file: StoredFile) -> bool:
    ctx.check()
    try:
        user.set_dir_metadata(path, metadata_of(file.attributes))
    except FileError as error:
        record_failure(ctx, file.path, error, target=path)
        return False
    ctx.progress(files=1)
    return True
