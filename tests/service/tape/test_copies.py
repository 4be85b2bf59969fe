"""Bad copies on tape and in the cache: noticed, recorded, worked around, and back when good."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from nearline.monitor.v1 import monitor_pb2 as ledger
from nearline.type.v1 import task_pb2
from nearline.type.v1.storage_pb2 import Blob
from services.kit import faults
from services.kit.config import SecretFile
from services.kit.errors import Unavailable
from services.kit.faults import Gone, gone
from services.kit.jobs import Deferred
from services.kit.objectstore import ObjectStore, S3Config
from services.tape import faulty
from services.tape.archive import archive, confirm
from services.tape.faulty import check_faults
from services.tape.missing import SILENT_POLLS
from services.tape.recall import recall
from tests.service.tape.harness import TapeStore, contents, done, numbers_of

Task = task_pb2.Task


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_SECOND_LOOK_SECONDS", 0.0)


@pytest.fixture(autouse=True)
def _bystander(request: pytest.FixtureRequest) -> None:
    """Another holding, on tape and in the cache, so that the stores have more than what is lost."""
    for name in ("store", "either"):
        if name in request.fixturenames:
            store: TapeStore = request.getfixturevalue(name)
            put, _ = store.put(contents(5), store.catalog.open("bystander"))
            store.to_tape(put)


# -- on tape


def test_a_bit_that_turned_over_on_tape_costs_one_file(either: TapeStore) -> None:
    files = contents(1000, 2000, 300_000, 3000)
    put, numbers = either.put(files)
    tape = either.to_tape(put, evict=True)
    for path in ("/data/1", "/data/2"):
        either.flip(tape, numbers[path])
    ran = either.recall(tape, numbers.values())
    assert {path: code for path, (code, _) in ran.failures.items()} == {
        "/data/1": "NO_COPY",
        "/data/2": "NO_COPY",
    }
    reason = ran.failures["/data/1"][1]
    assert tape.key in reason
    assert "do not match its digest" in reason
    assert " UTC: " in reason
    assert numbers_of(ran.follow_ups[Task.DOWNLOAD]) == [numbers["/data/0"], numbers["/data/3"]]
    for path in ("/data/0", "/data/3"):
        assert either.content(numbers[path]) == files[path]
    assert either.tiers(numbers["/data/0"]) == [Blob.CACHE, Blob.TAPE], "the rest stays readable"
    assert {fault.path for fault in either.open_faults()} == {"/data/1", "/data/2"}
    left = either.catalog.blobs(states=[Blob.WRITING], tier=Blob.CACHE)
    assert left == {}, "what was not completed is let go of"


def test_what_a_cut_tape_file_still_holds_comes_back(either: TapeStore) -> None:
    files = contents(1000, 2000, 3000, 200_000)
    put, numbers = either.put(files)
    tape = either.to_tape(put, evict=True)
    (file,) = either.catalog.files([numbers["/data/1"]])
    either.cut(tape, file.slices[0].offset + 5)
    ran = either.recall(tape, numbers.values())
    assert set(ran.failures) == {"/data/1", "/data/2"}
    for path in ("/data/0", "/data/3"):  # The large one lies first.
        assert either.content(numbers[path]) == files[path]
    either.catalog.tidy()
    either.cut(tape, 10_000)
    either.client.claim_eviction(put.holding.id, 0)
    assert set(either.recall(tape, [numbers["/data/3"]]).failures) == {"/data/3"}


def test_a_read_that_went_wrong_once_costs_nothing(store: TapeStore) -> None:
    files = contents(1000, 200_000)
    put, numbers = store.put(files)
    tape = store.to_tape(put, evict=True)
    flaky = store.with_(tape=FlakyTape(store.tape))
    payload = store.recall_task(tape, numbers.values())
    assert store.run(recall, payload, context=flaky).failures == {}
    assert store.open_faults() == []
    assert {path: store.content(number) for path, number in numbers.items()} == files


def test_a_bad_tape_copy_is_written_again_from_the_cache(store: TapeStore) -> None:
    files = contents(1000, 2000)
    put, numbers = store.put(files)
    tape = store.to_tape(put)
    store.client.report_fault(tape.id, [numbers["/data/0"]], "found bad by hand")
    again = store.to_tape(put)
    assert again.state == Blob.SAFE
    assert store.open_faults() == []
    (file,) = store.catalog.files([numbers["/data/0"]])
    assert file.slices[1].blob_id == again.id
    (other,) = store.catalog.files([numbers["/data/1"]])
    assert other.slices[1].blob_id == tape.id


def test_files_with_another_copy_are_looked_up_again(store: TapeStore) -> None:
    """A cache copy that came while the tape was read is found."""
    files = contents(1000)
    put, (number,) = _numbers(store.put(files))
    tape = store.to_tape(put)
    store.flip(tape, number)
    (blind,) = store.catalog.files([number])
    del blind.slices[0]
    context = store.with_(catalog=Blind(store.client, blind))
    ran = store.run(recall, store.recall_task(tape, [number]), context=context)
    assert ran.failures == {}
    assert numbers_of(ran.follow_ups[Task.RESOLVE]) == [number]


def test_a_missing_tape_file_is_a_fault_only_among_others(either: TapeStore) -> None:
    put, numbers = either.put(contents(1000, 2000))
    tape = either.to_tape(put, evict=True)
    moved = either.disk.root.with_name(either.disk.root.name + "-unmounted")
    either.disk.root.rename(moved)
    either.disk.root.mkdir()
    with pytest.raises(Unavailable, match="mounted"):
        either.staged(tape, numbers.values(), SILENT_POLLS)
    assert either.open_faults() == []
    either.disk.root.rmdir()
    moved.rename(either.disk.root)
    (either.disk.root / tape.key).unlink()
    assert either.staged(tape, numbers.values(), SILENT_POLLS - 1).failures == {}
    ran = either.staged(tape, numbers.values(), SILENT_POLLS)
    assert {code for code, _ in ran.failures.values()} == {"NO_COPY"}
    assert len(either.open_faults()) == 2


def test_a_file_that_vanishes_before_its_recall_is_staged_again(store: TapeStore) -> None:
    put, numbers = store.put(contents(1000))
    tape = store.to_tape(put, evict=True)
    (store.disk.root / tape.key).unlink()
    ran = store.recall(tape, numbers.values())
    assert ran.failures == {}
    assert list(ran.follow_ups) == [Task.STAGE]


def test_what_is_written_is_safe_only_when_it_is_on_tape(store: TapeStore) -> None:
    put, _ = store.put(contents(1000))
    _, ran = store.archive(put)
    payload = task_pb2.TapeBlobTask.FromString(ran.follow_ups[Task.CONFIRM].payload)
    buffered = store.with_(tape=Buffered(store.tape))
    assert isinstance(store.run(confirm, payload, context=buffered).outcome, Deferred)
    assert not store.client.claim_eviction(put.holding.id, 0)
    done(store.run(confirm, payload))
    assert store.client.claim_eviction(put.holding.id, 0)


def test_a_confirmation_waits_for_a_file_that_is_not_shown(store: TapeStore) -> None:
    put, _ = store.put(contents(1000))
    tape, _ = store.archive(put)
    (store.disk.root / tape.key).rename(store.disk.root / "aside")
    payload = task_pb2.TapeBlobTask(blob_id=tape.id, key=tape.key)
    for _ in range(SILENT_POLLS - 1):
        outcome = store.run(confirm, payload).outcome
        assert isinstance(outcome, Deferred)
        payload = task_pb2.TapeBlobTask.FromString(outcome.payload)
    assert store.open_faults() == []
    assert done(store.run(confirm, payload)).warnings
    assert [fault.blob_id for fault in store.open_faults()] == [tape.id]
    again = store.to_tape(put)
    assert again.id != tape.id
    assert store.open_faults() == []


# -- in the cache


def test_damaged_objects_do_not_reach_tape(store: TapeStore) -> None:
    put, numbers = store.put(contents(1000, 2000, 200_000))
    for path in ("/data/1", "/data/2"):
        (blob,) = store.cache_blobs(numbers[path])
        store.flip(blob, numbers[path])
    _, ran = store.archive(put)
    assert {path: code for path, (code, _) in ran.failures.items()} == {
        "/data/1": "CACHE_COPY_DAMAGED",
        "/data/2": "CACHE_COPY_DAMAGED",
    }
    assert store.tiers(numbers["/data/0"]) == [Blob.CACHE, Blob.TAPE]
    assert store.tiers(numbers["/data/1"]) == store.tiers(numbers["/data/2"]) == []
    assert all(fault.lost for fault in store.open_faults())
    assert len(store.open_faults()) == 2


def test_damaged_headers_do_not_reach_tape(store: TapeStore) -> None:
    """What no digest covers: `tar` must be able to read what is on tape."""
    files = contents(1000, 0, 2000, 200_000)
    put, numbers = store.put(files)
    (large, pack) = sorted(store.cache_blobs(*numbers.values()), key=lambda blob: blob.format)
    data = bytearray(store.cache.get_range(pack.key, 0, pack.size))
    data[5] ^= 1
    store.cache.put(pack.key, data)
    tape = store.to_tape(put, evict=True)
    assert store.open_faults() == []
    with tarfile.open(store.disk.root / tape.key) as tar:
        found = {member.name: tar.extractfile(member) for member in tar if member.name[0] != "."}
        assert {f"/{name}": file and file.read() for name, file in found.items()} == files
    assert store.recall(tape, numbers.values()).failures == {}
    assert {path: store.content(number) for path, number in numbers.items()} == files
    assert large.size == 200_000


def test_an_object_cut_behind_its_last_file_costs_nothing(store: TapeStore) -> None:
    files = contents(2000, 1000)
    put, numbers = store.put(files)
    (pack,) = store.cache_blobs(*numbers.values())
    end_blocks, some_padding = 1024, 10
    data = store.cache.get_range(pack.key, 0, pack.size - end_blocks - some_padding)
    store.cache.put(pack.key, data)
    tape = store.to_tape(put, evict=True)
    assert store.open_faults() == []
    assert store.recall(tape, numbers.values()).failures == {}
    assert {path: store.content(number) for path, number in numbers.items()} == files


def test_a_bad_read_of_the_cache_costs_a_file_its_place_on_tape_only(store: TapeStore) -> None:
    put, numbers = store.put(contents(100_000, 2000))
    (waiting,) = [w for w in store.client.archivable(0) if w.holding.id == put.holding.id]
    claim = store.client.claim_aggregate(put.holding.id, [b.id for b in waiting.blobs], "key")
    payload = task_pb2.TapeBlobTask(
        blob_id=claim.blob.id, key=claim.blob.key, sources=waiting.blobs
    )
    spec = ledger.TransactionSpec(holding_id=put.holding.id, group="gws_one")
    flaky = store.with_(cache=FlakyCache(store.cache, 17))
    ran = store.run(archive, payload, spec, flaky)
    assert ran.failures == {}
    assert store.open_faults() == []
    left = [number for number in numbers.values() if store.tiers(number) == [Blob.CACHE]]
    assert len(left) == 1
    store.to_tape(put)
    assert all(store.tiers(number) == [Blob.CACHE, Blob.TAPE] for number in numbers.values())


def test_a_missing_object_is_a_fault_and_the_rest_is_planned_anew(store: TapeStore) -> None:
    put, numbers = store.put(contents(1000, 200_000))
    (lost,) = store.cache_blobs(numbers["/data/1"])
    store.cache.delete_many([lost.key])
    _, ran = store.archive(put)
    assert {path: code for path, (code, _) in ran.failures.items()} == {
        "/data/1": "CACHE_COPY_LOST"
    }
    assert [fault.path for fault in store.open_faults()] == ["/data/1"]
    store.to_tape(put)
    assert store.tiers(numbers["/data/0"]) == [Blob.CACHE, Blob.TAPE]


def test_one_missing_object_is_gone_and_a_missing_store_is_not(
    store: TapeStore, s3: Any, tmp_path: Any
) -> None:
    _, numbers = store.put(contents(1000, 200_000, 300_000))
    pack, first, second = store.cache_blobs(*numbers.values())

    def look(cache: ObjectStore = store.cache, blob: Blob = first) -> Gone:
        return gone(store.client, cache, blob.id, blob.key, blob.size)

    with pytest.raises(Unavailable) as caught:
        look()
    assert caught.value.reason == "OBJECT_FLICKERS"
    store.cache.put(first.key, b"short")
    assert look() == Gone("its object was cut to 5 bytes", 5)
    store.cache.delete_many([first.key])
    assert look() == Gone("its object is missing", 0)
    store.cache.delete_many(store.objects())
    with pytest.raises(Unavailable) as caught:
        look(blob=second)
    assert caught.value.reason == "OBJECT_STORE_EMPTY"
    assert pack.size > 0


def test_a_missing_bucket_is_nothing_that_is_said_of_one_object(
    store: TapeStore, s3: Any, tmp_path: Any
) -> None:
    _, numbers = store.put(contents(200_000))
    (blob,) = store.cache_blobs(*numbers.values())
    config = S3Config(
        endpoint=s3.endpoint,
        bucket="not-there",
        access_key=SecretFile(tmp_path / "access"),
        secret_key=SecretFile(tmp_path / "secret"),
    )
    absent = ObjectStore(config)
    with pytest.raises(Unavailable) as caught:
        gone(store.client, absent, blob.id, blob.key, blob.size)
    assert caught.value.reason == "OBJECT_BUCKET_MISSING"
    absent.close()


# -- the way back


def test_an_object_that_is_back_is_read_again(store: TapeStore) -> None:
    files = contents(1000, 2000)
    put, numbers = store.put(files)
    (blob,) = store.cache_blobs(*numbers.values())
    data = store.cache.get_range(blob.key, 0, blob.size)
    store.flip(blob, numbers["/data/0"])
    _, ran = store.archive(put)
    assert set(ran.failures) == {"/data/0"}
    (checked,) = check_faults(store.context)
    assert (checked.faults, checked.reinstated) == (1, 0)
    assert "do not match" in checked.trouble
    store.cache.put(blob.key, data)
    (checked,) = check_faults(store.context)
    assert (checked.faults, checked.reinstated, checked.trouble) == (1, 1, "")
    assert store.open_faults() == []
    assert store.content(numbers["/data/0"]) == files["/data/0"]
    store.to_tape(put)
    assert store.tiers(numbers["/data/0"]) == [Blob.CACHE, Blob.TAPE]


def test_a_missing_object_stays_a_fault(store: TapeStore) -> None:
    put, numbers = store.put(contents(1000))
    (blob,) = store.cache_blobs(*numbers.values())
    data = store.cache.get_range(blob.key, 0, blob.size)
    store.cache.delete_many([blob.key])
    store.archive(put)
    (checked,) = check_faults(store.context)
    assert checked.reinstated == 0
    assert blob.key in checked.trouble
    store.cache.put(blob.key, data[: blob.size - 2000])
    (checked,) = check_faults(store.context, [blob.id])
    assert checked.reinstated == 0
    store.cache.put(blob.key, data)
    assert next(check_faults(store.context)).reinstated == 1
    assert store.blob(blob.id).state == Blob.STORED


def test_a_tape_file_that_was_brought_back_is_read_again(either: TapeStore) -> None:
    files = contents(1000, 2000)
    put, numbers = either.put(files)
    tape = either.to_tape(put, evict=True)
    path = either.disk.root / tape.key
    backup = path.read_bytes()
    either.flip(tape, numbers["/data/0"])
    either.recall(tape, numbers.values())
    assert [fault.path for fault in either.open_faults()] == ["/data/0"]
    (checked,) = check_faults(either.context)
    assert (checked.reinstated, bool(checked.trouble)) == (0, True)
    with path.open("r+b") as stream:
        stream.write(backup)

    (checked,) = check_faults(either.context)
    assert (checked.reinstated, checked.trouble) == (1, "")
    assert either.open_faults() == []
    assert either.recall(tape, numbers.values()).failures == {}
    assert either.content(numbers["/data/0"]) == files["/data/0"]


def test_more_files_than_fit_into_a_call_are_read_again(
    store: TapeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faulty, "_MOST_AT_ONCE", 2)
    put, _ = store.put(contents(10, 20, 30))
    tape = store.to_tape(put, evict=True)
    store.client.report_fault(tape.id, [], "not shown for a while")
    calls: list[int] = []

    class Counting:
        def __getattr__(self, name: str) -> object:
            return getattr(store.client, name)

        def reinstate(self, blob_id: int, numbers: list[int], state: Blob.State.ValueType) -> int:
            calls.append(len(numbers))
            return store.client.reinstate(blob_id, numbers, state)

    (checked,) = check_faults(store.with_(catalog=Counting()))
    assert (checked.reinstated, checked.trouble, calls) == (3, "", [2, 1])
    assert store.blob(tape.id).state == Blob.SAFE


def _numbers(stored: tuple[Any, dict[str, int]]) -> tuple[Any, list[int]]:
    return stored[0], list(stored[1].values())


class FlakyTape:
    """Gives wrong bytes at the first read of each range."""

    def __init__(self, tape: Any) -> None:
        self._tape, self._seen = tape, set[tuple[int, int]]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tape, name)

    def open(self, path: str) -> Any:
        return _FlakyReader(self._tape.open(path), self._seen)


class _FlakyReader:
    def __init__(self, reader: Any, seen: set[tuple[int, int]]) -> None:
        self._reader, self._seen = reader, seen

    def __enter__(self) -> _FlakyReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    def read(self, offset: int, length: int) -> bytes:
        if (offset, length) in self._seen:
            return bytes(self._reader.read(offset, length))
        self._seen.add((offset, length))
        return bytes(length)

    def read_many(self, ranges: list[tuple[int, int]]) -> list[bytes]:
        return [self.read(*wanted) for wanted in ranges]

    def stream(self, offset: int, length: int, chunk: int) -> Iterator[bytes]:
        yield self.read(offset, length)


class FlakyCache:
    """Gives one wrong byte, at ``place``, at the first stream of an object."""

    def __init__(self, cache: ObjectStore, place: int) -> None:
        self._cache, self._place, self._broken = cache, place, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def stream(self, key: str, offset: int, length: int) -> Iterator[bytes]:
        data = bytearray(b"".join(self._cache.stream(key, offset, length)))
        if not self._broken:
            self._broken = True
            data[self._place] ^= 1
        yield bytes(data)


class Buffered:
    """A tape endpoint that has written nothing from its buffer to tape yet."""

    def __init__(self, tape: Any) -> None:
        self._tape = tape

    def stat(self, paths: Any) -> Any:
        return [replace(state, on_tape=False) for state in self._tape.stat(paths)]


class Blind:
    """A catalog whose first look-up of a file was a moment too early."""

    def __init__(self, client: Any, early: Any) -> None:
        self._client, self._early = client, [early]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def files(self, ranges: Any) -> Any:
        return iter([self._early.pop()]) if self._early else self._client.files(ranges)
