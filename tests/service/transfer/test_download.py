"""What a download makes of bytes that arrive damaged."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nearline.type.v1 import storage_pb2, task_pb2
from nearline.type.v1.storage_pb2 import Blob
from nearline.type.v1.task_pb2 import Task
from nearline_client import names
from services.kit import faults
from services.kit.errors import Unavailable
from services.kit.faults import OBJECT_UNREADABLE
from services.kit.jobs import Done, JobCancelled
from services.kit.objecterrors import CACHE, LENGTH, OBJECT_STORE_FAILED, OFFSET, from_code
from services.transfer import download as downloading
from services.transfer.credentials import Credentials
from services.transfer.download import UNREADABLE_ATTEMPTS, download
from services.transfer.userfs import UserFs

ROOT = os.geteuid() == 0
USER = Credentials(20001, 20001, (20001,)) if ROOT else Credentials(os.geteuid(), os.getgid())
CONTENT = b"precious"


class Cache:
    """Holds one object, and hands it out damaged the first ``bad`` times.

    Of the keys in ``failing`` none can be read.
    """

    def __init__(self, bad: int, failing: Container[str] = ()) -> None:
        self.bad, self.failing = bad, failing

    def get_range(self, key: str, start: int, length: int) -> bytes:
        if key in self.failing:
            error = from_code("InternalError", 500, key)
            error.metadata |= {OFFSET: str(start), LENGTH: str(length)}
            raise error
        self.bad -= 1
        return CONTENT[start : start + length] if self.bad < 0 else bytes(length)

    def stream(self, key: str, start: int, length: int) -> Iterator[bytes]:
        yield self.get_range(key, start, length)


class Catalog:
    """Knows one file in the cache, another blob, and what was said against copies."""

    def __init__(self, path: bytes, tiers: Sequence[Blob.Tier.ValueType] = (Blob.CACHE,)) -> None:
        attributes = storage_pb2.Attributes(
            type=storage_pb2.Attributes.FILE, size=len(CONTENT), mode=0o644, uid=USER.uid
        )
        self.file = storage_pb2.StoredFile(
            id=1,
            path=names.encode(path),
            attributes=attributes,
            digest=hashlib.sha256(CONTENT).digest(),
            slices=[
                storage_pb2.Slice(tier=tier, blob_id=4 + tier, key="k", length=len(CONTENT))
                for tier in tiers
            ],
        )
        self.faults: list[int] = []

    def files(self, _: Any) -> list[storage_pb2.StoredFile]:
        return [self.file]

    def blobs(self, _: Any) -> list[Blob]:
        return [Blob(id=5, key="k"), Blob(id=7, key="other")]

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


class Failed(list[tuple[str, str, str]]):
    """Path, code and reason of each."""


def restore(home: bytes, cache: Cache, target: bytes = b"") -> tuple[int, Catalog, Failed]:
    """Files restored, the catalog with the blobs reported, and what failed."""
    catalog, failed = Catalog(home + b"/f"), Failed()
    done = attempt(home, cache, catalog, failed, target=target)
    return done.files_done, catalog, failed


def attempt(
    home: bytes,
    cache: Cache,
    catalog: Catalog,
    failed: Failed | None = None,
    number: int = 1,
    target: bytes = b"",
    check: Callable[[], None] = lambda: None,
) -> Done:
    """What becomes of attempt ``number``."""
    context = SimpleNamespace(
        catalog=catalog,
        cache=cache,
        serving=lambda job, target: UserFs([home]).serving(USER, target or None),
    )
    ctx = SimpleNamespace(
        files_at_stake=0,
        check=check,
        progress=lambda **_: None,
        failures=[].extend if failed is None else failed.extend,
    )
    task = task_pb2.FilesTask(files=[storage_pb2.IdRange(first=1, count=1)])
    options = task_pb2.GetOptions(target=names.encode(target))
    job: Any = SimpleNamespace(
        attempt=number,
        payload=task.SerializeToString(),
        transaction=SimpleNamespace(options=options.SerializeToString()),
    )
    return download(context, job, ctx)  # type: ignore[arg-type]


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


@pytest.mark.parametrize("run_bytes", [downloading.RUN_BYTES, 1])
def test_what_is_cancelled_while_it_is_read_is_not_written(
    home: bytes, run_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The object store may have kept it waiting for long."""
    monkeypatch.setattr(downloading, "RUN_BYTES", run_bytes)
    cache = Cache(0)

    def check() -> None:
        if cache.bad < 0:
            raise JobCancelled("cancelled")

    with pytest.raises(JobCancelled):
        attempt(home, cache, Catalog(home + b"/f"), check=check)
    assert cache.bad < 0
    assert os.listdir(home) == []


