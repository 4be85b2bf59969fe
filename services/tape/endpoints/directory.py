"""The driver for a plain directory: every file is online and on tape as soon as it is committed.

For machines without a tape system. It keeps the same promises, with the disk in the place of tape.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from zlib_ng import zlib_ng

from services.kit.errors import (
    Aborted,
    AlreadyExists,
    NearlineError,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from services.kit.memory import WRITE_BYTES
from services.tape.endpoint import (
    CHUNK_BYTES,
    TapeEntry,
    TapeFileState,
    Written,
    check_path,
    is_path,
    not_found,
)

_INCOMING = ".incoming"  # no component of a path may begin with a dot
_LATER = 60.0


class DirectoryEndpoint:
    """A ``TapeEndpoint`` below the existing or new directory ``root``."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._incoming = root / _INCOMING

    def create(self, path: str) -> DirectoryWriter:
        """See `TapeEndpoint.create`."""
        target = self._full(path)
        with _mapped("create", path):
            if target.exists():
                raise FileExistsError(errno.EEXIST, "it exists")
            self._incoming.mkdir(parents=True, exist_ok=True)
            return DirectoryWriter(path, self._root, self._incoming / secrets.token_hex(16))

    def open(self, path: str) -> DirectoryReader:
        """See `TapeEndpoint.open`."""
        with _mapped("open", path):
            return DirectoryReader(path, os.open(self._full(path), os.O_RDONLY | os.O_CLOEXEC))

    def stat(self, paths: Sequence[str], *, sizes: bool = False) -> list[TapeFileState]:
        """See `TapeEndpoint.stat`."""
        return [self._state(path, sizes) for path in paths]

    def stage(self, paths: Sequence[str]) -> dict[str, str]:
        """See `TapeEndpoint.stage`; everything is online already."""
        return {check_path(path): "" for path in paths}

    def cancel(self, requests: Mapping[str, str]) -> None:
        """See `TapeEndpoint.cancel`."""
        for path in requests:
            check_path(path)

    def release(self, paths: Sequence[str]) -> None:
        """See `TapeEndpoint.release`; nothing is ever dropped."""
        for path in paths:
            check_path(path)

    def remove(self, path: str) -> None:
        """See `TapeEndpoint.remove`."""
        with _mapped("remove", path):
            self._full(path).unlink(missing_ok=True)

    def rename(self, old: str, new: str) -> None:
        """See `TapeEndpoint.rename`."""
        source, target = self._full(old), self._full(new)
        with _mapped("rename", old):
            source.stat()
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(source, target)
            source.unlink()
            _sync_parents(target, self._root)

    def list(self, prefix: str = "") -> Iterator[TapeEntry]:
        """See `TapeEndpoint.list`."""
        top = self._full(prefix) if prefix else self._root
        for directory, _, names in os.walk(top):
            for name in names:
                path = os.path.relpath(os.path.join(directory, name), self._root)
                if is_path(path):
                    yield from self._entry(path)

    def unfinished(self, older_than: float, *, remove: bool) -> Sequence[TapeEntry]:
        """See `TapeEndpoint.unfinished`; writers that were killed leave files."""
        found: list[TapeEntry] = []
        with _mapped("list", _INCOMING), contextlib.suppress(FileNotFoundError):
            for leftover in self._incoming.iterdir():
                found += self._abandoned(leftover, time.time() - older_than, remove)
        return found

    def healthy(self) -> str | None:
        """See `TapeEndpoint.healthy`."""
        try:
            self._incoming.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            return f"the tape directory {self._root} cannot be used: {error.strerror}"
        if not os.access(self._incoming, os.R_OK | os.W_OK | os.X_OK):
            return f"the tape directory {self._root} is not writable for this service"
        return None

    def _full(self, path: str) -> Path:
        return self._root / check_path(path)

    def _state(self, path: str, sizes: bool) -> TapeFileState:
        with _mapped("stat", path):
            try:
                size = self._full(path).stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                return TapeFileState(path, False, None, False, False, False, "")
        return TapeFileState(path, True, size if sizes else None, True, True, False, "")

    def _abandoned(self, leftover: Path, before: float, remove: bool) -> Iterator[TapeEntry]:
        with contextlib.suppress(FileNotFoundError):  # committed or removed meanwhile
            status = leftover.stat()
            if status.st_mtime <= before:
                if remove:
                    leftover.unlink()
                path = f"{_INCOMING}/{leftover.name}"
                yield TapeEntry(path, status.st_size, status.st_mtime)

    def _entry(self, path: str) -> Iterator[TapeEntry]:
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            status = (self._root / path).stat()
            yield TapeEntry(path, status.st_size, status.st_mtime)


