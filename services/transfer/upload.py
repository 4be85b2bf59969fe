"""UPLOAD: reads each file once, as the user, and stores it verified in the cache."""

import hashlib
import stat
from collections import deque

from nearline.type.v1 import storage_pb2, task_pb2
from nearline_client import names
from services.kit import crash, spans
from services.kit.catalogclient import Blob, Member
from services.kit.jobs import Done, Job, JobContext
from services.kit.packs import Pack, Placed, record
from services.transfer.context import Context, record_failure
from services.transfer.entries import inode_name
from services.transfer.filefailures import FileCode, FileError, failure, seen
from services.transfer.userfs import Source, UserFiles

Attributes = storage_pb2.Attributes
StoredFile = storage_pb2.StoredFile

_READ_BYTES = 1 << 20


def upload(context: Context, job: Job, ctx: JobContext) -> Done:
    """Store the payload's files; those that an earlier attempt stored are only counted."""
    task = task_pb2.FilesTask.FromString(job.payload)
    ctx.files_at_stake = spans.count(task.files)
    files = list(context.catalog.files(task.files))
    with context.serving(job) as user:
        gone = ctx.files_at_stake - len(files)
        return _Upload(context, job, ctx, user).run(files, gone)


class _Upload:
    def __init__(self, context: Context, job: Job, ctx: JobContext, user: UserFiles) -> None:
        self._context, self._job, self._ctx, self._user = context, job, ctx, user
        self._config = context.config.pack
        self._pack = Pack(self._config.pack_bytes)
        # First names of inodes in the pack at hand, with what they became.
        self._linked: dict[str, tuple[str, Member]] = {}
        self._large: list[StoredFile] = []
        self._paths: dict[int, str] = {}
        self._files = self._bytes = 0

    def run(self, files: list[StoredFile], gone: int) -> Done:
        """Store ``files``; another put took ``gone`` more, with their names, before this began."""
        for _ in range(gone):
            record_failure(self._ctx, "", FileError(failure(FileCode.TAKEN_OVER)))
        self._paths = {file.id: file.path for file in files}
        for file in files:
            if file.stored:
                self._count(file.attributes.size)
        self._store_packs(deque(file for file in files if not file.stored))
        for file in self._large:
            self._ctx.check()
            try:
                self._store_raw(file)
            except FileError as error:
                record_failure(self._ctx, file.path, FileError(seen(error.failure)))
        return Done(files_done=self._files, bytes_done=self._bytes)

    def _store_packs(self, files: deque[StoredFile]) -> None:
        while files:
            # One change of identity a pack: it costs as much as reading a small file.
            with self._user.acting():
                while files and self._pack.fits(files[0].attributes.size):
                    self._ctx.check()
                    self._add(files.popleft())
            if self._pack:
                self._store_pack()

    def _store_pack(self) -> None:
        members = self._pack.members
        placed = self._pack.store(
            self._context.catalog,
            self._context.cache,
            self._job.transaction.holding_id,
            self._ctx.check,
        )
        self._linked.clear()
        for member in members:
            self._settle(member, placed)

    def _add(self, file: StoredFile) -> None:
        if file.attributes.type != Attributes.FILE:
            self._pack.add(file.id, file.path, file.attributes, b"", new=True)
        elif file.attributes.size >= self._config.pack_threshold:
            self._large.append(file)
        else:
            try:
                if not self._add_link(file):
                    self._add_content(file)
            except FileError as error:
                record_failure(self._ctx, file.path, FileError(seen(error.failure)))

    def _add_link(self, file: StoredFile) -> bool:
        """Whether the file is another name of an inode in this pack, and was added as such."""
        to, first = self._linked.get(file.attributes.hardlink, ("", None))
        if first is None or not self._is_still(file, first.attributes):
            return False
        self._pack.link(file.id, file.path, first.attributes, first, to)
        return True

    def _is_still(self, file: StoredFile, read: Attributes) -> bool:
        """Whether the path still names the inode that was ``read`` under another name."""
        entry = self._user.stat(names.decode(file.path))
        now = (entry.inode, entry.size, entry.mtime_ns)
        return now == (read.hardlink, read.size, read.mtime_ns)

    def _add_content(self, file: StoredFile) -> None:
        with self._user.open_read(names.decode(file.path)) as source:
            if source.info.st_size >= self._config.pack_threshold:
                self._large.append(file)  # It has grown since it was found.
                return
            content = _read_all(source)
            attributes = _as_read(file.attributes, source)
        member = self._pack.add(file.id, file.path, attributes, content, new=True)
        if attributes.hardlink:
            self._linked[attributes.hardlink] = (file.path, member)

    def _store_raw(self, file: StoredFile) -> None:
        """Stream a large file into a blob of its own; memory does not depend on its size."""
        catalog, cache = self._context.catalog, self._context.cache
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(_READ_BYTES))
        with self._user.open_read(names.decode(file.path)) as source:
            blob = catalog.allocate(self._job.transaction.holding_id, Blob.CACHE, Blob.RAW)
            with cache.open_upload(
                blob.key, part_size=self._config.part_bytes, size_hint=source.info.st_size
            ) as target:
                while count := source.read_into(buffer):
                    self._ctx.check()
                    digest.update(buffer[:count])
                    target.write(buffer[:count])
                    self._ctx.progress(bytes=count)
                source.check_unchanged()
                size = target.commit()
            attributes = _as_read(file.attributes, source)
        member = Member(file_id=file.id, length=size, digest=digest.digest(), attributes=attributes)
        crash.point("transfer.upload.before_seal")
        self._ctx.check()
        placed = record(catalog, cache, blob, [member], size)
        crash.point("transfer.upload.after_seal")
        self._settle(member, placed, moved=True)

    def _settle(self, member: Member, placed: Placed, *, moved: bool = False) -> None:
        """Count a file that has its place, and tell of one that the catalog did not take."""
        if member.file_id in placed.missing:
            code = FileCode.TAKEN_OVER
        elif member.file_id in placed.mismatched:
            code = FileCode.CHANGED
        else:
            self._count(member.length, moved=moved)
            return
        record_failure(self._ctx, self._paths[member.file_id], FileError(failure(code)))

    def _count(self, size: int, *, moved: bool = False) -> None:
        self._files += 1
        self._bytes += size
        self._ctx.progress(files=1, bytes=0 if moved else size)


def _read_all(source: Source) -> bytearray:
    """The whole content of an unchanged file. Raises FileError (CHANGED)."""
    content = bytearray(source.info.st_size)
    rest = memoryview(content)
    while rest:
        count = source.read_into(rest)
        if not count:
            raise FileError(failure(FileCode.CHANGED))
        rest = rest[count:]
    source.check_unchanged()
    return content


def _as_read(found: Attributes, source: Source) -> Attributes:
    """The metadata at the time of reading; what only the scan sees stays as it was found."""
    attributes = Attributes()
    attributes.CopyFrom(found)
    attributes.size = source.info.st_size
    attributes.mode = stat.S_IMODE(source.info.st_mode)
    attributes.uid = source.info.st_uid
    attributes.gid = source.info.st_gid
    attributes.mtime_ns = source.info.st_mtime_ns
    # By now the name may be that of another inode than the scan saw.
    attributes.hardlink = inode_name(source.info)
    return attributes
