"""Tidying up removes what a dead task's workers left, nothing else, with the user's rights."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nearline.type.v1 import storage_pb2, task_pb2
from nearline_client import names
from services.kit.errors import Unavailable
from services.kit.jobs import Done
from services.transfer import restore
from services.transfer.credentials import Credentials
from services.transfer.directories import finish_directories
from services.transfer.tidy import tidy
from services.transfer.userfs import UserFs

ROOT = os.geteuid() == 0
USER = Credentials(20001, 20001, (20001,)) if ROOT else Credentials(os.geteuid(), os.getgid())
DEAD, OTHER = 0x1A, 0x1AB
LEFT, ALIVE = b".nl-1a-000000000001", b".nl-1ab-000000000002"
FILES = task_pb2.FilesTask(files=[storage_pb2.IdRange(first=1, count=3)]).SerializeToString()


@pytest.fixture
def target() -> Iterator[bytes]:
    with tempfile.TemporaryDirectory(prefix="nearline-tidy-") as top:
        Path(top).chmod(0o711)
        yield folder(os.fsencode(top) + b"/home")


def folder(path: bytes, owner: int = USER.uid, *held: bytes) -> bytes:
    os.makedirs(path)
    os.chown(path, owner, -1)
    for name in held:
        Path(os.fsdecode(path + b"/" + name)).write_bytes(b"half")
    return path


def run(
    handler: Callable[[Any, Any, Any], Any], target: bytes, job_task: int, payload: bytes
) -> Done:
    """One attempt, the second of its task, at work on three files in three directories."""
    files = [storage_pb2.StoredFile(id=n, path=f"/{n}/f") for n in (1, 2, 3)]
    users = UserFs([target])
    context = SimpleNamespace(
        catalog=SimpleNamespace(files=lambda ranges: files if ranges else []),
        serving=lambda job, target, task=0: users.serving(USER, target, task or job.task_id),
    )
    options = task_pb2.GetOptions(target=names.encode(target)).SerializeToString()
    job = SimpleNamespace(
        task_id=job_task, attempt=2, payload=payload, transaction=SimpleNamespace(options=options)
    )
    done: Done = handler(context, job, SimpleNamespace(files_at_stake=0, check=lambda: None))
    return done


def tidied(target: bytes) -> Done:
    payload = task_pb2.TidyTask(task_id=DEAD, payload=FILES).SerializeToString()
    return run(tidy, target, OTHER, payload)


def test_only_names_of_the_dead_task_go_and_only_beside_its_files(target: bytes) -> None:
    first = folder(target + b"/1", USER.uid, LEFT, ALIVE, b"f", b".nl-")
    elsewhere = folder(target + b"/4", USER.uid, LEFT)
    third = folder(target + b"/3", USER.uid, LEFT)
    assert tidied(target) == Done(), "the second directory is not there"
    assert sorted(os.listdir(first)) == [b".nl-", ALIVE, b"f"]
    assert (os.listdir(third), os.listdir(elsewhere)) == ([], [LEFT])


@pytest.mark.skipif(not ROOT, reason="serving other users needs root")
def test_it_is_done_with_the_rights_of_the_user(target: bytes) -> None:
    foreign = folder(target + b"/1", 0, LEFT)
    closed = folder(target + b"/2", 0, LEFT)
    os.chmod(closed, 0o700)
    own = folder(target + b"/3", USER.uid, LEFT)
    tidied(target)
    assert (os.listdir(foreign), os.listdir(closed), os.listdir(own)) == ([LEFT], [LEFT], [])


def test_links_are_not_followed_below_the_target(target: bytes) -> None:
    elsewhere = folder(target + b"/4", USER.uid, LEFT)
    os.symlink(b"4", target + b"/1")
    tidied(target)
    assert os.listdir(elsewhere) == [LEFT]


def test_a_file_system_that_does_not_answer_is_waited_for(
    target: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(self: object, directory: int) -> None:
        raise OSError(116, "stale")

    folder(target + b"/1")
    monkeypatch.setattr(restore.Temporary, "remove_leftovers", stale)
    with pytest.raises(Unavailable):
        tidied(target)


def test_the_next_attempt_at_directories_removes_what_the_last_one_left(target: bytes) -> None:
    first = folder(target + b"/1", USER.uid, LEFT, ALIVE)
    run(finish_directories, target, DEAD, FILES)
    assert os.listdir(first) == [ALIVE]