# -- what the store fails to read


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_THIRD_LOOK_SECONDS", 0.0)


def test_an_object_that_alone_cannot_be_read_comes_from_tape(home: bytes) -> None:
    catalog = Catalog(home + b"/f", (Blob.CACHE, Blob.TAPE))
    cache = Cache(0, failing={"k"})
    with pytest.raises(Unavailable) as early:
        attempt(home, cache, catalog, number=UNREADABLE_ATTEMPTS - 1)
    assert (early.value.reason, early.value.dependency) == (OBJECT_UNREADABLE, "")
    assert not catalog.faults
    done = attempt(home, cache, catalog, number=UNREADABLE_ATTEMPTS)
    (follow_up,) = done.follow_ups
    assert (follow_up.kind, follow_up.files, done.files_done) == (Task.RESOLVE, 1, 0)
    assert catalog.faults == [5]


def test_an_object_that_can_be_read_by_now_is_no_fault(home: bytes) -> None:
    class Back(Cache):
        """A network that comes back when others are looked at."""

        def get_range(self, key: str, start: int, length: int) -> bytes:
            try:
                return super().get_range(key, start, length)
            finally:
                if key == "other":
                    self.failing = ()

    catalog = Catalog(home + b"/f", (Blob.CACHE, Blob.TAPE))
    with pytest.raises(Unavailable):
        attempt(home, Back(0, failing={"k"}), catalog, number=100)
    assert not catalog.faults


def test_a_store_that_goes_away_meanwhile_costs_no_copy(home: bytes) -> None:
    class Away(Cache):
        """A store that answers nothing any more once another object was read."""

        def get_range(self, key: str, start: int, length: int) -> bytes:
            try:
                return super().get_range(key, start, length)
            finally:
                if key == "other":
                    self.failing = {"k", "other"}

    catalog = Catalog(home + b"/f", (Blob.CACHE, Blob.TAPE))
    with pytest.raises(Unavailable) as error:
        attempt(home, Away(0, failing={"k"}), catalog, number=100)
    assert error.value.dependency == CACHE
    assert not catalog.faults


def test_an_object_that_has_no_other_copy_is_waited_for(home: bytes) -> None:
    catalog = Catalog(home + b"/f")
    with pytest.raises(Unavailable) as error:
        attempt(home, Cache(0, failing={"k"}), catalog, number=100)
    assert (error.value.reason, error.value.dependency) == (OBJECT_UNREADABLE, "")
    assert not catalog.faults


def test_a_store_that_reads_nothing_is_no_fault_of_one_object(home: bytes) -> None:
    catalog = Catalog(home + b"/f", (Blob.CACHE, Blob.TAPE))
    with pytest.raises(Unavailable) as error:
        attempt(home, Cache(0, failing={"k", "other"}), catalog, number=100)
    assert (error.value.reason, error.value.dependency) == (OBJECT_STORE_FAILED, CACHE)
    assert not catalog.faults


def test_an_object_that_cannot_be_read_holds_up_no_other_file(home: bytes) -> None:
    catalog = Catalog(home + b"/f")
    other = storage_pb2.StoredFile()
    other.CopyFrom(catalog.file)
    other.id, other.path = 2, names.encode(home + b"/g")
    other.slices[0].blob_id, other.slices[0].key = 7, "other"
    catalog.files = lambda _: [catalog.file, other]  # type: ignore[method-assign]
    done = attempt(home, Cache(0, failing={"k"}), catalog)
    assert (done.files_done, os.listdir(home)) == (1, [b"g"])
    (follow_up,) = done.follow_ups
    payload = task_pb2.FilesTask.FromString(follow_up.payload)
    assert (follow_up.kind, follow_up.files) == (Task.DOWNLOAD, 1)
    assert list(payload.files) == [storage_pb2.IdRange(first=1, count=1)]
