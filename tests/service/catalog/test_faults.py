"""Copies found bad: on record until they are replaced, back in use when they turn out good."""

from __future__ import annotations

import time
import uuid

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client import REGISTRY

from nearline.catalog.v1 import catalog_pb2 as api
from nearline.type.v1.storage_pb2 import Blob
from services.catalog.maintenance import Maintenance
from services.kit.catalogclient import CatalogClient
from tests.service.catalog.harness import (
    Catalog,
    Member,
    Put,
    a_directory,
    a_file,
    members,
    ranges,
    refused,
)


def reinstate(catalog: Catalog, blob: Blob, *files: int, state: int = Blob.STORED) -> int:
    request = api.ReinstateCopiesRequest(
        blob_id=blob.id,
        file_ids=files,
        state=state,  # type: ignore[arg-type]
    )
    return catalog.stub.ReinstateCopies(request).reinstated


def replaced(catalog: Catalog, tier: int, *, dry_run: bool = False) -> list[int]:
    request = api.ClaimReplacedRequest(tier=tier, dry_run=dry_run)  # type: ignore[arg-type]
    return [blob.id for blob in catalog.stub.ClaimReplaced(request).blobs]


def a_hollow_object(catalog: Catalog, put: Put, top: str) -> Blob:
    """An object of a directory and a file, of which the file is bad and both are on tape."""
    answer = catalog.register(put, {top: a_directory(), f"{top}/a": a_file(1)})
    (blob,) = catalog.allocate(put.holding.id)
    file = members({"/a": answer.file_ids[1]}, {"/a": b"a"})
    catalog.record(blob, [Member(file_id=answer.file_ids[0], attributes=a_directory()), *file])
    catalog.archive(put, [blob], state=Blob.SAFE)
    catalog.fault(blob, answer.file_ids[1])
    return blob


def keep_in_cache(catalog: Catalog, blob: Blob) -> None:
    """Pin what is left in an object for an hour."""
    until = Timestamp(seconds=int(time.time()) + 3600)
    numbers = [member.file.id for member in catalog.members([blob.id])]
    catalog.stub.PinFiles(api.PinFilesRequest(files=ranges(numbers), until=until))


def copies(catalog: Catalog, number: int) -> list[int]:
    return [piece.blob_id for piece in catalog.files([number])[0].slices]


def test_a_fault_is_on_record_until_the_copy_is_replaced(catalog: Catalog) -> None:
    put = catalog.open("label")
    contents = {"/a": b"a", "/b": b"b"}
    source, numbers = catalog.store(put, contents)
    tape = catalog.archive(put, [source], state=Blob.SAFE)
    assert catalog.faults() == []
    assert catalog.fault(source, numbers["/a"]) == []
    (fault,) = catalog.faults(open=True)
    assert (fault.path, fault.key, fault.tier) == ("/a", source.key, Blob.CACHE)
    assert (fault.reason, fault.lost, fault.label) == ("gone", False, "label")
    assert fault.HasField("reported_at")
    assert not fault.HasField("repaired_at")
    assert copies(catalog, numbers["/a"]) == [tape.id], "the bad copy is not read any more"
    (remade,) = catalog.allocate(put.holding.id)
    catalog.record(remade, members({"/a": numbers["/a"]}, contents))
    assert catalog.faults(open=True) == []
    (fault,) = catalog.faults(file_ids=[numbers["/a"]])
    assert fault.HasField("repaired_at")
    assert fault.repair == f"written anew into blob {remade.id}"


def test_a_copy_in_one_tier_does_not_repair_that_of_the_other(catalog: Catalog) -> None:
    put = catalog.open()
    source, _ = catalog.store(put, {"/a": b"a"})
    tape = catalog.archive(put, [source], state=Blob.SAFE)
    catalog.fault(tape)
    (blob,) = catalog.allocate(put.holding.id)
    catalog.fault(source)
    numbers = {f.path: f.id for f in catalog.find()}
    catalog.record(blob, members(numbers, {"/a": b"a"}))
    assert [fault.blob_id for fault in catalog.faults(open=True)] == [tape.id]
    catalog.archive(put, [blob], state=Blob.SAFE)
    assert catalog.faults(open=True) == []


