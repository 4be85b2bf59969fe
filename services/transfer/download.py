"""DOWNLOAD: reads slices of blobs from the cache, verifies them, and writes files as the user."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from nearline.monitor.v1 import monitor_pb2 as ledger
from nearline.type.v1 import storage_pb2, task_pb2
from nearline_client import names
from services.kit import spans
from services.kit.batches import cost
from services.kit.catalogclient import Blob
from services.kit.errors import NotFound, Unavailable
from services.kit.faults import gone, require_unreadable, unreadable
from services.kit.jobs import Done, Job, JobContext, new_task
from services.transfer.context import Context, record_failure
from services.transfer.entries import Metadata
from services.transfer.filefailures import FileError
from services.transfer.planning import Inode, inode
from services.transfer.tidy import parent_of, place, remove_leftovers
from services.transfer.userfs import UserFiles

log = structlog.get_logger(__name__)

Attributes = storage_pb2.Attributes
StoredFile = storage_pb2.StoredFile
Slice = storage_pb2.Slice

RUN_BYTES = 8 << 20
"""Most bytes read with one request; larger files are streamed."""
GAP_BYTES = 64 << 10
"""Bytes between two wanted slices that cost less to read than another request."""
UNREADABLE_ATTEMPTS = 2
"""In the first attempt the store may have been in trouble. From this one on an object that cannot
be read, twice with a pause, while others can be, is read from tape."""


class Damaged(Exception):
    """The bytes in the cache are not those that were stored."""


def download(context: Context, job: Job, ctx: JobContext) -> Done:
    """Restore the payload's files; those whose cache copy is lost are looked up again."""
    task = task_pb2.FilesTask.FromString(job.payload)
    ctx.files_at_stake = spans.count(task.files)
    options = task_pb2.GetOptions.FromString(job.transaction.options)
    files = list(context.catalog.files(task.files))
    target = names.decode(options.target)
    with context.serving(job, target) as user:
        if job.attempt > 1:
            remove_leftovers(user, target, files, ctx)
        return _Download(context, ctx, user, target, job.attempt).run(files)


def metadata_of(attributes: Attributes) -> Metadata:
    """What is restored beside the bytes."""
    return Metadata(
        mode=attributes.mode,
        mtime_ns=attributes.mtime_ns,
        uid=attributes.uid,
        gid=attributes.gid,
        xattrs={names.decode(key): value for key, value in attributes.xattrs.items()},
    )


@dataclass(frozen=True, slots=True)
class Piece:
    """A file and the slice of a cache blob that holds its bytes."""

    file: StoredFile
    slice: Slice


