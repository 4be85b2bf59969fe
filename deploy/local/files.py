"""Small files that must be whole or absent, and directories with an exact mode and owner."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


def write_atomic(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace ``path`` in one step, never readable with a wider mode than ``mode``."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as stream:
            stream.write(data)
            os.fchmod(stream.fileno(), mode)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def make_directory(path: Path, mode: int, owner: tuple[int, int] | None = None) -> Path:
    """Make ``path`` (parents too) with exactly this mode and, when root, this uid and gid."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(mode)
    if owner is not None and os.geteuid() == 0:
        os.chown(path, *owner)
    return path


def secret(path: Path) -> str:
    """Return the random secret kept in ``path`` (mode 0600), made at the first call."""
    if not path.exists():
        make_directory(path.parent, 0o700)
        write_atomic(path, secrets.token_urlsafe(24).encode(), 0o600)
    return path.read_text()


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file ``path``; wait for whoever holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
