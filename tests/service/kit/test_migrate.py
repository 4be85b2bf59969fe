"""Migrations of a tree made for the test: applied once, checked, and safe to start together."""

import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.util import CommandError
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from services.kit import migrate
from services.kit.config import DatabaseConfig
from services.kit.db import Database

ENV = """
    from sqlalchemy import BigInteger, Column, MetaData, Table
    from services.kit.migrate import run_env

    METADATA = MetaData()
    Table("thing", METADATA, Column("id", BigInteger, primary_key=True))
    run_env(METADATA)
"""
FIRST = """
    import sqlalchemy as sa
    from alembic import op

    revision, down_revision = "0001", None

    def upgrade() -> None:
        op.execute("select pg_sleep(0.2)")
        op.create_table("thing", sa.Column("id", sa.BigInteger, primary_key=True))
"""
SECOND = """
    from alembic import op

    revision, down_revision = "0002", "0001"

    def upgrade() -> None:
        {body}
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    # A "%" in the path must not be taken for an interpolation.
    root = tmp_path / "100%" / "migrations"
    (root / "versions").mkdir(parents=True)
    (root / "env.py").write_text(textwrap.dedent(ENV))
    add(root, "0001", FIRST)
    return root


def add(root: Path, name: str, source: str) -> None:
    (root / "versions" / f"{name}.py").write_text(textwrap.dedent(source))


def version(database: Database) -> str:
    with database.engine.connect() as connection:
        return str(connection.execute(text("select version_num from alembic_version")).scalar())


def test_many_replicas_migrate_once(
    tree: Path, database_config: DatabaseConfig, database: Database
) -> None:
    with ThreadPoolExecutor(4) as replicas:
        # Alembic keeps the running environment in a module, so each replica is a process.
        list(replicas.map(lambda _: upgrade_in_process(tree, database_config), range(4)))
    assert version(database) == "0001"
    migrate.upgrade(database_config, tree)
    migrate.check(database_config, tree)


def test_replicas_that_wait_do_not_hold_up_an_index(
    tree: Path, database_config: DatabaseConfig, database: Database
) -> None:
    body = """
        op.execute("select pg_sleep(2)")  # Meanwhile the others come and wait.
        with op.get_context().autocommit_block():
            op.execute("create index concurrently another on thing (id)")
    """
    add(tree, "0002", SECOND.format(body=body.strip()))
    with ThreadPoolExecutor(3) as replicas:
        list(replicas.map(lambda _: upgrade_in_process(tree, database_config), range(3)))
    assert version(database) == "0002"


def upgrade_in_process(tree: Path, config: DatabaseConfig) -> None:
    program = f"""
        from services.kit import migrate
        from services.kit.config import DatabaseConfig, SecretFile
        migrate.upgrade(
            DatabaseConfig(host={config.host!r}, port={config.port}, name={config.name!r},
                user={config.user!r}, password=SecretFile({str(config.password.path)!r})),
            {str(tree)!r},
        )
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=60)


def test_a_failing_revision_leaves_the_last_whole_one(
    tree: Path, database_config: DatabaseConfig, database: Database
) -> None:
    body = 'op.execute("create table half (n int)"); op.execute("create nonsense")'
    add(tree, "0002", SECOND.format(body=body))
    with pytest.raises(ProgrammingError):
        migrate.upgrade(database_config, tree)
    assert version(database) == "0001"
    with database.engine.connect() as connection:
        assert connection.execute(text("select to_regclass('half')")).scalar() is None


def test_numbers_of_a_lost_time_are_never_given_out_again(
    database_config: DatabaseConfig, database: Database
) -> None:
    with database.engine.begin() as connection:
        connection.execute(text('create sequence "Odd one"'))
        connection.execute(text("create table made (id bigint generated always as identity)"))
        connection.execute(text("insert into made default values"))
    migrate.skip_numbers(database_config)
    with database.engine.begin() as connection:
        connection.execute(text("insert into made default values"))
        assert connection.scalars(text("select id from made")).all() == [1, 10**9 + 3]
        assert connection.scalar(text("""select nextval('"Odd one"')""")) == 10**9 + 2


def test_an_index_can_be_built_beside_running_services(
    tree: Path, database_config: DatabaseConfig, database: Database
) -> None:
    body = """
        with op.get_context().autocommit_block():
            op.execute("create index concurrently another on thing (id)")
    """
    add(tree, "0002", SECOND.format(body=body.strip()))
    migrate.upgrade(database_config, tree)
    assert version(database) == "0002"


def test_a_difference_between_tables_and_revisions_is_found(
    tree: Path, database_config: DatabaseConfig
) -> None:
    add(tree, "0002", SECOND.format(body='op.execute("create table surplus (n int)")'))
    migrate.upgrade(database_config, tree)
    with pytest.raises(CommandError, match="surplus"):
        migrate.check(database_config, tree)


def test_a_database_that_is_not_migrated_fails_the_check(
    tree: Path, database_config: DatabaseConfig
) -> None:
    with pytest.raises(CommandError, match="not up to date"):
        migrate.check(database_config, tree)