class _Download:
    def __init__(
        self, context: Context, ctx: JobContext, user: UserFiles, target: bytes, attempt: int
    ) -> None:
        self._context, self._ctx, self._user, self._target = context, ctx, user, target
        self._attempt = attempt
        self._parents: set[bytes] = set()
        self._linked: dict[Inode, bytes] = {}
        self._again: list[StoredFile] = []
        self._failing: list[StoredFile] = []
        self._trouble: Unavailable | None = None
        self._unread: set[int] = set()
        self._lost: Counter[str] = Counter()
        self._files = self._bytes = 0

    def run(self, files: Sequence[StoredFile]) -> Done:
        self._write_empty([file for file in files if not file.attributes.size])
        pieces = self._cached([file for file in files if file.attributes.size])
        for run in runs(pieces):
            self._ctx.check()
            if run[0].slice.blob_id in self._unread:  # Each try of one may take a minute.
                self._failing += [piece.file for piece in run]
            else:
                self._restore(run)
        if self._trouble is not None and len(self._failing) == len(files):
            raise self._trouble
        tasks = []
        if self._again:
            tasks.append(_task(task_pb2.Task.RESOLVE, self._again))
        if self._failing:  # On their own from here: they hold up no others.
            tasks.append(_task(task_pb2.Task.DOWNLOAD, self._failing))
        return Done(
            files_done=self._files,
            bytes_done=self._bytes,
            follow_ups=tasks,
            warnings=[
                f"{what} of {count} files not restored" for what, count in self._lost.items()
            ],
        )

    def _cached(self, files: Iterable[StoredFile]) -> list[Piece]:
        pieces = []
        for file in files:
            cached = next((one for one in file.slices if one.tier == Blob.CACHE), None)
            if cached is None:
                self._again.append(file)  # Evicted since it was planned.
            else:
                pieces.append(Piece(file, cached))
        return pieces

    def _write_empty(self, files: Sequence[StoredFile]) -> None:
        """Links and files without bytes."""
        with self._user.acting():
            for file in files:
                self._ctx.check()
                self._write(file, b"")

    def _restore(self, run: Sequence[Piece]) -> None:
        """Files of one blob that are read with one request, or one large file."""
        differing: Sequence[Piece] = ()
        with self._reported(run):
            if len(run) == 1 and run[0].slice.length > RUN_BYTES:
                self._stream(run[0])
            else:
                differing = self._write_run(run)
        for piece in differing:
            with self._reported([piece]):  # The others are restored and must not be again.
                self._stream(piece)

    @contextmanager
    def _reported(self, run: Sequence[Piece]) -> Iterator[None]:
        """What cannot be read inside is recorded; then none of ``run`` is restored yet."""
        try:
            yield
        except NotFound:
            self._report_missing(run)
        except Unavailable as error:
            self._report_unreadable(run, error)

    def _write_run(self, run: Sequence[Piece]) -> list[Piece]:
        """Write what is as it was stored; what is not, in this read."""
        start, end = run[0].slice.offset, _end(run)
        data = memoryview(self._context.cache.get_range(run[0].slice.key, start, end - start))
        damaged = []
        with self._user.acting():
            for piece in run:
                self._ctx.check()  # Reading may have taken long.
                at = piece.slice.offset - start
                content = data[at : at + piece.slice.length]
                if hashlib.sha256(content).digest() == piece.file.digest:
                    self._write(piece.file, content)
                else:
                    damaged.append(piece)
        return damaged

    def _write(self, file: StoredFile, content: bytes | memoryview) -> None:
        """Put one file in its place, all at once. Its user's failures are recorded for the file."""
        path = place(self._target, file.path)
        try:
            self._make_parent(path)
            if file.attributes.type == Attributes.SYMLINK:
                link = names.decode(file.attributes.link_target)
                lost = self._user.make_symlink(path, link, metadata_of(file.attributes))
            elif not self._link(file, path):
                with self._user.atomic_write(path) as new:
                    new.write(content)
                    lost = new.commit(metadata_of(file.attributes))
            else:
                lost = ()
        except FileError as error:
            record_failure(self._ctx, file.path, error, target=path)
            return
        self._done(file, path, lost)

    def _stream(self, piece: Piece, *, again: bool = True) -> None:
        """A large file with bounded memory; the name appears only after the digest was checked.

        Bytes that differ are read ``again``: a copy is given up for what lies in the cache, not for
        what happened on the way from it.
        """
        file, piece_of = piece.file, piece.slice
        path = place(self._target, file.path)
        digest = hashlib.sha256()
        pieces = self._context.cache.stream(piece_of.key, piece_of.offset, piece_of.length)
        try:
            self._make_parent(path)
            if self._link(file, path):
                self._done(file, path, ())
                return
            with self._user.atomic_write(path) as new:
                for data in pieces:
                    self._ctx.check()
                    digest.update(data)
                    new.write(data)
                    self._ctx.progress(bytes=len(data))
                if digest.digest() != file.digest:
                    raise Damaged
                self._ctx.check()
                lost = new.commit(metadata_of(file.attributes))
        except FileError as error:
            record_failure(self._ctx, file.path, error, target=path)
        except Damaged:
            if again:
                self._stream(piece, again=False)
            else:
                self._report_damage(piece)
        else:
            self._done(file, path, lost, moved=True)

    def _make_parent(self, path: bytes) -> None:
        parent = parent_of(path)
        if parent not in self._parents:
            self._user.make_dirs(parent)
            self._parents.add(parent)

    def _link(self, file: StoredFile, path: bytes) -> bool:
        """Whether this is another name of a file that was just restored, and was linked to it."""
        existing = self._linked.get(inode(file)) if file.attributes.hardlink else None
        if existing is None:
            return False
        self._user.make_hardlink(existing, path)
        return True

    def _done(
        self, file: StoredFile, path: bytes, lost: Iterable[str], *, moved: bool = False
    ) -> None:
        if file.attributes.hardlink:
            self._linked.setdefault(inode(file), path)
        # The group is the user's to have or not; everything else should have come back.
        self._lost.update(what for what in lost if what != "group")
        self._files += 1
        self._bytes += file.attributes.size
        self._ctx.progress(files=1, bytes=0 if moved else file.attributes.size)

    def _report_missing(self, run: Sequence[Piece]) -> None:
        """Have the catalog forget what is missing for sure; the files of ``run`` come back."""
        catalog, piece_of = self._context.catalog, run[0].slice
        found = gone(catalog, self._context.cache, piece_of.blob_id, piece_of.key, _end(run))
        log.warning("cache_object_missing", blob=piece_of.blob_id, key=piece_of.key)
        beyond = [piece.file.id for piece in run if _end([piece]) > found.size]
        catalog.report_fault(piece_of.blob_id, beyond if found.size else [], found.reason)
        self._again += [piece.file for piece in run]

    def _report_unreadable(self, run: Sequence[Piece], error: Unavailable) -> None:
        """Have files of an object that alone cannot be read come from tape, the others wait."""
        catalog, cache, blob = self._context.catalog, self._context.cache, run[0].slice.blob_id
        trouble = unreadable(catalog, cache, blob, error)
        safe = [piece.file for piece in run if _is_on_tape(piece.file)]
        waiting = [piece.file for piece in run if not _is_on_tape(piece.file)]
        if safe and self._attempt >= UNREADABLE_ATTEMPTS:
            require_unreadable(catalog, cache, blob, error)
            log.error("cache_object_unreadable", blob=blob, why=trouble.message)
            catalog.report_fault(blob, [file.id for file in safe], trouble.message)
            self._again += safe
        else:
            waiting += safe
        self._unread.add(blob)
        if waiting:
            self._trouble = trouble
            self._failing += waiting

    def _report_damage(self, piece: Piece) -> None:
        blob, file = piece.slice.blob_id, piece.file
        log.error("cache_copy_damaged", blob=blob, file=file.id)
        self._context.catalog.report_fault(
            blob, [file.id], "its bytes in the cache do not match its digest"
        )
        self._again.append(file)