class DirectoryWriter:
    """A ``TapeWriter``: a file without its name until the commit links it there."""

    def __init__(self, path: str, root: Path, temporary: Path) -> None:
        self._path = path
        self._root = root
        self._temporary = temporary
        self._stream = open(temporary, "x+b", buffering=0)  # noqa: SIM115 – closed by abort
        self._size = 0
        self._adler32 = 1
        self._finished = False

    def write(self, data: bytes | memoryview) -> None:
        """See `TapeWriter.write`."""
        view = memoryview(data).cast("B")
        with _mapped("write", self._path):
            while len(view):
                count = self._stream.write(view[:WRITE_BYTES])
                self._adler32 = zlib_ng.adler32(view[:count], self._adler32)
                self._size += count
                view = view[count:]

    def commit(self) -> Written:
        """See `TapeWriter.commit`."""
        try:
            with _mapped("close", self._path):
                os.fsync(self._stream.fileno())
                written = self._verified()
                target = self._root / self._path
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(self._temporary, target)  # unlike a rename it never replaces a file
                _sync_parents(target, self._root)
        finally:
            self.abort()
        return written

    def abort(self) -> None:
        """See `TapeWriter.abort`."""
        if self._finished:
            return
        self._finished = True
        self._stream.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abort()

    def _verified(self) -> Written:
        mine = Written(self._size, self._adler32)
        theirs = _read_back(self._stream.fileno())
        if mine != theirs:
            raise Aborted(
                "TAPE_CHECKSUM_MISMATCH",
                f"{self._path} reads back as {theirs}, but {mine} was written; write it again",
                path=self._path,
            )
        return mine


class DirectoryReader:
    """A ``TapeReader``."""

    def __init__(self, path: str, descriptor: int) -> None:
        self._path = path
        self._descriptor: int | None = descriptor

    def read(self, offset: int, length: int) -> bytes:
        """See `TapeReader.read`."""
        if self._descriptor is None:
            raise ValueError(f"{self._path} is closed")
        parts = []
        with _mapped("read", self._path):
            while length:
                part = os.pread(self._descriptor, length, offset)
                if not part:
                    raise self._short(length)
                parts.append(part)
                offset, length = offset + len(part), length - len(part)
        return b"".join(parts)

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """See `TapeReader.read_many`."""
        return [self.read(offset, length) for offset, length in ranges]

    def stream(self, offset: int, length: int, chunk: int = CHUNK_BYTES) -> Iterator[bytes]:
        """See `TapeReader.stream`; the kernel reads ahead."""
        for start in range(offset, offset + length, chunk):
            yield self.read(start, min(chunk, offset + length - start))

    def close(self) -> None:
        """See `TapeReader.close`."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _short(self, missing: int) -> Unavailable:
        return Unavailable(
            "TAPE_SHORT_READ",
            f"the tape file {self._path} ended {missing} bytes early",
            path=self._path,
        )


def _read_back(descriptor: int) -> Written:
    size, adler32 = 0, 1
    while block := os.pread(descriptor, CHUNK_BYTES, size):
        size, adler32 = size + len(block), zlib_ng.adler32(block, adler32)
    return Written(size, adler32)


def _sync_parents(target: Path, root: Path) -> None:
    """Make the name durable, and every directory that may have been made for it."""
    for directory in target.parents:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if directory == root:
            return


@contextlib.contextmanager
def _mapped(action: str, path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _error(error, f"cannot {action} {path}: {error.strerror}", path) from error


def _error(error: OSError, text: str, path: str) -> NearlineError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return not_found(path)
    if error.errno == errno.EEXIST:
        return AlreadyExists("TAPE_FILE_EXISTS", text, path=path)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceExhausted("TAPE_NO_SPACE", text, retry_after=_LATER, path=path)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PermissionDenied("TAPE_DENIED", text, retry_after=_LATER, path=path)
    return Unavailable("TAPE_ERROR", text, path=path)
