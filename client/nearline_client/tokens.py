"""The tokens of a login, in a file beside the configuration that only its owner can read."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nearline_client.auth_errors import TokenFileError
from nearline_client.private_files import write_private

_MARGIN = 60.0
_TEXTS = ("issuer", "client_id", "access_token", "scope")
_NUMBERS = ("expires_at", "lifetime")


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """What a login gave; neither token shows in `repr`.

    `expires_at` is in Unix seconds, `lifetime` in seconds from issue to expiry.
    """

    issuer: str
    client_id: str
    access_token: str = field(repr=False)
    expires_at: float
    lifetime: float
    refresh_token: str | None = field(default=None, repr=False)
    scope: str = ""

    def is_valid(self) -> bool:
        """Whether the access token has not expired."""
        return time.time() < self.expires_at

    def is_fresh(self) -> bool:
        """Whether it need not be renewed yet: it shall not die on its way to the service."""
        return time.time() + min(_MARGIN, self.lifetime / 3) < self.expires_at


class TokenStore:
    """The token file. Every method raises TokenFileError when the file cannot be used safely."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def beside(cls, config_file: Path) -> TokenStore:
        """The store of the configuration in `config_file`: `tokens.json` for `config.toml`."""
        stem = "tokens" if config_file.name == "config.toml" else f"{config_file.name}.tokens"
        return cls(config_file.with_name(f"{stem}.json"))

    def load(self) -> Tokens | None:
        """The stored tokens, None when nobody is logged in."""
        try:
            with self.path.open("rb") as stream:
                self._refuse_exposed(os.fstat(stream.fileno()))
                return Tokens(**_known(json.load(stream)))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._problem(error.strerror or "I/O error") from error
        except (ValueError, TypeError) as error:
            raise self._problem("it is damaged; run `nlds login`") from error

    def save(self, tokens: Tokens) -> None:
        """Replace the file in one step, mode 0600."""
        try:
            write_private(self.path, json.dumps(asdict(tokens), indent=1))
        except OSError as error:
            raise self._problem(error.strerror or "I/O error") from error

    def delete(self) -> None:
        """Forget the tokens; no error when there are none."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise self._problem(error.strerror or "I/O error") from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes and threads from replacing the tokens meanwhile.

        A refresh token works once: two that use it at the same time end the login.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock_file = self.path.with_suffix(".lock")
            descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._problem(f"its lock cannot be made: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _refuse_exposed(self, status: os.stat_result) -> None:
        if status.st_uid != os.geteuid():
            raise self._problem("it belongs to somebody else; remove it and run `nlds login`")
        if stat.S_IMODE(status.st_mode) & 0o077:
            raise self._problem(
                f"others can read it; run `chmod 600 {self.path}`, or better `nlds logout`"
                " and `nlds login` when others may have seen it"
            )

    def _problem(self, what: str) -> TokenFileError:
        return TokenFileError(f"the token file {self.path} cannot be used: {what}")


def _known(data: Any) -> dict[str, Any]:
    """Check the types, so that a damaged file fails here and not in a request."""
    if not isinstance(data, dict):
        raise TypeError("object expected")
    texts_good = all(isinstance(data.get(name), str) for name in _TEXTS)
    numbers_good = all(isinstance(data.get(name), int | float) for name in _NUMBERS)
    if not (texts_good and numbers_good and isinstance(data.get("refresh_token"), str | None)):
        raise TypeError("a field is missing or of the wrong type")
    return data
