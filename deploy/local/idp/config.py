"""Settings of the development OpenID provider. Reading them does no other I/O."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import msgspec

T = TypeVar("T")

DEVICE_CODE = "urn:ietf:params:oauth:grant-type:device_code"
USER_GRANTS = ("authorization_code", DEVICE_CODE, "password", "refresh_token")


class ConfigError(ValueError):
    """The configuration or the users file cannot be used; the text says what to change."""


class ClientConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An OAuth client. Without `secret_file` it is public and authenticates by PKCE alone."""

    id: str
    grants: tuple[str, ...] = USER_GRANTS
    secret_file: Path | None = None
    token_format: Literal["jwt", "opaque"] = "jwt"
    may_introspect: bool = False


class IdpConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `--config` holds. Lifetimes are in seconds; relative paths start at the config file."""

    issuer: str
    users_file: Path
    #: Signing keys, secrets and the token database: all that must survive a restart.
    key_directory: Path
    #: Default: the port in `issuer`.
    port: int | None = None
    audience: str = "nearline"
    access_token_seconds: int = 900
    refresh_token_seconds: int = 30 * 86_400
    device_code_seconds: int = 600
    device_poll_seconds: int = 1
    #: Default: `nlds` (public, JWT), `nlds-opaque` (public, opaque), `gateway` (introspects).
    clients: tuple[ClientConfig, ...] = ()

    @property
    def listen_port(self) -> int:
        return self.port or urlsplit(self.issuer).port or 80

    def resolved_clients(self) -> tuple[ClientConfig, ...]:
        """The configured clients, or the defaults, with secret paths made absolute."""
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


def decode_file(path: Path, kind: type[T]) -> T:
    """Read a TOML (`.toml`) or JSON file into `kind`.

    Raises ConfigError naming the file and the first field that is wrong.
    """
    decode = msgspec.toml.decode if path.suffix == ".toml" else msgspec.json.decode
    try:
        return decode(path.read_bytes(), type=kind, dec_hook=_to_path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}: {error}") from error


def _to_path(kind: type[Any], value: Any) -> Any:
    """Let msgspec read the paths; it knows every other type here by itself."""
    return kind(value) if kind is Path and isinstance(value, str) else value


def load_config(path: Path) -> IdpConfig:
    """Read and check the configuration; raises ConfigError."""
    raw = decode_file(path, IdpConfig)
    check_issuer(raw.issuer)
    base = path.resolve().parent
    return msgspec.structs.replace(
        raw, users_file=base / raw.users_file, key_directory=base / raw.key_directory
    )


def check_issuer(issuer: str) -> None:
    """Refuse an issuer that is not plain http on loopback: no network may reach this provider."""
    parts = urlsplit(issuer)
    if parts.scheme != "http" or parts.path or not is_loopback(parts.hostname):
        raise ConfigError(
            f"issuer {issuer!r}: must be http://127.0.0.1:PORT without a path,"
            " because this provider is for development on one machine only"
        )


def is_loopback(host: str | None) -> bool:
    """Whether `host` is a loopback address (names are not resolved; `localhost` is not taken)."""
    try:
        return host is not None and ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
