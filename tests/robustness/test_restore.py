"""The databases are lost and come back from their backups: the drill of docs/operations.md."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.local.postgres import HOST, SUPERUSER, binaries
from deploy.local.wait import wait_until
from nearline.type.v1.transaction_pb2 import Transaction
from tests.fixtures.stack import QUICK, running_stack
from tests.fixtures.store import Store, people_of, same

DATABASES = ("catalog", "monitor")
WORKERS = ("gateway", "transfer", "tape", "catalog", "monitor")


@pytest.fixture(scope="module")
def drilled() -> Iterator[Store]:
    """A store whose database may be broken."""
    with running_stack(overrides=QUICK) as stack, people_of(stack) as store:
        yield store


class Backups:
    """What an administrator of PostgreSQL does, with the server's own programs."""

    def __init__(self, store: Store, directory: Path) -> None:
        self.stack = store.stack
        self.server = store.stack.site.postgres
        self.data = self.server.directory / "data"
        self.owner = self.data.stat()
        # Within reach of the server, which is another user when root runs the stack.
        self.archive = self.server.directory / f"archive-{directory.name}"
        self.archive.mkdir()
        os.chown(self.archive, self.owner.st_uid, self.owner.st_gid)
        self.directory = directory

    def archive_wal(self) -> None:
        """Have every finished piece of the write-ahead log copied away."""
        self._tell(
            "alter system set archive_mode = on",
            f"alter system set archive_command = 'cp %p {self.archive}/%f'",
        )
        self.stack.restart("postgres")
        self.stack.wait_healthy()

    def base_backup(self) -> None:
        self._run("pg_basebackup", "--pgdata", self.directory / "base", "--checkpoint=fast")

    def finish_wal(self) -> None:
        """Wait until all that was acknowledged by now is in the archive."""
        with self.server.administration() as cursor:
            cursor.execute("select pg_walfile_name(pg_current_wal_lsn())")
            (last,) = cursor.fetchone()
            cursor.execute("select pg_switch_wal()")

        def probe() -> str | None:
            return None if (self.archive / last).exists() else f"{last} is not archived yet"

        wait_until(probe, "the archive of the write-ahead log", 60.0)

    def lose_and_recover(self) -> None:
        """The server's disk is lost; another gets the base backup and replays the archive."""
        self.stack.kill("postgres")
        shutil.rmtree(self.data)
        shutil.move(self.directory / "base", self.data)
        with (self.data / "postgresql.auto.conf").open("a") as settings:
            settings.write(f"restore_command = 'cp {self.archive}/%f %p'\n")
        (self.data / "recovery.signal").touch()
        for parent, directories, files in os.walk(self.data):
            for path in (parent, *(f"{parent}/{name}" for name in [*directories, *files])):
                os.chown(path, self.owner.st_uid, self.owner.st_gid)

    def dump(self) -> None:
        for name in DATABASES:
            self._run("pg_dump", "--format=custom", "--file", self._file(name), name)

    def restore_dumps(self) -> None:
        for name in DATABASES:
            self._run("dropdb", "--force", name)
            self._run("createdb", "--owner", name, name)
            self._run("pg_restore", "--exit-on-error", "--dbname", name, self._file(name))
            config = self.stack.site.config_path(name)
            program = [sys.executable, "-m", f"services.{name}", "restored", "--config", config]
            subprocess.run(program, check=True, timeout=60)

    def _file(self, name: str) -> Path:
        return self.directory / f"{name}.dump"

    def _tell(self, *statements: str) -> None:
        with self.server.administration() as cursor:
            for statement in statements:
                cursor.execute(statement)

    def _run(self, program: str, *words: str | Path) -> None:
        where = {"PGHOST": HOST, "PGPORT": str(self.server.port), "PGUSER": SUPERUSER}
        environment = {**os.environ, **where, "PGPASSWORD": self.server.superuser().password}
        command = [binaries() / program, *words]
        subprocess.run(command, env=environment, check=True, timeout=120)


@contextmanager
def services_stopped(store: Store) -> Iterator[None]:
    for name in WORKERS:
        store.stack.stop(name)
    yield
    store.stack.up()
    store.stack.wait_healthy()


def put_files(store: Store, name: str, count: int = 40) -> tuple[bytes, Transaction]:
    """Files of alice's that differ in content and, by name, from other puts'."""
    root = store.alice.directory() + b"/" + name.encode()
    for number in range(count):
        content = f"{name} {number}\n".encode() * (1 + 500 * (number % 7))
        store.alice.file(root + b"/%d" % number, content)
    return root, store.alice.put(root)


def comes_back(store: Store, root: bytes, put: Transaction) -> None:
    target = store.alice.directory()
    store.alice.get(root, target=target, holding_id=put.holding_id)
    same(root, target + root)


def test_a_lost_database_comes_back_with_all_that_was_acknowledged(
    drilled: Store, tmp_path: Path
) -> None:
    backups = Backups(drilled, tmp_path)
    backups.archive_wal()
    before = put_files(drilled, "before the base backup")
    backups.base_backup()
    after = put_files(drilled, "after the base backup")
    drilled.to_tape(after[1].holding_id)
    backups.finish_wal()
    backups.lose_and_recover()
    drilled.stack.up()
    drilled.stack.wait_healthy()
    for root, put in (before, after):
        assert drilled.alice.client.transaction(put.id).state == Transaction.COMPLETE
        comes_back(drilled, root, put)


def test_a_restored_dump_serves_what_is_older_and_mixes_up_nothing_newer(
    drilled: Store, tmp_path: Path
) -> None:
    older = put_files(drilled, "older than the dump")
    drilled.to_tape(older[1].holding_id)
    backups = Backups(drilled, tmp_path)
    backups.dump()
    newer_root, newer = put_files(drilled, "newer than the dump")
    drilled.wait_safe(newer.holding_id)
    with services_stopped(drilled):
        backups.restore_dumps()
    comes_back(drilled, *older)
    assert not drilled.alice.files(newer_root)
    # The user asks again. Objects and tape files of the lost time are in nobody's way.
    numbers = {file.id for file in drilled.alice.files(holding_id=older[1].holding_id)}
    again = drilled.alice.put(newer_root)
    assert again.files_failed == 0
    assert min(file.id for file in drilled.alice.files(holding_id=again.holding_id)) > max(
        10**9, *numbers
    )
    drilled.to_tape(again.holding_id)
    comes_back(drilled, newer_root, again)
