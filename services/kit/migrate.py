"""Schema migrations: an alembic tree per service, run by one replica at a time.

A service keeps its revisions in ``migrations/versions/`` and this as ``migrations/env.py``::

    from services.catalog.tables import METADATA
    from services.kit.migrate import run_env

    run_env(METADATA)
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

import structlog
from alembic import command, context
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, MetaData, text

from services.kit.config import DatabaseConfig
from services.kit.db import Database

log = structlog.get_logger(__name__)

# Any number will do, as long as every replica asks for the same one; locks are per database.
_LOCK = 0x6E65_6172_6C69_6E65
_LOCK_PAUSE_SECONDS = 0.5
_CONNECTION = "connection"
# More than any store gives out between two backups, and a nine-billionth of what a bigint holds.
_SKIPPED = 10**9
_SEQUENCES = """
SELECT format('%I.%I', schemaname, sequencename) FROM pg_sequences
WHERE schemaname = current_schema() AND data_type = 'bigint'::regtype
"""
_SKIP = "SELECT setval(CAST(:name AS regclass), nextval(CAST(:name AS regclass)) + :numbers)"


def upgrade(config: DatabaseConfig, script_location: Path | str, revision: str = "head") -> None:
    """Bring the database to ``revision``; at once when it is there already.

    Replicas that start together wait for the one that migrates. A revision is one transaction: a
    failure leaves the last whole one. Raises Unavailable when the database cannot be reached.
    """
    with _alembic(config, script_location) as settings:
        command.upgrade(settings, revision)
    log.info("schema", database=config.name, revision=revision)


def check(config: DatabaseConfig, script_location: Path | str) -> None:
    """Raise alembic.util.CommandError unless the migrated database is as the tables declare."""
    with _alembic(config, script_location) as settings:
        command.check(settings)


def skip_numbers(config: DatabaseConfig) -> None:
    """After a restore: never give out a number again that was given out after the backup.

    Objects, tape files and workers' tasks of the lost time bear such numbers; a second use would
    mix them up with new ones. Raises Unavailable when the database cannot be reached.
    """
    database = Database(config)
    try:
        skipped = database.write_sync(_skip_numbers)
    finally:
        database.close()
    log.info("numbers_skipped", database=config.name, sequences=skipped)


def run_env(metadata: MetaData) -> None:
    """What a tree's ``env.py`` does: run revisions over the connection it was given."""
    connection = context.config.attributes.get(_CONNECTION)
    if connection is None:
        raise CommandError("run migrations by the service: python -m services.NAME migrate")
    context.configure(
        connection=connection,
        target_metadata=metadata,
        # So that a revision may use autocommit_block(), which indexing large tables needs.
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


@contextmanager
def _alembic(config: DatabaseConfig, script_location: Path | str) -> Iterator[Config]:
    """Settings with a connection that alone may change the schema."""
    settings = Config(stdout=StringIO())
    # "%" would be read as an interpolation.
    settings.set_main_option("script_location", str(script_location).replace("%", "%%"))
    database = Database(config)
    try:
        with database.connect() as connection:
            _lock(connection)
            settings.attributes[_CONNECTION] = connection
            yield settings
    finally:
        database.close()


def _skip_numbers(connection: Connection) -> int:
    names = connection.scalars(text(_SEQUENCES)).all()
    for name in names:
        connection.execute(text(_SKIP), {"name": name, "numbers": _SKIPPED})
    return len(names)


def _lock(connection: Connection) -> None:
    """Get the lock, which the connection's end gives up; migrations may take long.

    By asking again and again: a statement that waited for it would have a snapshot, whose end
    CREATE INDEX CONCURRENTLY of the replica that migrates waits for in turn.
    """
    connection.execute(text("set statement_timeout = 0"))
    connection.execute(text("set idle_in_transaction_session_timeout = 0"))
    connection.commit()
    while not connection.scalar(text("select pg_try_advisory_lock(:key)"), {"key": _LOCK}):
        connection.commit()
        time.sleep(_LOCK_PAUSE_SECONDS)
    connection.commit()
