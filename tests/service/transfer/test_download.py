"""What a download makes of bytes that arrive damaged."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nearline.type.v1 import storage_pb2, task_pb2
from nearline_client import names
from services.transfer import download as downloading
from services.transfer.credentials import Credentials
from services.transfer.download import download
from services.transfer.userfs import UserFs

ROOT = os.geteuid() == 0
USER = Credentials(20001, 20001, (20001,)) if ROOT else Credentials(os.geteuid(), os.getgid())
CONTENT = b"precious"


class Cache:
    """Holds one object, and hands it out damaged the first ``bad`` times."""

    def __init__(self, bad: int) -> None:
        self.bad = bad

    def get_range(self, key: str, start: int, length: int) -> bytes:
        self.bad -= 1
        return CONTENT[start : start + length] if self.bad < 0 else bytes(length)

    def stream(self, key: str, start: int, length: int) -> Iterator[bytes]:
        yield self.get_range(key, start, length)


class Catalog:
    """Knows one file in the cache, and what was said against its copy."""

    def __init__(self, path: bytes) -> None:
        attributes = storage_pb2.Attributes(
            type=storage_pb2.Attributes.FILE, size=len(CONTENT), mode=0o644, uid=USER.uid
        )
        self.file = storage_pb2.StoredFile(
            id=1,
            path=names.encode(path),
            attributes=attributes,
            digest=hashlib.sha256(CONTENT).digest(),
            slices=[
                storage_pb2.Slice(
                    tier=storage_pb2.Blob.CACHE, blob_id=5, key="k", length=len(CONTENT)
                )
            ],
        )
        self.faults: list[int] = []

    def files(self, _: Any) -> list[storage_pb2.StoredFile]:
        return [self.file]

    def report_fault(self, blob: int, files: list[int], reason: str) -> None:
        self.faults.append(blob)


@pytest.fixture
def home() -> Iterator[bytes]:
    with tempfile.TemporaryDirectory(prefix="nearline-download-") as top:
        Path(top).chmod(0o711)
        home = os.fsencode(top) + b"/home"
        os.mkdir(home)
        os.chown(home, USER.uid, USER.gid)
        yield home


Failed = list[tuple[str, str, str]]


def restore(home: bytes, cache: Cache, target: bytes = b"") -> tuple[int, Catalog, Failed]:
    """Files restored, the catalog with the blobs reported, and what failed."""
    catalog = Catalog(home + b"/f")
    context = SimpleNamespace(
        catalog=catalog,
        cache=cache,
        serving=lambda job, target: UserFs([home]).serving(USER, target or None),
    )
    failed: Failed = []
    ctx = SimpleNamespace(
        files_at_stake=0, check=lambda: None, progress=lambda **_: None, failures=failed.extend
    )
    task = task_pb2.FilesTask(files=[storage_pb2.IdRange(first=1, count=1)])
    options = task_pb2.GetOptions(target=names.encode(target))
    job: Any = SimpleNamespace(
        attempt=1,
        payload=task.SerializeToString(),
        transaction=SimpleNamespace(options=options.SerializeToString()),
    )
    done = download(context, job, ctx)  # type: ignore[arg-type]
    return done.files_done, catalog, failed


def run(home: bytes, bad: int) -> tuple[int, list[int]]:
    """Files restored, and blobs reported."""
    done, catalog, _ = restore(home, Cache(bad))
    return done, catalog.faults


@pytest.mark.parametrize("run_bytes", [downloading.RUN_BYTES, 1])
def test_one_bad_read_does_not_cost_the_copy(
    home: bytes, run_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloading, "RUN_BYTES", run_bytes)
    assert run(home, bad=1) == (1, [])
    with open(home + b"/f", "rb") as file:
        assert file.read() == CONTENT


@pytest.mark.parametrize("run_bytes", [downloading.RUN_BYTES, 1])
def test_a_copy_that_stays_bad_is_reported_and_nothing_is_written(
    home: bytes, run_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloading, "RUN_BYTES", run_bytes)
    assert run(home, bad=10) == (0, [5])
    assert os.listdir(home) == []


def test_a_failure_names_the_place_that_could_not_be_written(home: bytes) -> None:
    target = home + b"/closed"
    os.mkdir(target, 0o500)
    done, catalog, failed = restore(home, Cache(0), target)
    ((path, code, reason),) = failed
    assert (done, path, code) == (0, catalog.file.path, "PERMISSION_DENIED")
    assert reason.endswith(f"(EACCES): {names.encode(target)}{path}")
