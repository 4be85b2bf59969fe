"""The test users: their POSIX ids on this machine and their home directories."""

from __future__ import annotations

import os
from pathlib import Path

from deploy.local.files import make_directory
from deploy.local.idp.users import PosixIds, User, default_users

_FIRST_UID = 61_001


def posix_ids() -> dict[str, PosixIds]:
    """Ids of each test user: own ones when root, else those of whoever runs the stack."""
    names = [user.name for user in default_users()]
    if os.geteuid() != 0:
        return dict.fromkeys(names, PosixIds(os.getuid(), os.getgid()))
    return {name: PosixIds(uid, uid) for uid, name in enumerate(names, _FIRST_UID)}


def make_homes(directory: Path) -> None:
    """Make the home directory of each test user below ``directory``, closed to the others."""
    make_directory(directory, 0o711)
    for name, ids in posix_ids().items():
        make_directory(directory / name, 0o700, (ids.uid, ids.gid))


def test_users() -> tuple[User, ...]:
    """The users of the OpenID provider, with their ids on this machine."""
    return default_users(posix_ids())
