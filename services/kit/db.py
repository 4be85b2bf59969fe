"""A service's PostgreSQL database behind asyncio: transactions in bounded threads, typed errors.

Functions that get a connection must be safe to run again: a transaction that lost a conflict, or
its connection before the commit, is repeated from its start.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar

import psycopg2
import structlog
from sqlalchemy import Connection, CursorResult, Engine, Row, create_engine, event, exc
from sqlalchemy.engine import URL
from sqlalchemy.sql import Executable

from services.kit import crash
from services.kit.bulk import copy_into
from services.kit.config import DatabaseConfig
from services.kit.errors import Aborted, DeadlineExceeded, NearlineError, Unavailable
from services.kit.threads import Threads

__all__ = ["Database", "copy_into"]

log = structlog.get_logger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
Work: TypeAlias = Callable[Concatenate[Connection, P], R]
_Cursor: TypeAlias = tuple[Connection, CursorResult[Any]]

_ATTEMPTS = 6
_FIRST_PAUSE = 0.02
_CONNECT_SECONDS = 5
_POOL_SECONDS = 10.0
_IDLE_TRANSACTION_SECONDS = 60
_RETRY_AFTER = 1.0

# SQLSTATEs of transactions that another one got in the way of: serialization failure, deadlock,
# lock not available.
_CONFLICTS = frozenset({"40001", "40P01", "55P03"})
_CANCELED = "57014"
# What a former primary answers; new connections find the new one.
_READ_ONLY = "25006"
# Classes of states that pass by themselves: connection, resources, operator, system.
_PASSING = frozenset({"08", "53", "57", "58"})
# What psycopg2 or SQLAlchemy raise when PostgreSQL or the way to it is the problem.
_DRIVER = (exc.DBAPIError, exc.TimeoutError, psycopg2.Error)


class Database:
    """Connections to one database; the first is made by the first use.

    Every method raises, beside what the function itself does: Unavailable while PostgreSQL cannot
    be reached, DeadlineExceeded for a statement over the time limit, Aborted when conflicts did
    not end. A restarted PostgreSQL is found again by itself.
    """

    def __init__(self, config: DatabaseConfig) -> None:
        self._threads = Threads("database", config.pool_size)
        self.engine = make_engine(config)
        """For migrations and tests; services use the methods."""
        # An engine of its own: switching the mode of a shared connection back costs a round trip,
        # and where PostgreSQL dies in it the answer is lost and the pool one connection short.
        self._autocommit = make_engine(config, isolation_level="AUTOCOMMIT")

    async def write(self, fn: Work[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """``fn(connection, …)`` in one transaction, committed before this returns."""
        return await self._threads.run(lambda: self.write_sync(fn, *args, **kwargs))

    async def read(self, fn: Work[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """``fn(connection, …)`` without a transaction: each statement sees what is committed."""
        return await self._threads.run(lambda: self.read_sync(fn, *args, **kwargs))

    def write_sync(self, fn: Work[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """As :meth:`write`, in the calling thread."""
        answer = self._repeat(self.engine, fn, *args, **kwargs)
        crash.point("database.after_commit")
        return answer

    def read_sync(self, fn: Work[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """As :meth:`read`, in the calling thread."""
        return self._repeat(self._autocommit, fn, *args, **kwargs)

    async def stream(
        self,
        statement: Executable,
        parameters: Mapping[str, Any] | None = None,
        *,
        batch: int = 1000,
    ) -> AsyncGenerator[Sequence[Row[Any]], None]:
        """The rows of ``statement`` in batches, from a cursor of the server's.

        Holds a connection and a snapshot while it runs: PostgreSQL ends it when no batch is asked
        for during a minute. For what clients page through, keyset queries are better.
        """
        run = self._threads.run
        connection, result = await run(
            _until_done, lambda: self._open(statement, parameters, batch)
        )
        try:
            while rows := await _unbroken(run(self._fetch, connection, result, batch)):
                yield rows
        finally:
            await _unbroken(run(connection.close))

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        """A connection whose transactions are the caller's own business; nothing is repeated."""
        with self._connect(self.engine) as connection, self._translated(connection):
            yield connection

    def close(self) -> None:
        """Close idle connections and take no more work."""
        self._threads.close()
        self._dispose()

    def _dispose(self) -> None:
        self.engine.dispose()
        self._autocommit.dispose()

    def _repeat(self, engine: Engine, fn: Work[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return _until_done(lambda: self._attempt(engine, lambda c: fn(c, *args, **kwargs)))

    def _attempt(self, engine: Engine, fn: Callable[[Connection], R]) -> R:
        with self._connect(engine) as connection:
            # Begun here because work on the driver's own cursor would not begin one.
            with self._translated(connection):
                transaction = connection.begin()
            with self._translated(connection, repeat_conflict=True, repeat_lost=True):
                answer = fn(connection)
            # A connection lost here leaves open whether the commit happened: the caller decides.
            with self._translated(connection, repeat_conflict=True):
                transaction.commit()
            return answer

    def _connect(self, engine: Engine) -> Connection:
        with self._translated(None):
            return engine.connect()

    def _open(
        self, statement: Executable, parameters: Mapping[str, Any] | None, batch: int
    ) -> _Cursor:
        connection = self._connect(self.engine)
        try:
            connection.execution_options(stream_results=True, max_row_buffer=batch)
            with self._translated(connection, repeat_lost=True):
                return connection, connection.execute(statement, parameters)
        except BaseException:
            connection.close()
            raise

    def _fetch(
        self, connection: Connection, result: CursorResult[Any], batch: int
    ) -> Sequence[Row[Any]]:
        with self._translated(connection):
            return result.fetchmany(batch)

    @contextmanager
    def _translated(
        self,
        connection: Connection | None,
        *,
        repeat_conflict: bool = False,
        repeat_lost: bool = False,
    ) -> Iterator[None]:
        """Raise the driver's errors inside the block as ours, or as a wish to begin again."""
        try:
            yield
        except _DRIVER as error:
            lost = connection is not None and _is_lost(connection, error)
            failure = _failure(error, lost)
            if failure is None:
                raise
            log.warning("database", reason=failure.reason, why=_first_line(error))
            if lost and connection is not None:
                connection.invalidate()
                # The other connections are as old as this one: do not fail once for each.
                self._dispose()
            if repeat_lost if lost else repeat_conflict and isinstance(failure, Aborted):
                raise _AgainError(failure) from error
            raise failure from error


class _AgainError(Exception):
    """The attempt changed nothing and may be made again."""

    def __init__(self, failure: NearlineError) -> None:
        super().__init__(failure.message)
        self.failure = failure


def make_engine(config: DatabaseConfig, **options: Any) -> Engine:
    """An engine that connects on use; its time limits hold for every statement."""
    url = URL.create(
        "postgresql+psycopg2", config.user, None, config.host, config.port, config.name
    )
    engine = create_engine(
        url,
        pool_size=config.pool_size,
        # For streams, which keep a connection but no thread.
        max_overflow=config.pool_size,
        pool_timeout=_POOL_SECONDS,
        pool_use_lifo=True,
        hide_parameters=True,
        connect_args=_connect_args(config),
        **options,
    )

    @event.listens_for(engine, "do_connect")
    def add_password(dialect: Any, record: Any, arguments: Any, parameters: dict[str, Any]) -> None:
        # Read for each connection, so that a changed password needs no restart.
        parameters["password"] = config.password.read()

    return engine


def _connect_args(config: DatabaseConfig) -> dict[str, Any]:
    settings = {
        "synchronous_commit": config.synchronous_commit,
        "statement_timeout": round(config.statement_timeout_seconds * 1000),
        "idle_in_transaction_session_timeout": _IDLE_TRANSACTION_SECONDS * 1000,
    }
    return {
        "connect_timeout": _CONNECT_SECONDS,
        "client_encoding": "utf8",
        "application_name": f"nearline-{config.name}",
        "options": " ".join(f"-c {name}={value}" for name, value in settings.items()),
        # A host that vanished is noticed within half a minute.
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 25_000,
    }


def _until_done(attempt: Callable[[], R]) -> R:
    """Repeat ``attempt`` while it wants to, with growing pauses, a few times."""
    for number in range(1, _ATTEMPTS):
        try:
            return attempt()
        except _AgainError:
            time.sleep(random.uniform(0, _FIRST_PAUSE * 2**number))
    try:
        return attempt()
    except _AgainError as again:
        raise again.failure from again


async def _unbroken(work: Any) -> Any:
    """Await ``work``; when cancelled, only once its thread has let go of the connection."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


def _is_lost(connection: Connection, error: Exception) -> bool:
    if connection.invalidated or _state(error) == _READ_ONLY:
        return True
    driver: Any = connection.connection.driver_connection
    return bool(driver.closed)


def _failure(error: Exception, lost: bool) -> NearlineError | None:
    """``error`` as callers may see it; None when it is not PostgreSQL's but the statement's."""
    state = _state(error)
    if isinstance(error, exc.TimeoutError):
        return Unavailable(
            "DATABASE_BUSY", "all database connections are in use", retry_after=_RETRY_AFTER
        )
    if state == _CANCELED:
        return DeadlineExceeded(
            "STATEMENT_TIMEOUT", "the database needed too long; ask for less at once"
        )
    if state in _CONFLICTS:
        return Aborted(
            "TRANSACTION_CONFLICT",
            "concurrent changes kept getting in the way; try again",
            retry_after=_RETRY_AFTER,
        )
    if lost or state[:2] in _PASSING or (not state and _is_operational(error)):
        return Unavailable(
            "DATABASE_UNAVAILABLE",
            "the database cannot be reached for now; try again",
            retry_after=_RETRY_AFTER,
        )
    return None


def _driver_error(error: Exception) -> BaseException | None:
    return error.orig if isinstance(error, exc.DBAPIError) else error


def _state(error: Exception) -> str:
    return getattr(_driver_error(error), "pgcode", None) or ""


def _is_operational(error: Exception) -> bool:
    return isinstance(_driver_error(error), psycopg2.OperationalError | psycopg2.InterfaceError)


def _first_line(error: Exception) -> str:
    return str(_driver_error(error)).strip().partition("\n")[0]
