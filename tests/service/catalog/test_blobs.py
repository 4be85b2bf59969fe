"""The life of blobs: recording, archiving, eviction, faults, and that no last copy is ever lost."""

import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from nearline.catalog.v1 import catalog_pb2 as api
from nearline.type.v1.storage_pb2 import Attributes, Blob
from services.kit.errors import from_rpc_error
from tests.service.catalog.harness import (
    Catalog,
    Member,
    Put,
    a_directory,
    a_file,
    digest,
    members,
    ranges,
    refused,
)


def pin(catalog: Catalog, numbers: list[int], days: float) -> None:
    until = Timestamp()
    until.FromDatetime(datetime.now(UTC) + timedelta(days=days))
    catalog.stub.PinFiles(api.PinFilesRequest(files=ranges(numbers), until=until))


def recall(catalog: Catalog, tape: Blob) -> tuple[Blob, api.RecordBlobResponse]:
    """Write the members of a tape blob into a new cache blob."""
    (blob,) = catalog.allocate(tape.holding_id)
    copied = [
        Member(
            file_id=member.file.id,
            offset=at * 1000,
            length=member.file.attributes.size,
            digest=member.file.digest,
        )
        for at, member in enumerate(catalog.members([tape.id]))
    ]
    return blob, catalog.record(blob, copied)


def places(catalog: Catalog, number: int) -> list[tuple[int, int]]:
    (file,) = catalog.files([number])
    return [(part.blob_id, part.state) for part in file.slices]


def test_allocated_blobs_have_distinct_keys_and_are_listed(catalog: Catalog) -> None:
    holding = catalog.open().holding.id
    blobs = catalog.allocate(holding, count=1000)
    assert len({blob.key for blob in blobs}) == len({blob.id for blob in blobs}) == 1000
    assert {blob.state for blob in blobs} == {Blob.WRITING}
    catalog.allocate(holding, Blob.TAPE)
    listed = catalog.blobs(tier=Blob.CACHE, states=[Blob.WRITING], holding_id=holding)
    assert {n: blob.key for n, blob in listed.items()} == {b.id: b.key for b in blobs}
    assert len(catalog.blobs()) == 1001
    assert catalog.blobs(states=[Blob.STORED]) == catalog.blobs(min_age_seconds=60) == {}
    assert list(catalog.blobs(blob_ids=[blobs[3].id, blobs[5].id, 10**12])) == [
        blobs[3].id,
        blobs[5].id,
    ]
    assert list(catalog.blobs(after=blobs[-2].id)) == [blobs[-1].id, blobs[-1].id + 1]
    with refused("HOLDING_NOT_FOUND"):
        catalog.allocate(holding + 1)
    for count in (0, 1001):
        with refused("INVALID_FIELD"):
            catalog.allocate(holding, count=count)


def test_the_first_seal_of_a_put_says_what_the_file_is(catalog: Catalog) -> None:
    put = catalog.open()
    (number,) = catalog.register(put, {"/a": a_file(3)}).file_ids
    (blob,) = catalog.allocate(put.holding.id)
    grown = a_file(5, xattrs={"user.a": b"\1"})
    grown.mtime_ns += 1
    member = Member(file_id=number, offset=512, length=5, digest=digest(b"hello"), attributes=grown)
    answer = catalog.record(blob, [member])
    assert (answer.accepted, answer.redundant, answer.unused) == (1, 0, False)
    (file,) = catalog.files([number])
    assert (file.attributes, file.digest, file.stored) == (grown, digest(b"hello"), True)
    (part,) = file.slices
    assert (part.blob_id, part.offset, part.length, part.key) == (blob.id, 512, 5, blob.key)
    sealed = catalog.blobs()[blob.id]
    assert (sealed.state, sealed.files) == (Blob.STORED, 1)


