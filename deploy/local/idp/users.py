"""The test users: who they are, which groups and roles they have, which POSIX ids they carry."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from deploy.local.files import write_atomic
from services.kit.config import ConfigError

Role = Literal["USER", "DEPUTY", "MANAGER"]


class PosixIds(NamedTuple):
    """A user's numeric ids: user, primary group, supplementary groups."""

    uid: int
    gid: int
    gids: tuple[int, ...] = ()


class User(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A test user. `uid`, `gid` and `gids` become claims when `uid` is set."""

    name: str
    password: str
    groups: dict[str, Role] = {}
    uid: int | None = None
    gid: int | None = None
    gids: tuple[int, ...] = ()

    def get_user_id(self) -> str:
        """The subject: the name that Authlib puts into `sub`."""
        return self.name

    def has_password(self, password: str) -> bool:
        return secrets.compare_digest(self.password.encode(), password.encode())

    def claims(self) -> dict[str, Any]:
        """The claims a token of this user carries beside the standard ones."""
        claims: dict[str, Any] = {"groups": sorted(self.groups), "nearline_roles": self.groups}
        if self.uid is not None:
            claims |= {"uid": self.uid, "gid": self.gid, "gids": list(self.gids)}
        return claims


class UsersFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    users: tuple[User, ...]


def default_users(ids: Mapping[str, PosixIds] | None = None) -> tuple[User, ...]:
    """The four test users; the password is the name. `ids` holds the POSIX ids of some or all."""
    groups: dict[str, dict[str, Role]] = {
        "alice": {"cmip6": "USER", "sentinel": "MANAGER"},
        "bob": {"cmip6": "DEPUTY"},
        "carol": {"cmip6": "MANAGER"},
        "dave": {"sentinel": "USER"},
    }
    posix = {name: own._asdict() for name, own in (ids or {}).items()}
    return tuple(
        User(name=name, password=name, groups=roles, **posix.get(name, {}))
        for name, roles in groups.items()
    )


def write_users(path: Path, users: tuple[User, ...]) -> None:
    """Write the users file (JSON, 0600)."""
    write_atomic(path, msgspec.json.format(msgspec.json.encode(UsersFile(users))), 0o600)


def load_users(path: Path) -> dict[str, User]:
    """Read the users file, by name. Raises ConfigError for a bad file, twins and half POSIX ids."""
    users = _decode(path).users
    by_name = {user.name: user for user in users}
    if len(by_name) != len(users):
        raise ConfigError(f"{path}: two users have the same name")
    for user in users:
        if (user.uid is None) != (user.gid is None):
            raise ConfigError(f"{path}: user {user.name!r} needs both uid and gid, or neither")
    return by_name


def _decode(path: Path) -> UsersFile:
    try:
        return msgspec.json.decode(path.read_bytes(), type=UsersFile)
    except OSError as error:
        raise ConfigError(f"cannot read the users file {path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}: {error}; write it with write_users()") from error
