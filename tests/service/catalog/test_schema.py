"""The migrations make what the tables declare, and the program runs them."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text

from deploy.local.wait import wait_until
from services.catalog.__main__ import MIGRATIONS
from services.kit import migrate
from services.kit.config import DatabaseConfig
from services.kit.db import Database
from tests.fixtures.parts import DatabaseFactory
from tests.service.catalog.harness import config_of
from tests.service.kit.mesh import Mesh


def test_the_schema_is_what_the_tables_declare(database_config: DatabaseConfig) -> None:
    migrate.check(database_config, MIGRATIONS)


def write_config(database: DatabaseConfig, directory: Path) -> Path:
    tls = Mesh(directory).tls("catalog")
    path = directory / "catalog.toml"
    path.write_text(f"""
[server]
listen = "127.0.0.1:0"
ops_listen = "127.0.0.1:0"
[server.tls]
cert = "{tls.cert}"
key = "{tls.key.path}"
ca = "{tls.ca}"
[database]
host = "{database.host}"
port = {database.port}
name = "{database.name}"
user = "{database.user}"
password = "{database.password.path}"
""")
    return path


@pytest.fixture
def empty(database_factory: DatabaseFactory, tmp_path: Path) -> DatabaseConfig:
    return config_of(database_factory(), tmp_path)


def test_the_program_migrates_serves_and_ends(empty: DatabaseConfig, tmp_path: Path) -> None:
    config = write_config(empty, tmp_path)
    program = [sys.executable, "-m", "services.catalog"]
    for _ in range(2):
        subprocess.run([*program, "migrate", "--config", config], check=True, timeout=60)
    database = Database(empty)
    with database.connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "0002"
    database.close()
    log = tmp_path / "log"
    with log.open("w") as errors:
        service = subprocess.Popen([*program, "--config", config], stderr=errors)
    try:
        wait_until(lambda: None if '"serving"' in log.read_text() else "silent", "catalog", 30)
    finally:
        service.send_signal(signal.SIGTERM)
        assert service.wait(30) == 0
    assert empty.password.read() not in log.read_text()
