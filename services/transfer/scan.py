"""SCAN: walks paths as the user and registers what is there."""

from collections.abc import Iterator

from nearline.catalog.v1 import catalog_pb2 as catalog
from nearline.type.v1 import storage_pb2, task_pb2
from nearline_client import names
from services.kit import crash
from services.kit.catalogclient import in_batches, in_sized_batches
from services.kit.jobs import MAX_RESULT_BYTES, Done, Job, JobContext, new_task
from services.transfer.context import Context, record_failure
from services.transfer.entries import Entry, Kind, Unreadable, Unvisited
from services.transfer.filefailures import FileError
from services.transfer.planning import UploadPlan, without_nested
from services.transfer.userfs import UserFiles

Attributes = storage_pb2.Attributes

_TYPES = {
    Kind.FILE: Attributes.FILE,
    Kind.DIRECTORY: Attributes.DIRECTORY,
    Kind.SYMLINK: Attributes.SYMLINK,
}
_BATCH = 2000
# Extended attributes and long paths make entries large; a message has its limit.
_BATCH_BYTES = 2 << 20
# Directories of one follow-up; their paths travel in its payload.
_LEFT = 50
# Seconds that the scan of what another left takes, at a guess; more than small tasks may.
_LONG = 10.0
_MOST_LEFT = MAX_RESULT_BYTES // 2
"""Bytes of all paths that a scan leaves for others; it walks the rest itself."""


def scan(context: Context, job: Job, ctx: JobContext) -> Done:
    """Register everything at and below the chunk's paths, and plan its upload."""
    paths = _paths(context, job)
    ctx.files_at_stake = len(paths)
    with context.serving(job) as files:
        return _Scan(context, job, ctx, files).run(paths)


def _paths(context: Context, job: Job) -> list[bytes]:
    if job.payload:
        wires: list[str] = list(task_pb2.ScanTask.FromString(job.payload).directories)
    else:
        wires = [wire for batch in context.ledger.read(job) for wire in batch]
    return without_nested(names.decode(wire) for wire in wires)


class _Scan:
    def __init__(self, context: Context, job: Job, ctx: JobContext, files: UserFiles) -> None:
        self._context, self._job, self._ctx, self._files = context, job, ctx, files
        pack = context.config.pack
        self._plan = UploadPlan(
            threshold=pack.pack_threshold,
            pack_bytes=pack.pack_bytes,
            pack_files=pack.pack_files,
        )
        self._enough = pack.scan_files if job.payload else pack.first_scan_files
        self._met = self._bytes = 0
        self._left: list[str] = []
        self._left_size = 0
        # Sizes of the files on their way: the answers come in the order of the requests.
        self._sent: list[list[int]] = []

    def run(self, paths: list[bytes]) -> Done:
        transaction = self._job.transaction
        # A retry goes on with the files that the first attempt registered.
        put = transaction.origin or transaction.id
        answers = self._context.catalog.register(transaction.holding_id, put, self._batches(paths))
        for answer in answers:
            self._registered(self._sent.pop(0), answer)
        crash.point("transfer.scan.registered")
        tasks = self._plan.tasks()
        tasks += [
            new_task(task_pb2.Task.SCAN, task_pb2.ScanTask(directories=some), cost=_LONG)
            for some in in_batches(self._left, _LEFT)
        ]
        return Done(files_total=self._met, bytes_total=self._bytes, follow_ups=tasks)

    def _batches(self, paths: list[bytes]) -> Iterator[list[catalog.RegisterFilesRequest.Entry]]:
        entries = map(_to_proto, self._entries(paths))
        for batch in in_sized_batches(entries, _BATCH, _BATCH_BYTES):
            self._sent.append([entry.attributes.size for entry in batch])
            yield batch

    def _entries(self, paths: list[bytes]) -> Iterator[Entry]:
        for path in paths:
            for found in self._files.walk(path, self._has_enough):
                self._ctx.check()
                if isinstance(found, Unvisited):
                    self._left.append(names.encode(found.path))
                    self._left_size += len(self._left[-1].encode())
                elif isinstance(found, Unreadable):
                    self._met += 1
                    record_failure(self._ctx, names.encode(found.path), FileError(found.failure))
                else:
                    yield found

    def _has_enough(self) -> bool:
        """Uploads begin when a scan ends, and a scan that is lost begins anew: keep it short."""
        # What is left for others travels in the result of this one, whose size is bounded.
        return self._left_size < _MOST_LEFT and self._met >= self._enough

    def _registered(self, sizes: list[int], answer: catalog.RegisterFilesResponse) -> None:
        self._ctx.failures((one.path, one.code, one.reason) for one in answer.rejected)
        for size, number in zip(sizes, answer.file_ids, strict=True):
            self._met += 1
            self._bytes += size
            if number:
                self._plan.add(number, size)
        self._ctx.progress()


def _to_proto(entry: Entry) -> catalog.RegisterFilesRequest.Entry:
    return catalog.RegisterFilesRequest.Entry(
        path=names.encode(entry.path), attributes=attributes_of(entry)
    )


def attributes_of(entry: Entry) -> Attributes:
    """The metadata of a found path as the catalog keeps it."""
    return Attributes(
        type=_TYPES[entry.kind],
        size=entry.size,
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        mtime_ns=entry.mtime_ns,
        link_target=names.encode(entry.link_target),
        xattrs={names.encode(key): value for key, value in entry.xattrs.items()},
        hardlink=entry.inode,
    )
