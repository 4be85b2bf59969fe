"""The catalog against a model in plain Python: any order of operations, the same answers."""

import time

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run
from sqlalchemy import text

from nearline.catalog.v1 import catalog_pb2 as api
from nearline.type.v1.storage_pb2 import Blob
from services.catalog import faults
from tests.service.catalog.harness import (
    GROUP,
    Catalog,
    Member,
    Put,
    a_file,
    digest,
    ranges,
    refused,
)
from tests.service.catalog.model import READABLE, Model, ModelBlob, ModelFile

PATHS = [f"/{directory}/{name}" for directory in ("a", "a/b", "ab") for name in ("x", "y")]
LABELS = ["one", "two"]
CONTENTS = [b"", b"1", b"22"]


class CatalogMachine(RuleBasedStateMachine):
    """Drives both; each answer and, after each step, all that can be seen must agree."""

    catalog: Catalog

    def __init__(self) -> None:
        super().__init__()
        self.puts: list[Put] = []
        self.ended: list[Put] = []
        self.model = Model()

    def teardown(self) -> None:
        tables = (
            "TRUNCATE holding, put, directory, file, blob, location, aggregate, fault, pin, usage, "
            "reservation, quota"
        )
        with self.catalog.database.connect() as connection:
            connection.execute(text(tables))
            connection.commit()

    @initialize(
        kept=st.lists(st.sampled_from([0, Blob.WRITTEN, Blob.SAFE]), min_size=2, max_size=2),
        content=st.sampled_from(CONTENTS),
        bad=st.lists(st.integers(0, 3), max_size=3),
    )
    def begin(self, kept: list[int], content: bytes, bad: list[int]) -> None:
        """Two holdings with an object of three files each, some on tape, and some copies bad.

        From nothing at all few runs would get to what is rare.
        """
        for label, on_tape in zip(LABELS, kept, strict=True):
            put = self._open(label)
            self._register(put, PATHS[:4])
            source = self._store(put.holding.id, [], content)
            if on_tape:
                self._written(self._claimed([source]), on_tape, drop=False)
        for at in bad:
            placed = self._placed()
            if placed:
                self._fail(placed[at % len(placed)], whole=at < 2)

    @precondition(lambda self: len(self.puts) < 3)
    @rule(label=st.sampled_from(LABELS))
    def open(self, label: str) -> None:
        self._open(label)

    def _open(self, label: str) -> Put:
        put = self.catalog.open(label)
        self.puts.append(put)
        self.model.puts[put.transaction] = put.holding.id
        return put

    @rule(files=st.sampled_from([0, 0, 4, 8]))
    def keep_house(self, files: int) -> None:
        self.catalog.stub.SetQuota(api.SetQuotaRequest(group=GROUP, quota_files=files))
        self.model.quota = files
        self.catalog.tidy()
        by_tier, lost = self.catalog.loop.run(faults.open_counts(self.catalog.database))
        assert (by_tier, lost) == (self.model.open_faults(), len(self.model.lost()))

    @precondition(lambda self: self.puts)
    @rule(
        data=st.data(), paths=st.lists(st.sampled_from(PATHS), min_size=1, max_size=4, unique=True)
    )
    def register(self, data: st.DataObject, paths: list[str]) -> None:
        self._register(data.draw(st.sampled_from(self.puts)), paths)

    def _register(self, put: Put, paths: list[str]) -> None:
        # What is taken over counts until it is gone.
        room = self.model.quota - len(self.model.files) if self.model.quota else len(paths)
        answer = self.catalog.register(put, dict.fromkeys(sorted(paths), a_file(1)))
        codes = {failure.path: failure.code for failure in answer.rejected}
        for path, number in zip(sorted(paths), answer.file_ids, strict=True):
            room -= self._registered(put, path, number, codes.get(path), room)

    def _registered(self, put: Put, path: str, number: int, code: str | None, room: int) -> bool:
        """Whether the path is new, and takes room."""
        present = [
            n for n, f in self.model.files.items() if (f.holding, f.path) == (put.holding.id, path)
        ]
        if present and self.model.files[present[0]].put == put.transaction:
            assert (number, code) == (present[0], None)
            return False
        if present and self.model.files[present[0]].digest is not None:
            assert (number, code) == (0, "ALREADY_EXISTS")
            return False
        for old in present:
            self.model.forget_file(old)
        if room <= 0:
            assert (number, code) == (0, "OVER_QUOTA")
            return False
        assert code is None
        assert number not in {*self.model.files, *self.model.gone}
        self.model.files[number] = ModelFile(put.holding.id, path, put.transaction)
        return True

    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        """A PUT has ended."""
        put = data.draw(st.sampled_from(self.puts + self.ended))
        if put in self.puts:
            self.puts.remove(put)
            self.ended.append(put)
        answer = self.catalog.stub.ForgetPuts(
            api.ForgetPutsRequest(transaction_ids=[put.transaction])
        )
        left = self.model.registered(put.transaction)
        for number in left:
            self.model.forget_file(number)
        assert (answer.files, answer.holdings) == (len(left), self.model.forget_put(put))
        self._stale_puts_agree()

    def _stale_puts_agree(self) -> None:
        found = self.catalog.stub.ListStalePuts(api.ListStalePutsRequest())
        left = {p.transaction_id: (p.files, p.empty_holding) for one in found for p in one.puts}
        assert left == self.model.stale_puts()

    @precondition(lambda self: self.model.files)
    @rule(data=st.data(), others=st.integers(0, 3), content=st.sampled_from(CONTENTS))
    def store(self, data: st.DataObject, others: int, content: bytes) -> None:
        """Upload what a holding lacks a cache copy of, and a few numbers that do not belong."""
        holding = data.draw(
            st.sampled_from(sorted({file.holding for file in self.model.files.values()}))
        )
        known = sorted({*self.model.files, *self.model.gone})
        self._store(holding, data.draw(st.lists(st.sampled_from(known), max_size=others)), content)

    def _store(self, holding: int, strange: list[int], content: bytes) -> int:
        lacking = [
            n
            for n, f in self.model.files.items()
            if f.holding == holding and (not f.places or f.digest is None)
        ]
        (blob,) = self.catalog.allocate(holding)
        members = [
            Member(
                file_id=number,
                offset=512 * (at + 1),
                length=len(content),
                digest=digest(content),
                attributes=a_file(len(content)),
            )
            for at, number in enumerate(dict.fromkeys(lacking[:3] + strange))
        ]
        self.model.blobs[blob.id] = ModelBlob(blob)
        self._sealed(blob, members, Blob.STORED)
        return blob.id

    def _sealed(self, blob: Blob, members: list[Member], state: int) -> None:
        answer = self.catalog.record(blob, members, state=state)
        accepted, redundant, mismatched, missing = 0, 0, [], []
        for member in members:
            file = self.model.files.get(member.file_id)
            if file is None or file.holding != blob.holding_id:
                missing.append(member.file_id)
            elif blob.tier in file.places:
                redundant += 1
            elif file.digest not in (None, member.digest):
                mismatched.append(member.file_id)
            else:
                accepted += 1
                file.digest, file.size = member.digest, member.length
                self.model.locate(member.file_id, blob.id)
                self.model.repair(member.file_id, blob.tier)
        assert (answer.accepted, answer.redundant) == (accepted, redundant)
        assert list(answer.mismatched_file_ids) == sorted(mismatched)
        assert list(answer.missing_file_ids) == sorted(missing)
        assert answer.unused == (not accepted)
        assert self.catalog.record(blob, members, state=state) == answer
        self.model.blobs[blob.id].state = state if accepted else Blob.REMOVING
        self.model.free_sources(blob.id)

    @precondition(lambda self: self._in_states(Blob.STORED))
    @rule(
        data=st.data(),
        state=st.sampled_from([Blob.WRITTEN, Blob.SAFE, Blob.SAFE]),
        drop=st.sampled_from([False, False, True]),
    )
    def archive(self, data: st.DataObject, state: int, drop: bool) -> None:
        stored = self._in_states(Blob.STORED)
        waiting = [n for n in stored if self.model.waits(n)]
        source = data.draw(st.sampled_from(waiting or stored))
        if not self.model.waits(source):
            with refused("NOTHING_TO_ARCHIVE"):
                self.catalog.archive(self._put_of(source), [self.model.blobs[source].blob])
            return
        self._written(self._claimed([source]), state, drop)

    @precondition(lambda self: self._in_states(Blob.STORED))
    @rule(data=st.data())
    def claim(self, data: st.DataObject) -> None:
        """As `archive`, to be written later or never."""
        stored = self._in_states(Blob.STORED)
        first = data.draw(st.sampled_from([n for n in stored if self.model.waits(n)] or stored))
        holding = self.model.blobs[first].blob.holding_id
        here = sorted(n for n, b in self.model.blobs.items() if b.blob.holding_id == holding)
        others = data.draw(st.lists(st.sampled_from(here), max_size=2))
        sources = list(dict.fromkeys([*others, first]))
        if any(self.model.waits(source) for source in sources):
            self._claimed(sources)
        else:
            with refused("NOTHING_TO_ARCHIVE"):
                self.catalog.claim(self._put_of(sources[0]), sources)

    def _claimed(self, sources: list[int]) -> api.ClaimAggregateResponse:
        key = f"claim {len(self.model.claims)} of {sources[0]}"
        claimed = self.catalog.claim(self._put_of(sources[0]), sources, key)
        assert list(claimed.source_blob_ids) == [n for n in sources if self.model.waits(n)]
        self.model.claims[key] = claimed
        self.model.blobs[claimed.blob.id] = ModelBlob(claimed.blob)
        for source in claimed.source_blob_ids:
            self.model.blobs[source].aggregate = claimed.blob.id
        return claimed

    def _written(self, claimed: api.ClaimAggregateResponse, state: int, drop: bool) -> None:
        members = [
            Member(file_id=n, offset=0, length=f.size, digest=f.digest)
            for n, f in self.model.members(*claimed.source_blob_ids).items()
        ]
        self._sealed(claimed.blob, members[1:] if drop else members, state)

    @precondition(lambda self: self.model.claims)
    @rule(
        data=st.data(),
        what=st.sampled_from(["repeat", "repeat", "release", "write"]),
        drop=st.booleans(),
    )
    def go_on_with_a_claim(self, data: st.DataObject, what: str, drop: bool) -> None:
        writing = self._in_states(Blob.WRITING)
        claims = sorted(k for k, c in self.model.claims.items() if c.blob.id in writing)
        key = data.draw(st.sampled_from(claims or sorted(self.model.claims)))
        claimed = self.model.claims[key]
        blob = self.model.blobs[claimed.blob.id]
        if what == "repeat" and blob.state == Blob.WRITING:
            sources = list(claimed.source_blob_ids)
            assert self.catalog.claim(self._put_of(blob.blob.id), sources[:1], key) == claimed
        elif what == "repeat":
            with refused("CLAIM_OVER"):
                self.catalog.claim(self._put_of(blob.blob.id), [claimed.blob.id], key)
        elif what == "release":
            self._release(blob)
        elif blob.state == Blob.WRITING:
            self._written(claimed, Blob.WRITTEN, drop)

    def _release(self, blob: ModelBlob) -> None:
        request = api.ReleaseAggregateRequest(blob_id=blob.blob.id)
        if blob.state in (Blob.WRITING, Blob.REMOVED):
            self.catalog.stub.ReleaseAggregate(request)
            blob.state = Blob.REMOVED
            self.model.free_sources(blob.blob.id)
        else:
            with refused("BLOB_SEALED"):
                self.catalog.stub.ReleaseAggregate(request)

    @precondition(lambda self: self._in_states(Blob.WRITTEN))
    @rule(data=st.data())
    def confirm(self, data: st.DataObject) -> None:
        chosen = self.model.blobs[data.draw(st.sampled_from(self._in_states(Blob.WRITTEN)))]
        assert self.catalog.set_state(Blob.SAFE, chosen.blob) == 1
        chosen.state = Blob.SAFE

    @precondition(lambda self: any(Blob.TAPE in f.places for f in self.model.files.values()))
    @rule(data=st.data())
    def recall(self, data: st.DataObject) -> None:
        on_tape = sorted(
            {f.places[Blob.TAPE] for f in self.model.files.values() if Blob.TAPE in f.places}
        )
        tape = data.draw(st.sampled_from(on_tape))
        (blob,) = self.catalog.allocate(self.model.blobs[tape].blob.holding_id)
        members = [
            Member(file_id=n, offset=9, length=f.size, digest=f.digest)
            for n, f in self.model.files.items()
            if f.places.get(Blob.TAPE) == tape
        ]
        self.model.blobs[blob.id] = ModelBlob(blob)
        self._sealed(blob, members, Blob.STORED)

    @rule(finish=st.booleans())
    def evict(self, finish: bool) -> None:
        blobs = self.model.blobs
        going = {n for n, b in blobs.items() if b.state == Blob.REMOVING}
        unfinished = {n for n in going if blobs[n].blob.tier == Blob.CACHE}
        free = {n for n in blobs if self.model.evictable(n)}
        claimed = self.catalog.evict()
        assert {blob.id for blob in claimed} == unfinished | free
        for number in free:
            self.model.remove(number)
        if finish:
            assert self.catalog.set_state(Blob.REMOVED, *claimed) == len(claimed)
            for blob in claimed:
                self.model.remove(blob.id, Blob.REMOVED)

    @precondition(lambda self: self.model.files)
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.model.files)))
        until = Timestamp(seconds=int(time.time()) + 3600)
        self.catalog.stub.PinFiles(api.PinFilesRequest(files=ranges([number]), until=until))
        self.model.pinned.add(number)

    @precondition(lambda self: any(f.places for f in self.model.files.values()))
    @rule(data=st.data(), whole=st.booleans())
    def fault(self, data: st.DataObject, whole: bool) -> None:
        self._fail(data.draw(st.sampled_from(self._placed())), whole)

    def _placed(self) -> list[tuple[int, int]]:
        """File and blob of each readable copy."""
        files = sorted(self.model.files.items())
        return [(n, blob) for n, f in files for blob in f.places.values()]

    def _fail(self, copy: tuple[int, int], whole: bool) -> None:
        number, blob = copy
        hit = [n for n, b in self._placed() if b == blob and (whole or n == number)]
        lost = self.catalog.fault(self.model.blobs[blob].blob, *([] if whole else [number]))
        for number in hit:
            self.model.drop(number, blob)
            self.model.faults[blob, number] = True
        assert set(lost) >= {n for n in hit if not self.model.files[n].places}
        assert all(not self.model.files[n].places for n in lost)
        if not any(blob in f.places.values() for f in self.model.files.values()):
            self.model.blobs[blob].state = Blob.LOST

    @precondition(lambda self: self.model.faults)
    @rule(data=st.data(), whole=st.booleans(), safe=st.booleans())
    def reinstate(self, data: st.DataObject, whole: bool, safe: bool) -> None:
        number, file = data.draw(st.sampled_from(sorted(self.model.faults)))
        blob = self.model.blobs[number]
        hit = [f for b, f in self.model.faults if b == number and (whole or f == file)]
        on_tape = Blob.SAFE if safe else Blob.WRITTEN
        state = Blob.STORED if blob.blob.tier == Blob.CACHE else on_tape
        request = api.ReinstateCopiesRequest(blob_id=number, file_ids=hit, state=state)
        if blob.state not in (*READABLE, Blob.LOST):
            with refused("BLOB_STATE"):
                self.catalog.stub.ReinstateCopies(request)
            return
        back = [
            f
            for f in hit
            if self.model.faults[number, f] and blob.blob.tier not in self.model.files[f].places
        ]
        assert self.catalog.stub.ReinstateCopies(request).reinstated == len(back)
        for one in hit:
            self.model.faults[number, one] = False
        for one in back:
            self.model.locate(one, number)
            blob.state = state if blob.state == Blob.LOST else blob.state

    @rule(tier=st.sampled_from([Blob.CACHE, Blob.TAPE]), dry_run=st.booleans())
    def claim_replaced(self, tier: Blob.Tier.ValueType, dry_run: bool) -> None:
        request = api.ClaimReplacedRequest(tier=tier, dry_run=dry_run, limit=2)
        expected = {
            n for n, b in self.model.blobs.items() if b.blob.tier == tier and self.model.useless(n)
        }
        claimed: list[int] = []
        while True:
            answer = self.catalog.stub.ClaimReplaced(request)
            claimed += [blob.id for blob in answer.blobs]
            request.after = answer.next_after
            if not request.after:
                break
        assert sorted(claimed) == sorted(expected)
        for number in [] if dry_run else expected:
            self.model.remove(number)

    @precondition(lambda self: self._in_states(*READABLE))
    @rule(data=st.data())
    def remove_by_hand(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self._in_states(*READABLE)))
        if any(set(f.places.values()) == {number} for f in self.model.files.values()):
            with refused("LAST_COPY"):
                self.catalog.set_state(Blob.REMOVING, self.model.blobs[number].blob)
        else:
            assert self.catalog.set_state(Blob.REMOVING, self.model.blobs[number].blob) == 1
            self.model.remove(number)

    @invariant()
    def everything_seen_agrees(self) -> None:
        stored = self.model.stored()
        found = self.catalog.find()
        assert {f.id: (f.holding_id, f.path, f.size, f.transaction_id) for f in found} == {
            n: (f.holding, f.path, f.size, f.put) for n, f in stored.items()
        }
        for file in found:
            states = [self.model.blobs[b].state for _, b in sorted(stored[file.id].places.items())]
            # A file without a good copy shows the bad ones.
            shown = [place.state for place in file.locations]
            assert [state for state in shown if state != Blob.LOST] == states
        blobs = self.catalog.blobs()
        assert {n: b.state for n, b in blobs.items()} == {
            n: b.state for n, b in self.model.blobs.items()
        }

    @invariant()
    def counts_agree(self) -> None:
        stored = list(self.model.stored().values())
        usage = self.catalog.usage()
        assert (usage.files, usage.bytes) == (len(stored), sum(f.size for f in stored))
        for tier, count, size in (
            (Blob.CACHE, usage.cache_files, usage.cache_bytes),
            (Blob.TAPE, usage.tape_files, usage.tape_bytes),
        ):
            there = [f.size for f in stored if tier in f.places]
            assert (count, size) == (len(there), sum(there))
        found = {holding.id: (holding.files, holding.bytes) for holding in self.catalog.holdings()}
        for number, counts in found.items():
            here = [f.size for f in stored if f.holding == number]
            assert counts == (len(here), sum(here))

    @invariant()
    def resolving_agrees(self) -> None:
        ((files, unmatched),) = self.catalog.resolve(["/a", "/a/b", "/ab/x", "/no"])
        newest: dict[str, int] = {}
        for number, file in sorted(self.model.files.items()):
            wanted = file.path.startswith("/a/") or file.path == "/ab/x"
            if file.digest is not None and wanted:
                newest[file.path] = number
        assert {file.path: file.id for file in files} == newest
        for file in files:
            assert sorted(s.blob_id for s in file.slices) == sorted(
                self.model.files[file.id].places.values()
            )
        expected = {
            "/a": not any(path.startswith("/a/") for path in newest),
            "/a/b": not any(path.startswith("/a/b/") for path in newest),
            "/ab/x": "/ab/x" not in newest,
            "/no": True,
        }
        assert unmatched == [path for path, missing in expected.items() if missing]

    @invariant()
    def archivable_agrees(self) -> None:
        waiting = [blob.id for found in self.catalog.archivable() for blob in found.blobs]
        assert sorted(waiting) == sorted(n for n in self.model.blobs if self.model.waits(n))

    @invariant()
    def faults_agree(self) -> None:
        found = {(f.blob_id, f.file_id): f for f in self.catalog.faults()}
        assert {key: not f.HasField("repaired_at") for key, f in found.items()} == self.model.faults
        lost = {file for (_, file), fault in found.items() if fault.lost}
        assert lost == self.model.lost()

    def _in_states(self, *states: int) -> list[int]:
        return [n for n, blob in self.model.blobs.items() if blob.state in states]

    def _put_of(self, blob: int) -> Put:
        holding = self.model.blobs[blob].blob.holding_id
        return next(put for put in self.puts + self.ended if put.holding.id == holding)


@pytest.mark.slow
def test_any_order_of_operations_agrees_with_the_model(catalog: Catalog) -> None:
    class Machine(CatalogMachine):
        pass

    Machine.catalog = catalog
    run(
        Machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
