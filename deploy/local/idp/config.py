"""Settings of the development OpenID provider. Reading them does no other I/O."""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from services.kit.config import ConfigError, Section, load

DEVICE_CODE = "urn:ietf:params:oauth:grant-type:device_code"
USER_GRANTS = ("authorization_code", DEVICE_CODE, "password", "refresh_token")


class ClientConfig(Section, frozen=True):
    """An OAuth client. Without `secret_file` it is public and authenticates by PKCE alone.

    The secret is made at the first start when the file does not exist.
    """

    id: str
    grants: tuple[str, ...] = USER_GRANTS
    secret_file: Path | None = None
    token_format: Literal["jwt", "opaque"] = "jwt"
    may_introspect: bool = False


class IdpConfig(Section, frozen=True):
    """What `--config` (TOML) holds. Lifetimes are in seconds."""

    issuer: str
    users_file: Path
    key_directory: Path
    """Signing keys, secrets and the token database: all that must survive a restart."""
    port: int | None = None
    """Default: the port in `issuer`."""
    audience: str = "nearline"
    access_token_seconds: int = 900
    refresh_token_seconds: int = 30 * 86_400
    device_code_seconds: int = 600
    device_poll_seconds: int = 1
    clients: tuple[ClientConfig, ...] = ()
    """Default: `nlds` (public, JWT), `nlds-opaque` (public, opaque), `gateway` (introspects)."""

    @property
    def listen_port(self) -> int:
        return self.port or urlsplit(self.issuer).port or 80

    def resolved_clients(self) -> tuple[ClientConfig, ...]:
        """The configured clients, or the defaults, whose secrets stand in the key directory."""
        clients = self.clients or DEFAULT_CLIENTS
        return tuple(
            msgspec.structs.replace(c, secret_file=self.key_directory / c.secret_file)
            if c.secret_file
            else c
            for c in clients
        )


DEFAULT_CLIENTS = (
    ClientConfig(id="nlds"),
    ClientConfig(id="nlds-opaque", token_format="opaque"),
    ClientConfig(
        id="gateway",
        grants=("client_credentials",),
        secret_file=Path("gateway-secret"),
        may_introspect=True,
    ),
)


def load_config(path: Path) -> IdpConfig:
    """Read and check the configuration; raises ConfigError."""
    config = load(IdpConfig, path)
    check_issuer(config.issuer)
    return config


def check_issuer(issuer: str) -> None:
    """Refuse an issuer that is not plain http on loopback: no network may reach this provider."""
    parts = urlsplit(issuer)
    if parts.scheme != "http" or parts.path or parts.hostname != "127.0.0.1":
        raise ConfigError(
            f"issuer {issuer!r}: must be http://127.0.0.1:PORT without a path,"
            " because this provider is for development on one machine only"
        )
