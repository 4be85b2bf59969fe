"""A service's gRPC server: mesh port, operations port, health, reflection and a graceful end.

Wire it up and run it::

    server = Server(config.server)
    server.add(add_CatalogServiceServicer_to_server, CatalogServicer(...))
    server.on_drain(stop_handing_out_work)
    await server.run()
"""

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import grpc
import structlog
import uvloop
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_reflection.v1alpha import reflection

from services.kit import telemetry
from services.kit.channel import KEEPALIVE_OPTIONS, MAX_MESSAGE_BYTES, METADATA_OPTIONS
from services.kit.config import ConfigError, ServerConfig, TlsConfig
from services.kit.interceptor import AllowList, Guarded, Handler, RefuseAll, Surround, is_open
from services.kit.threads import Threads, in_thread

__all__ = ["Server", "Threads", "in_thread", "is_open", "run", "serve"]

log = structlog.get_logger(__name__)

S = TypeVar("S")
Register = Callable[[S, Any], None]
Readiness = Callable[[], Awaitable[bool]]

_OPTIONS = (
    *KEEPALIVE_OPTIONS,
    *METADATA_OPTIONS,
    # Clients ping every 10 s; without these the server drops them with too_many_pings.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 2),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A second process on the same port must fail, not share the calls by chance.
    ("grpc.so_reuseport", 0),
)

_HARD_LIMIT = 2
_LIVENESS = "grpc.health.v1.Health"
_READINESS_SECONDS = 5.0
_UNWIND_SECONDS = 5.0
_ANSWER_SECONDS = 0.5


