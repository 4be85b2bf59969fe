"""The migrations make what the tables declare, beside a ledger that is in use."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import PendingRollbackError

from deploy.local.wait import wait_until
from services.kit import migrate
from services.kit.config import DatabaseConfig
from services.kit.db import Database
from services.monitor.__main__ import MIGRATIONS
from tests.fixtures.parts import DatabaseFactory
from tests.service.monitor.conftest import config_of

WRITE = text("LOCK TABLE txn IN ROW EXCLUSIVE MODE")
BUILDING = text("""
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE 'CREATE INDEX%'
""")
INVALID = text("SELECT count(*) FROM pg_index WHERE NOT indisvalid")


def test_the_schema_is_what_the_tables_declare(database_config: DatabaseConfig) -> None:
    migrate.check(database_config, MIGRATIONS)


@pytest.fixture
def old(database_factory: DatabaseFactory, tmp_path: Path) -> DatabaseConfig:
    """A ledger from before the revision that builds indexes."""
    config = config_of(database_factory(), tmp_path)
    migrate.upgrade(config, MIGRATIONS, "0002")
    return config


def test_indexes_are_built_beside_writers_and_again_after_a_crash(old: DatabaseConfig) -> None:
    database = Database(old)

    def builder() -> int | None:
        with database.connect() as look:
            return look.scalar(BUILDING)

    with ThreadPoolExecutor(1) as other, database.connect() as writer:
        writer.execute(WRITE)
        upgrade = other.submit(migrate.upgrade, old, MIGRATIONS)
        wait_until(lambda: None if builder() or upgrade.done() else "none", "an index", 20)
        with database.connect() as another:
            another.execute(text("SET lock_timeout = '5s'"))
            another.execute(WRITE)
            another.rollback()
            another.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": builder()})
        with pytest.raises(PendingRollbackError):
            upgrade.result(20)
        assert writer.scalar(INVALID) == 1
        writer.rollback()
    database.close()
    migrate.upgrade(old, MIGRATIONS)
    migrate.check(old, MIGRATIONS)
    database = Database(old)
    with database.connect() as look:
        assert look.scalar(INVALID) == 0
    database.close()