def test_a_repeated_seal_answers_the_same_and_changes_nothing(catalog: Catalog) -> None:
    put = catalog.open()
    numbers = catalog.register(put, {"/a": a_file(1), "/b": a_file(1)}).file_ids
    (blob,) = catalog.allocate(put.holding.id)
    packed = members({"/a": numbers[0], "/b": numbers[1]}, {"/a": b"a", "/b": b"b"})
    first = catalog.record(blob, packed, size=4096)
    assert catalog.record(blob, packed, size=4096) == first
    assert catalog.usage().files == 2
    with refused("BLOB_SEALED"):
        catalog.record(blob, packed, size=4097)


def test_a_blob_of_which_nothing_counts_is_to_be_removed(catalog: Catalog) -> None:
    put = catalog.open()
    contents = {"/a": b"a", "/b": b"bb"}
    _, numbers = catalog.store(put, contents)
    (second,) = catalog.allocate(put.holding.id)
    answer = catalog.record(second, members(numbers, contents), size=5000)
    assert (answer.accepted, answer.redundant, answer.unused) == (0, 2, True)
    assert catalog.record(second, members(numbers, contents), size=5000) == answer
    assert catalog.blobs()[second.id].state == Blob.REMOVING
    assert catalog.set_state(Blob.REMOVED, second) == 1
    assert catalog.record(second, members(numbers, contents), size=5000) == answer
    assert (catalog.usage().files, catalog.usage().cache_files) == (2, 2)


def test_other_bytes_are_never_taken_for_a_stored_file(catalog: Catalog) -> None:
    put = catalog.open()
    source, numbers = catalog.store(put, {"/a": b"good", "/b": b"same"})
    tape = catalog.claim(put, [source.id], "k").blob
    copies = [
        Member(file_id=numbers["/a"], offset=0, length=4, digest=digest(b"evil")),
        Member(file_id=numbers["/b"], offset=4, length=4, digest=digest(b"same")),
    ]
    answer = catalog.record(tape, copies)
    assert (answer.accepted, list(answer.mismatched_file_ids)) == (1, [numbers["/a"]])
    assert [place[0] for place in places(catalog, numbers["/a"])] == [source.id]
    # What is not on tape yet has to be planned again.
    assert [blob.id for found in catalog.archivable() for blob in found.blobs] == [source.id]


def test_what_a_seal_says_is_checked(catalog: Catalog) -> None:
    put = catalog.open()
    (number,) = catalog.register(put, {"/a": a_file(1)}).file_ids
    (blob,) = catalog.allocate(put.holding.id)
    good = members({"/a": number}, {"/a": b"a"})[0]

    def changed(**fields: object) -> Member:
        member = Member()
        member.CopyFrom(good)
        member.MergeFrom(Member(**fields))  # type: ignore[arg-type]
        return member

    bad = [
        [good, good],
        [changed(length=2)],
        [changed(offset=-1)],
        [changed(digest=b"short")],
        [changed(attributes=Attributes(type=Attributes.SYMLINK))],
        [changed(file_id=-1)],
        [changed(offset=10**6)],
    ]
    for batch in bad:
        with refused("INVALID_FIELD"):
            catalog.record(blob, batch, size=1000)
    for seal in ({"state": Blob.WRITTEN}, {"adler32": 1}, {"size": -1}):
        with refused("INVALID_FIELD"):
            catalog.record(blob, [good], **seal)
    with refused("BLOB_NOT_FOUND"):
        catalog.record(Blob(id=blob.id + 1, tier=Blob.CACHE), [good])
    with refused("INVALID_FIELD"):
        list(catalog.stub.RecordBlob(iter([api.RecordBlobRequest()])))
    assert catalog.record(blob, [good]).accepted == 1


def test_files_of_another_holding_are_not_recorded(catalog: Catalog) -> None:
    (number,) = catalog.register(catalog.open("one"), {"/a": a_file(1)}).file_ids
    (blob,) = catalog.allocate(catalog.open("two").holding.id)
    answer = catalog.record(blob, members({"/a": number}, {"/a": b"a"}))
    assert (list(answer.missing_file_ids), answer.unused) == ([number], True)


