"""Typed configuration: TOML files decoded into frozen structs that refuse unknown keys.

A service declares its own ``Config(Section)`` out of the shared sections below and reads it once
with :func:`load`. Relative paths are relative to the file they stand in; secrets are file paths.
"""

import re
import stat
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import msgspec

T = TypeVar("T")

Count = Annotated[int, msgspec.Meta(ge=1)]
"""A whole number of at least 1."""
Seconds = Annotated[float, msgspec.Meta(gt=0)]
"""A duration in seconds, more than 0."""

_ALLOWED_RPCS = re.compile(r"/[\w.]+/(\w+|\*)")


class ConfigError(Exception):
    """The configuration cannot be used; the message names file and key, and what to do."""


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every table of a configuration file."""


class SecretFile:
    """The path of a file that holds a secret; the secret itself is never part of the config."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"SecretFile({str(self.path)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretFile) and self.path == other.path

    def __hash__(self) -> int:
        return hash(self.path)

    def read(self) -> str:
        """The secret without its final newline; ConfigError when missing, empty or exposed."""
        try:
            mode = self.path.stat().st_mode
            secret = self.path.read_text().rstrip("\r\n")
        except OSError as error:
            raise ConfigError(
                f"cannot read the secret file {self.path}: {error.strerror}; "
                "create it, readable by this service's user only"
            ) from error
        if mode & stat.S_IRWXO:
            raise ConfigError(
                f"the secret file {self.path} is open to every user of this machine; "
                f"run: chmod o= {self.path}"
            )
        if not secret:
            raise ConfigError(f"the secret file {self.path} is empty; write the secret into it")
        return secret


class TlsFiles(NamedTuple):
    """Certificate chain, private key and authorities in PEM."""

    cert: bytes
    key: bytes
    ca: bytes


class TlsConfig(Section, frozen=True):
    """Files of one end of a TLS connection, in PEM."""

    cert: Path
    """This end's certificate, followed by any intermediates."""
    key: SecretFile
    """The certificate's private key."""
    ca: Path
    """Certificates of the authorities that the other end's certificate must come from."""

    def read(self) -> TlsFiles:
        """The files' contents; ConfigError when one cannot be read."""
        return TlsFiles(
            cert=_read(self.cert, "certificate"),
            key=self.key.read().encode(),
            ca=_read(self.ca, "certificate authority"),
        )


class ServerConfig(Section, frozen=True):
    """Where a service listens and who may call what."""

    listen: str = "127.0.0.1:0"
    """``host:port`` of the service's RPCs; port 0 takes a free one."""
    ops_listen: str | None = None
    """``host:port`` in plain text for health checks and reflection only."""
    metrics_listen: str | None = None
    """``host:port`` of the Prometheus metrics over HTTP."""
    tls: TlsConfig | None = None
    grace_seconds: Seconds = 10.0
    """How long running RPCs may go on once the service is told to stop."""
    max_concurrent_rpcs: Count = 1000
    """More than these at once are refused with RESOURCE_EXHAUSTED."""
    peers: dict[str, list[str]] = {}
    """Common name in a peer's certificate → RPCs it may call.

    An RPC is ``/package.Service/Method``, or ``/package.Service/*`` for all of a service's.
    """

    def __post_init__(self) -> None:
        for address in (self.listen, self.ops_listen, self.metrics_listen):
            if address is not None:
                parse_address(address)
        for peer, rpcs in self.peers.items():
            for rpc in rpcs:
                _check_rpc_pattern(peer, rpc)


class PeerConfig(Section, frozen=True):
    """How to reach another service of the mesh."""

    address: str
    """``host:port``, or any target that gRPC resolves (``dns:///catalog:7000``)."""
    tls: TlsConfig | None = None
    server_name: str | None = None
    """Name expected in the server's certificate when it is not the host of ``address``."""
    timeout: Seconds = 30.0
    """Deadline in seconds of unary calls that set none themselves."""


class DatabaseConfig(Section, frozen=True):
    """A service's own PostgreSQL database."""

    host: str
    name: str
    user: str
    password: SecretFile
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 5432
    pool_size: Count = 8
    """Connections, and threads that use them."""
    statement_timeout_seconds: Seconds = 30.0
    synchronous_commit: Literal["on", "remote_write", "remote_apply"] = "on"
    """What an acknowledged change has survived, whatever the server's own default: "on" is the disk
    of the server and of its synchronous standbys. Weaker settings would lose acknowledged files.
    """


class LogConfig(Section, frozen=True):
    """What is logged to standard error, and how."""

    format: Literal["json", "console"] = "json"
    level: Literal["debug", "info", "warning", "error"] = "info"


def load(cls: type[T], path: Path | str) -> T:
    """Read the TOML file ``path`` into ``cls``; ConfigError names the key and what is wrong."""
    path = Path(path)
    return loads(cls, _read(path, "configuration"), path)


def loads(cls: type[T], data: bytes | str, path: Path) -> T:
    """As :func:`load` for TOML text in hand; ``path`` is for messages and relative paths."""

    def hook(kind: type, value: Any) -> Any:
        return _convert(kind, value, path.parent)

    try:
        return msgspec.toml.decode(data, type=cls, dec_hook=hook)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {_explain(str(error))}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: this is not TOML: {error}; correct the syntax") from error


def parse_address(address: str) -> tuple[str, int]:
    """Split ``host:port`` or ``[v6]:port``; ValueError when it is neither."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{address!r} is not host:port, such as 127.0.0.1:7000 or [::1]:7000")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cannot read the {what} file {path}: {error.strerror}; name a file that exists"
        ) from error


def _check_rpc_pattern(peer: str, rpc: str) -> None:
    if not _ALLOWED_RPCS.fullmatch(rpc):
        raise ValueError(
            f"peer {peer!r}: {rpc!r} names no RPC; "
            "write /package.Service/Method or /package.Service/*"
        )


def _convert(kind: type, value: Any, base: Path) -> Any:
    if kind not in (Path, SecretFile) or not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is not a path; write the path of a file as a string")
    path = base / Path(value).expanduser()
    return path if kind is Path else SecretFile(path)


def _explain(message: str) -> str:
    """msgspec's message with the key path first, in TOML's own notation."""
    what, _, where = message.partition(" - at `$")
    key = where.rstrip("`").removeprefix(".") or "top level"
    advice = "; remove it or correct its name" if "unknown field" in what else ""
    advice = "; add it" if "missing required field" in what else advice
    return f"{key}: {what}{advice}"
