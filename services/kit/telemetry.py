"""What a service says about itself: structured logs, metrics, and one access line an RPC.

Metadata is never logged: it holds tokens and identities.
"""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import grpc
import structlog
from prometheus_client import Counter, Gauge, Histogram, start_http_server
from structlog.typing import EventDict, Processor, WrappedLogger

from services.kit import identity
from services.kit.config import ConfigError, LogConfig, parse_address
from services.kit.errors import NearlineError

log = structlog.get_logger(__name__)

_LABELS = ("service", "method")
_STARTED = Counter("rpc_started", "RPCs begun.", _LABELS)
_HANDLED = Counter("rpc_handled", "RPCs ended, by status code.", (*_LABELS, "code"))
_ACTIVE = Gauge("rpc_active", "RPCs running now.", _LABELS)
_USABLE = Gauge(
    "dependency_usable", "1 while work that needs it is taken, 0 while it is left alone.", ("name",)
)
_SECONDS = Histogram(
    "rpc_seconds",
    "Time from the start to the end of an RPC.",
    _LABELS,
    buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30, 120, 600),
)

# Codes that mean the service, not the caller, has a problem.
_OURS = frozenset({
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
})  # fmt: skip


def configure(config: LogConfig, service: str) -> None:
    """Log to standard error from now on, every line with the name of ``service``.

    Lines of libraries that use :mod:`logging` come out in the same form, from warnings upwards.
    """
    level = logging.getLevelNamesMapping()[config.level.upper()]
    render = _renderers(config)
    common: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _who,
        _Service(service),
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*common, *render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    _configure_logging(common, render)


def set_usable(dependency: str, usable: bool) -> None:
    """Show whether work that needs ``dependency`` is taken now."""
    _USABLE.labels(dependency).set(usable)


@contextmanager
def transaction(transaction_id: str) -> Iterator[None]:
    """Put ``transaction_id`` into every log line inside the block."""
    with structlog.contextvars.bound_contextvars(transaction_id=transaction_id):
        yield


def serve_metrics(listen: str) -> int:
    """Answer Prometheus over HTTP at ``listen`` (``host:port``) from a thread; the port taken."""
    host, port = parse_address(listen)
    try:
        server, _ = start_http_server(port, host)
    except OSError as error:
        raise ConfigError(
            f"cannot serve metrics at {listen}: {error.strerror}; choose another metrics_listen"
        ) from error
    return int(server.server_port)


class _Meters(NamedTuple):
    """The meters of one method; looking them up by label costs more than counting."""

    started: Counter
    active: Gauge
    seconds: Histogram


@cache
def _meters(service: str, method: str) -> _Meters:
    labels = (service, method)
    return _Meters(_STARTED.labels(*labels), _ACTIVE.labels(*labels), _SECONDS.labels(*labels))


@cache
def _handled(service: str, method: str, code: str) -> Counter:
    return _HANDLED.labels(service, method, code)


class RpcRecord:
    """Counts and times one RPC and writes its access line at the end."""

    __slots__ = ("_meters", "_method", "_names", "_quiet", "_start")

    def __init__(self, method: str, *, quiet: bool = False) -> None:
        """Begin ``method`` (``/package.Service/Method``); ``quiet`` logs success as debug."""
        self._method = method
        service, _, name = method[1:].partition("/")
        self._names = (service, name)
        self._quiet = quiet
        self._start = time.perf_counter()
        self._meters = _meters(service, name)
        self._meters.started.inc()
        self._meters.active.inc()

    def end(self, code: grpc.StatusCode, error: NearlineError | None = None) -> None:
        """The RPC ended with ``code``, because of ``error`` when there was one."""
        seconds = time.perf_counter() - self._start
        self._meters.active.dec()
        self._meters.seconds.observe(seconds)
        _handled(*self._names, code.name).inc()
        fields: dict[str, Any] = {"reason": error.reason, "why": error.message} if error else {}
        log.log(
            self._level(code),
            "rpc",
            method=self._method,
            code=code.name,
            ms=round(seconds * 1e3, 2),
            **fields,
        )

    def _level(self, code: grpc.StatusCode) -> int:
        if code in _OURS:
            return logging.WARNING
        return logging.DEBUG if self._quiet else logging.INFO


class _Service:
    """Adds the service's name to a line."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        event["service"] = self._name
        return event


def _who(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Adds request id, peer and user of the running request to a line."""
    caller = identity.current_identity()
    found = {
        "request_id": identity.current_request_id(),
        "peer": identity.current_peer(),
        "user": caller.user if caller else None,
    }
    for key, value in found.items():
        if value:
            event.setdefault(key, value)
    return event


def _renderers(config: LogConfig) -> list[Processor]:
    if config.format == "console":
        return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]


def _configure_logging(common: list[Processor], render: list[Processor]) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*common, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    logging.root.handlers = [handler]
    logging.root.setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.INFO)