def test_attempts_that_seal_the_same_files_at_once_share_them(catalog: Catalog) -> None:
    put = catalog.open()
    contents = {f"/{n}": f"{n}".encode() for n in range(2000)}
    found = {path: a_file(len(data)) for path, data in contents.items()}
    numbers = dict(zip(contents, catalog.register(put, found).file_ids, strict=True))
    blobs = catalog.allocate(put.holding.id, count=4)
    # In opposite orders: row locks taken as they come would end in a deadlock.
    packed = members(numbers, contents)
    orders = [packed, packed[::-1], packed[1000:] + packed[:1000], packed[::2] + packed[1::2]]
    with ThreadPoolExecutor(4) as threads:
        answers = list(
            threads.map(lambda pair: catalog.record(*pair), zip(blobs, orders, strict=True))
        )
    assert sum(answer.accepted for answer in answers) == 2000
    assert all(answer.accepted + answer.redundant == 2000 for answer in answers)
    assert [answer.unused for answer in answers].count(False) == 1
    assert all(len(file.slices) == 1 for file in catalog.files(numbers.values()))
    assert (catalog.usage().files, catalog.usage().cache_files) == (2000, 2000)


def test_members_come_by_blob_and_offset(catalog: Catalog) -> None:
    put = catalog.open()
    large, _ = catalog.store(put, {f"/large/{n:04}": b"x" for n in range(2300)})
    small = [catalog.store(put, {f"/small/{n}": b"y"})[0] for n in range(5)]
    wanted = [small[3].id, large.id, small[0].id, small[1].id, large.id + 1000]
    found = catalog.members(wanted)
    assert [blob for blob, _ in _runs(found)] == wanted[:4]
    offsets = [member.offset for member in found if member.blob_id == large.id]
    assert offsets == sorted(offsets)
    assert len(offsets) == 2300
    assert found[0].file.attributes == a_file(1)
    with refused("INVALID_FIELD"):
        catalog.members(range(1, 10_002))


