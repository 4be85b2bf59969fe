"""The embedded PostgreSQL server: rights, isolation, crash recovery."""

from __future__ import annotations

import os
import signal
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from deploy.local import procfs
from deploy.local.ports import Ports
from deploy.local.postgres import Database, Postgres
from deploy.local.process import Supervisor
from tests.fixtures.parts import DatabaseFactory


def make_table(database: Database) -> None:
    """Prepare a database with one row."""
    with closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(
            "create extension pg_trgm; create table fact(n int); insert into fact values (1)"
        )


def count(database: Database) -> int:
    with closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("select count(*) from fact")
        return int(cursor.fetchone()[0])


def test_each_database_is_a_new_copy_of_the_prepared_one(database_factory: DatabaseFactory) -> None:
    first, second = database_factory(make_table), database_factory(make_table)
    with closing(first.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("insert into fact values (2)")
    assert (count(first), count(second)) == (2, 1)


def test_a_wrong_password_is_refused(database_factory: DatabaseFactory) -> None:
    database = database_factory()
    wrong = Database(database.host, database.port, database.name, database.user, "guess")
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        wrong.connect()


def test_a_role_cannot_enter_the_database_of_another(postgres: Postgres) -> None:
    postgres.ensure_database("one", "secret-1")
    two = postgres.ensure_database("two", "secret-2")
    with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
        Database(two.host, two.port, "one", "two", "secret-2").connect()


def test_the_server_does_not_run_as_root(postgres: Postgres) -> None:
    with postgres.administration() as cursor:
        cursor.execute("select pg_backend_pid()")
        owner = os.stat(f"/proc/{cursor.fetchone()[0]}").st_uid
    assert owner != 0


def test_a_start_waits_for_back_ends_that_outlived_their_server(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path)
    server = Postgres(tmp_path / "postgres", Ports(tmp_path / "ports.json").get("postgres"))
    supervisor.start(server.prepare())
    try:
        with closing(server.superuser().connect()) as connection, connection.cursor() as cursor:
            cursor.execute("select pg_backend_pid()")
            back_end = int(cursor.fetchone()[0])
            # Stopped, it cannot notice that its server is gone.
            os.kill(back_end, signal.SIGSTOP)
            supervisor.kill("postgres", signal.SIGKILL)
            supervisor.wait_gone("postgres")
            assert procfs.inspect(back_end) is not None
            supervisor.start(server.prepare())
            assert procfs.inspect(back_end) is None
            assert server.ready() is None
    finally:
        supervisor.stop("postgres")


def test_acknowledged_rows_survive_kill_9_below_a_closed_directory(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    supervisor = Supervisor(tmp_path)
    server = Postgres(tmp_path / "postgres", Ports(tmp_path / "ports.json").get("postgres"))
    try:
        supervisor.start(server.prepare())
        make_table(database := server.ensure_database("catalog", "secret"))
        supervisor.kill("postgres", signal.SIGKILL)
        supervisor.wait_gone("postgres")
        supervisor.start(server.prepare())
        assert count(database) == 1
        assert tmp_path.stat().st_mode & 0o777 == 0o700
    finally:
        supervisor.stop("postgres")
