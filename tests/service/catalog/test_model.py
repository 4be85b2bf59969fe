"""The catalog against a model in plain Python: any order of operations, the same answers."""

from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run
from sqlalchemy import text

from nearline.type.v1.storage_pb2 import Blob
from tests.service.catalog.harness import Catalog, Member, Put, a_file, digest, refused

PATHS = [f"/{directory}/{name}" for directory in ("a", "a/b", "ab") for name in ("x", "y")]
LABELS = ["one", "two"]
CONTENTS = [b"", b"1", b"22"]


@dataclass
class ModelFile:
    """A file as the catalog should know it; ``digest`` is None until it is stored."""

    holding: int
    path: str
    put: str
    size: int = 0
    digest: bytes | None = None
    places: dict[int, int] = field(default_factory=dict)
    """Tier → blob."""


@dataclass
class ModelBlob:
    """A blob and its state."""

    blob: Blob
    state: int = Blob.WRITING


class CatalogMachine(RuleBasedStateMachine):
    """Drives both; each answer and, after each step, all that can be seen must agree."""

    catalog: Catalog

    def __init__(self) -> None:
        super().__init__()
        self.puts: list[Put] = []
        self.files: dict[int, ModelFile] = {}
        self.gone: set[int] = set()
        self.blobs: dict[int, ModelBlob] = {}

    def teardown(self) -> None:
        tables = (
            "TRUNCATE holding, put, directory, file, blob, location, aggregate, fault, pin, usage, "
            "reservation, quota"
        )
        with self.catalog.database.connect() as connection:
            connection.execute(text(tables))
            connection.commit()

    @initialize()
    def open_all(self) -> None:
        self.puts = [self.catalog.open(label) for label in LABELS for _ in range(2)]

    @precondition(lambda self: self.puts)
    @rule(
        data=st.data(), paths=st.lists(st.sampled_from(PATHS), min_size=1, max_size=4, unique=True)
    )
    def register(self, data: st.DataObject, paths: set[str]) -> None:
        put = data.draw(st.sampled_from(self.puts))
        answer = self.catalog.register(put, dict.fromkeys(sorted(paths), a_file(1)))
        refused_paths = {failure.path for failure in answer.rejected}
        for path, number in zip(sorted(paths), answer.file_ids, strict=True):
            self._registered(put, path, number, path in refused_paths)

    def _registered(self, put: Put, path: str, number: int, was_refused: bool) -> None:
        present = [
            n for n, f in self.files.items() if (f.holding, f.path) == (put.holding.id, path)
        ]
        if present and self.files[present[0]].put == put.transaction:
            assert number == present[0]
        elif present and self.files[present[0]].digest is not None:
            assert (number, was_refused) == (0, True)
        else:
            assert number not in self.files
            assert number not in self.gone
            for old in present:
                del self.files[old]
                self.gone.add(old)
            self.files[number] = ModelFile(put.holding.id, path, put.transaction)

    @precondition(lambda self: self.files)
    @rule(data=st.data(), others=st.integers(0, 3), content=st.sampled_from(CONTENTS))
    def store(self, data: st.DataObject, others: int, content: bytes) -> None:
        """Upload what a holding lacks a cache copy of, and a few numbers that do not belong."""
        holding = data.draw(st.sampled_from(sorted({file.holding for file in self.files.values()})))
        lacking = [
            n
            for n, f in self.files.items()
            if f.holding == holding and (not f.places or f.digest is None)
        ]
        known = sorted({*self.files, *self.gone})
        strange = data.draw(st.lists(st.sampled_from(known), max_size=others))
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
        self.blobs[blob.id] = ModelBlob(blob)
        self._sealed(blob, members, Blob.STORED)

    def _sealed(self, blob: Blob, members: list[Member], state: int) -> None:
        answer = self.catalog.record(blob, members, state=state)
        accepted, redundant, mismatched, missing = 0, 0, [], []
        for member in members:
            file = self.files.get(member.file_id)
            if file is None or file.holding != blob.holding_id:
                missing.append(member.file_id)
            elif blob.tier in file.places:
                redundant += 1
            elif file.digest not in (None, member.digest):
                mismatched.append(member.file_id)
            else:
                accepted += 1
                file.digest, file.size = member.digest, member.length
                file.places[blob.tier] = blob.id
        assert (answer.accepted, answer.redundant) == (accepted, redundant)
        assert list(answer.mismatched_file_ids) == sorted(mismatched)
        assert list(answer.missing_file_ids) == sorted(missing)
        assert answer.unused == (not accepted)
        assert self.catalog.record(blob, members, state=state) == answer
        self.blobs[blob.id].state = state if accepted else Blob.REMOVING

    @precondition(lambda self: any(b.state == Blob.STORED for b in self.blobs.values()))
    @rule(
        data=st.data(),
        state=st.sampled_from([Blob.WRITTEN, Blob.SAFE, Blob.SAFE]),
        drop=st.sampled_from([False, False, True]),
    )
    def archive(self, data: st.DataObject, state: int, drop: bool) -> None:
        stored = [n for n, b in self.blobs.items() if b.state == Blob.STORED]
        waiting = [n for n in stored if self._waits(n)]
        source = data.draw(st.sampled_from(waiting or stored))
        if not self._waits(source):
            with refused("NOTHING_TO_ARCHIVE"):
                self.catalog.archive(self._put_of(source), [self.blobs[source].blob])
            return
        claimed = self.catalog.claim(self._put_of(source), [source])
        self.blobs[claimed.blob.id] = ModelBlob(claimed.blob)
        members = [
            Member(file_id=n, offset=0, length=f.size, digest=f.digest)
            for n, f in sorted(self.files.items())
            if f.places.get(Blob.CACHE) == source
        ]
        self._sealed(claimed.blob, members[1:] if drop else members, state)

    @rule(data=st.data())
    def confirm(self, data: st.DataObject) -> None:
        written = [b for b in self.blobs.values() if b.state == Blob.WRITTEN]
        if written:
            chosen = data.draw(st.sampled_from(written))
            assert self.catalog.set_state(Blob.SAFE, chosen.blob) == 1
            chosen.state = Blob.SAFE

    @precondition(lambda self: any(Blob.TAPE in f.places for f in self.files.values()))
    @rule(data=st.data())
    def recall(self, data: st.DataObject) -> None:
        on_tape = sorted(
            {f.places[Blob.TAPE] for f in self.files.values() if Blob.TAPE in f.places}
        )
        tape = data.draw(st.sampled_from(on_tape))
        (blob,) = self.catalog.allocate(self.blobs[tape].blob.holding_id)
        members = [
            Member(file_id=n, offset=9, length=f.size, digest=f.digest)
            for n, f in self.files.items()
            if f.places.get(Blob.TAPE) == tape
        ]
        self.blobs[blob.id] = ModelBlob(blob)
        self._sealed(blob, members, Blob.STORED)

    @rule(finish=st.booleans())
    def evict(self, finish: bool) -> None:
        unfinished = {n for n, b in self.blobs.items() if self._is(b, Blob.CACHE, Blob.REMOVING)}
        free = {n for n, b in self.blobs.items() if self._evictable(n, b)}
        claimed = self.catalog.evict()
        assert {blob.id for blob in claimed} == unfinished | free
        for number in free:
            self.blobs[number].state = Blob.REMOVING
            self._forget(number)
        if finish:
            assert self.catalog.set_state(Blob.REMOVED, *claimed) == len(claimed)
            for blob in claimed:
                self.blobs[blob.id].state = Blob.REMOVED

    @precondition(lambda self: any(f.places for f in self.files.values()))
    @rule(data=st.data(), whole=st.booleans())
    def fault(self, data: st.DataObject, whole: bool) -> None:
        placed = [(n, blob) for n, f in sorted(self.files.items()) for blob in f.places.values()]
        number, blob = data.draw(st.sampled_from(placed))
        hit = [n for n, b in placed if b == blob and (whole or n == number)]
        lost = self.catalog.fault(self.blobs[blob].blob, *([] if whole else [number]))
        for number in hit:
            self._drop(number, blob)
        assert set(lost) >= {n for n in hit if not self.files[n].places}
        assert all(not self.files[n].places for n in lost)
        if not any(blob in f.places.values() for f in self.files.values()):
            self.blobs[blob].state = Blob.LOST

    @rule(data=st.data())
    def remove_by_hand(self, data: st.DataObject) -> None:
        readable = [
            n for n, b in self.blobs.items() if b.state in (Blob.STORED, Blob.WRITTEN, Blob.SAFE)
        ]
        if not readable:
            return
        number = data.draw(st.sampled_from(readable))
        if any(set(f.places.values()) == {number} for f in self.files.values()):
            with refused("LAST_COPY"):
                self.catalog.set_state(Blob.REMOVING, self.blobs[number].blob)
        else:
            assert self.catalog.set_state(Blob.REMOVING, self.blobs[number].blob) == 1
            self.blobs[number].state = Blob.REMOVING
            self._forget(number)

    @rule()
    def tidy(self) -> None:
        self.catalog.tidy()

    @invariant()
    def everything_seen_agrees(self) -> None:
        stored = {n: f for n, f in self.files.items() if f.digest is not None}
        found = self.catalog.find()
        assert {f.id: (f.holding_id, f.path, f.size, f.transaction_id) for f in found} == {
            n: (f.holding, f.path, f.size, f.put) for n, f in stored.items()
        }
        for file in found:
            states = [self.blobs[b].state for _, b in sorted(stored[file.id].places.items())]
            # A file without a good copy shows the bad ones.
            shown = [place.state for place in file.locations]
            assert [state for state in shown if state != Blob.LOST] == states
        blobs = self.catalog.blobs()
        assert {n: b.state for n, b in blobs.items()} == {n: b.state for n, b in self.blobs.items()}

    @invariant()
    def counts_agree(self) -> None:
        stored = [f for f in self.files.values() if f.digest is not None]
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
        for number, file in sorted(self.files.items()):
            wanted = file.path.startswith("/a/") or file.path == "/ab/x"
            if file.digest is not None and wanted:
                newest[file.path] = number
        assert {file.path: file.id for file in files} == newest
        for file in files:
            assert sorted(s.blob_id for s in file.slices) == sorted(
                self.files[file.id].places.values()
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
        assert sorted(waiting) == sorted(n for n in self.blobs if self._waits(n))

    def _waits(self, number: int) -> bool:
        here = [f for f in self.files.values() if f.places.get(Blob.CACHE) == number]
        return any(Blob.TAPE not in f.places for f in here)

    def _evictable(self, number: int, blob: ModelBlob) -> bool:
        here = [f for f in self.files.values() if f.places.get(Blob.CACHE) == number]
        tapes = [f.places.get(Blob.TAPE) for f in here]
        safe = all(t is not None and self.blobs[t].state == Blob.SAFE for t in tapes)
        return self._is(blob, Blob.CACHE, Blob.STORED) and safe

    def _is(self, blob: ModelBlob, tier: int, state: int) -> bool:
        return (blob.blob.tier, blob.state) == (tier, state)

    def _forget(self, blob: int) -> None:
        for number in self.files:
            self._drop(number, blob)

    def _drop(self, number: int, blob: int) -> None:
        places = self.files[number].places
        self.files[number].places = {tier: b for tier, b in places.items() if b != blob}

    def _put_of(self, blob: int) -> Put:
        holding = self.blobs[blob].blob.holding_id
        return next(put for put in self.puts if put.holding.id == holding)


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