def _runs(found: list[api.ListMembersResponse.Member]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for member in found:
        if runs and runs[-1][0] == member.blob_id:
            runs[-1] = (member.blob_id, runs[-1][1] + 1)
        else:
            runs.append((member.blob_id, 1))
    return runs


def test_archivable_is_what_no_tape_copy_and_no_claim_covers(catalog: Catalog) -> None:
    one, two = catalog.open("one"), catalog.open("two")
    first = [catalog.store(one, {f"/{n}": b"x"})[0] for n in range(3)]
    second, _ = catalog.store(two, {"/a": b"x"})
    catalog.allocate(one.holding.id)
    found = catalog.archivable()
    assert [(f.holding.label, [b.id for b in f.blobs]) for f in found] == [
        ("one", [blob.id for blob in first]),
        ("two", [second.id]),
    ]
    assert abs(found[0].oldest.seconds - time.time()) < 120
    assert catalog.archivable(min_age_seconds=60) == []
    assert [len(f.blobs) for f in catalog.archivable(limit=2)] == [2]
    tape = catalog.claim(one, [first[0].id, first[1].id], "k").blob
    assert [b.id for f in catalog.archivable() for b in f.blobs] == [first[2].id, second.id]
    catalog.stub.ReleaseAggregate(api.ReleaseAggregateRequest(blob_id=tape.id))
    catalog.stub.ReleaseAggregate(api.ReleaseAggregateRequest(blob_id=tape.id))
    assert len([b for f in catalog.archivable() for b in f.blobs]) == 4
    catalog.archive(two, [second])
    assert [f.holding.label for f in catalog.archivable()] == ["one"]
    assert catalog.blobs()[tape.id].state == Blob.REMOVED


def test_a_claim_is_repeated_by_its_key_and_takes_what_is_free(catalog: Catalog) -> None:
    put, other = catalog.open("one"), catalog.open("two")
    blobs = [catalog.store(put, {f"/{n}": b"x"})[0].id for n in range(3)]
    foreign = catalog.store(other, {"/a": b"x"})[0].id
    first = catalog.claim(put, [blobs[1], foreign, blobs[0], blobs[1]], "k")
    assert list(first.source_blob_ids) == [blobs[1], blobs[0]]
    assert (first.blob.tier, first.blob.state) == (Blob.TAPE, Blob.WRITING)
    assert catalog.claim(put, blobs, "k") == first
    assert list(catalog.claim(put, blobs, "l").source_blob_ids) == [blobs[2]]
    with refused("NOTHING_TO_ARCHIVE"):
        catalog.claim(put, blobs, "m")
    with refused("HOLDING_NOT_FOUND"):
        catalog.claim(Put(type(put.holding)(id=10**6)), blobs, "n")
    with refused("BLOB_NOT_FOUND"):
        catalog.stub.ReleaseAggregate(api.ReleaseAggregateRequest(blob_id=blobs[0]))


@pytest.mark.parametrize("end", ["released", "recorded", "removed"])
def test_a_claim_that_is_over_is_not_answered_again(catalog: Catalog, end: str) -> None:
    put = catalog.open()
    source, numbers = catalog.store(put, {"/a": b"x"})
    tape = catalog.claim(put, [source.id], "k").blob
    if end == "released":
        catalog.stub.ReleaseAggregate(api.ReleaseAggregateRequest(blob_id=tape.id))
    elif end == "recorded":
        catalog.record(tape, [Member(file_id=numbers["/a"], length=1, digest=digest(b"x"))])
    else:
        catalog.set_state(Blob.REMOVED, tape)
    with refused("CLAIM_OVER"):
        catalog.claim(put, [source.id], "k")
    if end == "recorded":
        with refused("NOTHING_TO_ARCHIVE"):
            catalog.claim(put, [source.id], "l")
    else:
        assert catalog.claim(put, [source.id], "l").blob.id != tape.id


def test_claims_at_the_same_time_never_share_a_source(catalog: Catalog) -> None:
    put = catalog.open()
    blobs = [catalog.store(put, {f"/{n}": b"x"})[0].id for n in range(12)]

    def attempt(n: int) -> list[int]:
        try:
            return list(
                catalog.claim(put, blobs[n % 5 :] + blobs[: n % 5], f"k{n % 4}").source_blob_ids
            )
        except grpc.RpcError as error:
            return [] if from_rpc_error(error).reason == "NOTHING_TO_ARCHIVE" else [-1]

    with ThreadPoolExecutor(8) as threads:
        taken = list(threads.map(attempt, range(16)))
    keyed = {n % 4: tuple(found) for n, found in enumerate(taken) if found}
    assert sorted(blob for found in keyed.values() for blob in found) == sorted(blobs)


def test_an_aggregate_that_was_written_cannot_be_released(catalog: Catalog) -> None:
    put = catalog.open()
    source, numbers = catalog.store(put, {"/a": b"x"})
    tape = catalog.archive(put, [source])
    with refused("BLOB_SEALED"):
        catalog.stub.ReleaseAggregate(api.ReleaseAggregateRequest(blob_id=tape.id))
    assert places(catalog, numbers["/a"]) == [(source.id, Blob.STORED), (tape.id, Blob.WRITTEN)]


def test_only_what_is_safe_on_tape_is_evicted(catalog: Catalog) -> None:
    put = catalog.open()
    source, numbers = catalog.store(put, {"/a": b"xyz", "/b": b"12"})
    assert catalog.evict() == []
    tape = catalog.archive(put, [source])
    assert catalog.evict() == []
    assert catalog.set_state(Blob.SAFE, tape) == 1
    assert catalog.set_state(Blob.SAFE, tape) == 0
    (evicted,) = catalog.evict()
    assert (evicted.id, evicted.state, evicted.key) == (source.id, Blob.REMOVING, source.key)
    # From now on nobody reads it, and the claim is told again until its bytes are gone.
    assert places(catalog, numbers["/a"]) == [(tape.id, Blob.SAFE)]
    assert [blob.id for blob in catalog.evict()] == [source.id]
    assert catalog.set_state(Blob.REMOVED, source) == 1
    assert catalog.evict() == []
    usage = catalog.usage()
    assert (usage.files, usage.bytes, usage.cache_files, usage.cache_bytes) == (2, 5, 0, 0)
    assert (usage.tape_files, usage.tape_bytes) == (2, 5)
    assert len(catalog.find()) == 2


def test_a_blob_goes_only_when_all_its_files_are_safe(catalog: Catalog) -> None:
    put = catalog.open()
    source, numbers = catalog.store(put, {"/a": b"a", "/b": b"b"})
    tape = catalog.claim(put, [source.id], "k").blob
    one = Member(file_id=numbers["/a"], offset=0, length=1, digest=digest(b"a"))
    catalog.record(tape, [one], state=Blob.SAFE)
    assert catalog.evict() == []
    rest = catalog.archive(put, [source], state=Blob.SAFE)
    assert [blob.id for blob in catalog.evict()] == [source.id]
    assert places(catalog, numbers["/b"]) == [(rest.id, Blob.SAFE)]


def test_the_least_recently_used_go_first_up_to_the_bytes(catalog: Catalog) -> None:
    put, other = catalog.open("one"), catalog.open("two")
    blobs = [catalog.store(put, {f"/{n}": b"x"})[0] for n in range(80)]
    catalog.archive(put, blobs, state=Blob.SAFE)
    apart, _ = catalog.store(other, {"/a": b"x"})
    catalog.archive(other, [apart], state=Blob.SAFE)
    with catalog.database.connect() as connection:
        connection.execute(
            text("UPDATE blob SET last_access = now() - id * interval '1 hour' WHERE tier = 1")
        )
        connection.commit()
    assert [blob.id for blob in catalog.evict(holding_id=other.holding.id)] == [apart.id]
    catalog.set_state(Blob.REMOVED, apart)
    size = catalog.blobs()[blobs[0].id].size
    expected = [blob.id for blob in blobs[::-1]]
    assert [blob.id for blob in catalog.evict(bytes=2 * size + 1)] == expected[:3]
    # Unfinished ones count: no more is taken.
    assert sorted(blob.id for blob in catalog.evict(bytes=2 * size)) == sorted(expected[:3])
    assert sorted(blob.id for blob in catalog.evict(limit=70)) == sorted(expected[:70])
    assert len(catalog.evict()) == 80


def test_pinned_files_stay_the_later_pin_wins_and_expired_ones_go(catalog: Catalog) -> None:
    put = catalog.open()
    source, numbers = catalog.store(put, {"/a": b"a", "/b": b"b"})
    catalog.archive(put, [source], state=Blob.SAFE)
    pin(catalog, [numbers["/b"]], days=1)
    pin(catalog, [numbers["/b"]], days=-1)
    catalog.tidy()
    assert catalog.evict() == []
    with catalog.database.connect() as connection:
        connection.execute(text("UPDATE pin SET until = now()"))
        connection.commit()
    assert len(catalog.evict()) == 1
    with refused("INVALID_FIELD"):
        catalog.stub.PinFiles(api.PinFilesRequest(files=ranges([1])))


def test_a_pin_holds_for_copies_that_come_later(catalog: Catalog) -> None:
    put = catalog.open()
    source, numbers = catalog.store(put, {"/a": b"a"})
    tape = catalog.archive(put, [source], state=Blob.SAFE)
    assert len(catalog.evict()) == 1
    pin(catalog, list(numbers.values()), days=1)
    catalog.set_state(Blob.REMOVED, source)
    recall(catalog, tape)
    assert catalog.evict() == []


def test_a_recalled_copy_is_read_not_archived_and_evictable(catalog: Catalog) -> None:
    put = catalog.open()
    source, numbers = catalog.store(put, {"/a": b"a", "/b": b"b"})
    tape = catalog.archive(put, [source], state=Blob.SAFE)
    catalog.evict()
    blob, answer = recall(catalog, tape)
    assert answer.accepted == 2
    assert places(catalog, numbers["/a"]) == [(blob.id, Blob.STORED), (tape.id, Blob.SAFE)]
    assert catalog.archivable() == []
    _, again = recall(catalog, tape)
    assert (again.redundant, again.unused) == (2, True)
    assert blob.id in {found.id for found in catalog.evict()}


def test_claims_at_the_same_time_remove_each_blob_once(catalog: Catalog) -> None:
    put = catalog.open()
    blobs = [catalog.store(put, {f"/{n}": b"x"})[0] for n in range(40)]
    catalog.archive(put, blobs, state=Blob.SAFE)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: catalog.evict(), range(4)))
    assert {blob.id for blob in catalog.evict()} == {blob.id for blob in blobs}
    assert catalog.usage().cache_files == 0


