"""Tape's handlers with everything real around them but the ledger, whose word tests give."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.local.wait import wait_until
from nearline.catalog.v1 import catalog_pb2 as api
from nearline.monitor.v1 import monitor_pb2 as ledger
from nearline.tape.v1.tape_pb2 import Orphan
from nearline.type.v1 import storage_pb2, task_pb2
from nearline.type.v1.storage_pb2 import Blob
from services.kit import spans
from services.kit.catalogclient import CatalogClient
from services.kit.jobs import Deferred, Done, Job, JobContext, Outcome
from services.kit.objectstore import ObjectStore
from services.kit.packs import Pack
from services.tape.archive import archive, confirm
from services.tape.config import ArchiveConfig, RecallConfig, ReconcileConfig
from services.tape.context import Context
from services.tape.endpoint import TapeEndpoint
from services.tape.recall import recall, stage
from services.tape.reconcile import Options, orphans
from tests.service.catalog.harness import GROUP, Catalog, Put, a_file

Task = task_pb2.Task
MIB = 1 << 20
THRESHOLD = 100_000
"""Files from this size on have objects of their own."""


@dataclass(frozen=True)
class Disk:
    """An endpoint, and the directory behind it in which tests do harm."""

    endpoint: TapeEndpoint
    root: Path


@dataclass
class Ledger:
    """What the ledger would say."""

    open_tasks: set[int] = field(default_factory=set)
    open_keys: set[str] = field(default_factory=set)
    running: set[str] = field(default_factory=set)

    def count(self, key: str, kind: int) -> int:
        return int(key in self.open_keys)

    def is_open(self, task_id: int) -> bool:
        return task_id in self.open_tasks

    def has_ended(self, transaction_id: str, grace: float) -> bool:
        return transaction_id not in self.running


class Config:
    """The part of the configuration that handlers look at."""

    def __init__(self) -> None:
        self.archive = ArchiveConfig(confirm_seconds=0.1)
        self.recall = RecallConfig(pack_threshold=THRESHOLD, poll_seconds=0.1)
        self.reconcile = ReconcileConfig()


@dataclass
class Ran:
    """A handler's outcome and the failures that it reported, (code, reason) by path."""

    outcome: Outcome
    failures: dict[str, tuple[str, str]]

    @property
    def follow_ups(self) -> dict[int, ledger.NewTask]:
        """By kind; one of each."""
        return {task.kind: task for task in self.outcome.follow_ups}


