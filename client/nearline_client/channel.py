"""The connection to a gateway: which URLs are accepted, and how the channel behaves."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import grpc

from nearline_client.auth_errors import ConfigError
from nearline_client.urls import is_loopback_host

# keepalive_timeout alone does not make gRPC notice a frozen peer: the ping timeout does.
_OPTIONS: list[tuple[str, int]] = [
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # A batch of 1000 files whose paths are as long as paths can be.
    ("grpc.max_receive_message_length", 64 * 2**20),
]
_PORTS = {"https": 443, "grpcs": 443, "http": 80}


def open_channel(url: str, ca_file: Path | None = None) -> grpc.Channel:
    """A channel to the gateway at `url`; the connection itself is made by the first call.

    TLS for https and grpcs, against `ca_file` or the system's authorities. Plain text (http) only
    to a loopback address, because it would show the token to everybody on the way.
    Raises ConfigError.
    """
    scheme, host, port = parse_url(url)
    name = f"[{host}]" if ":" in host else host
    options = [*_OPTIONS, ("grpc.enable_http_proxy", int(not is_loopback_host(host)))]
    if scheme == "http":
        return grpc.insecure_channel(f"{name}:{port}", options=options)
    credentials = grpc.ssl_channel_credentials(_authorities(ca_file))
    return grpc.secure_channel(f"{name}:{port}", credentials, options=options)


def parse_url(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of a gateway's URL. Raises ConfigError saying what is accepted."""
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname or "", parts.port
    except ValueError as error:
        raise ConfigError(f"url {url!r} is not a URL ({error}): write https://HOST:PORT") from error
    if scheme not in _PORTS or not host or parts.path not in ("", "/") or parts.query:
        raise ConfigError(f"url {url!r} is not the URL of a gateway: write https://HOST:PORT")
    if scheme == "http" and not is_loopback_host(host):
        raise ConfigError(
            f"url {url!r} would send the token unprotected: write https:// (http is accepted for"
            " this machine only)"
        )
    return scheme, host, port or _PORTS[scheme]


def _authorities(ca_file: Path | None) -> bytes | None:
    if ca_file is None:
        return None
    try:
        return ca_file.read_bytes()
    except OSError as error:
        raise ConfigError(f"ca_file {ca_file} cannot be read: {error.strerror}") from error
