"""What has no owner is found and removed; what has one, or may have one, is left alone."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
from sqlalchemy import text

from deploy.local.wait import wait_until
from nearline.catalog.v1 import catalog_pb2 as api
from nearline.tape.v1.tape_pb2 import Orphan
from nearline.type.v1.storage_pb2 import Blob
from services.kit.ownership import working_on
from services.tape.archive import release_abandoned
from services.tape.config import ArchiveConfig
from tests.service.catalog.harness import a_file
from tests.service.tape.harness import MIB, TapeStore, contents

DAY = 86_400.0


def found(orphans: list[Orphan]) -> set[tuple[str, str, str]]:
    """Kind, name and action of each."""
    return {
        (Orphan.Kind.Name(one.kind), one.name, Orphan.Action.Name(one.action)) for one in orphans
    }


def names(orphans: list[Orphan]) -> set[str]:
    return {one.name for one in orphans}


def age(store: TapeStore, blob: Blob, seconds: float) -> None:
    """Have the catalog believe that the blob was named earlier."""
    with store.catalog.database.connect() as connection:
        connection.execute(
            text("UPDATE blob SET created_at = created_at - :age WHERE id = :id"),
            {"age": timedelta(seconds=seconds), "id": blob.id},
        )
        connection.commit()


def test_a_store_in_order_has_no_orphans(either: TapeStore) -> None:
    put, _ = either.put(contents(1000, 200_000))
    either.to_tape(put)
    either.cache.healthy()
    either.put(contents(10, 300_000))
    objects, files = either.objects(), either.tape_files()
    assert either.orphans() == []
    assert (either.objects(), either.tape_files()) == (objects, files)


def test_objects_and_tape_files_of_removed_blobs_go(either: TapeStore) -> None:
    put, _ = either.put(contents(1000))
    tape = either.to_tape(put, evict=True)
    (evicted,) = either.catalog.blobs(tier=Blob.CACHE).values()
    either.cache.put(evicted.key, b"a late writer")
    spare = either.client.allocate(put.holding.id, Blob.TAPE, Blob.TAR)
    with either.tape.create(spare.key) as writer:
        writer.write(b"a late writer")
        writer.commit()
    either.client.set_states([spare.id], Blob.REMOVED)
    dry = either.orphans(dry_run=True)
    assert found(dry) == {
        ("CACHE_OBJECT", evicted.key, "REPORTED"),
        ("TAPE_FILE", spare.key, "REPORTED"),
    }
    assert {one.bytes for one in dry} == {13}
    assert evicted.key in either.objects()
    assert either.orphans(grace=DAY) == [], "too young"
    assert found(either.orphans()) == {
        ("CACHE_OBJECT", evicted.key, "REMOVED"),
        ("TAPE_FILE", spare.key, "REMOVED"),
    }
    assert evicted.key not in either.objects()
    assert either.tape_files() == {tape.key}
    assert either.orphans() == []


def test_names_of_others_and_unknown_blobs_are_only_reported(either: TapeStore) -> None:
    unknown = "1/999999-0123abcd.tar"
    for name in ("somebody/elses", unknown):
        either.cache.put(name, b"x")
    for name in ("lost_and_found/x", unknown):
        with either.tape.create(name) as writer:
            writer.commit()
    expected = {
        ("CACHE_OBJECT", "somebody/elses", "REPORTED"),
        ("CACHE_OBJECT", unknown, "REPORTED"),
        ("TAPE_FILE", "lost_and_found/x", "REPORTED"),
        ("TAPE_FILE", unknown, "REPORTED"),
    }
    assert found(either.orphans()) == expected
    assert found(either.orphans(include_unknown=True, dry_run=True)) == expected
    either.orphans(include_unknown=True)
    assert either.objects() == {"somebody/elses"}
    assert either.tape_files() == {"lost_and_found/x"}


def test_blobs_of_ended_tasks_go_and_those_of_running_ones_stay(store: TapeStore) -> None:
    put = store.catalog.open()
    with working_on(7):
        running = store.client.allocate(put.holding.id, Blob.CACHE, Blob.RAW)
    with working_on(8):
        dead = store.client.allocate(put.holding.id, Blob.CACHE, Blob.RAW)
    silent = store.client.allocate(put.holding.id, Blob.CACHE, Blob.RAW)
    store.ledger.open_tasks = {7}
    store.ledger.running = {put.transaction}
    for blob in (running, dead, silent):
        store.cache.put(blob.key, b"half a file")
    assert store.orphans(grace=DAY) == []
    assert found(store.orphans(dry_run=True)) == {("BLOB", dead.key, "REPORTED")}
    assert found(store.orphans()) == {("BLOB", dead.key, "REMOVED")}
    assert store.objects() == {running.key, silent.key}
    assert store.blob(dead.id).state == Blob.REMOVED
    assert store.blob(running.id).state == Blob.WRITING
    age(store, silent, 8 * DAY)
    assert names(store.orphans()) == {silent.key}
    assert store.objects() == {running.key}


def test_a_blob_that_is_completed_in_this_moment_stays(store: TapeStore) -> None:
    _, numbers = store.put(contents(1000))
    ((blob_id, blob),) = store.catalog.blobs(tier=Blob.CACHE).items()
    stale = Blob()
    stale.CopyFrom(blob)
    stale.state = Blob.WRITING

    class Early:
        """A catalog that listed the blob just before it was sealed."""

        def __getattr__(self, name: str) -> object:
            return getattr(store.client, name)

        def blobs(self, request: api.ListBlobsRequest) -> object:
            if list(request.states) == [Blob.WRITING] and request.tier == Blob.CACHE:
                stale.writer = "test task 3"
                return iter([stale])
            return store.client.blobs(request)

    store.context = store.with_(catalog=Early())
    assert store.orphans() == []
    assert store.blob(blob_id).state == Blob.STORED
    assert store.content(numbers["/data/0"])


def test_unfinished_uploads_go_with_their_blobs(store: TapeStore) -> None:
    put = store.catalog.open()
    store.ledger.running = {put.transaction}
    with working_on(7):
        running = store.client.allocate(put.holding.id, Blob.CACHE, Blob.RAW)
    with working_on(8):
        dead = store.client.allocate(put.holding.id, Blob.CACHE, Blob.RAW)
    store.ledger.open_tasks = {7}
    uploads = []
    for key in (running.key, dead.key, "of/others"):
        upload = store.cache.open_upload(key, part_size=5 * MIB)
        upload.write(bytes(6 * MIB))
        uploads.append(upload)
    assert store.orphans(grace=DAY) == []
    assert found(store.orphans()) == {
        ("BLOB", dead.key, "REMOVED"),
        ("CACHE_UPLOAD", dead.key, "REMOVED"),
        ("CACHE_UPLOAD", "of/others", "REPORTED"),
    }
    assert {upload.key for upload in store.cache.list_uploads()} == {running.key, "of/others"}
    for upload in uploads:
        upload.abort()


def test_an_upload_that_was_begun_twice_goes_and_the_object_stays(store: TapeStore) -> None:
    _, numbers = store.put({"/data/large": bytes(MIB)})
    (stored,) = store.catalog.blobs(tier=Blob.CACHE).values()
    store.cache.open_upload(stored.key, part_size=5 * MIB)._start()
    assert store.orphans(grace=DAY) == []
    assert found(store.orphans()) == {("CACHE_UPLOAD", stored.key, "REMOVED")}
    assert list(store.cache.list_uploads()) == []
    assert store.content(numbers["/data/large"]) == bytes(MIB)


def test_an_upload_that_may_have_made_the_object_is_only_reported(store: TapeStore) -> None:
    store.put({"/data/large": bytes(MIB)})
    (stored,) = store.catalog.blobs(tier=Blob.CACHE).values()
    with store.cache.open_upload(stored.key, part_size=5 * MIB) as upload:
        upload.write(bytes(11 * MIB))
        (begun,) = store.cache.list_uploads()
        wait_until(lambda: None if store.cache.has_parts(begun) else "a part", "the upload", 20)
        assert found(store.orphans()) == {("CACHE_UPLOAD", stored.key, "REPORTED")}
        assert list(store.cache.list_uploads()) == [begun]


def test_interrupted_removals_and_abandoned_claims_are_finished(store: TapeStore) -> None:
    put, _ = store.put(contents(1000))
    tape = store.to_tape(put)
    (cached,) = store.client.claim_eviction(put.holding.id, 0)
    other, _ = store.put(contents(2000))
    (waiting,) = [w for w in store.client.archivable(0) if w.holding.id == other.holding.id]
    sources = [blob.id for blob in waiting.blobs]
    claim = store.client.claim_aggregate(other.holding.id, sources, "key").blob
    with store.tape.create(claim.key) as writer:
        writer.write(b"all but recorded")
        writer.commit()
    store.ledger.open_keys = {f"archive:{claim.id}"}
    assert found(store.orphans(dry_run=True)) == {("BLOB", cached.key, "REPORTED")}
    store.ledger.open_keys = set()
    assert store.orphans(grace=DAY) == []
    assert found(store.orphans()) == {
        ("BLOB", cached.key, "REMOVED"),
        ("BLOB", claim.key, "REMOVED"),
    }
    assert cached.key not in store.objects()
    assert store.tape_files() == {tape.key}
    assert {store.blob(n).state for n in (cached.id, claim.id)} == {Blob.REMOVED}
    assert store.to_tape(other).state == Blob.SAFE


def test_a_claim_that_is_sealed_meanwhile_leaves_the_others_no_orphans(store: TapeStore) -> None:
    sealed, _ = store.archive(store.put(contents(1000))[0])
    stale = Blob()
    stale.CopyFrom(store.blob(sealed.id))
    stale.state = Blob.WRITING

    class Early:
        """A catalog that listed the first claim just before it was sealed."""

        def __getattr__(self, name: str) -> object:
            return getattr(store.client, name)

        def blobs(self, request: api.ListBlobsRequest) -> object:
            if list(request.states) == [Blob.WRITING] and request.tier == Blob.TAPE:
                yield stale
            yield from store.client.blobs(request)

    def abandoned_claim() -> Blob:
        put, _ = store.put(contents(2000), store.catalog.open())
        (waiting,) = [w for w in store.client.archivable(0) if w.holding.id == put.holding.id]
        sources = [blob.id for blob in waiting.blobs]
        return store.client.claim_aggregate(put.holding.id, sources, f"key {sources}").blob

    store.context = store.with_(catalog=Early())
    claim = abandoned_claim()
    assert ("BLOB", claim.key, "REMOVED") in found(store.orphans())
    store.context.config.archive = ArchiveConfig(abandoned_seconds=0)
    claim = abandoned_claim()
    release_abandoned(store.context)
    assert store.blob(claim.id).state == Blob.REMOVED
    assert store.blob(sealed.id).state in (Blob.WRITTEN, Blob.SAFE)
    assert sealed.key in store.tape_files()


def test_bad_objects_and_tape_files_go_once_they_are_replaced(store: TapeStore) -> None:
    put, numbers = store.put(contents(1000))
    (cached,) = store.cache_blobs(*numbers.values())
    bad = store.to_tape(put)
    store.client.report_fault(bad.id, [], "bad")
    assert store.orphans() == [], "its cache copy is not safe yet"
    good = store.to_tape(put)
    store.client.report_fault(cached.id, [], "bad")
    assert found(store.orphans(dry_run=True)) == {
        ("REPLACED_BLOB", bad.key, "REPORTED"),
        ("REPLACED_BLOB", cached.key, "REPORTED"),
    }
    assert store.orphans(grace=DAY) == []
    assert names(store.orphans()) == {bad.key, cached.key}
    assert (store.objects(), store.tape_files()) == (set(), {good.key})
    assert store.open_faults() == []


def test_what_is_on_tape_counts_as_safe_though_nobody_asks(either: TapeStore) -> None:
    put, _ = either.put(contents(1000))
    tape, _ = either.archive(put)
    deadline = time.monotonic() + 20
    while either.blob(tape.id).state != Blob.SAFE and time.monotonic() < deadline:
        orphans = either.orphans()
    assert found(orphans) == {("BLOB", tape.key, "FINISHED")}


@pytest.mark.parametrize("seconds", [0.0, DAY])
def test_files_that_killed_writers_left_unfinished(either: TapeStore, seconds: float) -> None:
    writer = either.tape.create("1/1-0123abcd.tar")
    writer.write(bytes(9 * MIB))
    time.sleep(1.1)  # XRootD counts in whole seconds.
    orphans = either.orphans(grace=seconds, dry_run=True)
    assert {one.kind for one in orphans} == (set() if seconds else {Orphan.TAPE_UNFINISHED})
    assert len(either.orphans(grace=seconds)) == len(orphans)
    left = [path for path in either.disk.root.rglob("*") if path.is_file()]
    assert len(left) == (1 if seconds else 0)
    writer.abort()


def test_what_ended_puts_left_goes_and_running_puts_stay(store: TapeStore) -> None:
    ended, running = store.catalog.open("ended"), store.catalog.open("running")
    partly, numbers = store.put(contents(1000))
    for put in (ended, running, partly):
        store.catalog.register(put, {"/never": a_file(5)})
    store.ledger.running = {running.transaction}
    assert store.orphans(grace=DAY) == []
    dry = {one.name: one for one in store.orphans(dry_run=True)}
    assert dry.keys() == {ended.transaction, partly.transaction}
    assert "holding ended is empty" in dry[ended.transaction].why
    assert names(store.orphans()) == dry.keys()
    assert store.orphans() == []
    labels = {holding.label for holding in store.catalog.holdings()}
    assert labels == {"running", partly.holding.label}
    assert len(store.catalog.files(numbers.values())) == 1