def test_a_lost_tape_copy_keeps_the_cache_copy_and_is_archived_again(catalog: Catalog) -> None:
    put = catalog.open()
    source, numbers = catalog.store(put, {"/a": b"a", "/b": b"b"})
    tape = catalog.archive(put, [source], state=Blob.SAFE)
    assert catalog.fault(tape, numbers["/a"]) == []
    assert catalog.evict() == []
    assert places(catalog, numbers["/a"]) == [(source.id, Blob.STORED)]
    assert places(catalog, numbers["/b"]) == [(source.id, Blob.STORED), (tape.id, Blob.SAFE)]
    assert [blob.id for found in catalog.archivable() for blob in found.blobs] == [source.id]
    assert catalog.blobs()[tape.id].files == 1
    again = catalog.archive(put, [source], state=Blob.SAFE)
    assert places(catalog, numbers["/a"])[1] == (again.id, Blob.SAFE)
    assert len(catalog.evict()) == 1


def test_losing_the_last_copy_is_reported_and_stays_visible(catalog: Catalog) -> None:
    put = catalog.open()
    source, numbers = catalog.store(put, {"/a": b"a", "/b": b"b"})
    assert catalog.fault(source) == sorted(numbers.values())
    assert catalog.fault(source) == sorted(numbers.values())
    assert catalog.blobs()[source.id].state == Blob.LOST
    lost = [(Blob.CACHE, Blob.LOST)]
    assert [[(p.tier, p.state) for p in f.locations] for f in catalog.find()] == [lost, lost]
    ((files, unmatched),) = catalog.resolve(["/a"])
    assert (len(files), len(files[0].slices), unmatched) == (1, 0, [])
    assert catalog.archivable() == []
    usage = catalog.usage()
    assert (usage.files, usage.cache_files) == (2, 0)
    # A copy that turns up with the right bytes makes the file whole again.
    (blob,) = catalog.allocate(put.holding.id)
    wrong = Member(file_id=numbers["/b"], offset=0, length=1, digest=digest(b"?"))
    right = Member(file_id=numbers["/a"], offset=0, length=1, digest=digest(b"a"))
    answer = catalog.record(blob, [right, wrong])
    assert (answer.accepted, list(answer.mismatched_file_ids)) == (1, [numbers["/b"]])
    assert places(catalog, numbers["/a"]) == [(blob.id, Blob.STORED)]
    assert catalog.fault(source) == [numbers["/b"]]


