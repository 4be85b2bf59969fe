"""What goes wrong with one file: a code, words for its user, and whether trying again helps. Pure.

Permanent failures are the user's to mend and are recorded for the file; transient ones are the
system's and the task is tried again.
"""

from __future__ import annotations

import errno
from enum import StrEnum

import msgspec


class FileCode(StrEnum):
    """Reasons for programs; part of the API as `Failure.code`."""

    PERMISSION_DENIED = "PERMISSION_DENIED"
    NOT_FOUND = "NOT_FOUND"
    VANISHED = "VANISHED"
    CHANGED = "CHANGED"
    TAKEN_OVER = "TAKEN_OVER"
    NO_SPACE = "NO_SPACE"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    READ_ONLY = "READ_ONLY"
    IS_A_DIRECTORY = "IS_A_DIRECTORY"
    NOT_A_DIRECTORY = "NOT_A_DIRECTORY"
    NAME_TOO_LONG = "NAME_TOO_LONG"
    FILE_TOO_LARGE = "FILE_TOO_LARGE"
    SYMLINK_LOOP = "SYMLINK_LOOP"
    OUTSIDE_ROOTS = "OUTSIDE_ROOTS"
    UNSUPPORTED_TYPE = "UNSUPPORTED_TYPE"
    FILESYSTEM_UNAVAILABLE = "FILESYSTEM_UNAVAILABLE"
    READ_ERROR = "READ_ERROR"


REASONS = {
    FileCode.PERMISSION_DENIED: "the user may not do this here; change the permissions",
    FileCode.NOT_FOUND: "it does not exist, or a directory above it does not",
    FileCode.VANISHED: "it was removed while the transfer ran",
    FileCode.CHANGED: "it changed while it was read; store it again when nothing writes to it",
    FileCode.TAKEN_OVER: "another put into the same holding has taken the path over;"
    " put it into another holding to keep this version",
    FileCode.NO_SPACE: "the file system is full; free some space and try again",
    FileCode.QUOTA_EXCEEDED: "the disk quota is used up; free some space and try again",
    FileCode.READ_ONLY: "the file system is read-only",
    FileCode.IS_A_DIRECTORY: "a directory is in its place; remove it or choose another target",
    FileCode.NOT_A_DIRECTORY: "a part of its path is not a directory",
    FileCode.NAME_TOO_LONG: "its name or path is too long",
    FileCode.FILE_TOO_LARGE: "it is larger than the file system accepts",
    FileCode.SYMLINK_LOOP: "its path has symbolic links in a circle, or changed while it was used",
    FileCode.OUTSIDE_ROOTS: "it is outside the directories that operators opened to the store",
    FileCode.UNSUPPORTED_TYPE: "only files, directories and symbolic links can be stored",
    FileCode.FILESYSTEM_UNAVAILABLE: "the file system does not answer for now",
    FileCode.READ_ERROR: "the file system reported an error",
}

_BY_ERRNO = {
    errno.EACCES: FileCode.PERMISSION_DENIED,
    errno.EPERM: FileCode.PERMISSION_DENIED,
    errno.ENOENT: FileCode.NOT_FOUND,
    errno.ENOSPC: FileCode.NO_SPACE,
    errno.EDQUOT: FileCode.QUOTA_EXCEEDED,
    errno.EROFS: FileCode.READ_ONLY,
    errno.EISDIR: FileCode.IS_A_DIRECTORY,
    errno.ENOTEMPTY: FileCode.IS_A_DIRECTORY,
    errno.ENOTDIR: FileCode.NOT_A_DIRECTORY,
    errno.ENAMETOOLONG: FileCode.NAME_TOO_LONG,
    errno.EFBIG: FileCode.FILE_TOO_LARGE,
    errno.ELOOP: FileCode.SYMLINK_LOOP,
    errno.ENXIO: FileCode.UNSUPPORTED_TYPE,
}

# The server or the disk is in trouble, or this process is short of something: not about the file.
_TRANSIENT_ERRNOS = frozenset({
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.EBUSY,
    errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ENODEV, errno.ENOTCONN,
    errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN,
    errno.ENETUNREACH, errno.EREMOTEIO, errno.ESHUTDOWN, errno.EKEYEXPIRED,
})  # fmt: skip


class FileFailure(msgspec.Struct, frozen=True):
    """Why one file could not be moved; ``transient`` when trying again may help by itself."""

    code: FileCode
    reason: str
    transient: bool = False


class FileError(Exception):
    """Raised for one file; ``failure`` is what to record."""

    def __init__(self, failure: FileFailure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


def failure(code: FileCode) -> FileFailure:
    """The permanent failure of this code."""
    return FileFailure(code, REASONS[code])


def seen(found: FileFailure) -> FileFailure:
    """``found`` for a path that was there when the walk met it, so that it must have changed."""
    moved = {FileCode.NOT_FOUND: FileCode.VANISHED, FileCode.NOT_A_DIRECTORY: FileCode.CHANGED}
    code = moved.get(found.code)
    return failure(code) if code else found


def from_os_error(error: OSError, *, seen: bool = False) -> FileFailure:
    """The failure for an error of the operating system.

    ``seen``: the file was there a moment ago, so that its absence is VANISHED. A full disk is
    permanent: the next file may be smaller, and its user should know now rather than in a day.
    """
    number = error.errno or 0
    if number in _TRANSIENT_ERRNOS:
        code = FileCode.FILESYSTEM_UNAVAILABLE
        return FileFailure(code, _worded(code, number), transient=True)
    code = _BY_ERRNO.get(number, FileCode.READ_ERROR)
    if seen and code is FileCode.NOT_FOUND:
        code = FileCode.VANISHED
    return FileFailure(code, _worded(code, number))


def _worded(code: FileCode, number: int) -> str:
    # Only errno's own text: an OSError's message can hold names with bytes that are not UTF-8.
    return f"{REASONS[code]} ({errno.errorcode.get(number, number)})"
