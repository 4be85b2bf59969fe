"""Whole directory trees: acting as their owner, and removing them."""

from __future__ import annotations

import contextlib
import os
import shutil
from contextlib import AbstractContextManager

from deploy.local.people import posix_ids
from services.transfer.credentials import Credentials, acting_as


def acting_as_user(name: str) -> AbstractContextManager[None]:
    """Let this thread make and read files as a test user until the block ends."""
    ids = posix_ids()[name]
    return acting_as(Credentials(ids.uid, ids.gid, ids.gids))


def remove(root: bytes) -> None:
    """Remove a tree if it is there, closed directories included."""
    for directory, _, _ in os.walk(root):
        os.chmod(directory, 0o700)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(root)
