"""Directories by path, never outside the allowed roots, whatever is renamed or linked meanwhile."""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from services.transfer.filefailures import FileCode, FileError, failure

_OPEN_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CACHED = 32


def is_under(path: bytes, root: bytes) -> bool:
    """Whether ``path`` is ``root`` or below it; both absolute and clean."""
    return path == root or path.startswith(root if root.endswith(b"/") else root + b"/")


def split(path: bytes) -> tuple[bytes, bytes]:
    """Directory and name of an absolute clean path; the root is the name ``.`` in itself."""
    parent, _, name = path.rpartition(b"/")
    return parent or b"/", name or b"."


def join(directory: bytes, name: bytes) -> bytes:
    """The path of ``name`` in ``directory``."""
    return b"/" + name if directory == b"/" else b"%b/%b" % (directory, name)


class _Opened(NamedTuple):
    """A descriptor (O_PATH) of a directory, and its path without symbolic links."""

    descriptor: int
    real: bytes


class Directories:
    """Opens directories for one user and one task; keeps the last few open.

    The descriptors only name a directory: every access below them is checked by the kernel again.
    Symbolic links in the way to a directory are followed, as the user, but what is reached must be
    under a root. Links below ``top`` are not followed: there, others may choose what is a link.
    """

    def __init__(self, roots: Sequence[bytes], top: bytes | None = None) -> None:
        self._roots = roots
        self._top = top
        self._open: OrderedDict[bytes, _Opened] = OrderedDict()

    def close(self) -> None:
        """Close all descriptors."""
        while self._open:
            os.close(self._open.popitem()[1].descriptor)

    def get(self, path: bytes) -> int:
        """A descriptor of the directory at ``path``, valid until the next call.

        Raises OSError or FileError (OUTSIDE_ROOTS).
        """
        opened = self._lookup(path, self._follow)
        self._check(opened.real)
        return opened.descriptor

    def get_unlinked(self, real: bytes) -> int:
        """As `get` for a path that had no links; OSError (ENOTDIR) when there is one by now."""
        opened = self._lookup(real, self._step)
        if opened.real != real:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        self._check(real)
        return opened.descriptor

    def entry(self, path: bytes) -> tuple[int, bytes]:
        """A descriptor of the directory that holds ``path``, and the name in it. Like `get`."""
        parent, name = split(path)
        opened = self._lookup(parent, self._follow)
        self._check(opened.real if name == b"." else join(opened.real, name))
        return opened.descriptor, name

    def real(self, path: bytes) -> bytes:
        """``path`` without symbolic links before its last component. Raises like `get`."""
        parent, name = split(path)
        real = self._lookup(parent, self._follow).real
        return real if name == b"." else join(real, name)

    def _check(self, real: bytes) -> None:
        if not any(is_under(real, root) for root in self._roots):
            raise FileError(failure(FileCode.OUTSIDE_ROOTS))

    def _lookup(self, path: bytes, opener: Callable[[bytes], _Opened]) -> _Opened:
        found = self._open.get(path)
        if found is None:
            found = self._open[path] = opener(path)
            if len(self._open) > _CACHED:
                os.close(self._open.popitem(last=False)[1].descriptor)
        else:
            self._open.move_to_end(path)
        return found

    def _follow(self, path: bytes) -> _Opened:
        if self._top is not None and path != self._top and is_under(path, self._top):
            real = self._lookup(self._top, self._follow).real
            return self._step(real.rstrip(b"/") + path[len(self._top.rstrip(b"/")) :])
        with suppress(NotADirectoryError):  # a link, perhaps
            if below := self._below(path):
                return below
        return self._step(os.path.realpath(path, strict=True))

    def _step(self, real: bytes) -> _Opened:
        return self._below(real) or _Opened(open_unlinked(real), real)

    def _below(self, path: bytes) -> _Opened | None:
        """One step down from a directory that is open: what a walk mostly needs."""
        parent, name = split(path)
        above = self._open.get(parent)
        if above is None or name == b".":
            return None
        self._open.move_to_end(parent)
        descriptor = os.open(name, _OPEN_DIRECTORY, dir_fd=above.descriptor)
        return _Opened(descriptor, join(above.real, name))


def open_unlinked(real: bytes) -> int:
    """Open (O_PATH) a directory whose path must not have a symbolic link any more.

    What was a directory when the path was resolved and is a link now fails with ENOTDIR: each
    component is opened below the one before it without following links.
    """
    descriptor = os.open(b"/", _OPEN_DIRECTORY)
    for part in real.split(b"/"):
        if part:
            try:
                below = os.open(part, _OPEN_DIRECTORY, dir_fd=descriptor)
            finally:
                os.close(descriptor)
            descriptor = below
    return descriptor
