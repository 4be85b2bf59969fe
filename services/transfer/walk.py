"""Walking a directory tree without following links, however deep or large it is."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from itertools import islice
from types import TracebackType
from typing import Self

from nearline_client.names import MAX_PATH_BYTES
from services.transfer.confined import Directories, join
from services.transfer.entries import (
    NO_XATTRS,
    Entry,
    Kind,
    Unreadable,
    Unvisited,
    entry_of,
    kind_of,
)
from services.transfer.filefailures import (
    FileCode,
    FileError,
    failure,
    from_os_error,
    seen,
)

AsUser = Callable[[], AbstractContextManager[None]]

_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# No attributes, or none that this user may see; whether the file can be read shows when it is.
_NO_XATTRS = frozenset({errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.ENODATA, errno.ENOENT})
# As many entries are looked at between taking and giving back the user's identity.
_CHUNK = 500


def describe(directory: int, name: bytes, path: bytes, info: os.stat_result) -> Entry:
    """The entry at ``name`` in ``directory``, of which ``info`` is the lstat.

    Raises FileError (UNSUPPORTED_TYPE, NAME_TOO_LONG) or OSError.
    """
    kind = kind_of(info.st_mode)
    if kind is None:
        raise FileError(failure(FileCode.UNSUPPORTED_TYPE))
    if len(path) > MAX_PATH_BYTES:
        raise FileError(failure(FileCode.NAME_TOO_LONG))
    if kind is Kind.SYMLINK:
        return entry_of(path, info, kind, link_target=os.readlink(name, dir_fd=directory))
    return entry_of(path, info, kind, xattrs=_xattrs(b"/proc/self/fd/%d/%b" % (directory, name)))


class Walk:
    """One walk; ``as_user`` gives the user's identity and raises FileError for OSError."""

    def __init__(self, directories: Directories, as_user: AsUser) -> None:
        self._directories = directories
        self._as_user = as_user

    def run(
        self, path: bytes, leave: Callable[[], bool]
    ) -> Iterator[Entry | Unreadable | Unvisited]:
        """See `UserFiles.walk`."""
        try:
            with self._as_user():
                directory, name = self._directories.entry(path)
                info = os.stat(name, dir_fd=directory, follow_symlinks=False)
                first = describe(directory, name, path, info)
                real = self._directories.real(path)
        except FileError as error:
            yield Unreadable(path, error.failure)
            return
        if first.kind is not Kind.DIRECTORY:
            yield first
            return
        # There are no links below, so the walk goes by real paths and shows them as asked for.
        pending = [(real, path)]
        while pending:
            real, shown = pending.pop()
            if leave():
                yield Unvisited(shown)
            else:
                yield from self._directory(real, shown, pending)

    def _directory(
        self, real: bytes, path: bytes, pending: list[tuple[bytes, bytes]]
    ) -> Iterator[Entry | Unreadable]:
        try:
            with self._as_user():
                listing = _Listing(self._directories.get_unlinked(real), path)
        except FileError as error:
            yield Unreadable(path, seen(error.failure))
            return
        with listing:
            yield listing.entry
            while chunk := self._chunk(listing):
                for item in chunk:
                    if isinstance(item, bytes):
                        pending.append((join(real, item), join(path, item)))
                    else:
                        yield item

    def _chunk(self, listing: _Listing) -> list[Entry | Unreadable | bytes]:
        try:
            with self._as_user():
                return listing.next_chunk()
        except FileError as error:
            listing.end()
            return [Unreadable(listing.entry.path, seen(error.failure))]


class _Listing:
    """An open directory being read; ``entry`` is the directory itself."""

    def __init__(self, directory: int, path: bytes) -> None:
        self._descriptor = os.open(b".", _LIST, dir_fd=directory)
        try:
            self.entry = describe(self._descriptor, b".", path, os.fstat(self._descriptor))
            self._names = os.scandir(self._descriptor)
            self._ended = False
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._names.close()
        os.close(self._descriptor)

    def end(self) -> None:
        """Give no more entries: the directory cannot be read on."""
        self._ended = True

    def next_chunk(self) -> list[Entry | Unreadable | bytes]:
        """The next entries, subdirectories as their names only; empty at the end."""
        if self._ended:
            return []
        return [self._look_at(found) for found in islice(self._names, _CHUNK)]

    def _look_at(self, found: os.DirEntry[str]) -> Entry | Unreadable | bytes:
        name = os.fsencode(found.name)
        path = join(self.entry.path, name)
        try:
            if found.is_dir(follow_symlinks=False):
                return name
            info = found.stat(follow_symlinks=False)
            return describe(self._descriptor, name, path, info)
        except OSError as error:
            return Unreadable(path, from_os_error(error, seen=True))
        except FileError as error:
            return Unreadable(path, error.failure)


def _xattrs(path: bytes) -> Mapping[bytes, bytes]:
    try:
        names = os.listxattr(path, follow_symlinks=False)
        if not names:
            return NO_XATTRS
        return {
            os.fsencode(name): os.getxattr(path, name, follow_symlinks=False)
            for name in names
            if name.startswith("user.")
        }
    except OSError as error:
        if error.errno in _NO_XATTRS:
            return NO_XATTRS
        raise
