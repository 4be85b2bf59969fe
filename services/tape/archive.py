"""PLAN_ARCHIVE, ARCHIVE and CONFIRM: from the cache to tape, verified at every step."""

import hashlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime

import structlog
from zlib_ng import zlib_ng

from nearline.catalog.v1 import catalog_pb2 as catalog
from nearline.monitor.v1 import monitor_pb2 as ledger
from nearline.type.v1 import storage_pb2, task_pb2, transaction_pb2
from services.kit import crash, paxtar
from services.kit.catalogclient import Blob, Member
from services.kit.errors import AlreadyExists, FailedPrecondition, NotFound, Unavailable
from services.kit.faults import Gone, can_read, gone, unreadable
from services.kit.jobs import Deferred, Done, Job, JobContext, new_task
from services.tape.aggregate import Layout, Placed, Section, lay_out
from services.tape.context import Context
from services.tape.endpoint import TapeWriter, Written
from services.tape.grouping import Limits, form
from services.tape.missing import SILENT_POLLS, require_others
from services.tape.verify import Slice, SliceChecker

log = structlog.get_logger(__name__)

Task = task_pb2.Task

# What one drive does, roughly: for the fair order.
_BYTES_PER_SECOND = 300 << 20
_LONGEST_PAUSE = 300.0


class SourceLost(Exception):
    """A source's object is missing or cut: the aggregate cannot be written as planned."""

    def __init__(self, section: Section) -> None:
        super().__init__(section.key)
        self.section = section


class SourceFailing(Exception):
    """A source could not be read; the object store may be in trouble, or this object alone."""

    def __init__(self, section: Section, error: Unavailable) -> None:
        super().__init__(section.key)
        self.section, self.error = section, error


class PacksChanged(Exception):
    """Packs are not as they were written: beside files, their headers may be damaged."""

    def __init__(self, blobs: set[int]) -> None:
        super().__init__(str(blobs))
        self.blobs = blobs


# -- planning ------------------------------------------------------------------------------------


def plan(context: Context, job: Job, ctx: JobContext) -> Done:
    """Claim what is worth an aggregate; each claim becomes a transaction with one ARCHIVE task."""
    release_abandoned(context)
    config = context.config.archive
    limits = Limits(
        config.target_bytes, config.most_members, config.most_blobs, config.flush_seconds
    )
    tasks: list[ledger.NewTask] = []
    for holding, blobs, waited in _archivable(context):
        ctx.check()
        for group in form(blobs, waited, limits):
            tasks += _claim(context, holding, group)
            crash.point("tape.plan.claimed")
    return Done(follow_ups=tasks)


def release_abandoned(context: Context) -> None:
    """Give up claims that no task will ever write."""
    oldest = context.config.archive.abandoned_seconds
    wanted = catalog.ListBlobsRequest(tier=Blob.TAPE, states=[Blob.WRITING], min_age_seconds=oldest)
    for blob in context.catalog.blobs(wanted):
        if abandoned(context, blob) and release(context, blob.id):
            log.warning("claim_abandoned", blob=blob.id, key=blob.key)
            context.tape.remove(blob.key)


def abandoned(context: Context, blob: Blob) -> bool:
    """Whether no task will write this claimed aggregate, if it is old enough to have one."""
    return not context.ledger.count(_key(blob.id), Task.ARCHIVE)


def release(context: Context, blob_id: int) -> bool:
    """Give up a claimed aggregate; False when a slow attempt has sealed it just now."""
    try:
        context.catalog.release_aggregate(blob_id)
    except FailedPrecondition:
        log.info("claim_sealed_meanwhile", blob=blob_id)
        return False
    crash.point("tape.archive.released")
    return True


def _archivable(context: Context) -> Iterator[tuple[storage_pb2.Holding, list[Blob], float]]:
    """Per holding: its archivable blobs and the seconds that the oldest has waited."""
    holding: storage_pb2.Holding | None = None
    blobs: list[Blob] = []
    waited = 0.0
    for answer in context.catalog.archivable(context.config.archive.min_age_seconds):
        if holding is not None and answer.holding.id != holding.id:
            yield holding, blobs, waited
            blobs, waited = [], 0.0
        holding = answer.holding
        blobs += answer.blobs
        age = datetime.now(UTC) - answer.oldest.ToDatetime(UTC)
        waited = max(waited, age.total_seconds())
    if holding is not None:
        yield holding, blobs, waited