class TapeStore:
    """A store of one user, seen by tape's handlers."""

    def __init__(self, catalog: Catalog, cache: ObjectStore, disk: Disk) -> None:
        self.catalog, self.cache, self.disk = catalog, cache, disk
        self.tape = disk.endpoint
        self.ledger = Ledger()
        self.client = CatalogClient(catalog.channel, "test")
        self.context: Any = Context(
            config=Config(),  # type: ignore[arg-type]
            catalog=self.client,
            ledger=self.ledger,  # type: ignore[arg-type]
            cache=cache,
            tape=self.tape,
        )

    def with_(self, **changed: Any) -> Any:
        """The handlers' context with another cache or catalog."""
        fields = {name: getattr(self.context, name) for name in Context.__dataclass_fields__}
        return Context(**{**fields, **changed})

    # -- what is stored

    def put(self, contents: dict[str, bytes], put: Put | None = None) -> tuple[Put, dict[str, int]]:
        """Store files in the cache as an upload does: small ones in a pack."""
        put = put or self.catalog.open()
        attributes = {path: a_file(len(data)) for path, data in contents.items()}
        numbers = dict(zip(contents, self.catalog.register(put, attributes).file_ids, strict=True))
        pack = Pack(16 * MIB)
        for path, data in contents.items():
            if len(data) < THRESHOLD:
                pack.add(numbers[path], path, attributes[path], data, new=True)
            else:
                self._put_large(put, numbers[path], attributes[path], data)
        if pack:
            pack.store(self.client, self.cache, put.holding.id, lambda: None)
        return put, numbers

    def _put_large(self, put: Put, number: int, found: Any, data: bytes) -> None:
        blob = self.client.allocate(put.holding.id, Blob.CACHE, Blob.RAW)
        self.cache.put(blob.key, data)
        member = api.RecordBlobRequest.Member(
            file_id=number,
            length=len(data),
            digest=hashlib.sha256(data).digest(),
            attributes=found,
        )
        self.client.record(blob.id, [member], size=len(data), state=Blob.STORED)

    def archive(self, put: Put) -> tuple[Blob, Ran]:
        """Write what waits for it to tape; the tape blob and what the handler said."""
        (waiting,) = [
            found for found in self.client.archivable(0) if found.holding.id == put.holding.id
        ]
        claim = self.client.claim_aggregate(
            put.holding.id, [blob.id for blob in waiting.blobs], os.urandom(8).hex()
        )
        payload = task_pb2.TapeBlobTask(
            blob_id=claim.blob.id, key=claim.blob.key, sources=waiting.blobs
        )
        spec = ledger.TransactionSpec(holding_id=put.holding.id, group=GROUP)
        return claim.blob, self.run(archive, payload, spec)

    def to_tape(self, put: Put, *, evict: bool = False) -> Blob:
        """Have the files safe on tape, and in the cache no more if asked."""
        blob, ran = self.archive(put)
        assert not ran.failures
        payload = task_pb2.TapeBlobTask.FromString(ran.follow_ups[Task.CONFIRM].payload)
        wait_until(lambda: self.unconfirmed(payload), "the tape copy", 20)
        if evict:
            gone = self.client.claim_eviction(put.holding.id, 0)
            self.cache.delete_many(blob.key for blob in gone)
            self.client.set_states([blob.id for blob in gone], Blob.REMOVED)
        return self.blob(blob.id)

    def unconfirmed(self, payload: task_pb2.TapeBlobTask) -> str | None:
        outcome = self.run(confirm, payload).outcome
        return outcome.waiting_for if isinstance(outcome, Deferred) else None

    # -- handlers

    def run(
        self,
        handler: Any,
        payload: Any,
        spec: ledger.TransactionSpec | None = None,
        context: Any = None,
    ) -> Ran:
        """What a handler makes of a payload."""
        failures: list[Any] = []

        def send(request: ledger.WorkRequest) -> None:
            failures.extend(request.failures.failures)

        lease = ledger.Lease(task_id=1, token=1)
        ctx = JobContext(lease, send)
        spec = spec or ledger.TransactionSpec()
        job = Job(1, 1, Task.RECALL, payload.SerializeToString(), None, 1, spec)
        outcome = handler(context or self.context, job, ctx)
        ctx.finish()
        return Ran(outcome, {one.path: (one.code, one.reason) for one in failures})

    def recall_task(self, blob: Blob, numbers: Iterable[int]) -> task_pb2.RecallTask:
        return task_pb2.RecallTask(
            blob_id=blob.id, key=blob.key, files=spans.to_ranges(numbers), download=True
        )

    def recall(self, blob: Blob, numbers: Iterable[int]) -> Ran:
        """Bring files of a tape blob that is online back into the cache."""
        return self.run(recall, self.recall_task(blob, numbers))

    def staged(self, blob: Blob, numbers: Iterable[int], polls: int) -> Ran:
        """What becomes of a stage after so many polls."""
        payload = task_pb2.StageTask(recalls=[self.recall_task(blob, numbers)])
        for _ in range(polls):
            ran = self.run(stage, payload)
            if isinstance(ran.outcome, Deferred):
                payload = task_pb2.StageTask.FromString(ran.outcome.payload)
        return ran

    def orphans(self, *, grace: float = 0.0, **options: Any) -> list[Orphan]:
        return list(orphans(self.context, Options(grace, grace, **options)))

    # -- what is there

    def blob(self, number: int) -> Blob:
        return self.catalog.blobs(blob_ids=[number])[number]

    def cache_blobs(self, *numbers: int) -> list[Blob]:
        """Cache blobs that hold the files, by number."""
        found = {
            piece.blob_id
            for file in self.catalog.files(numbers)
            for piece in file.slices
            if piece.tier == Blob.CACHE
        }
        return [self.blob(number) for number in sorted(found)]

    def tiers(self, number: int) -> list[int]:
        return [piece.tier for piece in self.catalog.files([number])[0].slices]

    def content(self, number: int) -> bytes:
        """A file's bytes from the cache."""
        (file,) = self.catalog.files([number])
        (piece,) = [one for one in file.slices if one.tier == Blob.CACHE]
        return self.cache.get_range(piece.key, piece.offset, piece.length)

    def open_faults(self) -> list[api.Fault]:
        return list(self.client.faults())

    def objects(self) -> set[str]:
        return {found.key for found in self.cache.list_objects()}

    def tape_files(self) -> set[str]:
        return {found.path for found in self.tape.list()}

    # -- harm

    def flip(self, blob: Blob, number: int, file: storage_pb2.StoredFile | None = None) -> None:
        """Turn over one bit of a file's bytes, in the cache or on tape."""
        (found,) = self.catalog.files([number]) if file is None else (file,)
        (piece,) = [one for one in found.slices if one.blob_id == blob.id]
        if blob.tier == Blob.CACHE:
            data = bytearray(self.cache.get_range(blob.key, 0, blob.size))
            data[piece.offset] ^= 1
            self.cache.put(blob.key, data)
        else:
            with (self.disk.root / blob.key).open("r+b") as stream:
                stream.seek(piece.offset)
                value = stream.read(1)[0]
                stream.seek(piece.offset)
                stream.write(bytes([value ^ 1]))

    def cut(self, blob: Blob, size: int) -> None:
        """Cut a tape file."""
        os.truncate(self.disk.root / blob.key, size)


def contents(*sizes: int) -> dict[str, bytes]:
    """Files of these sizes."""
    return {f"/data/{n}": os.urandom(size) for n, size in enumerate(sizes)}


def done(ran: Ran) -> Done:
    assert isinstance(ran.outcome, Done)
    return ran.outcome


def numbers_of(task: ledger.NewTask) -> list[int]:
    """Files of a task."""
    return list(spans.numbers_of(task_pb2.FilesTask.FromString(task.payload).files))