def _is_on_tape(file: StoredFile) -> bool:
    return any(one.tier == Blob.TAPE for one in file.slices)


def _task(kind: task_pb2.Task.Kind.ValueType, files: Sequence[StoredFile]) -> ledger.NewTask:
    size = sum(file.attributes.size for file in files)
    payload = task_pb2.FilesTask(files=spans.to_ranges(file.id for file in files), bytes=size)
    bytes_moved = size if kind == task_pb2.Task.DOWNLOAD else 0
    return new_task(kind, payload, cost=cost(len(files), bytes_moved), files=len(files))


def runs(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Pieces of the same blob that one request reads: neighbours with small gaps. Pure."""
    run: list[Piece] = []
    for piece in sorted(pieces, key=lambda one: (one.slice.blob_id, one.slice.offset)):
        if run and not _joins(run, piece):
            yield run
            run = []
        run.append(piece)
    if run:
        yield run


def _end(run: Sequence[Piece]) -> int:
    """First byte behind the pieces of one blob."""
    return max(piece.slice.offset + piece.slice.length for piece in run)


def _joins(run: Sequence[Piece], piece: Piece) -> bool:
    last, first, new = run[-1].slice, run[0].slice, piece.slice
    gap = new.offset - (last.offset + last.length)
    return (
        new.blob_id == first.blob_id
        and gap <= GAP_BYTES
        and new.offset + new.length - first.offset <= RUN_BYTES
    )
