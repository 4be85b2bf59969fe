"""Signing keys on disk, one JWK per file (0600), so that tokens outlive a restart."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import msgspec
from joserfc.jwk import ECKey, KeySet

from deploy.local.files import write_atomic

ALGORITHM = "ES256"
#: Published keys: the one that signs, and the one before it for tokens still in use.
PUBLISHED = 2


class SigningKeys:
    """The newest key signs; the one before is still published, so its tokens stay valid."""

    def __init__(self, directory: Path) -> None:
        """Read the keys in `directory`, making it and the first key when there is none."""
        self._directory = directory
        self._lock = threading.Lock()
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        files = sorted(directory.glob("signing-*.json"))
        self._files = [(path, self._load(path)) for path in files]
        if not self._files:
            self.rotate()

    @staticmethod
    def _load(path: Path) -> ECKey:
        return ECKey.import_key(msgspec.json.decode(path.read_bytes()))

    @property
    def signing(self) -> ECKey:
        """The private key that signs new tokens; its `kid` is set."""
        return self._files[-1][1]

    def public(self) -> dict[str, Any]:
        """The JWKS document."""
        keys: list[Any] = [key for _, key in self._files]
        return dict(KeySet(keys).as_dict(private=False))

    def rotate(self, *, retire_old: bool = False) -> str:
        """Sign with a new key from now on and return its `kid`.

        `retire_old` withdraws all older keys at once, as after a theft: their tokens die.
        """
        key = ECKey.generate_key("P-256", {"use": "sig", "alg": ALGORITHM})
        key.ensure_kid()
        path = self._directory / f"signing-{time.time_ns():020d}.json"
        with self._lock:
            write_atomic(path, msgspec.json.encode(key.as_dict(private=True)), 0o600)
            files = [*self._files, (path, key)]
            keep = 1 if retire_old else PUBLISHED
            self._files = files[-keep:]
            for old, _ in files[:-keep]:
                old.unlink(missing_ok=True)
        return str(key.kid)