def test_faults_are_paged_and_filtered(catalog: Catalog) -> None:
    put, other = catalog.open(), catalog.open(group="gws_two")
    source, numbers = catalog.store(put, {f"/{n}": b"x" for n in range(5)})
    elsewhere, _ = catalog.store(other, {"/x": b"x"})
    catalog.fault(source)
    catalog.fault(elsewhere)
    (page,) = catalog.stub.ListFaults(api.ListFaultsRequest(limit=2, groups=["gws_one"]))
    rest = catalog.faults(groups=["gws_one"], cursor=page.cursor)
    assert [f.file_id for f in [*page.faults, *rest]] == sorted(numbers.values())
    assert [f.group for f in catalog.faults(groups=["gws_two"])] == ["gws_two"]
    assert catalog.faults(tier=Blob.TAPE) == []
    with refused("INVALID_FIELD"):
        catalog.faults(cursor=page.cursor)


@pytest.mark.parametrize("tier", ["cache", "tape"])
def test_a_lost_file_comes_back_with_its_copy(catalog: Catalog, tier: str) -> None:
    put = catalog.open()
    source, numbers = catalog.store(put, {"/a": b"a", "/b": b"bb"})
    tape = catalog.archive(put, [source], state=Blob.SAFE)
    catalog.fault(source)
    assert catalog.fault(tape) == sorted(numbers.values())
    before = catalog.usage()
    assert (before.files, before.cache_files, before.tape_files) == (2, 0, 0)
    assert all(fault.lost for fault in catalog.faults(open=True))
    blob, state = (source, Blob.STORED) if tier == "cache" else (tape, Blob.SAFE)
    assert reinstate(catalog, blob, numbers["/b"], state=state) == 1
    assert reinstate(catalog, blob, numbers["/b"], state=state) == 0, "a repeat changes nothing"
    assert copies(catalog, numbers["/a"]) == []
    assert copies(catalog, numbers["/b"]) == [blob.id]
    assert (catalog.blobs()[blob.id].state, catalog.blobs()[blob.id].files) == (state, 1)
    usage = catalog.usage()
    assert usage.cache_bytes + usage.tape_bytes == 2
    left = [(f.blob_id, f.path) for f in catalog.faults(open=True)]
    assert (blob.id, "/b") not in left
    assert len(left) == 3
    archivable = [b.id for found in catalog.archivable() for b in found.blobs]
    assert archivable == ([source.id] if tier == "cache" else [])


def test_a_reinstated_tape_copy_frees_the_cache_copy(catalog: Catalog) -> None:
    put = catalog.open()
    source, numbers = catalog.store(put, {"/a": b"a"})
    tape = catalog.archive(put, [source], state=Blob.SAFE)
    catalog.fault(tape)
    assert catalog.evict() == []
    reinstate(catalog, tape, numbers["/a"], state=Blob.SAFE)
    assert catalog.archivable() == []
    assert [blob.id for blob in catalog.evict()] == [source.id]


def test_a_lost_file_keeps_no_pack_waiting_for_tape(catalog: Catalog) -> None:
    put = catalog.open()
    source, numbers = catalog.store(put, {"/a": b"a", "/b": b"b"})
    tape = catalog.archive(put, [source], state=Blob.SAFE)
    catalog.fault(tape, numbers["/a"])
    assert [b.id for found in catalog.archivable() for b in found.blobs] == [source.id]
    catalog.fault(source, numbers["/a"])
    assert catalog.archivable() == [], "what is left in the pack is on tape"


def test_a_copy_that_failed_again_is_a_fault_again(catalog: Catalog) -> None:
    put = catalog.open()
    source, numbers = catalog.store(put, {"/a": b"a"})
    catalog.fault(source)
    reinstate(catalog, source, numbers["/a"])
    assert catalog.faults(open=True) == []
    catalog.fault(source)
    assert len(catalog.faults(open=True)) == 1


