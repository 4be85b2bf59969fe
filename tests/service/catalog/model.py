"""What the catalog should know, in plain Python and without any I/O."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from nearline.catalog.v1 import catalog_pb2 as api
from nearline.type.v1.storage_pb2 import Blob
from tests.service.catalog.harness import Put

READABLE = (Blob.STORED, Blob.WRITTEN, Blob.SAFE)


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
    aggregate: int = 0
    """The tape blob that was promised this one, until it is recorded or given up."""


@dataclass
class Model:
    """All of it, and what follows from it."""

    files: dict[int, ModelFile] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)
    """Numbers of files that were taken over or forgotten."""
    blobs: dict[int, ModelBlob] = field(default_factory=dict)
    claims: dict[str, api.ClaimAggregateResponse] = field(default_factory=dict)
    faults: dict[tuple[int, int], bool] = field(default_factory=dict)
    """(blob, file) → whether it is open."""
    pinned: set[int] = field(default_factory=set)
    puts: dict[str, int] = field(default_factory=dict)
    """Transaction → holding, of PUTs that are not forgotten."""
    quota: int = 0

    # -- what is so

    def stored(self) -> dict[int, ModelFile]:
        return {n: file for n, file in self.files.items() if file.digest is not None}

    def lost(self) -> set[int]:
        return {n for n, file in self.stored().items() if not file.places}

    def open_faults(self) -> Counter[int]:
        """How many there are in each tier."""
        bad = [blob for (blob, _), is_open in self.faults.items() if is_open]
        return Counter(self.blobs[blob].blob.tier for blob in bad)

    def members(self, *blobs: int) -> dict[int, ModelFile]:
        """Files with a readable copy in one of the blobs."""
        return {
            n: file
            for n, file in sorted(self.files.items())
            if set(blobs).intersection(file.places.values())
        }

    def waits(self, blob: int) -> bool:
        """Whether a cache blob may be claimed for tape."""
        return self.needs_archive(blob) and not self.blobs[blob].aggregate

    def needs_archive(self, blob: int) -> bool:
        here = self.members(blob) if self.blobs[blob].blob.tier == Blob.CACHE else {}
        return any(Blob.TAPE not in file.places for file in here.values())

    def evictable(self, number: int) -> bool:
        blob, here = self.blobs[number], self.members(number)
        if (blob.blob.tier, blob.state) != (Blob.CACHE, Blob.STORED):
            return False
        tapes = [file.places.get(Blob.TAPE) for file in here.values()]
        safe = all(tape is not None and self.blobs[tape].state == Blob.SAFE for tape in tapes)
        # A bad copy of a file that has no other is kept too.
        last = {file for (bad, file), is_open in self.faults.items() if bad == number and is_open}
        return safe and not self.pinned.intersection(here) and not last & self.lost()

    def useless(self, number: int) -> bool:
        """Whether a blob is kept neither for good copies nor for bad ones."""
        blob = self.blobs[number]
        bad = [self.files[file] for at, file in self.faults if at == number]
        if blob.state == Blob.LOST:
            return all(self._has_good_copy(file, blob.blob.tier) for file in bad)
        hollow = bool(bad) and not any(file.size for file in self.members(number).values())
        return hollow and self.evictable(number)

    def _has_good_copy(self, file: ModelFile, tier: int) -> bool:
        states = {self.blobs[place].state for place in file.places.values()}
        return Blob.SAFE in states or (tier == Blob.CACHE and Blob.STORED in states)

    def stale_puts(self) -> dict[str, tuple[int, bool]]:
        """Files that PUTs registered and did not store, and whether their holding is empty."""
        stale = {}
        for put, holding in self.puts.items():
            files = len(self.registered(put))
            empty = not any(file.holding == holding for file in self.stored().values())
            if files or empty:
                stale[put] = (files, empty)
        return stale

    def registered(self, put: str) -> list[int]:
        return [n for n, f in self.files.items() if (f.put, f.digest) == (put, None)]

    # -- what happens

    def forget_file(self, number: int) -> None:
        del self.files[number]
        self.gone.add(number)

    def forget_put(self, put: Put) -> bool:
        """A PUT has ended and what it left is gone: whether its holding is, too."""
        holding, name = put.holding.id, put.transaction
        here = [file for file in self.files.values() if file.holding == holding]
        blobs = {n: b for n, b in self.blobs.items() if b.blob.holding_id == holding}
        live = any(blob.state != Blob.REMOVED for blob in blobs.values())
        if name not in self.puts or any(file.put == name for file in here):
            return False
        if here or not live:
            del self.puts[name]
        if here or live or holding in self.puts.values():
            return False
        self.blobs = {n: b for n, b in self.blobs.items() if n not in blobs}
        self.claims = {k: c for k, c in self.claims.items() if c.blob.id not in blobs}
        return True

    def locate(self, number: int, blob: int) -> None:
        """A file has a copy in a blob."""
        self.files[number].places[self.blobs[blob].blob.tier] = blob

    def drop(self, number: int, blob: int) -> None:
        """A file has no copy in a blob any more."""
        places = self.files[number].places
        self.files[number].places = {tier: at for tier, at in places.items() if at != blob}

    def repair(self, number: int, tier: int) -> None:
        """A new copy closes the faults of those in its tier."""
        for blob, file in self.faults:
            if file == number and self.blobs[blob].blob.tier == tier:
                self.faults[blob, file] = False

    def remove(self, blob: int, state: int = Blob.REMOVING) -> None:
        """A blob goes, with its copies and the faults that do not matter then."""
        self.blobs[blob].state = state
        for number in self.files:
            self.drop(number, blob)
        for at, number in self.faults:
            if at == blob and self.files[number].places:
                self.faults[at, number] = False

    def free_sources(self, aggregate: int) -> None:
        """An aggregate is recorded or given up."""
        for blob in self.blobs.values():
            if blob.aggregate == aggregate:
                blob.aggregate = 0
