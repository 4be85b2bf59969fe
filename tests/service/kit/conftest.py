"""A database of its own for each test, and the configuration of its only user."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.kit.config import DatabaseConfig, SecretFile
from services.kit.db import Database
from tests.fixtures.parts import DatabaseFactory


@pytest.fixture
def database_config(database_factory: DatabaseFactory, tmp_path: Path) -> DatabaseConfig:
    made = database_factory()
    password = tmp_path / "password"
    password.write_text(made.password + "\n")
    password.chmod(0o600)
    return DatabaseConfig(
        host=made.host,
        port=made.port,
        name=made.name,
        user=made.user,
        password=SecretFile(password),
        pool_size=4,
        statement_timeout_seconds=2,
    )


@pytest.fixture
def database(database_config: DatabaseConfig) -> Iterator[Database]:
    made = Database(database_config)
    yield made
    made.close()