def _claim(
    context: Context, holding: storage_pb2.Holding, group: list[Blob]
) -> list[ledger.NewTask]:
    try:
        claim = context.catalog.claim_aggregate(
            holding.id, [blob.id for blob in group], str(uuid.uuid4())
        )
    except FailedPrecondition:
        return []  # Another replica was faster.
    left = set(claim.source_blob_ids)
    spec = ledger.TransactionSpec(
        id=str(uuid.uuid4()),
        action=transaction_pb2.Transaction.ARCHIVE,
        group=holding.group,
        holding_id=holding.id,
        label=holding.label,
    )
    sources = [blob for blob in group if blob.id in left]
    return [_archive_task(claim.blob, sources, transaction=spec)]


def _archive_task(
    blob: Blob,
    sources: list[Blob],
    transaction: ledger.TransactionSpec | None = None,
    *,
    take_overs: int = 0,
) -> ledger.NewTask:
    size = sum(source.size for source in sources)
    return new_task(
        Task.ARCHIVE,
        task_pb2.TapeBlobTask(
            blob_id=blob.id, key=blob.key, sources=sources, take_overs=take_overs
        ),
        cost=max(size / _BYTES_PER_SECOND, 0.1),
        key=_key(blob.id),
        transaction=transaction,
    )


def _key(blob_id: int) -> str:
    return f"archive:{blob_id}"


# -- writing -------------------------------------------------------------------------------------


def archive(context: Context, job: Job, ctx: JobContext) -> Done:
    """Write one aggregate under a name that was never used, verify it, and record it.

    An attempt that follows another never touches the name of the one before, which may still be
    writing: it gives that blob up and claims a new one.
    """
    task = task_pb2.TapeBlobTask.FromString(job.payload)
    if job.attempt > 1:
        return _take_over(context, job, task)
    holding = _holding_line(context, job)
    members = list(context.catalog.members([source.id for source in task.sources]))
    loose: set[int] = set()
    while True:
        layout = lay_out(holding, task.sources, members, loose)
        try:
            written, bad = _write(context, ctx, task, layout)
        except PacksChanged as changed:
            log.error("packs_changed", blobs=sorted(changed.blobs))
            loose |= changed.blobs
        except SourceFailing as failing:
            return _apart(context, job, task, failing)
        except SourceLost as lost:
            found, bad_files = _left_of(context, lost.section)
            if bad_files:
                return _without(context, ctx, task, lost.section, found, bad_files)
            loose.add(lost.section.blob_id)  # What was cut off is padding.
        else:
            return _record(context, ctx, task, layout, written, bad)


def _take_over(context: Context, job: Job, task: task_pb2.TapeBlobTask) -> Done:
    wanted = catalog.ListBlobsRequest(blob_ids=[task.blob_id])
    state = next((blob.state for blob in context.catalog.blobs(wanted)), Blob.REMOVED)
    if state in (Blob.WRITTEN, Blob.SAFE, Blob.LOST):
        # A lost one keeps its bytes too: they may turn out good, or be all that is left.
        return _recorded(context, task)
    if state == Blob.WRITING and not release(context, task.blob_id):
        return _recorded(context, task)
    context.tape.remove(task.key)
    # The same key for every attempt of this task: a repeat must not claim once more.
    again = _claim_again(
        context, job, task.sources, f"{job.task_id}", take_overs=task.take_overs + 1
    )
    return Done(follow_ups=again)


def _claim_again(
    context: Context, job: Job, sources: Sequence[Blob], claim_key: str, *, take_overs: int = 0
) -> list[ledger.NewTask]:
    """The task that archives what is left of ``sources`` under a new name.

    None when a plan has given them to another aggregate, or the claim of an earlier attempt up;
    what still waits for tape is planned anew.
    """
    numbers = [source.id for source in sources]
    try:
        claim = context.catalog.claim_aggregate(job.transaction.holding_id, numbers, claim_key)
    except FailedPrecondition:
        return []
    crash.point("tape.archive.reclaimed")
    left = set(claim.source_blob_ids)
    claimed = [source for source in sources if source.id in left]
    return [_archive_task(claim.blob, claimed, take_overs=take_overs)]


