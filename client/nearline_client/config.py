"""The client's configuration file and what the environment overrides in it."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from nearline_client.auth_errors import ConfigError
from nearline_client.private_files import write_private
from nearline_client.urls import is_secure_url


@dataclass(frozen=True, kw_only=True)
class ClientConfig:
    """Where the store is, who the user is, and where to log in.

    `url` is the gateway (`https://host:port`). `user` and `group` narrow requests and grant
    nothing. `audience` is sent to providers that issue tokens for several services.
    """

    url: str
    ca_file: Path | None = None
    user: str | None = None
    group: str | None = None
    issuer: str | None = None
    client_id: str = "nlds"
    audience: str | None = None
    scopes: tuple[str, ...] = ("offline_access",)

    def __post_init__(self) -> None:
        """Raises ConfigError for a URL that would carry tokens in the clear."""
        if "://" not in self.url:
            raise ConfigError(f"url {self.url!r} is not a URL: write https://HOST:PORT")
        if self.issuer is not None and not is_secure_url(self.issuer):
            raise ConfigError(
                f"issuer {self.issuer!r} must be an https URL (http only on this machine),"
                " because passwords and tokens go there"
            )


_OPTIONAL_TEXT = ("user", "group", "issuer", "client_id", "audience")
_VARIABLES = {"url": "NEARLINE_URL", "ca_file": "NEARLINE_CA", "issuer": "NEARLINE_ISSUER"}
_KEYS = tuple(field.name for field in fields(ClientConfig))


def config_path(environ: Mapping[str, str] = os.environ) -> Path:
    """`$NEARLINE_CONFIG`, else `nearline/config.toml` in `$XDG_CONFIG_HOME` or `~/.config`."""
    if explicit := environ.get("NEARLINE_CONFIG"):
        return Path(explicit).expanduser()
    # The XDG specification: a relative path there is to be ignored.
    base = Path(environ.get("XDG_CONFIG_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".config") / "nearline" / "config.toml"


def load_config(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> ClientConfig:
    """Read the configuration; `NEARLINE_URL` replaces `url`, and is enough without a file.

    `NEARLINE_CA` replaces `ca_file` and `NEARLINE_ISSUER` replaces `issuer` in the same way.
    Raises ConfigError naming the file and the key that is wrong.
    """
    path = path or config_path(environ)
    try:
        return _from_table(_table(path) | _overrides(environ), path.parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _table(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}") from error


def _overrides(environ: Mapping[str, str]) -> dict[str, str]:
    found = {key: environ.get(variable, "") for key, variable in _VARIABLES.items()}
    if ca_file := found["ca_file"]:
        # In the environment a relative path starts where the command runs, not at the file.
        found["ca_file"] = str(Path(ca_file).expanduser().absolute())
    return {key: value for key, value in found.items() if value}


def save_config(config: ClientConfig, path: Path | None = None) -> Path:
    """Write the configuration in one step and return where. Raises ConfigError."""
    path = path or config_path()
    lines = [f"{key} = {_toml(value)}\n" for key in _KEYS if (value := getattr(config, key))]
    try:
        write_private(path, "".join(lines))
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
    return path


def _from_table(data: dict[str, Any], base: Path) -> ClientConfig:
    if unknown := sorted(set(data) - set(_KEYS)):
        raise ConfigError(f"unknown key {unknown[0]!r}; known are {', '.join(_KEYS)}")
    if "url" not in data:
        raise ConfigError("url is missing: run `nlds init -U URL`")
    given: dict[str, Any] = {key: _text(data, key) for key in _OPTIONAL_TEXT if key in data}
    config = ClientConfig(url=_text(data, "url"), **given)
    if "ca_file" in data:
        config = replace(config, ca_file=base / Path(_text(data, "ca_file")).expanduser())
    if "scopes" in data:
        config = replace(config, scopes=_scopes(data["scopes"]))
    return config


def _text(data: dict[str, Any], key: str) -> str:
    value = data[key]
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ConfigError(f"{key} must be a text of printable characters")
    return value


def _scopes(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(scope, str) for scope in value):
        raise ConfigError('scopes must be a list of texts, such as ["offline_access"]')
    return tuple(value)


def _toml(value: object) -> str:
    """A TOML string or array; JSON's escapes are TOML's for printable text."""
    plain = list(value) if isinstance(value, tuple) else str(value)
    return json.dumps(plain, ensure_ascii=False)
