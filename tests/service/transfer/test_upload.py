"""What an upload makes of files that others change, replace or take over meanwhile."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nearline.catalog.v1 import catalog_pb2 as catalog
from nearline.type.v1 import storage_pb2, task_pb2
from nearline_client import names
from services.kit import spans
from services.kit.jobs import Done, JobCancelled
from services.transfer import scan as scanning
from services.transfer.config import PackConfig
from services.transfer.credentials import Credentials
from services.transfer.scan import attributes_of, scan
from services.transfer.upload import upload
from services.transfer.userfs import UserFs

Blob = storage_pb2.Blob
ROOT = os.geteuid() == 0
USER = Credentials(20001, 20001, (20001,)) if ROOT else Credentials(os.geteuid(), os.getgid())
PACK = PackConfig(pack_threshold=1 << 20)


class Catalog:
    """Knows the files it is given; ``missing`` ones are gone by the time a blob is sealed."""

    def __init__(self, missing: tuple[int, ...] = ()) -> None:
        self.known: dict[int, storage_pb2.StoredFile] = {}
        self.missing = set(missing)
        self.members: dict[int, Any] = {}

    def files(self, ranges: Any) -> Iterator[storage_pb2.StoredFile]:
        return (self.known[n] for n in spans.numbers_of(ranges) if n in self.known)

    def allocate(self, holding: int, tier: Any, form: Any) -> Blob:
        return Blob(id=1, key="k")

    def record(self, blob: int, members: Any, **_: Any) -> catalog.RecordBlobResponse:
        taken = {one.file_id: one for one in members if one.file_id not in self.missing}
        self.members |= taken
        return catalog.RecordBlobResponse(accepted=len(taken), missing_file_ids=self.missing)

    def register(
        self, holding: int, transaction: str, batches: Any
    ) -> Iterator[catalog.RegisterFilesResponse]:
        for batch in batches:
            first = len(self.known) + 1
            for number, entry in enumerate(batch, first):
                self.known[number] = storage_pb2.StoredFile(
                    id=number, path=entry.path, attributes=entry.attributes
                )
            yield catalog.RegisterFilesResponse(file_ids=range(first, first + len(batch)))


class Context:
    """What a handler stands on, with real files and a catalog of its own."""

    def __init__(self, home: bytes, catalog: Catalog, pack: PackConfig = PACK) -> None:
        self.config = SimpleNamespace(pack=pack)
        self.catalog = catalog
        self.cache = SimpleNamespace(put=lambda key, data: None)
        self.users = UserFs([home])

    def serving(self, job: Any) -> Any:
        return self.users.serving(USER)


@pytest.fixture
def home() -> Iterator[bytes]:
    with tempfile.TemporaryDirectory(prefix="nearline-upload-") as top:
        Path(top).chmod(0o711)
        home = os.fsencode(top) + b"/home"
        os.mkdir(home)
        yield home


def run(
    handler: Any, context: Context, payload: Any, check: Callable[[], None] = lambda: None
) -> tuple[Done, list[tuple[str, str]]]:
    failures: list[tuple[str, str, str]] = []
    ctx = SimpleNamespace(
        files_at_stake=0,
        check=check,
        progress=lambda **_: None,
        failures=failures.extend,
    )
    transaction = SimpleNamespace(id="", origin="", holding_id=1, identity=None)
    job = SimpleNamespace(payload=payload.SerializeToString(), transaction=transaction, chunk=None)
    done = handler(context, job, ctx)
    return done, [(path, code) for path, code, _ in failures]


def registered(context: Context, *paths: bytes) -> task_pb2.FilesTask:
    """The files of ``paths`` as a scan would have found them by now."""
    if ROOT:
        subprocess.run(["chown", "-R", f"{USER.uid}", os.path.dirname(paths[0])], check=True)
    with context.serving(None) as files:
        for number, path in enumerate(paths, 1):
            context.catalog.known[number] = storage_pb2.StoredFile(
                id=number, path=names.encode(path), attributes=attributes_of(files.stat(path))
            )
    return task_pb2.FilesTask(files=spans.to_ranges(range(1, len(paths) + 1)))


def write(path: bytes, data: bytes) -> bytes:
    with open(path, "wb") as file:
        file.write(data)
    return path


def test_files_that_another_put_took_over_are_not_called_stored(home: bytes) -> None:
    paths = [write(home + name, b"x") for name in (b"/kept", b"/taken", b"/gone")]
    context = Context(home, Catalog(missing=(2,)))
    task = registered(context, *paths)
    del context.catalog.known[3]  # Taken over before the upload began: its row is not there.
    done, failures = run(upload, context, task)
    assert done.files_done == 1
    assert sorted(failures) == [("", "TAKEN_OVER"), (names.encode(paths[1]), "TAKEN_OVER")]


def test_a_name_that_got_another_file_does_not_lend_its_bytes_to_the_old_one(home: bytes) -> None:
    first, second = write(home + b"/a", b"old"), home + b"/b"
    os.link(first, second)
    context = Context(home, Catalog())
    task = registered(context, first, second)
    os.rename(write(home + b"/new", b"new"), first)  # As editors save.
    os.chown(first, USER.uid, -1)
    done, failures = run(upload, context, task)
    assert (done.files_done, failures) == (2, [])
    members = context.catalog.members
    assert members[1].digest != members[2].digest
    assert members[1].offset != members[2].offset


def test_names_of_one_file_share_its_bytes(home: bytes) -> None:
    first, second = write(home + b"/a", b"same"), home + b"/b"
    os.link(first, second)
    context = Context(home, Catalog())
    run(upload, context, registered(context, first, second))
    members = context.catalog.members
    assert members[1].offset == members[2].offset
    assert members[1].attributes.hardlink == members[2].attributes.hardlink != ""


def test_a_scan_leaves_no_more_directories_than_its_result_can_hold(
    home: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(200):
        os.mkdir(home + b"/%03d" % number)
    if ROOT:
        subprocess.run(["chown", "-R", f"{USER.uid}", home], check=True)
    monkeypatch.setattr(scanning, "_BATCH", 1)
    monkeypatch.setattr(scanning, "_MOST_LEFT", 50 * (len(home) + 4))
    context = Context(home, Catalog(), PackConfig(scan_files=1, first_scan_files=1))
    done, failures = run(scan, context, task_pb2.ScanTask(directories=[names.encode(home)]))
    left = [
        path
        for task in done.follow_ups
        if task.kind == task_pb2.Task.SCAN
        for path in task_pb2.ScanTask.FromString(task.payload).directories
    ]
    assert failures == []
    assert len(left) == 50
    assert done.files_total == 1 + 200 - 50


def test_what_is_cancelled_while_it_is_written_is_not_recorded(home: bytes) -> None:
    """The object store may have kept it waiting for long."""
    context = Context(home, Catalog())
    written: list[str] = []
    context.cache.put = lambda key, data: written.append(key)

    def check() -> None:
        if written:
            raise JobCancelled("cancelled")

    with pytest.raises(JobCancelled):
        run(upload, context, registered(context, write(home + b"/a", b"x")), check)
    assert written
    assert not context.catalog.members