def test_a_blob_reported_lost_is_not_read(catalog: Catalog) -> None:
    put = catalog.open()
    source, numbers = catalog.store(put, {"/a": b"a"})
    tape = catalog.archive(put, [source], state=Blob.SAFE)
    assert catalog.set_state(Blob.LOST, source) == 1
    assert places(catalog, numbers["/a"]) == [(tape.id, Blob.SAFE)]
    with refused("BLOB_NOT_FOUND"):
        catalog.fault(Blob(id=10**6))


def test_the_last_copy_cannot_be_taken_away(catalog: Catalog) -> None:
    put = catalog.open()
    source, numbers = catalog.store(put, {"/a": b"a"})
    with refused("LAST_COPY"):
        catalog.set_state(Blob.REMOVING, source)
    tape = catalog.archive(put, [source], state=Blob.SAFE)
    with refused("LAST_COPY"):
        catalog.set_state(Blob.REMOVING, source, tape)
    catalog.set_state(Blob.REMOVING, source)
    with refused("LAST_COPY"):
        catalog.set_state(Blob.REMOVING, tape)
    assert places(catalog, numbers["/a"]) == [(tape.id, Blob.SAFE)]


def test_two_removals_at_once_leave_one_copy(catalog: Catalog) -> None:
    put = catalog.open()
    pairs = []
    for n in range(10):
        source, _ = catalog.store(put, {f"/{n}": b"a"})
        pairs.append((source, catalog.archive(put, [source], state=Blob.SAFE)))

    def remove(blob: Blob) -> int:
        try:
            return catalog.set_state(Blob.REMOVING, blob)
        except grpc.RpcError as error:
            return 0 if from_rpc_error(error).reason == "LAST_COPY" else 100

    with ThreadPoolExecutor(8) as threads:
        done = list(threads.map(remove, [blob for pair in pairs for blob in pair]))
    assert sum(done) == 10
    assert all(len(file.locations) == 1 for file in catalog.find())


