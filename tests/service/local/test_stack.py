"""The stack's own life: idempotent, repaired after any kill -9, never on a foreign port."""

from __future__ import annotations

import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local import procfs
from deploy.local.__main__ import main
from deploy.local.errors import StackError
from deploy.local.people import posix_ids
from deploy.local.stack import Stack
from deploy.local.wait import wait_until
from tests.fixtures.parts import temporary_directory

QUICK = ("postgres", "xrootd", "idp")
BACKENDS = (*QUICK, "seaweed")


@pytest.fixture
def directory() -> Iterator[Path]:
    with temporary_directory("stack") as directory:
        yield directory


@pytest.fixture
def backends(directory: Path) -> Stack:
    """A stack whose back ends run."""
    stack = Stack(directory)
    stack.up(BACKENDS)
    return stack


def pids(stack: Stack) -> dict[str, int | None]:
    return {name: stack.pid(name) for name in BACKENDS}


def troubles(stack: Stack) -> dict[str, str | None]:
    return {part.name: part.trouble for part in stack.status() if part.name in BACKENDS}


def test_a_second_up_changes_nothing(backends: Stack, directory: Path) -> None:
    before = pids(backends)
    Stack(directory).up(BACKENDS)
    assert pids(backends) == before
    assert None not in before.values()


def test_up_repairs_what_kill_9_left(backends: Stack, directory: Path) -> None:
    ports = (directory / "ports.json").read_text()
    for name in BACKENDS:
        backends.kill(name, signal.SIGKILL)
    assert set(troubles(backends).values()) == {"not running"}
    Stack(directory).up(BACKENDS)
    assert set(troubles(backends).values()) == {None}
    assert (directory / "ports.json").read_text() == ports


def test_up_ends_what_a_killed_up_started_and_did_not_record(
    backends: Stack, directory: Path
) -> None:
    before = pids(backends)
    for name in BACKENDS:
        (directory / "run" / f"{name}.json").unlink()
    again = Stack(directory)
    again.up(BACKENDS)
    assert set(troubles(again).values()) == {None}
    for name, old in before.items():
        assert old is not None
        assert again.pid(name) != old
        wait_until(lambda old=old: "it runs" if procfs.inspect(old) else None, name, 10.0)


def test_a_port_that_was_taken_meanwhile_is_given_up(backends: Stack, directory: Path) -> None:
    port = backends.site.ports.get("postgres")
    backends.down()
    with socket.create_server(("127.0.0.1", port)):
        again = Stack(directory)
        again.up(("postgres",))
        assert again.site.ports.get("postgres") != port
        assert again.pid("postgres") is not None


def test_restart_keeps_the_port_and_the_data(backends: Stack) -> None:
    store = backends.site.seaweed.store
    store.client.put_object(Bucket=store.bucket, Key="kept", Body=b"bytes")
    before = backends.pid("seaweed")
    backends.restart("seaweed")
    assert backends.pid("seaweed") not in (None, before)
    assert store.client.get_object(Bucket=store.bucket, Key="kept")["Body"].read() == b"bytes"


def test_homes_belong_to_the_users_and_can_be_reached(backends: Stack, directory: Path) -> None:
    for name, ids in posix_ids().items():
        home = backends.home(name).stat()
        assert (home.st_uid, home.st_gid) == (ids.uid, ids.gid)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o711
    with pytest.raises(StackError, match="no test user eve"):
        backends.home("eve")


def test_secrets_are_closed_to_other_users(backends: Stack, directory: Path) -> None:
    closed = {path for path in directory.iterdir() if not path.stat().st_mode & 0o007}
    exposed = [
        path
        for path in directory.rglob("*")
        if path.is_file() and path.stat().st_mode & 0o004 and not closed & set(path.parents)
    ]
    content = b"".join(path.read_bytes() for path in exposed)
    for name in ("s3.secret", "postgres.password"):
        assert (directory / "secrets" / name).read_bytes() not in content


def test_the_tape_driver_of_a_stack_does_not_change(directory: Path) -> None:
    Stack(directory, tape="directory").up(("idp",))
    assert "xrootd" not in Stack(directory).parts()
    with pytest.raises(StackError, match="keeps its tape files with the directory driver"):
        Stack(directory, tape="xrootd").up(("idp",))


def test_without_xrootd_it_says_what_is_missing_and_goes_on(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setenv("PATH", str(directory))
    stack = Stack(directory, say=said.append)
    assert "xrootd" not in stack.parts()
    assert "apt-get install" in " ".join(said)


def test_commands_of_the_command_line(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Stack(directory).up(("idp",))
    options = ["--dir", str(directory)]
    assert main(["status", *options]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "healthy" in next(line for line in lines if line.startswith("idp"))
    assert "not running" in next(line for line in lines if line.startswith("catalog"))
    assert main(["home", "alice", *options]) == 0
    assert capsys.readouterr().out.strip() == str(directory / "home/alice")
    assert main(["wipe", *options]) == 2
    assert main(["wipe", "--yes", *options]) == 0
    assert not directory.exists()
