"""The two stores of the library: the disk buffer that xrootd serves, and the tape.

A tape copy is a file named by a random id; the buffer's file knows it by an extended attribute.
So a rename in the buffer needs nothing here, and a copy that no file refers to is garbage.
The attributes are those that ``tape_plugin.cc`` reads.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

OFFLINE = "user.tape.offline"
COPY = "user.tape.copy"

_BLOCK = 4 * 1024 * 1024
_STUB_MODE = 0o444  # a refused overwrite must not truncate what marks the file as being on tape

Bandwidth = Callable[[], float]
"""Bytes per second as they are configured now, 0 for no limit."""


@dataclass(frozen=True)
class State:
    """Where the bytes of a path are."""

    exists: bool
    online: bool
    on_tape: bool


class Store:
    """The files below one directory. Every method raises OSError as the file system does."""

    def __init__(self, directory: Path, export: str) -> None:
        self.buffer = directory / "buffer"
        self._export = export
        self._tape = directory / "tape"
        self._work = directory / "work"
        self._lock = threading.Lock()
        for path in (self.buffer / export.strip("/"), self._tape, self._work):
            path.mkdir(parents=True, exist_ok=True)
        for leftover in (*self._work.iterdir(), *self._tape.glob(".*")):
            leftover.unlink()

    def state(self, path: str) -> State:
        """The state of a path; anything but a regular file below the export does not exist."""
        try:
            with self._open(path) as descriptor:
                copy = _copy_of(descriptor)
                return State(True, not _has(descriptor, OFFLINE), copy is not None)
        except OSError:
            return State(False, False, False)

    def migrate(self, path: str, bandwidth: Bandwidth) -> bool:
        """Copy a file to tape, durably; False when nothing is to copy or it changed meanwhile."""
        with self._open(path) as source:
            before = os.fstat(source)
            if not before.st_size or _has(source, OFFLINE) or _copy_of(source):
                return False  # CTA does not archive empty files
            name = uuid.uuid4().hex
            temporary = self._tape / f".{name}"
            try:
                self._write(source, temporary, bandwidth)
                return self._keep_copy(source, before, temporary, name)
            finally:
                temporary.unlink(missing_ok=True)

    def recall(self, path: str, bandwidth: Bandwidth) -> None:
        """Bring the bytes of an evicted file back into the buffer."""
        with self._open(path) as stub:
            name, mode = _copy_of(stub), os.getxattr(stub, OFFLINE)
            if name is None:
                raise OSError(f"no tape copy is known of {path}")
            with self._temporary() as temporary, _opened(self._tape / name) as copy:
                self._write(copy, temporary, bandwidth, durable=False)
                _copy_attributes(stub, temporary)
                os.chmod(temporary, int(mode, 8))
                self._replace(path, stub, temporary)

    def evict(self, path: str) -> bool:
        """Leave a hole in place of the bytes; False unless the file is online and on tape."""
        with self._open(path) as source:
            if _copy_of(source) is None or _has(source, OFFLINE):
                return False
            with self._temporary() as temporary:
                temporary.touch(0o600)
                os.truncate(temporary, os.fstat(source).st_size)
                _copy_attributes(source, temporary)
                mode = os.fstat(source).st_mode & 0o777
                os.setxattr(temporary, OFFLINE, f"{mode:o}".encode())
                os.chmod(temporary, _STUB_MODE)
                self._replace(path, source, temporary)
            return True

    def paths(self) -> Iterator[str]:
        """Every file of the buffer."""
        root = str(self.buffer)
        for directory, _, names in os.walk(root):
            for name in names:
                yield f"{directory}/{name}"[len(root) :]

    def garbage(self) -> set[str]:
        """The tape copies that no file of the buffer refers to."""
        with self._lock:
            copies = {path.name for path in self._tape.iterdir() if path.name[0] != "."}
        for path in self.paths():
            with contextlib.suppress(OSError), self._open(path) as descriptor:
                copies.discard(_copy_of(descriptor) or "")
        return copies

    def discard(self, names: set[str]) -> None:
        """Delete tape copies."""
        for name in names:
            (self._tape / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _open(self, path: str) -> Iterator[int]:
        """A descriptor of a regular file; FileNotFoundError for a path outside the export."""
        if not path.startswith(self._export + "/") or os.path.normpath(path) != path:
            raise FileNotFoundError(path)
        with _opened(Path(f"{self.buffer}{path}")) as descriptor:
            if not os.path.isfile(descriptor):
                raise FileNotFoundError(path)
            yield descriptor

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[Path]:
        temporary = self._work / uuid.uuid4().hex
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def _write(
        self, source: int, target: Path, bandwidth: Bandwidth, *, durable: bool = True
    ) -> None:
        with open(target, "xb", buffering=0) as stream:
            _copy_bytes(source, stream.fileno(), bandwidth)
            if durable:
                os.fsync(stream.fileno())

    def _keep_copy(self, source: int, before: os.stat_result, temporary: Path, name: str) -> bool:
        after = os.fstat(source)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            return False
        with self._lock:  # or a sweep between the two steps would take the copy for garbage
            os.rename(temporary, self._tape / name)
            with _opened(self._tape) as directory:
                os.fsync(directory)
            os.setxattr(source, COPY, f"{name} {before.st_size} {before.st_mtime_ns}".encode())
        return True

    def _replace(self, path: str, expected: int, temporary: Path) -> None:
        """Put ``temporary`` in the place of the file that ``expected`` is a descriptor of."""
        local, status = f"{self.buffer}{path}", os.fstat(expected)
        os.utime(temporary, ns=(status.st_atime_ns, status.st_mtime_ns))
        if os.stat(local).st_ino != status.st_ino:
            raise FileNotFoundError(f"{path} was replaced meanwhile")
        os.rename(temporary, local)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _has(descriptor: int, name: str) -> bool:
    return name in os.listxattr(descriptor)


def _copy_of(descriptor: int) -> str | None:
    """The id of the tape copy, unless the file has changed since it was made."""
    try:
        name, size, mtime = os.getxattr(descriptor, COPY).decode().split()
    except OSError:
        return None
    status = os.fstat(descriptor)
    return name if (int(size), int(mtime)) == (status.st_size, status.st_mtime_ns) else None


def _copy_attributes(source: int, target: Path) -> None:
    """Keeps the tape copy's id and the checksum that xrootd has stored."""
    for name in os.listxattr(source):
        if name.startswith("user.") and name != OFFLINE:
            os.setxattr(target, name, os.getxattr(source, name))


def _copy_bytes(source: int, target: int, bandwidth: Bandwidth) -> None:
    started, done = time.monotonic(), 0
    while count := os.sendfile(target, source, done, _BLOCK):
        done += count
        rate = bandwidth()
        if rate:
            time.sleep(max(0.0, done / rate - (time.monotonic() - started)))
