"""Acting as the requesting user: the kernel, not this program, decides what may be done.

The identity that file access is judged by belongs to a thread in Linux, but libc's setuid family
changes all threads at once. Raw system calls change the calling thread alone. While a thread acts
for a user it holds no capability at all, so neither permission bits nor ACLs nor disk quotas are
overridden, whatever the service itself may do.
"""

from __future__ import annotations

import ctypes
import os
import platform
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple, NoReturn

import msgspec

from services.kit.errors import Internal, PermissionDenied

_CAP_SETGID = 1 << 6
_CAP_SETUID = 1 << 7
_CAPABILITY_VERSION = 0x20080522
_ASK = -1  # as an id: changes nothing and returns the present one


class Credentials(msgspec.Struct, frozen=True):
    """Numeric ids of a user; ``gids`` are all groups, the primary one included."""

    uid: int
    gid: int
    gids: tuple[int, ...] = ()


class _Calls(NamedTuple):
    """Numbers of the system calls."""

    setgroups: int
    setfsuid: int
    setfsgid: int
    capget: int
    capset: int


_CALLS = {
    "x86_64": _Calls(setgroups=116, setfsuid=122, setfsgid=123, capget=125, capset=126),
    "aarch64": _Calls(setgroups=159, setfsuid=151, setfsgid=152, capget=90, capset=91),
}


class _Identity(NamedTuple):
    """What the kernel judges a thread's file access by; ``capabilities`` are the effective ones."""

    uid: int
    gid: int
    groups: frozenset[int]
    capabilities: int


def lookup(user: str) -> Credentials:
    """The ids of a user by the host's name service. PermissionDenied when there is no such user."""
    try:
        entry = pwd.getpwnam(user)
    except (KeyError, ValueError):
        raise PermissionDenied(
            "UNKNOWN_USER",
            f"user {user!r} has no account on the host that moves the files;"
            " ask its administrators for one",
        ) from None
    return Credentials(entry.pw_uid, entry.pw_gid, tuple(os.getgrouplist(user, entry.pw_gid)))


@cache
def privileged() -> bool:
    """Whether this process may act as other users."""
    needed = _CAP_SETUID | _CAP_SETGID
    return platform.machine() in _CALLS and _own().capabilities & needed == needed


@contextmanager
def acting_as(credentials: Credentials) -> Iterator[None]:
    """Let this thread, and no other, access files as the user until the block ends.

    Do not await or start threads inside: another task would run with the user's rights, and a new
    thread inherits them. Raises PermissionDenied for uid 0, and for anyone but this process's own
    user where it runs without privilege. Ends the process if its identity cannot be restored.
    """
    if credentials.uid == 0:
        raise PermissionDenied(
            "ROOT_REFUSED", "files are never moved as root; use your own account"
        )
    if not privileged():
        _require_own(credentials)
        yield
        return
    try:
        _enter(credentials)
        yield
    finally:
        _leave()


def _require_own(credentials: Credentials) -> None:
    if credentials.uid != os.geteuid():
        raise PermissionDenied(
            "NOT_PRIVILEGED",
            f"transfer runs as uid {os.geteuid()} without the right to act as others,"
            f" so it cannot serve uid {credentials.uid}; run it as root or with"
            " CAP_SETUID and CAP_SETGID",
        )


def _enter(credentials: Credentials) -> None:
    groups = frozenset((*credentials.gids, credentials.gid))
    _become(_Identity(credentials.uid, credentials.gid, groups, capabilities=0))


def _leave() -> None:
    try:
        _become(_own())
    except (OSError, Internal) as error:
        _die(error)


def _become(wanted: _Identity) -> None:
    """Set and verify this thread's identity. Raises OSError or Internal."""
    calls = _calls()
    # A thread that was started inside `acting_as` begins without capabilities: raise them first.
    _set_capabilities(_own().capabilities)
    _call(calls.setgroups, len(wanted.groups), _group_array(wanted.groups))
    _call(calls.setfsgid, ctypes.c_uint32(wanted.gid))
    _call(calls.setfsuid, ctypes.c_uint32(wanted.uid))
    _set_capabilities(wanted.capabilities)
    if _current() != wanted:
        raise Internal(
            "IDENTITY_SWITCH_FAILED",
            f"the kernel did not let a thread act as uid {wanted.uid}; the service needs"
            " CAP_SETUID and CAP_SETGID in its user namespace, with this id mapped",
        )


@lru_cache(maxsize=64)
def _group_array(groups: frozenset[int]) -> ctypes.Array[ctypes.c_uint32]:
    return (ctypes.c_uint32 * len(groups))(*sorted(groups))


def _current() -> _Identity:
    calls = _calls()
    return _Identity(
        uid=_call(calls.setfsuid, ctypes.c_uint32(_ASK)),
        gid=_call(calls.setfsgid, ctypes.c_uint32(_ASK)),
        groups=frozenset(os.getgroups()),
        capabilities=_capabilities()[0],
    )


@cache
def _own() -> _Identity:
    """The identity of the service, as the main thread has it."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return _Identity(
        uid=int(fields["Uid"].split()[3]),
        gid=int(fields["Gid"].split()[3]),
        groups=frozenset(map(int, fields["Groups"].split())),
        capabilities=int(fields["CapEff"], 16),
    )


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def _capabilities() -> tuple[int, ctypes.Array[_Sets]]:
    """This thread's effective capabilities, and the kernel's sets of 32 each."""
    sets = (_Sets * 2)()
    header = _Header(_CAPABILITY_VERSION, 0)
    _call(_calls().capget, ctypes.byref(header), sets)
    return sets[0].effective | sets[1].effective << 32, sets


def _set_capabilities(effective: int) -> None:
    _, sets = _capabilities()
    sets[0].effective = effective & 0xFFFFFFFF
    sets[1].effective = effective >> 32
    header = _Header(_CAPABILITY_VERSION, 0)
    _call(_calls().capset, ctypes.byref(header), sets)


@cache
def _calls() -> _Calls:
    return _CALLS[platform.machine()]


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc


def _call(number: int, *arguments: object) -> int:
    result = int(_libc().syscall(ctypes.c_long(number), *arguments))
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"system call {number}: {os.strerror(code)}")
    return result


def _die(error: Exception) -> NoReturn:
    # Going on would serve the next user with the rights of this one.
    os.write(2, f"cannot restore the identity of a thread, ending the process: {error}\n".encode())
    os.abort()
