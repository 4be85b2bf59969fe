"""What was found at a path. Pure."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType

import msgspec

from services.transfer.filefailures import FileCode, FileFailure

NO_XATTRS: Mapping[bytes, bytes] = MappingProxyType({})


class Kind(Enum):
    """What can be stored."""

    FILE = stat.S_IFREG
    DIRECTORY = stat.S_IFDIR
    SYMLINK = stat.S_IFLNK


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A path as the walk met it.

    ``path``: absolute raw bytes. ``size``: bytes, 0 unless FILE. ``mode``: 0 to 0o7777. Times in
    nanoseconds since 1970. ``xattrs``: the ``user.`` namespace, full names to values, raw.
    """

    path: bytes
    kind: Kind
    size: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    ctime_ns: int
    dev: int
    ino: int
    nlink: int
    link_target: bytes = b""
    xattrs: Mapping[bytes, bytes] = NO_XATTRS

    @property
    def inode(self) -> str:
        """What all names of a file share; empty for one that has no other, and for no file."""
        several = self.kind is Kind.FILE and self.nlink > 1
        return _inode(self.dev, self.ino) if several else ""


class Unreadable(msgspec.Struct, frozen=True):
    """A path that cannot be stored, and why."""

    path: bytes
    failure: FileFailure


class Unvisited(msgspec.Struct, frozen=True):
    """A directory that the walk left for another one; it has not been looked at."""

    path: bytes


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    """What a get restores beside the bytes; the owner is always the user who asked.

    ``uid``: recorded owner; None for the user. ``gid``: recorded group, given to the file if the
    user is in it; None leaves the group.
    """

    mode: int
    mtime_ns: int
    uid: int | None = None
    gid: int | None = None
    xattrs: Mapping[bytes, bytes] = NO_XATTRS


def kind_of(mode: int) -> Kind | None:
    """The kind for a full ``st_mode``; None for sockets, pipes and devices."""
    try:
        return Kind(stat.S_IFMT(mode))
    except ValueError:
        return None


def entry_of(
    path: bytes,
    info: os.stat_result,
    kind: Kind,
    link_target: bytes = b"",
    xattrs: Mapping[bytes, bytes] = NO_XATTRS,
) -> Entry:
    """The entry for what stat returned."""
    return Entry(
        path=path,
        kind=kind,
        size=info.st_size if kind is Kind.FILE else 0,
        mode=stat.S_IMODE(info.st_mode),
        uid=info.st_uid,
        gid=info.st_gid,
        mtime_ns=info.st_mtime_ns,
        ctime_ns=info.st_ctime_ns,
        dev=info.st_dev,
        ino=info.st_ino,
        nlink=info.st_nlink,
        link_target=link_target,
        xattrs=xattrs,
    )


def inode_name(info: os.stat_result) -> str:
    """As `Entry.inode` for an open file."""
    return _inode(info.st_dev, info.st_ino) if info.st_nlink > 1 else ""


def _inode(dev: int, ino: int) -> str:
    return f"{dev:x}:{ino:x}"


def unchanged(before: os.stat_result, after: os.stat_result) -> bool:
    """Whether nothing wrote to the file in between.

    The change time counts too: it moves with every write, also where the modification time is set
    back afterwards.
    """
    return _stamp(before) == _stamp(after)


def _stamp(info: os.stat_result) -> tuple[int, ...]:
    return (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


def unsupported(mode: int) -> FileCode:
    """The code for a path that is not a regular file where one is wanted."""
    return FileCode.IS_A_DIRECTORY if stat.S_ISDIR(mode) else FileCode.UNSUPPORTED_TYPE
