"""Users' files: found, read and written with the user's own rights, inside allowed directories.

`UserFs` is made once; `UserFs.serving` gives one user's access for one task. Every operation takes
the user's identity for its own duration only, so nothing else (network, imports, secrets) runs with
it; `UserFiles.acting` keeps it over several operations where speed matters. All failures are
`FileError` with a code for programs and a reason for the user.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from nearline_client.names import MAX_COMPONENT_BYTES
from services.kit import crash
from services.kit.errors import PermissionDenied
from services.kit.memory import WRITE_BYTES
from services.transfer import restore
from services.transfer.confined import Directories, join, split
from services.transfer.credentials import Credentials, acting_as
from services.transfer.entries import Entry, Metadata, Unreadable, Unvisited, unchanged, unsupported
from services.transfer.filefailures import FileCode, FileError, failure, from_os_error
from services.transfer.walk import Walk, describe

if TYPE_CHECKING:
    from typing_extensions import Buffer

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NAMELESS = os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC
# What file systems (NFS is one) say that have no files without a name.
_NO_NAMELESS = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL})


class UserFs:
    """The directories that users' files may be in. Thread-safe."""

    def __init__(self, roots: Iterable[bytes], min_uid: int = 1) -> None:
        """``roots``: absolute paths; nothing outside them is touched. Lower uids are refused."""
        self._roots = tuple(os.path.realpath(root) for root in roots)
        self._min_uid = min_uid

    def serving(
        self, credentials: Credentials, top: bytes | None = None, task: int = 0
    ) -> UserFiles:
        """One user's access, without following symbolic links below the directory ``top``.

        ``task`` marks temporary files, for `UserFiles.remove_leftovers` of its next attempt.
        Raises PermissionDenied (UID_REFUSED, or as `acting_as`).
        """
        if 0 < credentials.uid < self._min_uid:
            raise PermissionDenied(
                "UID_REFUSED",
                f"uid {credentials.uid} belongs to the system; only ids from {self._min_uid} on"
                " are served",
            )
        with acting_as(credentials):
            return UserFiles(self._roots, credentials, top, task)


class UserFiles:
    """One user's files, for one task and one thread at a time; a context manager."""

    def __init__(
        self,
        roots: tuple[bytes, ...],
        credentials: Credentials,
        top: bytes | None = None,
        task: int = 0,
    ) -> None:
        self.temporary = restore.Temporary(task)
        self._credentials = credentials
        self._directories = Directories(roots, top)
        self._acting = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._directories.close()

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Keep the user's identity in this thread until the block ends, for many small operations.

        Nothing but file operations belongs into the block: no RPCs, no new threads.
        """
        if self._acting:
            yield
            return
        with acting_as(self._credentials):
            self._acting = True
            try:
                yield
            finally:
                self._acting = False

    def walk(
        self, path: bytes, leave: Callable[[], bool] = bool
    ) -> Iterator[Entry | Unreadable | Unvisited]:
        """Everything at and below ``path``, each path once, a directory before its content.

        Symbolic links are reported, never followed. What cannot be read or stored comes as
        `Unreadable` and the walk goes on. Names are in the order of the directory. Directories
        that are next while ``leave()`` is true come as `Unvisited`, for another walk.
        """
        return Walk(self._directories, self.using).run(path, leave)

    def stat(self, path: bytes) -> Entry:
        """What is at ``path``, links not followed. Raises FileError."""
        with self.using():
            directory, name = self._directories.entry(path)
            info = os.stat(name, dir_fd=directory, follow_symlinks=False)
            return describe(directory, name, path, info)

    def open_read(self, path: bytes) -> Source:
        """Open a regular file. Raises FileError (CHANGED when it has become a symbolic link)."""
        with self.using():
            return Source(_open_regular(*self._directories.entry(path)))

    def atomic_write(self, path: bytes) -> NewFile:
        """Begin a new file that takes its place at ``path``, all at once, when committed."""
        with self.using():
            directory, name = self._directories.entry(path)
            _check_target(directory, name)
            return NewFile(self, os.dup(directory), name)

    def make_dirs(self, path: bytes) -> None:
        """Make a directory and those above it that are missing; an existing one is no error."""
        missing = []
        with self.using():
            while not self._is_directory(path):
                path, name = split(path)
                missing.append(name)
            while missing:
                directory, name = self._directories.get(path), missing.pop()
                # Somebody else was faster, or it is a file or a broken link: seen in the next step.
                with suppress(FileExistsError):
                    os.mkdir(name, dir_fd=directory)
                path = join(path, name)
            self._directories.get(path)

    def remove_leftovers(self, path: bytes) -> None:
        """Remove from a directory what a killed attempt of this task has not finished."""
        with self.using():
            self.temporary.remove_leftovers(self._directories.get(path))

    def make_symlink(self, path: bytes, target: bytes, metadata: Metadata) -> tuple[str, ...]:
        """Make or replace a symbolic link; return what of the metadata could not be restored."""
        with self.using():
            directory, name = self._directories.entry(path)
            _check_target(directory, name)
            temporary = self.temporary.name()
            os.symlink(target, temporary, dir_fd=directory)
            try:
                lost = restore.apply_to_link(directory, temporary, metadata)
                restore.replace(directory, temporary, name)
                return lost
            finally:
                restore.remove(directory, temporary)

    def make_hardlink(self, existing: bytes, path: bytes) -> None:
        """Make ``path`` another name of the file ``existing``, replacing what is there."""
        with self.using():
            source, source_name = self._directories.entry(existing)
            source = os.dup(source)
            try:
                directory, name = self._directories.entry(path)
                _check_target(directory, name)
                _link(source, source_name, directory, name, self.temporary.name())
            finally:
                os.close(source)

    def set_dir_metadata(self, path: bytes, metadata: Metadata) -> tuple[str, ...]:
        """Set a directory's metadata, after everything below it; return what was not possible."""
        with self.using():
            return restore.apply(b"/proc/self/fd/%d" % self._directories.get(path), metadata)

    @contextmanager
    def using(self) -> Iterator[None]:
        """Act as the user and raise what the system refuses as FileError."""
        with self.acting():
            try:
                yield
            except OSError as error:
                raise FileError(from_os_error(error)) from error

    def _is_directory(self, path: bytes) -> bool:
        try:
            self._directories.get(path)
        except FileNotFoundError:
            return False
        return True