def test_only_what_is_at_fault_and_not_going_is_reinstated(catalog: Catalog) -> None:
    put = catalog.open()
    source, numbers = catalog.store(put, {"/a": b"a", "/b": b"b"})
    tape = catalog.archive(put, [source], state=Blob.SAFE)
    catalog.fault(source, numbers["/a"])
    assert reinstate(catalog, source, numbers["/b"]) == 0
    with refused("INVALID_FIELD"):
        reinstate(catalog, tape, numbers["/a"])
    catalog.fault(source)
    assert replaced(catalog, Blob.CACHE) == [source.id]
    with refused("BLOB_STATE"):
        reinstate(catalog, source, numbers["/a"])


def test_what_is_lost_is_kept_until_each_file_of_it_is_replaced(catalog: Catalog) -> None:
    put = catalog.open()
    contents = {"/a": b"a", "/b": b"b"}
    source, numbers = catalog.store(put, contents)
    catalog.fault(source)
    assert replaced(catalog, Blob.CACHE) == [], "somebody may still want to save it"
    (half,) = catalog.allocate(put.holding.id)
    catalog.record(half, members({"/a": numbers["/a"]}, contents))
    assert replaced(catalog, Blob.CACHE) == []
    (whole,) = catalog.allocate(put.holding.id)
    catalog.record(whole, members({"/b": numbers["/b"]}, contents))
    assert replaced(catalog, Blob.CACHE, dry_run=True) == [source.id]
    assert catalog.blobs()[source.id].state == Blob.LOST
    assert replaced(catalog, Blob.CACHE) == [source.id]
    assert catalog.blobs()[source.id].state == Blob.REMOVING


def test_an_object_with_nothing_but_directories_left_goes(catalog: Catalog) -> None:
    put = catalog.open()
    answer = catalog.register(put, {"/d": a_directory(), "/d/a": a_file(1), "/d/b": a_file(1)})
    contents = {"/d/a": b"a", "/d/b": b"b"}
    numbers = dict(zip(contents, answer.file_ids[1:], strict=True))
    top = Member(file_id=answer.file_ids[0], attributes=a_directory())
    (source,) = catalog.allocate(put.holding.id)
    catalog.record(source, [top, *members(numbers, contents)])
    catalog.archive(put, [source], state=Blob.SAFE)
    catalog.fault(source, numbers["/d/a"])
    assert replaced(catalog, Blob.CACHE) == [], "a good file is left in it"
    catalog.fault(source, numbers["/d/b"])
    assert replaced(catalog, Blob.CACHE, dry_run=True) == [source.id]
    assert catalog.blobs()[source.id].state == Blob.STORED
    assert replaced(catalog, Blob.CACHE) == [source.id]
    assert catalog.faults(open=True) == []


