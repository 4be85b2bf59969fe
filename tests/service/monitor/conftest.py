"""A database with the ledger's tables for each test."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from deploy.local.postgres import Database
from services.kit import migrate
from services.kit.config import DatabaseConfig, SecretFile
from services.monitor.__main__ import MIGRATIONS
from tests.fixtures.parts import DatabaseFactory


def config_of(database: Database, directory: Path) -> DatabaseConfig:
    password = directory / "password"
    password.write_text(database.password)
    password.chmod(0o600)
    return DatabaseConfig(
        host=database.host,
        port=database.port,
        name=database.name,
        user=database.user,
        password=SecretFile(password),
    )


def migrated(database: Database) -> None:
    with TemporaryDirectory() as directory:
        migrate.upgrade(config_of(database, Path(directory)), MIGRATIONS)


@pytest.fixture
def database_config(database_factory: DatabaseFactory, tmp_path: Path) -> DatabaseConfig:
    return config_of(database_factory(migrated), tmp_path)
