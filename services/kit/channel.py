"""Channels to other services: mutual TLS, keepalive, retries, deadlines and who is asking.

A call over these channels carries the current request id, never outlives the request it serves, and
is tried again while the peer is away, unless it is a stream. The identity goes along only from the
gateway, the one peer that may speak for users: a channel knows by its own certificate whether it is
the gateway's.
"""

import asyncio
import json
import time
from collections.abc import Callable
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Self

import grpc
from cryptography import x509
from cryptography.x509.oid import NameOID

from services.kit import identity
from services.kit.config import ConfigError, PeerConfig, TlsConfig

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""Largest message either end takes; senders keep batches far below it."""

# Group lists of some users pass gRPC's own limit of 8 KiB.
METADATA_OPTIONS = (
    ("grpc.max_metadata_size", 32 * 1024),
    ("grpc.absolute_max_metadata_size", 64 * 1024),
)

# Without ping_timeout_ms a frozen peer is noticed after a minute only, whatever keepalive says.
KEEPALIVE_OPTIONS = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
)

_BALANCING: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
# UNAVAILABLE only: every RPC of the mesh may be repeated, but a repeat must have a chance.
_RETRYING = {
    "name": [{}],
    "retryPolicy": {
        "maxAttempts": 5,
        "initialBackoff": "0.2s",
        "maxBackoff": "2s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    },
}
_UNARY: tuple[tuple[str, Any], ...] = (
    ("grpc.enable_retries", 1),
    ("grpc.service_config", json.dumps({**_BALANCING, "methodConfig": [_RETRYING]})),
)
# gRPC 1.85 retries streams wrongly: one whose server is killed before its first answer can hang for
# ever, even past its deadline. So streams have a channel of their own, and their callers try again.
_STREAM: tuple[tuple[str, Any], ...] = (
    ("grpc.enable_retries", 0),
    ("grpc.service_config", json.dumps(_BALANCING)),
)

_OPTIONS: tuple[tuple[str, Any], ...] = (
    *KEEPALIVE_OPTIONS,
    *METADATA_OPTIONS,
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Each channel gets a connection of its own, so that a second channel spreads load.
    ("grpc.use_local_subchannel_pool", 1),
)

_TARGET_NAME = "grpc.ssl_target_name_override"

Options = tuple[tuple[str, Any], ...]

_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


def bind_deadline(seconds: float | None) -> None:
    """Let calls of the current context end within ``seconds`` from now; None is no limit."""
    _deadline.set(None if seconds is None else time.monotonic() + seconds)


def remaining() -> float | None:
    """Seconds until the current request's deadline (0 when past), None without one."""
    deadline = _deadline.get()
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def aio_channel(peer: PeerConfig) -> grpc.aio.Channel:
    """A channel for asyncio code; connects with the first call. Needs a running event loop."""
    credentials = _credentials(peer.tls) if peer.tls else None

    def connect(options: Options) -> grpc.aio.Channel:
        if credentials is None:
            return grpc.aio.insecure_channel(peer.address, options)
        return grpc.aio.secure_channel(peer.address, credentials, options)

    return _AioChannel(connect, peer)


def sync_channel(peer: PeerConfig) -> grpc.Channel:
    """A channel for code in threads; connects with the first call."""
    credentials = _credentials(peer.tls) if peer.tls else None

    def connect(options: Options) -> grpc.Channel:
        if credentials is None:
            return grpc.insecure_channel(peer.address, options)
        return grpc.secure_channel(peer.address, credentials, options)

    return _SyncChannel(connect, peer)


def common_name(pem: bytes) -> str:
    """Common name of the first certificate in ``pem``, empty when it has none."""
    try:
        certificate = x509.load_pem_x509_certificates(pem)[0]
    except (ValueError, IndexError) as error:
        raise ConfigError(f"the certificate file holds no PEM certificate: {error}") from error
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def _options(peer: PeerConfig, special: Options) -> Options:
    name = ((_TARGET_NAME, peer.server_name),) if peer.server_name else ()
    return (*_OPTIONS, *special, *name)


def _credentials(tls: TlsConfig) -> grpc.ChannelCredentials:
    files = tls.read()
    return grpc.ssl_channel_credentials(files.ca, files.key, files.cert)


def _speaks_for_users(tls: TlsConfig | None) -> bool:
    return tls is not None and common_name(tls.read().cert) == identity.GATEWAY


def _sooner(ours: float | None, request: float | None) -> float | None:
    if ours is None or request is None:
        return ours if request is None else request
    return min(ours, request)


class _MultiCallable:
    """A method of a stub that fills in metadata and deadline on the way."""

    def __init__(self, inner: Any, fill: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self._inner = inner
        self._fill = fill

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._inner(*args, **self._fill(options))

    def with_call(self, *args: Any, **options: Any) -> Any:
        return self._inner.with_call(*args, **self._fill(options))

    def future(self, *args: Any, **options: Any) -> Any:
        return self._inner.future(*args, **self._fill(options))


class _Forwarding:
    """What the sync and the aio channel share.

    Wrapping the methods costs a dictionary a call; gRPC's client interceptors would cost a task a
    call and a hop per stream message.
    """

    def __init__(self, connect: Callable[[Options], Any], peer: PeerConfig) -> None:
        self._inner = connect(_options(peer, _UNARY))
        self._streams = connect(_options(peer, _STREAM))
        self._timeout = peer.timeout
        self._with_identity = _speaks_for_users(peer.tls)

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return _MultiCallable(self._inner.unary_unary(*args, **kwargs), self._fill_unary)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return _MultiCallable(self._streams.unary_stream(*args, **kwargs), self._fill)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return _MultiCallable(self._streams.stream_unary(*args, **kwargs), self._fill)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return _MultiCallable(self._streams.stream_stream(*args, **kwargs), self._fill)

    def _fill_unary(self, options: dict[str, Any]) -> dict[str, Any]:
        if options.get("timeout") is None:
            options["timeout"] = self._timeout
        return self._fill(options)

    def _fill(self, options: dict[str, Any]) -> dict[str, Any]:
        options["timeout"] = _sooner(options.get("timeout"), remaining())
        ours = identity.metadata(with_identity=self._with_identity)
        options["metadata"] = (*(options.get("metadata") or ()), *ours)
        return options


class _AioChannel(_Forwarding, grpc.aio.Channel):
    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        state: grpc.ChannelConnectivity = self._inner.get_state(try_to_connect)
        return state

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._inner.channel_ready()

    async def close(self, grace: float | None = None) -> None:
        await asyncio.gather(self._inner.close(grace), self._streams.close(grace))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


class _SyncChannel(_Forwarding, grpc.Channel):
    def close(self) -> None:
        self._inner.close()
        self._streams.close()

    def subscribe(self, *args: Any, **kwargs: Any) -> None:
        self._inner.subscribe(*args, **kwargs)

    def unsubscribe(self, *args: Any, **kwargs: Any) -> None:
        self._inner.unsubscribe(*args, **kwargs)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