def test_even_the_database_keeps_the_last_copy(catalog: Catalog) -> None:
    source, numbers = catalog.store(catalog.open(), {"/a": b"a"})
    with (
        catalog.database.engine.connect() as connection,
        pytest.raises(IntegrityError, match="last"),
    ):
        connection.execute(text(f"DELETE FROM location WHERE blob_id = {source.id}"))
    assert places(catalog, numbers["/a"]) == [(source.id, Blob.STORED)]


def test_steps_that_skip_or_go_back_are_refused(catalog: Catalog) -> None:
    put = catalog.open()
    source, _ = catalog.store(put, {"/a": b"a"})
    tape = catalog.archive(put, [source], state=Blob.SAFE)
    (writing,) = catalog.allocate(put.holding.id)
    for state, blob in [(Blob.REMOVED, tape), (Blob.SAFE, source), (Blob.SAFE, writing)]:
        with refused("BLOB_STATE"):
            catalog.set_state(state, blob)
    for state in (Blob.STATE_UNSPECIFIED, Blob.WRITING, Blob.STORED, Blob.WRITTEN):
        with refused("INVALID_FIELD"):
            catalog.set_state(state, writing)
    with refused("BLOB_NOT_FOUND"):
        catalog.set_state(Blob.LOST, Blob(id=10**6))
    assert catalog.set_state(Blob.REMOVED, writing) == 1
    with refused("BLOB_SEALED"):
        catalog.record(writing, [])


def test_an_orphaned_tape_blob_frees_its_sources(catalog: Catalog) -> None:
    put = catalog.open()
    source, _ = catalog.store(put, {"/a": b"a"})
    tape = catalog.claim(put, [source.id], str(uuid.uuid4())).blob
    catalog.set_state(Blob.REMOVED, tape)
    assert [blob.id for found in catalog.archivable() for blob in found.blobs] == [source.id]


def test_directories_links_and_empty_files_are_members_too(catalog: Catalog) -> None:
    put = catalog.open()
    link = Attributes(type=Attributes.SYMLINK, mode=0o777, link_target="/x")
    found = {"/d": a_directory(), "/l": link, "/e": a_file(0)}
    numbers = catalog.register(put, found).file_ids
    (blob,) = catalog.allocate(put.holding.id)
    packed = [
        Member(file_id=numbers[0], offset=512, attributes=a_directory()),
        Member(file_id=numbers[1], offset=1024, attributes=link),
        Member(file_id=numbers[2], offset=1536, digest=digest(b""), attributes=a_file(0)),
    ]
    assert catalog.record(blob, packed, size=4096).accepted == 3
    assert {file.path: file.link_target for file in catalog.find()} == {
        "/d": "",
        "/l": "/x",
        "/e": "",
    }
    catalog.archive(put, [blob], state=Blob.SAFE)
    assert len(catalog.evict()) == 1