class Source:
    """An open regular file; reading needs no identity any more. A context manager."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.info = os.fstat(descriptor)
        """As it was when opened."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        os.close(self.descriptor)

    def read_into(self, buffer: Buffer) -> int:
        """Read on into ``buffer``; the number of bytes, 0 at the end. Raises FileError."""
        try:
            return os.readv(self.descriptor, [buffer])
        except OSError as error:
            raise FileError(from_os_error(error, seen=True)) from error

    def check_unchanged(self) -> None:
        """FileError (CHANGED) if anything wrote to the file since it was opened."""
        try:
            after = os.fstat(self.descriptor)
        except OSError as error:
            raise FileError(from_os_error(error, seen=True)) from error
        if not unchanged(self.info, after):
            raise FileError(failure(FileCode.CHANGED))


class NewFile:
    """A file without a name yet; a context manager that removes it unless committed.

    Where the file system needs a name it has a temporary one.
    """

    def __init__(self, files: UserFiles, directory: int, name: bytes) -> None:
        """Takes over ``directory``."""
        self._files = files
        self._directory = directory
        self._name = name
        self._temporary = files.temporary.name()
        try:
            self._descriptor, self._is_named = _create(directory, self._temporary)
        except BaseException:
            os.close(directory)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.abort()

    def write(self, data: Buffer) -> None:
        """Append ``data``. Raises FileError; as the user, so that disk quotas hold."""
        rest = memoryview(data)
        with self._files.using():
            while rest:
                rest = rest[os.write(self._descriptor, rest[:WRITE_BYTES]) :]

    def commit(self, metadata: Metadata) -> tuple[str, ...]:
        """Set the metadata and take the place at the path; return what could not be restored."""
        with self._files.using():
            lost = restore.apply(self._descriptor, metadata)
            place = (self._directory, self._temporary, self._name)
            if self._is_named:
                # A network file system may report a full disk only here: before the rename.
                descriptor, self._descriptor = self._descriptor, -1
                os.close(descriptor)
                restore.replace(*place)
            else:
                restore.put_in_place(self._descriptor, *place)
            crash.point("transfer.get.after_rename")
        self._release()
        return lost

    def abort(self) -> None:
        """Remove the temporary file; does nothing after `commit` or a second time."""
        if self._directory < 0:
            return
        with self._files.acting():
            restore.remove(self._directory, self._temporary)
        self._release()

    def _release(self) -> None:
        for descriptor in (self._descriptor, self._directory):
            if descriptor >= 0:
                os.close(descriptor)
        self._descriptor = self._directory = -1


def _create(directory: int, temporary: bytes) -> tuple[int, bool]:
    """A new file, and whether it has the name; without one a crash leaves nothing."""
    try:
        return os.open(b".", _NAMELESS, 0o600, dir_fd=directory), False
    except OSError as error:
        if error.errno not in _NO_NAMELESS:
            raise
    return os.open(temporary, _CREATE, 0o600, dir_fd=directory), True


def _open_regular(directory: int, name: bytes) -> int:
    try:
        # Reading is no use of the file that its owner would want to see; others may not say so.
        descriptor = os.open(name, _READ | os.O_NOATIME, dir_fd=directory)
    except PermissionError:
        descriptor = os.open(name, _READ, dir_fd=directory)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise FileError(failure(FileCode.CHANGED)) from error
        raise
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise FileError(failure(unsupported(mode)))
    return descriptor


def _link(source: int, source_name: bytes, directory: int, name: bytes, temporary: bytes) -> None:
    os.link(source_name, temporary, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)
    try:
        restore.replace(directory, temporary, name)
    finally:
        # Renaming one name of a file to another name of it does nothing: the first one stays.
        restore.remove(directory, temporary)


def _check_target(directory: int, name: bytes) -> None:
    """Raise before any byte is written what would fail at the end."""
    if len(name) > MAX_COMPONENT_BYTES:
        raise FileError(failure(FileCode.NAME_TOO_LONG))
    with suppress(FileNotFoundError):
        if stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            raise FileError(failure(FileCode.IS_A_DIRECTORY))