def _apart(context: Context, job: Job, task: task_pb2.TapeBlobTask, failing: SourceFailing) -> Done:
    """Archive sources that alone cannot be read on their own, so that they hold up no others.

    Raises Unavailable when they are on their own already, or the store as a whole does not work.
    """
    section = failing.section
    trouble = unreadable(context.catalog, context.cache, section.blob_id, failing.error)
    others: list[Blob] = []
    unread: list[Blob] = []
    for source in task.sources:
        good = source.id != section.blob_id and can_read(context.cache, source.key)
        (others if good else unread).append(source)
    if not others:
        trouble.retry_after = min(2.0 ** min(task.take_overs, 10), _LONGEST_PAUSE)
        raise trouble
    numbers = [source.id for source in unread]
    log.error("cache_object_unreadable", blobs=numbers, why=trouble.message)
    if not release(context, task.blob_id):
        return _recorded(context, task)
    tasks = _claim_again(context, job, others, f"{job.task_id}:others")
    return Done(follow_ups=tasks + _claim_again(context, job, unread, f"{job.task_id}:unread"))


def _write(
    context: Context, ctx: JobContext, task: task_pb2.TapeBlobTask, layout: Layout
) -> tuple[Written, set[int]]:
    """The file at the endpoint, verified with it, and the files whose digests differ.

    Raises SourceLost, SourceFailing or PacksChanged, and leaves no file then.
    """
    bad: set[int] = set()
    changed: set[int] = set()
    with _create(context, task.key) as writer:
        writer.write(layout.head)
        for section in layout.sections:
            differing, adler32 = _copy(context, ctx, writer, section)
            bad |= differing
            if section.adler32 not in (0, adler32):
                changed.add(section.blob_id)
        if changed:
            raise PacksChanged(changed)
        writer.write(paxtar.END)
        crash.point("tape.archive.before_commit")
        return writer.commit(), bad


def _create(context: Context, key: str) -> TapeWriter:
    """Raises Unavailable where the name is taken: the next attempt goes on under another one."""
    try:
        return context.tape.create(key)
    except AlreadyExists as error:
        # Nobody else has this name: the endpoint made the file, and its answer was lost.
        raise Unavailable(error.reason, error.message) from error


def _copy(
    context: Context, ctx: JobContext, writer: TapeWriter, section: Section
) -> tuple[set[int], int]:
    """Files whose digests differ, and the Adler-32 of the section with end blocks behind it."""
    adler32 = 1
    checker = SliceChecker([
        Slice(placed.file_id, offset, placed.length, placed.digest)
        for offset, placed in section.slices
    ])  # fmt: skip
    writer.write(section.header)
    try:
        for piece in context.cache.stream(section.key, section.start, section.length):
            ctx.check()
            checker.feed(piece)
            adler32 = zlib_ng.adler32(piece, adler32)
            writer.write(piece)
            ctx.progress(bytes=len(piece))
    except NotFound as error:
        raise SourceLost(section) from error
    except Unavailable as error:
        raise SourceFailing(section, error) from error
    checker.finish()
    writer.write(paxtar.padding(section.length))
    ctx.progress(files=len(section.slices))
    return checker.bad, zlib_ng.adler32(paxtar.END, adler32)


def _left_of(context: Context, section: Section) -> tuple[Gone, list[Placed]]:
    """What is left of a source's object, and the files that are not there in whole."""
    found = gone(context.catalog, context.cache, section.blob_id, section.key, section.end)
    cut = found.size - section.start
    return found, [placed for at, placed in section.slices if at + placed.length > cut]


def _without(
    context: Context,
    ctx: JobContext,
    task: task_pb2.TapeBlobTask,
    section: Section,
    found: Gone,
    bad: list[Placed],
) -> Done:
    """The others are planned anew; the lost one is a fault that is on record."""
    log.error("cache_object_lost", blob=section.blob_id, key=section.key, reason=found.reason)
    numbers = [placed.file_id for placed in bad] if found.size else []
    context.catalog.report_fault(section.blob_id, numbers, found.reason)
    context.catalog.release_aggregate(task.blob_id)
    failed = [placed.path for placed in bad]
    reason = f"{found.reason}; the operators see it as a fault"
    ctx.failures((path, "CACHE_COPY_LOST", reason) for path in failed)
    return Done(files_total=len(failed))


