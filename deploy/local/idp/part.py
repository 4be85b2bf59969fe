"""The provider as a part of the local stack: its files, its process, when it is ready."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

from deploy.local.errors import StackError
from deploy.local.files import make_directory, write_atomic
from deploy.local.idp.users import User, default_users, write_users
from deploy.local.ports import Ports
from deploy.local.process import ProcessSpec

# A proxy from the environment would not reach loopback.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Idp:
    """One development provider with its data under `directory`; `settings` go into its config."""

    def __init__(
        self,
        directory: Path,
        ports: Ports,
        users: tuple[User, ...] | None = None,
        **settings: str | int,
    ) -> None:
        self._port = ports.get("idp")
        self._users = default_users() if users is None else users
        self._settings = settings
        self._directory = directory
        self.issuer = f"http://127.0.0.1:{self._port}"
        self.key_directory = directory / "keys"
        self.admin_secret_path = self.key_directory / "admin-secret"
        self.gateway_secret_path = self.key_directory / "gateway-secret"

    def prepare(self) -> ProcessSpec:
        """Write configuration and users file, and say how to run the provider."""
        make_directory(self._directory, 0o700)
        users_file = self._directory / "users.json"
        write_users(users_file, self._users)
        config_file = self._directory / "idp.toml"
        settings = {
            "issuer": self.issuer,
            "users_file": str(users_file),
            "key_directory": str(self.key_directory),
            **self._settings,
        }
        # A JSON string or number is a TOML one.
        text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
        write_atomic(config_file, text.encode())
        return ProcessSpec(
            "idp",
            (sys.executable, "-m", "deploy.local.idp", "--config", str(config_file)),
            cwd=self._directory,
            files=(config_file, users_file),
            ready=self.ready,
        )

    def ready(self) -> str | None:
        """None when the provider answers, else why not."""
        try:
            with _OPENER.open(f"{self.issuer}/healthz", timeout=2):
                return None
        except (urllib.error.URLError, OSError) as error:
            return f"{self.issuer} does not answer: {error}"

    def rotate_keys(self, *, retire_old: bool = False) -> str:
        """Sign with a new key from now on and return its id; `retire_old` withdraws the old ones.

        Raises StackError when the provider does not run.
        """
        request = urllib.request.Request(
            f"{self.issuer}/admin/rotate",
            data=b"retire_old=1" if retire_old else b"",
            headers={"Authorization": f"Bearer {self.admin_secret_path.read_text()}"},
        )
        try:
            with _OPENER.open(request, timeout=10) as response:
                return str(json.load(response)["kid"])
        except OSError as error:
            raise StackError(f"{self.issuer} cannot rotate its keys: {error}") from error
