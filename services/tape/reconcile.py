"""RECONCILE: finds what has no owner in the cache, on tape and in the catalog, and removes it.

Why nothing that is needed can go: names are never used twice and a blob's row is written before its
first byte, so what a store listed *before* the catalog was asked has its true state there. Only
bytes of a blob that is REMOVED go, for ever nobody's; a blob becomes that by steps that the catalog
itself decides. What the catalog has no record of is only reported: the catalog may have been
restored from a backup, or the bucket may be another's.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

import structlog
from prometheus_client import Counter, Gauge

from nearline.catalog.v1 import catalog_pb2 as catalog
from nearline.tape.v1.tape_pb2 import Orphan
from services.kit.catalogclient import Blob, in_batches
from services.kit.jobs import Done, Job, JobContext
from services.kit.objectstore import HEALTH_KEY
from services.kit.ownership import blob_number, task_of
from services.tape.archive import abandoned, release
from services.tape.context import Context

log = structlog.get_logger(__name__)

_BATCH = 1000
# A writer that did not tell its task; no upload of one blob takes this long.
_SILENT_WRITER_SECONDS = 7 * 86_400
_MOST_LOGGED = 100
_SEALED = (Blob.STORED, Blob.LOST)

_LEFT = Gauge(
    "orphans", "Things without an owner that the last look left where they are.", ("kind",)
)
_REMOVED = Counter("orphans_removed", "Things without an owner, removed or finished.", ("kind",))


@dataclass(frozen=True, slots=True)
class Options:
    """How to look: see `ReconcileRequest`. Times in seconds."""

    grace: float
    put_grace: float
    dry_run: bool = False
    include_unknown: bool = False


class _Stored(NamedTuple):
    """Something that a store listed."""

    name: str
    size: int
    age: float
    remove: Callable[[], None]
    has_parts: Callable[[], bool] = bool
    """Of an upload: whether bytes were sent to it."""


def reconcile(context: Context, job: Job, ctx: JobContext) -> Done:
    """The scheduled look; the log and the metrics tell what it found."""
    config = context.config.reconcile
    options = Options(config.grace_seconds, config.put_grace_seconds, config.dry_run)
    left: dict[str, int] = dict.fromkeys(Orphan.Kind.keys()[1:], 0)
    done = logged = 0
    for orphan in orphans(context, options):
        ctx.check()
        kind = Orphan.Kind.Name(orphan.kind)
        left[kind] += orphan.action == Orphan.REPORTED
        done += orphan.action != Orphan.REPORTED
        if logged < _MOST_LOGGED:
            logged += 1
            _log(orphan)
    for kind, count in left.items():
        _LEFT.labels(kind.lower()).set(count)
    found = {kind.lower(): count for kind, count in left.items() if count}
    if found or done:
        log.warning("reconciled", removed=done, left=found)
    return Done()


def orphans(context: Context, options: Options) -> Iterator[Orphan]:
    """What has no owner, each after it was removed unless it is only reported."""
    look = _Look(context, options)
    for orphan in look.all():
        if orphan.action != Orphan.REPORTED:
            _REMOVED.labels(Orphan.Kind.Name(orphan.kind).lower()).inc()
        yield orphan


def _log(orphan: Orphan) -> None:
    log.warning(
        "orphan",
        what=Orphan.Kind.Name(orphan.kind),
        name=orphan.name,
        bytes=orphan.bytes,
        age_seconds=orphan.age_seconds,
        why=orphan.why,
        action=Orphan.Action.Name(orphan.action),
    )


class _Look:
    def __init__(self, context: Context, options: Options) -> None:
        self._context, self._options = context, options
        self._catalog, self._ledger = context.catalog, context.ledger
        self._cache, self._tape = context.cache, context.tape

    def all(self) -> Iterator[Orphan]:
        """Blobs first: what they let go of is then removed by name, or seen in the stores."""
        yield from self._unwritten()
        yield from self._removing()
        yield from self._unconfirmed()
        for tier in (Blob.CACHE, Blob.TAPE):
            yield from self._replaced(tier)
        yield from self._in_store(Orphan.CACHE_OBJECT, Blob.CACHE, self._objects())
        yield from self._in_store(Orphan.CACHE_UPLOAD, Blob.CACHE, self._uploads())
        yield from self._in_store(Orphan.TAPE_FILE, Blob.TAPE, self._tape_files())
        yield from self._unfinished_files()
        yield from self._puts()

    # -- blobs of the catalog

    def _unwritten(self) -> Iterator[Orphan]:
        """Blobs in WRITING whose task is over: nobody will complete them."""
        for blob in self._blobs(Blob.TAPE, Blob.WRITING):
            if abandoned(self._context, blob) and self._is_released(blob):
                yield self._of_blob(blob, "its archive task is over")
        writing = (b for b in self._blobs(Blob.CACHE, Blob.WRITING) if self._is_unwritten(b))
        for batch in in_batches(writing, _BATCH):
            for blob in self._let_go(batch):
                yield self._of_blob(blob, f"its writer ({blob.writer}) never completed it")

    def _is_released(self, blob: Blob) -> bool:
        """Whether the claim was given up, or would be."""
        if not self._options.dry_run:
            if not release(self._context, blob.id):
                return False
            self._tape.remove(blob.key)
        return True

    def _is_unwritten(self, blob: Blob) -> bool:
        task = task_of(blob.writer)
        if task is None:
            return _age(blob.created_at.ToDatetime(UTC)) > _SILENT_WRITER_SECONDS
        return not self._ledger.is_open(task)

    def _let_go(self, blobs: Sequence[Blob]) -> Iterable[Blob]:
        """Of cache blobs in WRITING, those that were not completed in this moment, now removed."""
        if self._options.dry_run:
            return blobs
        numbers = [blob.id for blob in blobs]
        self._catalog.set_states(numbers, Blob.REMOVING, only_from=Blob.WRITING)
        wanted = catalog.ListBlobsRequest(blob_ids=numbers, states=[Blob.REMOVING])
        gone = list(self._catalog.blobs(wanted))
        self._remove(gone)
        return gone

    def _removing(self) -> Iterator[Orphan]:
        """Blobs whose removal was interrupted. One that still runs loses nothing by this."""
        for tier in (Blob.CACHE, Blob.TAPE):
            for batch in in_batches(self._blobs(tier, Blob.REMOVING), _BATCH):
                if not self._options.dry_run:
                    self._remove(batch)
                for blob in batch:
                    yield self._of_blob(blob, "its removal was not finished")

    def _unconfirmed(self) -> Iterator[Orphan]:
        """Tape blobs that nobody asked about any more when they came to be on tape."""
        for batch in in_batches(self._blobs(Blob.TAPE, Blob.WRITTEN), _BATCH):
            states = self._tape.stat([blob.key for blob in batch])
            safe = [blob for blob, state in zip(batch, states, strict=True) if state.on_tape]
            if safe and not self._options.dry_run:
                self._catalog.set_states([blob.id for blob in safe], Blob.SAFE, Blob.WRITTEN)
            for blob in safe:
                orphan = self._of_blob(blob, "it is on tape, and nobody has said so")
                if orphan.action == Orphan.REMOVED:
                    orphan.action = Orphan.FINISHED
                yield orphan

    def _replaced(self, tier: Blob.Tier.ValueType) -> Iterator[Orphan]:
        """Blobs that no file needs any more after a fault."""
        dry_run, age = self._options.dry_run, int(self._options.grace)
        for blobs in self._catalog.claim_replaced(tier, age, dry_run=dry_run):
            if not dry_run:
                self._remove(blobs)
            for blob in blobs:
                why = "it was found bad, and all its files have good copies"
                yield self._of_blob(blob, why, Orphan.REPLACED_BLOB)

    def _remove(self, blobs: Sequence[Blob]) -> None:
        """Remove the bytes of blobs in REMOVING, then say so."""
        self._cache.delete_many(blob.key for blob in blobs if blob.tier == Blob.CACHE)
        for blob in blobs:
            if blob.tier == Blob.TAPE:
                self._tape.remove(blob.key)
        self._catalog.set_states([blob.id for blob in blobs], Blob.REMOVED)

    def _blobs(self, tier: Blob.Tier.ValueType, state: Blob.State.ValueType) -> Iterator[Blob]:
        return self._catalog.blobs(
            catalog.ListBlobsRequest(
                tier=tier, states=[state], min_age_seconds=int(self._options.grace)
            )
        )

    def _of_blob(self, blob: Blob, why: str, kind: Orphan.Kind.ValueType = Orphan.BLOB) -> Orphan:
        age = _age(blob.created_at.ToDatetime(UTC)) if blob.HasField("created_at") else 0
        return self._orphan(kind, blob.key, blob.size, age, why)

    # -- bytes in the stores

    def _in_store(
        self, kind: Orphan.Kind.ValueType, tier: Blob.Tier.ValueType, stored: Iterator[_Stored]
    ) -> Iterator[Orphan]:
        """Things that were listed, whose blobs are looked up afterwards."""
        old = (one for one in stored if one.age >= self._options.grace)
        for batch in in_batches(old, _BATCH):
            known = self._known(tier, batch)
            for one in batch:
                verdict = _verdict(kind, one, known, self._options.include_unknown)
                if verdict is not None:
                    why, removable = verdict
                    if removable and not self._options.dry_run:
                        one.remove()
                    yield self._orphan(kind, one.name, one.size, one.age, why, removable=removable)

    def _known(
        self, tier: Blob.Tier.ValueType, batch: Iterable[_Stored]
    ) -> dict[str, Blob.State.ValueType]:
        """States of the blobs of a tier by key."""
        numbers = {blob_number(one.name) for one in batch} - {None}
        wanted = catalog.ListBlobsRequest(tier=tier, blob_ids=[n for n in numbers if n])
        return {blob.key: blob.state for blob in self._catalog.blobs(wanted)} if numbers else {}

    def _objects(self) -> Iterator[_Stored]:
        for found in self._cache.list_objects():
            if found.key != HEALTH_KEY:
                yield _Stored(
                    found.key,
                    found.size,
                    _age(found.modified),
                    lambda key=found.key: self._cache.delete_many([key]),  # type: ignore[misc]
                )

    def _uploads(self) -> Iterator[_Stored]:
        for found in self._cache.list_uploads():
            yield _Stored(
                found.key,
                0,
                _age(found.started),
                lambda upload=found: self._cache.abort_upload(upload),  # type: ignore[misc]
                lambda upload=found: self._cache.has_parts(upload),  # type: ignore[misc]
            )

    def _tape_files(self) -> Iterator[_Stored]:
        for found in self._tape.list():
            yield _Stored(
                found.path,
                found.size,
                _age(datetime.fromtimestamp(found.modified, UTC)),
                lambda path=found.path: self._tape.remove(path),  # type: ignore[misc]
            )

    def _unfinished_files(self) -> Iterator[Orphan]:
        remove = not self._options.dry_run
        for found in self._tape.unfinished(self._options.grace, remove=remove):
            age = _age(datetime.fromtimestamp(found.modified, UTC))
            why = "its writer never committed it"
            yield self._orphan(Orphan.TAPE_UNFINISHED, found.path, found.size, age, why)

    # -- PUTs

    def _puts(self) -> Iterator[Orphan]:
        """What PUTs that have ended registered and never stored."""
        grace = self._options.put_grace
        stale = self._catalog.stale_puts(int(grace))
        ended = (put for put in stale if self._ledger.has_ended(put.transaction_id, grace))
        for batch in in_batches(ended, _BATCH):
            if not self._options.dry_run:
                self._catalog.forget_puts([put.transaction_id for put in batch])
            for put in batch:
                age = _age(put.opened_at.ToDatetime(UTC))
                yield self._orphan(Orphan.PUT, put.transaction_id, put.bytes, age, _why_stale(put))

    def _orphan(
        self,
        kind: Orphan.Kind.ValueType,
        name: str,
        size: int,
        age: float,
        why: str,
        *,
        removable: bool = True,
    ) -> Orphan:
        removed = removable and not self._options.dry_run
        return Orphan(
            kind=kind,
            name=name,
            bytes=size,
            age_seconds=max(int(age), 0),
            why=why,
            action=Orphan.REMOVED if removed else Orphan.REPORTED,
        )


def _verdict(
    kind: Orphan.Kind.ValueType,
    one: _Stored,
    known: dict[str, Blob.State.ValueType],
    include_unknown: bool,
) -> tuple[str, bool] | None:
    """Why something stored has no owner, and whether it may go; None when it has one."""
    if blob_number(one.name) is None:
        return "the store gives no such names; somebody else put it there", False
    state = known.get(one.name)
    if state is None:
        return "the catalog has no record of it", include_unknown
    if state == Blob.REMOVED:
        return "its blob was removed", True
    if kind == Orphan.CACHE_UPLOAD and state in _SEALED:
        return _verdict_on_spare(one)
    return None


def _verdict_on_spare(upload: _Stored) -> tuple[str, bool]:
    """Of an upload whose object is complete.

    It was begun twice, as the answer to the first beginning was lost, if nothing was sent to it.
    Else it may be the one that made the object, in a store that was killed before it had forgotten
    it; SeaweedFS for one would delete the object's bytes with it.
    """
    if upload.has_parts():
        return (
            "its blob is complete and may share bytes with it; it goes after the blob was evicted",
            False,
        )
    return "its blob was completed by another upload", True


def _why_stale(put: catalog.ListStalePutsResponse.Put) -> str:
    files = f"its PUT has ended with {put.files} files registered and not stored"
    return f"{files}; holding {put.label} is empty" if put.empty_holding else files


def _age(since: datetime) -> float:
    if since.tzinfo is None:
        since = since.replace(tzinfo=UTC)
    return (datetime.now(UTC) - since).total_seconds()