class Server:
    """One service's RPCs on a TLS port, and health checks and reflection on a plain one.

    With ``mutual_tls`` callers need a certificate of the mesh and an entry in ``config.peers``.
    Without, as on the gateway's public port, ``interceptors`` admit callers: they raise
    NearlineErrors and may bind an identity. Health and reflection pass them by.
    """

    def __init__(
        self,
        config: ServerConfig,
        *,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        mutual_tls: bool = True,
    ) -> None:
        """Needs a running event loop; ports are opened by :meth:`start`."""
        self.port = 0
        """The port of the RPCs, once started."""
        self.ops_port = 0
        """The operations port, once started and if configured."""
        self.metrics_port = 0
        """The metrics port, once started and if configured."""
        self._config = config
        self._mutual_tls = mutual_tls
        allow = AllowList(config.peers) if mutual_tls else None
        self._surround = Surround(allow, config.max_concurrent_rpcs)
        self._grpc = grpc.aio.server(
            interceptors=[self._surround, *map(Guarded, interceptors)],
            options=_OPTIONS,
            # Beyond this gRPC refuses without a word of when to come again.
            maximum_concurrent_rpcs=_HARD_LIMIT * config.max_concurrent_rpcs,
        )
        self._ops = grpc.aio.server(handlers=[RefuseAll()], options=_OPTIONS)
        self._health = health_aio.HealthServicer()
        self._services: list[str] = []
        self._on_drain: list[Callable[[], Awaitable[None]]] = []
        self._readiness: Readiness | None = None
        self._watching: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()

    def add(self, register: Register[S], servicer: S) -> None:
        """Serve ``servicer`` by its generated ``add_…Servicer_to_server`` function."""
        register(servicer, _Registrar(self))

    def add_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Serve methods of ``service`` (its full name) by handlers made by hand."""
        self._services.append(service)
        self._grpc.add_registered_method_handlers(service, handlers)

    def on_drain(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Await ``callback`` when the service is told to stop, while calls still run."""
        self._on_drain.append(callback)

    def set_readiness(self, check: Readiness) -> None:
        """Be SERVING only while ``check`` (asked every few seconds) returns true."""
        self._readiness = check

    def stop(self) -> None:
        """End :meth:`run` as a SIGTERM does."""
        self._stop.set()

    async def run(self) -> None:
        """Serve until SIGTERM, SIGINT or :meth:`stop`, then drain."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        await self.start()
        try:
            await self._stop.wait()
        finally:
            await self.drain()

    async def start(self) -> None:
        """Open the ports and answer; ConfigError when a port or certificate cannot be used."""
        self._add_standard_services()
        self.port = self._bind(self._grpc, self._config.listen, self._credentials())
        if self._config.ops_listen is not None:
            self.ops_port = self._bind(self._ops, self._config.ops_listen, None)
        if self._config.metrics_listen is not None:
            self.metrics_port = telemetry.serve_metrics(self._config.metrics_listen)
        # For liveness: the process answers, whatever it waits for.
        await self._health.set(_LIVENESS, HealthCheckResponse.SERVING)
        await self._update_health()
        self._watching = asyncio.create_task(self._watch_readiness())
        await self._ops.start()
        await self._grpc.start()
        log.info("serving", port=self.port, ops_port=self.ops_port, services=self._services)

    async def drain(self) -> None:
        """Say NOT_SERVING, run the callbacks, refuse new calls, let the running ones end."""
        log.info("draining", grace_seconds=self._config.grace_seconds)
        if self._watching is not None:
            self._watching.cancel()
        await self._health.enter_graceful_shutdown()
        await self._run_callbacks()
        await self._finish_calls()
        await self._ops.stop(None)
        log.info("stopped")

    async def _run_callbacks(self) -> None:
        for callback in self._on_drain:
            try:
                await asyncio.wait_for(callback(), self._config.grace_seconds)
            except Exception:
                log.exception("drain callback failed")

    async def _finish_calls(self) -> None:
        stopping = asyncio.create_task(self._grpc.stop(self._config.grace_seconds))
        idle = asyncio.create_task(self._surround.idle())
        await asyncio.wait({stopping, idle}, return_when=asyncio.FIRST_COMPLETED)
        # An answer is sent a moment after its handler has ended.
        await asyncio.wait({stopping}, timeout=_ANSWER_SECONDS)
        # Only health watchers are left, or the grace is over.
        await self._grpc.stop(None)
        await stopping
        # stop() returns before the last handlers have unwound.
        with suppress(TimeoutError):
            await asyncio.wait_for(idle, _UNWIND_SECONDS)

    def _add_standard_services(self) -> None:
        names = [*self._services, _LIVENESS, reflection.SERVICE_NAME]
        for server in (self._grpc, self._ops):
            health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
            reflection.enable_server_reflection(names, server)

    def _credentials(self) -> grpc.ServerCredentials | None:
        tls = self._config.tls
        if tls is None and self._mutual_tls:
            raise ConfigError(
                "server.tls: a mesh port needs certificates; "
                "add cert, key and ca under [server.tls]"
            )
        return _server_credentials(tls, self._mutual_tls) if tls is not None else None

    def _bind(
        self, server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None
    ) -> int:
        try:
            if credentials is None:
                return server.add_insecure_port(address)
            return server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise ConfigError(
                f"cannot listen at {address}: it is in use, not an address of this host, or the "
                "certificate and key do not match; end the other process or change the config"
            ) from error

    async def _watch_readiness(self) -> None:
        while self._readiness is not None:
            await asyncio.sleep(_READINESS_SECONDS)
            await self._update_health()

    async def _update_health(self) -> None:
        ready = await self._is_ready()
        status = HealthCheckResponse.SERVING if ready else HealthCheckResponse.NOT_SERVING
        for service in ("", *self._services):
            await self._health.set(service, status)

    async def _is_ready(self) -> bool:
        if self._readiness is None:
            return True
        try:
            return await self._readiness()
        except Exception as error:
            log.warning("not ready", why=str(error))
            return False


class _Registrar:
    """What generated code takes for a server: it learns the service's name from it."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def add_registered_method_handlers(self, name: str, handlers: Mapping[str, Handler]) -> None:
        self._server.add_handlers(name, handlers)

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """The same methods once more, for gRPC versions that know no registered ones."""


async def serve(
    config: ServerConfig,
    register: Register[S],
    servicer: S,
    *,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    mutual_tls: bool = True,
    on_drain: Sequence[Callable[[], Awaitable[None]]] = (),
    readiness: Readiness | None = None,
) -> None:
    """Serve one servicer until told to stop; see :class:`Server`."""
    server = Server(config, interceptors=interceptors, mutual_tls=mutual_tls)
    server.add(register, servicer)
    for callback in on_drain:
        server.on_drain(callback)
    if readiness is not None:
        server.set_readiness(readiness)
    await server.run()


def run(main: Coroutine[Any, Any, None]) -> int:
    """Run a service's main coroutine on uvloop; its exit code, 2 when the configuration is bad."""
    try:
        uvloop.run(main)
    except ConfigError as error:
        # Logging may not be configured yet.
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def _server_credentials(tls: TlsConfig, mutual: bool) -> grpc.ServerCredentials:
    files = tls.read()
    return grpc.ssl_server_credentials(
        [(files.key, files.cert)],
        root_certificates=files.ca if mutual else None,
        require_client_auth=mutual,
    )