def test_what_must_stay_keeps_nothing_behind_it_from_being_found(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = catalog.open()
    hollow = [a_hollow_object(catalog, put, f"/{n}") for n in range(3)]
    keep_in_cache(catalog, hollow[0])
    monkeypatch.setattr("services.catalog.faults.MOST_LOOKED_AT", 1)
    client = CatalogClient(catalog.channel, "test")
    for dry_run in (True, False, True):
        found = [list(page) for page in client.claim_replaced(Blob.CACHE, 0, dry_run=dry_run)]
        claimed = [blob.id for page in found for blob in page]
        assert claimed == [blob.id for blob in hollow[1:]], "and they are claimed once"
        if not dry_run:
            catalog.set_state(Blob.REMOVED, *hollow[1:])
            hollow = hollow[:1]


def test_a_look_for_replaced_blobs_is_bounded_by_their_faults(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = catalog.open()
    for _ in range(3):
        blob, _ = catalog.store(put, {f"/{uuid.uuid4()}": b"x" for _ in range(4)})
        catalog.fault(blob)
    monkeypatch.setattr("services.catalog.faults._FAULTS_LOOKED_AT", 3)
    request, looked = api.ClaimReplacedRequest(tier=Blob.CACHE), []
    while after := catalog.stub.ClaimReplaced(request).next_after:
        looked.append(after)
        request.after = after
    assert looked == sorted(catalog.blobs()), "a blob whose faults do not fit is looked at too"


def test_a_bad_tape_file_is_kept_until_another_is_safe(catalog: Catalog) -> None:
    put = catalog.open()
    source, _ = catalog.store(put, {"/a": b"a"})
    tape = catalog.archive(put, [source], state=Blob.SAFE)
    catalog.fault(tape)
    again = catalog.archive(put, [source], state=Blob.WRITTEN)
    assert replaced(catalog, Blob.TAPE) == []
    catalog.set_state(Blob.SAFE, again)
    assert replaced(catalog, Blob.TAPE) == [tape.id]


def test_the_last_bad_copy_is_not_evicted_with_its_neighbours(catalog: Catalog) -> None:
    put = catalog.open()
    source, numbers = catalog.store(put, {"/a": b"a", "/b": b"b"})
    catalog.fault(source, numbers["/a"])
    catalog.archive(put, [source], state=Blob.SAFE)
    assert catalog.evict() == []
    assert reinstate(catalog, source, numbers["/a"]) == 1
    catalog.archive(put, [source], state=Blob.SAFE)
    assert [blob.id for blob in catalog.evict()] == [source.id]


def test_eviction_closes_the_faults_of_what_it_takes(catalog: Catalog) -> None:
    put = catalog.open()
    source, numbers = catalog.store(put, {"/a": b"a", "/b": b"b"})
    catalog.archive(put, [source], state=Blob.SAFE)
    catalog.fault(source, numbers["/a"])
    assert len(catalog.evict()) == 1
    assert [fault.repair for fault in catalog.faults()] == ["its blob was removed"]


def test_a_step_from_one_state_spares_what_went_on(catalog: Catalog) -> None:
    put = catalog.open()
    sealed, _ = catalog.store(put, {"/a": b"a"})
    catalog.archive(put, [sealed], state=Blob.SAFE)
    (writing,) = catalog.allocate(put.holding.id)
    request = api.SetBlobStatesRequest(
        blob_ids=[sealed.id, writing.id], state=Blob.REMOVING, only_from=Blob.WRITING
    )
    assert catalog.stub.SetBlobStates(request).changed == 1
    states = catalog.blobs()
    assert (states[sealed.id].state, states[writing.id].state) == (Blob.STORED, Blob.REMOVING)


def test_lists_of_blobs_are_bounded_and_say_who_wrote_them(catalog: Catalog) -> None:
    put = catalog.open()
    blobs = catalog.allocate(put.holding.id, count=5)
    found = catalog.blobs(limit=3)
    assert list(found) == [blob.id for blob in blobs[:3]]
    assert {blob.writer for blob in found.values()} == {"test"}
    assert all(blob.HasField("created_at") for blob in found.values())


def shown(metric: str, **labels: str) -> float:
    value = REGISTRY.get_sample_value(metric, labels)
    assert value is not None
    return value


def test_open_faults_and_lost_files_are_counted_in_pieces(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.catalog.faults._FILES_COUNTED", 2)
    put = catalog.open()
    kept, _ = catalog.store(put, {f"/kept/{n}": b"x" for n in range(3)})
    tape = catalog.archive(put, [kept], state=Blob.SAFE)
    lost, _ = catalog.store(put, {f"/lost/{n}": b"x" for n in range(2)})
    for blob in (kept, lost):
        catalog.fault(blob)
    catalog.tidy()
    counts = [shown("faults_open", tier="cache"), shown("faults_open", tier="tape")]
    assert (counts, shown("files_lost")) == ([5, 0], 2)
    catalog.fault(tape)
    catalog.tidy()
    counts = [shown("faults_open", tier="cache"), shown("faults_open", tier="tape")]
    assert (counts, shown("files_lost")) == ([5, 3], 5)


def test_counting_faults_takes_a_small_share_of_the_time(catalog: Catalog) -> None:
    put = catalog.open()
    source, numbers = catalog.store(put, {"/a": b"a", "/b": b"b"})
    now = 1000.0
    steps = iter([0.0, 0.0, 5.0])  # Whether to count; its begin; its end, 5 seconds later.

    def clock() -> float:
        nonlocal now
        now += next(steps, 0.0)
        return now

    maintenance = Maintenance(catalog.database, 10, clock)
    catalog.fault(source, numbers["/a"])
    catalog.loop.run(maintenance.once())
    assert shown("files_lost") == 1
    catalog.fault(source, numbers["/b"])
    now += 490
    catalog.loop.run(maintenance.once())
    assert shown("files_lost") == 1, "not so soon after it took long"
    now += 5
    catalog.loop.run(maintenance.once())
    assert shown("files_lost") == 2


# -- what PUTs left


def stale(catalog: Catalog, age: int = 0) -> dict[str, api.ListStalePutsResponse.Put]:
    answers = catalog.stub.ListStalePuts(api.ListStalePutsRequest(min_age_seconds=age))
    return {put.transaction_id: put for answer in answers for put in answer.puts}


def forget(catalog: Catalog, *names: str) -> tuple[int, int]:
    answer = catalog.stub.ForgetPuts(api.ForgetPutsRequest(transaction_ids=names))
    return answer.files, answer.holdings


def test_a_put_that_stored_nothing_is_forgotten_with_its_holding(catalog: Catalog) -> None:
    put = catalog.open("empty")
    catalog.register(put, {"/a": a_file(10), "/b": a_file(20)})
    (blob,) = catalog.allocate(put.holding.id)
    found = stale(catalog)[put.transaction]
    assert (found.files, found.bytes, found.empty_holding, found.label) == (2, 30, True, "empty")
    assert stale(catalog, age=3600) == {}
    assert forget(catalog, put.transaction) == (2, 0), "a blob of it may still be written"
    assert stale(catalog)[put.transaction].files == 0
    catalog.set_state(Blob.REMOVED, blob)
    assert forget(catalog, put.transaction) == (0, 1)
    assert forget(catalog, put.transaction) == (0, 0)
    assert (stale(catalog), catalog.holdings()) == ({}, [])


def test_an_empty_holding_goes_with_its_last_put(catalog: Catalog) -> None:
    first = catalog.open("empty")
    second = catalog.open("empty")
    catalog.register(first, {"/a": a_file(10)})
    (blob,) = catalog.allocate(first.holding.id)
    catalog.set_state(Blob.REMOVED, blob)
    assert forget(catalog, first.transaction) == (1, 0), "another PUT has it open"
    assert forget(catalog, second.transaction, first.transaction) == (0, 1)
    assert catalog.holdings() == []
    assert stale(catalog) == {}


def test_what_a_put_stored_stays(catalog: Catalog) -> None:
    put = catalog.open()
    catalog.store(put, {"/a": b"a"})
    catalog.register(put, {"/b": a_file(5)})
    assert stale(catalog)[put.transaction].empty_holding is False
    assert forget(catalog, put.transaction) == (1, 0)
    (file,) = catalog.find()
    assert (file.path, file.transaction_id) == ("/a", put.transaction)
    assert stale(catalog) == {}
    usage = catalog.usage()
    assert (usage.files, usage.bytes) == (1, 1)


def test_a_late_upload_of_a_forgotten_put_is_told(catalog: Catalog) -> None:
    put = catalog.open()
    numbers = dict(zip(["/a"], catalog.register(put, {"/a": a_file(1)}).file_ids, strict=True))
    (blob,) = catalog.allocate(put.holding.id)
    forget(catalog, put.transaction)
    answer = catalog.record(blob, members(numbers, {"/a": b"a"}))
    assert (answer.unused, list(answer.missing_file_ids)) == (True, [numbers["/a"]])