def _record(
    context: Context,
    ctx: JobContext,
    task: task_pb2.TapeBlobTask,
    layout: Layout,
    written: Written,
    bad: set[int],
) -> Done:
    crash.point("tape.archive.written")
    good = [placed for placed in layout.placed() if placed.file_id not in bad]
    members = (
        Member(
            file_id=placed.file_id,
            offset=layout.body_offset + placed.offset,
            length=placed.length,
            digest=placed.digest,
        )
        for placed in good
    )
    try:
        answer = context.catalog.record(
            task.blob_id,
            members,
            size=written.size,
            state=Blob.WRITTEN,
            adler32=written.adler32,
        )
    except FailedPrecondition:
        # Another attempt has given this aggregate up: nothing will ever refer to the file.
        context.tape.remove(task.key)
        raise
    crash.point("tape.archive.recorded")
    _report_damage(context, ctx, layout, bad)
    if answer.unused:
        # Every file has a tape copy by now, or is gone.
        context.tape.remove(task.key)
        context.catalog.set_states([task.blob_id], Blob.REMOVED)
        return Done(files_total=len(bad))
    size = sum(placed.length for placed in good)
    done = _recorded(context, task)
    return Done(
        files_total=len(good) + len(bad),
        bytes_total=size,
        files_done=len(good),
        bytes_done=size,
        follow_ups=done.follow_ups,
    )


def _report_damage(context: Context, ctx: JobContext, layout: Layout, bad: set[int]) -> None:
    """Report copies that are bad when read once more; the others are archived another time."""
    reason = "its bytes in the cache do not match its digest; the operators see it as a fault"
    for section in layout.sections:
        suspects = [(at, placed) for at, placed in section.slices if placed.file_id in bad]
        damaged = [
            placed for at, placed in suspects if not _reads_well(context, section, at, placed)
        ]
        if damaged:
            numbers = [placed.file_id for placed in damaged]
            log.error("cache_copy_damaged", blob=section.blob_id, files=len(numbers))
            context.catalog.report_fault(section.blob_id, numbers, reason)
            ctx.failures((placed.path, "CACHE_COPY_DAMAGED", reason) for placed in damaged)


def _reads_well(context: Context, section: Section, at: int, placed: Placed) -> bool:
    digest = hashlib.sha256()
    for piece in context.cache.stream(section.key, section.start + at, placed.length):
        digest.update(piece)
    return digest.digest() == placed.digest


def _recorded(context: Context, task: task_pb2.TapeBlobTask) -> Done:
    confirm = task_pb2.TapeBlobTask(blob_id=task.blob_id, key=task.key)
    delay = min(1.0, context.config.archive.confirm_seconds)
    return Done(follow_ups=[new_task(Task.CONFIRM, confirm, cost=0.01, delay=delay)])


def _holding_line(context: Context, job: Job) -> Mapping[str, object]:
    """What the manifest says of the holding."""
    transaction = job.transaction
    holding = context.catalog.holding(transaction.holding_id, transaction.group)
    return {
        "holding_id": holding.id,
        "label": holding.label,
        "user": holding.user,
        "group": holding.group,
        "tags": dict(sorted(holding.tags.items())),
    }


# -- confirming ----------------------------------------------------------------------------------


def confirm(context: Context, job: Job, ctx: JobContext) -> Done | Deferred:
    """Wait until the endpoint reports the aggregate on tape; only then it counts as safe."""
    task = task_pb2.TapeBlobTask.FromString(job.payload)
    (state,) = context.tape.stat([task.key])
    if state.on_tape:
        with suppress(FailedPrecondition):  # Lost or removed meanwhile: nothing to confirm.
            context.catalog.set_states([task.blob_id], Blob.SAFE)
            crash.point("tape.confirm.safe")
        return Done()
    if not state.exists:
        return _vanished(context, task)
    trouble = f" ({state.error})" if state.error else ""
    return Deferred(
        context.config.archive.confirm_seconds,
        waiting_for=f"tape: the endpoint has yet to write {task.key} to tape{trouble}",
    )


def _vanished(context: Context, task: task_pb2.TapeBlobTask) -> Done | Deferred:
    """The endpoint does not have the file: asked again and again, then it is lost."""
    task.silent_polls += 1
    if task.silent_polls < SILENT_POLLS:
        waiting_for = f"tape: the endpoint does not show {task.key}; it is asked again"
        delay = context.config.archive.confirm_seconds
        return Deferred(delay, task.SerializeToString(), waiting_for=waiting_for)
    require_others(context, task.blob_id)
    log.error("tape_file_lost", blob=task.blob_id, key=task.key)
    reason = "the endpoint lost the file before it was on tape"
    context.catalog.report_fault(task.blob_id, [], reason)
    return Done(warnings=[f"{reason}; its files are archived again"])
