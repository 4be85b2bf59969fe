"""Putting metadata back, with the user's own rights, and telling what could not be."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress

from services.kit import crash
from services.transfer.entries import Metadata

_NO_XATTRS_HERE = frozenset({errno.ENOTSUP, errno.EPERM, errno.E2BIG, errno.ENOSPC, errno.ERANGE})


class Temporary:
    """Names beside the target for what is not complete, which tell the task that made them.

    They are short: also a name of 255 bytes can be written and renamed.
    """

    def __init__(self, task: int) -> None:
        self._prefix = b".nl-%x-" % task

    def name(self) -> bytes:
        """A name that nobody uses."""
        return self._prefix + secrets.token_hex(6).encode()

    def remove_leftovers(self, directory: int) -> None:
        """Remove what an earlier attempt of the task left when it was killed."""
        listing = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
        try:
            for name in map(os.fsencode, os.listdir(listing)):
                if name.startswith(self._prefix):
                    # Two may be at it: one that was thought dead removes its own.
                    with suppress(FileNotFoundError):
                        os.unlink(name, dir_fd=directory)
        finally:
            os.close(listing)


def apply(target: int | bytes, metadata: Metadata) -> tuple[str, ...]:
    """Set the metadata of an open file or a path; return what the user may not set.

    That is any of ``xattrs``, ``group``, ``mode`` and ``mtime``. The order matters: attributes need
    a writable file, changing the group clears setuid, and all but the last change the times.
    """
    before = os.stat(target)
    has_xattrs = _set_xattrs(target, metadata)
    has_group = _set_group(target, before.st_gid, metadata.gid)
    allowed = granted_mode(
        metadata.mode,
        same_owner=metadata.uid in (None, before.st_uid),
        same_group=has_group,
        directory=stat.S_ISDIR(before.st_mode),
    )
    has_mode = _set_mode(target, allowed)
    lost = [
        "" if has_xattrs else "xattrs",
        "" if has_group else "group",
        "" if has_mode and allowed == metadata.mode else "mode",
        "mtime" if not _set_times(target, metadata.mtime_ns) else "",
    ]
    return tuple(filter(None, lost))


def granted_mode(mode: int, *, same_owner: bool, same_group: bool, directory: bool) -> int:
    """The mode without the right to run as somebody who did not give it. Pure.

    A program that its owner made setuid would otherwise, restored by another user, run whatever
    the first one wrote with the rights of the second.
    """
    if not same_owner:
        mode &= ~stat.S_ISUID
    if not directory and not (same_owner and same_group):
        mode &= ~stat.S_ISGID
    return mode


def apply_to_link(directory: int, name: bytes, metadata: Metadata) -> tuple[str, ...]:
    """As `apply` for a symbolic link, which has no mode and no attributes of its own."""
    times = (metadata.mtime_ns, metadata.mtime_ns)
    os.utime(name, ns=times, dir_fd=directory, follow_symlinks=False)
    if metadata.gid is None:
        return ()
    try:
        os.chown(name, -1, metadata.gid, dir_fd=directory, follow_symlinks=False)
    except PermissionError:
        return ("group",)
    return ()


def give_name(descriptor: int, directory: int, name: bytes) -> None:
    """Give an open file that has no name one that nobody uses. Raises FileExistsError."""
    os.link(b"/proc/self/fd/%d" % descriptor, name, dst_dir_fd=directory, follow_symlinks=True)


def put_in_place(descriptor: int, directory: int, temporary: bytes, name: bytes) -> None:
    """Give a finished file that has no name its own, in one step.

    Only what is there already is replaced by way of a temporary name, which a crash leaves.
    """
    # Its descriptor is needed for that; closing another one of it tells what closing would tell.
    os.close(os.dup(descriptor))
    try:
        give_name(descriptor, directory, name)
    except FileExistsError:
        give_name(descriptor, directory, temporary)
        replace(directory, temporary, name)


def replace(directory: int, temporary: bytes, name: bytes) -> None:
    """Give a finished temporary file its name, in one step; nothing is left when that fails."""
    crash.point("transfer.get.before_rename")
    try:
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        remove(directory, temporary)
        raise


def remove(directory: int, temporary: bytes) -> None:
    """Remove a temporary file if it is still there."""
    with suppress(OSError):
        os.unlink(temporary, dir_fd=directory)


def _set_xattrs(target: int | bytes, metadata: Metadata) -> bool:
    complete = True
    for name, value in metadata.xattrs.items():
        try:
            os.setxattr(target, name, value)
        except OSError as error:
            if error.errno not in _NO_XATTRS_HERE:
                raise
            complete = False
    return complete


def _set_group(target: int | bytes, present: int, wanted: int | None) -> bool:
    if wanted is None or wanted == present:
        return True
    try:
        os.chown(target, -1, wanted)
    except PermissionError:
        return False
    return True


def _set_mode(target: int | bytes, mode: int) -> bool:
    try:
        os.chmod(target, mode)
    except PermissionError:
        return False
    # The kernel drops setgid silently where the user is not in the file's group.
    return stat.S_IMODE(os.stat(target).st_mode) == mode


def _set_times(target: int | bytes, mtime_ns: int) -> bool:
    try:
        os.utime(target, ns=(mtime_ns, mtime_ns))
    except PermissionError:
        return False
    return True
