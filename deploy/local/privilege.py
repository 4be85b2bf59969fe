"""Running a server as an unprivileged user when the stack is started by root.

Neither users are made nor directories opened: the server gets an existing unprivileged user and,
when a directory above its files is closed to that user, the one capability to pass through it.
"""

from __future__ import annotations

import os
import pwd
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from deploy.local.errors import StackError

_USERS = ("nobody",)
_CAPABILITIES = {"dac_read_search": 2, "dac_override": 1}
"""Name for setpriv and number in the kernel, the weakest first."""


@dataclass(frozen=True)
class Identity:
    """Who a server runs as; ``prefix`` goes before its command line."""

    user: str
    uid: int
    gid: int
    prefix: tuple[str, ...] = ()


def unprivileged(*paths: Path) -> Identity:
    """The identity for a server that must reach ``paths``: oneself, or an existing user when root.

    Raises StackError when root has neither such a user nor the capability needed, and for a user
    id without an account.
    """
    if os.geteuid() != 0:
        account = _own_account()
        return Identity(account.pw_name, account.pw_uid, account.pw_gid)
    account = _account()
    ids = ("setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups")
    prefix = (*ids, *_capability_options(paths), "--")
    return Identity(account.pw_name, account.pw_uid, account.pw_gid, prefix)


def _own_account() -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(os.geteuid())
    except KeyError:
        raise StackError(
            f"user id {os.geteuid()} has no account on this machine, and PostgreSQL does not run "
            "without one; run as a user that `getent passwd` shows"
        ) from None


def _account() -> pwd.struct_passwd:
    for name in _USERS:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise StackError(f"no unprivileged user to run servers as; make one of: {', '.join(_USERS)}")


def _capability_options(paths: tuple[Path, ...]) -> tuple[str, ...]:
    if all(_open_to_all(parent) for path in paths for parent in path.resolve().parents):
        return ("--bounding-set=-all",)
    mine = _permitted_capabilities()
    for name, number in _CAPABILITIES.items():
        if mine >> number & 1:
            sets = ("inh-caps", "ambient-caps", "bounding-set")
            # Without the fix-up access(2) counts the capability too; programs ask it first.
            return ("--securebits=+no_setuid_fixup", *(f"--{each}=-all,+{name}" for each in sets))
    raise StackError(
        f"servers cannot run as an unprivileged user below {paths[0]}: it is closed to others and "
        "the capability dac_read_search is missing; choose another --dir"
    )


def _open_to_all(directory: Path) -> bool:
    return bool(directory.stat().st_mode & stat.S_IXOTH)


def _permitted_capabilities() -> int:
    match = re.search(
        r"^CapPrm:\s*([0-9a-f]+)", Path("/proc/self/status").read_text(), re.MULTILINE
    )
    return int(match[1], 16) if match else 0
