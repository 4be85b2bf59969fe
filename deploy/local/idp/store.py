"""Issued tokens in SQLite (as SHA-256, never the token); codes and device requests in memory."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from authlib.oauth2.rfc8628 import DeviceCredentialDict

from deploy.local.idp.users import User

Kind = Literal["access_token", "refresh_token"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS tokens (
    digest BLOB PRIMARY KEY, kind TEXT NOT NULL, family TEXT NOT NULL, client_id TEXT NOT NULL,
    subject TEXT NOT NULL, scope TEXT NOT NULL, issued_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL, revoked INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS tokens_family ON tokens (family);
"""
COLUMNS = "digest, kind, family, client_id, subject, scope, issued_at, expires_at, revoked"


@dataclass(frozen=True)
class StoredToken:
    """An issued token, in the shape of Authlib's TokenMixin.

    All tokens that descend from one login share a `family`. Times are Unix seconds.
    """

    digest: bytes
    kind: Kind
    family: str
    client_id: str
    subject: str
    scope: str
    issued_at: int
    expires_at: int
    revoked: int = 0

    def check_client(self, client: object) -> bool:
        return self.client_id == getattr(client, "client_id", None)

    def get_scope(self) -> str:
        return self.scope

    def get_expires_in(self) -> int:
        return self.expires_at - self.issued_at

    def is_expired(self) -> bool:
        return self.expires_at <= time.time()

    def is_revoked(self) -> bool:
        return bool(self.revoked)


def digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


class TokenStore:
    """The tokens issued so far. Threads share one connection under a lock."""

    def __init__(self, path: Path) -> None:
        path.touch(mode=0o600)
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.executescript("PRAGMA journal_mode = WAL;" + SCHEMA)

    def close(self) -> None:
        self._db.close()

    def _run(self, sql: str, *values: object) -> list[tuple[object, ...]]:
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    def add(self, token: StoredToken) -> None:
        """Record an issued token and forget those that expired."""
        self._run("DELETE FROM tokens WHERE expires_at < ?", int(time.time()) - 60)
        values = [getattr(token, name) for name in COLUMNS.split(", ")]
        marks = ", ".join("?" * len(values))
        self._run(f"INSERT INTO tokens ({COLUMNS}) VALUES ({marks})", *values)

    def find(self, token: str) -> StoredToken | None:
        rows = self._run(f"SELECT {COLUMNS} FROM tokens WHERE digest = ?", digest(token))
        return StoredToken(*rows[0]) if rows else None  # type: ignore[arg-type]

    def revoke(self, token: StoredToken) -> None:
        self._run("UPDATE tokens SET revoked = 1 WHERE digest = ?", token.digest)

    def revoke_family(self, family: str) -> None:
        """End a login: every access and refresh token that descends from it."""
        self._run("UPDATE tokens SET revoked = 1 WHERE family = ?", family)


@dataclass(frozen=True)
class AuthorizationCode:
    """A code of the authorization code flow, with the PKCE challenge it is bound to."""

    code: str
    client_id: str
    redirect_uri: str
    scope: str
    user: User
    code_challenge: str
    code_challenge_method: str
    expires_at: float

    def get_redirect_uri(self) -> str:
        return self.redirect_uri

    def get_scope(self) -> str:
        return self.scope


@dataclass
class DeviceRequest:
    """A device that waits for a person; `answer` is (user, approved) once there is one."""

    credential: DeviceCredentialDict
    answer: tuple[User, bool] | None = None
    last_poll: float = 0.0


@dataclass
class Pending:
    """Logins under way. A restart forgets them, and the person starts again."""

    codes: dict[str, AuthorizationCode] = field(default_factory=dict)
    devices: dict[str, DeviceRequest] = field(default_factory=dict)

    def add_device(self, credential: DeviceCredentialDict) -> None:
        """Remember a device request by its user code, and forget those that expired."""
        self.devices = {k: d for k, d in self.devices.items() if not d.credential.is_expired()}
        self.devices[credential["user_code"]] = DeviceRequest(credential)

    def device_by_code(self, device_code: str) -> DeviceRequest | None:
        found = (d for d in self.devices.values() if d.credential["device_code"] == device_code)
        return next(found, None)

    def device_to_approve(self, user_code: str) -> DeviceRequest | None:
        """The open request a person means by `user_code` (case and blanks do not matter)."""
        device = self.devices.get(user_code.strip().upper())
        if device is None or device.answer is not None or device.credential.is_expired():
            return None
        return device
