"""STAGE and RECALL: from tape to the cache, only what is wanted, as soon as it is online."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import structlog

from nearline.monitor.v1 import monitor_pb2 as ledger
from nearline.type.v1 import storage_pb2, task_pb2
from services.kit import crash, spans
from services.kit.batches import Batches, cost
from services.kit.catalogclient import Blob, Member
from services.kit.errors import NotFound, Unavailable
from services.kit.faults import no_copy
from services.kit.jobs import Deferred, Done, Job, JobContext, Outcome, new_task
from services.kit.packs import Pack, record
from services.tape.context import Context
from services.tape.endpoint import (
    TAPE_FILE_NOT_FOUND,
    TAPE_SHORT_READ,
    Offline,
    TapeFileState,
    TapeReader,
)
from services.tape.missing import SILENT_POLLS, require_others

log = structlog.get_logger(__name__)

Task = task_pb2.Task
StoredFile = storage_pb2.StoredFile

MOST_REQUESTS = 10
"""An endpoint that failed to bring a file back this often will not do it; six minutes in all."""
_LONGEST_PAUSE = 60.0
MOST_MISSED = 8
"""With growing pauses, some eight minutes in all."""
_FIRST_POLL_SECONDS = 0.5
# By then the pause is longer than any that is configured; the power would soon be too large.
_GROWING_POLLS = 40
_GROUP_BYTES = 8 << 20
# The reader holds several, twice each: smaller ones keep memory low and are no slower.
_READ_BYTES = 2 << 20
_BYTES_PER_SECOND = 300 << 20
# Several, so that several workers write them.
_DOWNLOAD_FILES, _DOWNLOAD_BYTES = 2000, 64 << 20


# -- staging -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sorted:
    """Recalls by what is to be done about them now."""

    online: list[task_pb2.RecallTask]
    request: list[task_pb2.RecallTask]
    wait: list[task_pb2.RecallTask]
    failing: list[tuple[task_pb2.RecallTask, str]]
    """With what the endpoint said; its buffer may be full, or a drive out of order."""
    unreadable: list[tuple[task_pb2.RecallTask, str]]
    """Failing for too long; the copy stays, as it may be good all the same."""
    missing: list[task_pb2.RecallTask]
    """The endpoint has said again and again that it does not have the file."""


def stage(context: Context, job: Job, ctx: JobContext) -> Outcome:
    """Ask for all tape blobs at once, then hand on each as soon as it is online."""
    task = task_pb2.StageTask.FromString(job.payload)
    ctx.files_at_stake = sum(spans.count(recall.files) for recall in task.recalls)
    total = len(task.recalls)
    states = context.tape.stat([recall.key for recall in task.recalls])
    now = sort_out(task.recalls, states)
    if now.failing and len(now.failing) == total:
        return _ask_again(context, task, now.failing)
    for recall, reason in now.unreadable:
        _fail(context, ctx, recall, reason)
    tasks = _without_missing(context, ctx, now.missing, among=total)
    tasks += [_recall_task(recall) for recall in now.online]
    if now.failing:
        tasks.append(_apart([recall for recall, _ in now.failing]))
    waiting = [*now.request, *now.wait]
    if now.request:
        _request(context, now.request)
    if not waiting:
        return Done(follow_ups=tasks)
    payload = task_pb2.StageTask(recalls=waiting, polls=task.polls + 1)
    return Deferred(
        poll_pause(task.polls, context.config.recall.poll_seconds),
        payload.SerializeToString(),
        waiting_for=f"tape: {len(waiting)} of {total} tape files are not online yet",
        follow_ups=tasks,
    )


def _request(context: Context, recalls: Sequence[task_pb2.RecallTask]) -> None:
    """Ask the endpoint to bring files back. Last of all in a task, or it may be asked twice.

    Every stage is a reference of its own to the endpoint's buffer, given back after the recall: so
    another request for the same tape file cannot take it away from this one.
    """
    context.tape.stage([recall.key for recall in recalls])
    crash.point("tape.stage.requested")


def poll_pause(polls: int, longest: float) -> float:
    """Seconds until the next poll after ``polls`` of them; a recall may wait for weeks. Pure."""
    return float(min(_FIRST_POLL_SECONDS * 1.5 ** min(polls, _GROWING_POLLS), longest))


def sort_out(recalls: Iterable[task_pb2.RecallTask], states: Iterable[TapeFileState]) -> Sorted:
    """What to do about each recall, given the endpoint's word on it; counts in the recalls."""
    result = Sorted([], [], [], [], [], [])
    for recall, state in zip(recalls, states, strict=True):
        if not state.exists:
            recall.silent_polls += 1
            known_missing = recall.silent_polls >= SILENT_POLLS
            (result.missing if known_missing else result.wait).append(recall)
        elif recall.requests and state.online:
            result.online.append(recall)
        elif state.error and recall.requests >= MOST_REQUESTS:
            reason = f"the tape endpoint cannot read it: {state.error}; try again later"
            result.unreadable.append((recall, reason))
        elif state.error and recall.requests:
            result.failing.append((recall, state.error))
        elif not recall.requests or _forgotten(recall, state):
            recall.requests += 1
            recall.silent_polls = 0
            result.request.append(recall)
        else:
            result.wait.append(recall)
    return result


def _forgotten(recall: task_pb2.RecallTask, state: TapeFileState) -> bool:
    recall.silent_polls = 0 if state.requested else recall.silent_polls + 1
    return recall.silent_polls >= SILENT_POLLS


def _without_missing(
    context: Context, ctx: JobContext, missing: Sequence[task_pb2.RecallTask], *, among: int
) -> list[ledger.NewTask]:
    """The tasks for what is missing ``among`` so many recalls; alone, it holds up no others.

    Before a file counts as lost the endpoint must show what it should have, which a person may
    have to see to first.
    """
    if len(missing) in (0, among):
        return _drop_missing(context, ctx, missing)
    return [_apart(missing)]


def _apart(recalls: Sequence[task_pb2.RecallTask]) -> ledger.NewTask:
    """A stage of their own for recalls in trouble, so that they hold up no others."""
    files = sum(spans.count(recall.files) for recall in recalls)
    return new_task(Task.STAGE, task_pb2.StageTask(recalls=recalls), files=files)


def _ask_again(
    context: Context, task: task_pb2.StageTask, failing: Sequence[tuple[task_pb2.RecallTask, str]]
) -> Deferred:
    """Ask once more for what the endpoint failed to bring back, each time after a longer pause."""
    recalls = [recall for recall, _ in failing]
    for recall in recalls:
        recall.requests += 1
        recall.silent_polls = 0
    _request(context, recalls)
    first, error = failing[0]
    payload = task_pb2.StageTask(recalls=recalls, polls=task.polls + 1)
    return Deferred(
        min(2.0**first.requests, _LONGEST_PAUSE),
        payload.SerializeToString(),
        waiting_for=f"tape: {first.key} could not be brought back: {error};"
        f" asked {first.requests} times of {MOST_REQUESTS}",
    )


def _drop_missing(
    context: Context, ctx: JobContext, missing: Sequence[task_pb2.RecallTask]
) -> list[ledger.NewTask]:
    """Have the catalog forget copies that are gone; the tasks for files that have others."""
    tasks: list[ledger.NewTask] = []
    reason = "the tape endpoint does not have the file any more"
    for recall in missing:
        require_others(context, recall.blob_id)
        log.error("tape_file_lost", blob=recall.blob_id, key=recall.key)
        lost = context.catalog.report_fault(recall.blob_id, [], reason)
        tasks += _elsewhere(context, ctx, list(context.catalog.files(recall.files)), lost)
    return tasks


def _elsewhere(
    context: Context, ctx: JobContext, files: Sequence[StoredFile], lost: Collection[int]
) -> list[ledger.NewTask]:
    """Fail those of ``files`` that are ``lost``; the others are looked up again."""
    ctx.failures(no_copy(context.catalog, (file for file in files if file.id in lost)))
    left = [file for file in files if file.id not in lost]
    if not left:
        return []
    numbers = spans.to_ranges(file.id for file in left)
    size = sum(file.attributes.size for file in left)
    payload = task_pb2.FilesTask(files=numbers, bytes=size)
    return [new_task(Task.RESOLVE, payload, cost=cost(len(left), 0), files=len(left))]


def _fail(context: Context, ctx: JobContext, recall: task_pb2.RecallTask, reason: str) -> None:
    log.error("tape_file_unreadable", blob=recall.blob_id, key=recall.key, reason=reason)
    files = context.catalog.files(recall.files)
    ctx.failures((file.path, "TAPE_COPY_UNREADABLE", reason) for file in files)


def _recall_task(recall: task_pb2.RecallTask) -> ledger.NewTask:
    return new_task(
        Task.RECALL,
        recall,
        cost=max(recall.bytes / _BYTES_PER_SECOND, 0.05),
        key=f"recall:{recall.blob_id}",
        files=spans.count(recall.files),
    )


# -- recalling -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file and its slice of the tape blob, in bytes."""

    file: StoredFile
    offset: int
    length: int


@dataclass(slots=True)
class Damage:
    """Numbers of the files whose bytes on tape are bad, and of those without another copy."""

    bad: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)


def recall(context: Context, job: Job, ctx: JobContext) -> Done:
    """Copy the wanted members of one online tape blob into the cache, reading only them."""
    task = task_pb2.RecallTask.FromString(job.payload)
    ctx.files_at_stake = spans.count(task.files)
    files = list(context.catalog.files(task.files))
    wanted = select(files, task.blob_id)
    try:
        damage = _read(context, ctx, task, wanted)
    except Offline:
        return _missed(context, ctx, task)
    except NotFound as error:
        if error.reason != TAPE_FILE_NOT_FOUND:
            raise
        return _missed(context, ctx, task)
    crash.point("tape.recall.recorded")
    context.tape.release([task.key])
    crash.point("tape.recall.released")
    brought = {one.file.id for one in wanted} - damage.bad
    good = [file for file in files if file.id in brought or is_at_hand(file)]
    others = [file for file in files if not (file.id in brought or is_at_hand(file))]
    tasks = _elsewhere(context, ctx, others, damage.lost)
    return _done(task, good, tasks)


def _read(
    context: Context, ctx: JobContext, task: task_pb2.RecallTask, wanted: Sequence[Wanted]
) -> Damage:
    if not wanted:
        return Damage()
    with context.tape.open(task.key) as reader:
        return _Recall(context, ctx, task, reader).run(wanted)


def _missed(context: Context, ctx: JobContext, task: task_pb2.RecallTask) -> Done:
    """The buffer's copy was dropped before it was read: ask again, but not for ever."""
    if task.missed >= MOST_MISSED:
        _fail(context, ctx, task, "the tape endpoint drops it from its buffer before it is read")
        return Done()
    again = task_pb2.RecallTask()
    again.CopyFrom(task)
    again.requests = 0
    again.missed += 1
    stage_again = task_pb2.StageTask(recalls=[again])
    files = spans.count(again.files)
    delay = 2.0**task.missed
    return Done(follow_ups=[new_task(Task.STAGE, stage_again, delay=delay, files=files)])


def select(files: Iterable[StoredFile], blob_id: int) -> list[Wanted]:
    """The files to read from the tape blob by offset: those without a copy in the cache. Pure."""
    wanted = []
    for file in files:
        if is_at_hand(file):
            continue
        for piece in file.slices:
            if piece.blob_id == blob_id:
                wanted.append(Wanted(file, piece.offset, piece.length))
    return sorted(wanted, key=lambda one: one.offset)


def is_at_hand(file: StoredFile) -> bool:
    """Whether the file has a copy in the cache. Pure."""
    return any(piece.tier == Blob.CACHE for piece in file.slices)


def _done(
    task: task_pb2.RecallTask, files: Sequence[StoredFile], tasks: Sequence[ledger.NewTask]
) -> Done:
    size = sum(file.attributes.size for file in files)
    if not task.download:
        return Done(files_done=len(files), bytes_done=size, follow_ups=tasks)
    downloads = Batches(Task.DOWNLOAD, most_files=_DOWNLOAD_FILES, most_bytes=_DOWNLOAD_BYTES)
    for file in files:
        downloads.add(file.id, file.attributes.size)
    return Done(follow_ups=[*downloads.tasks(), *tasks])


class _Recall:
    """One pass over an open tape blob."""

    def __init__(
        self, context: Context, ctx: JobContext, task: task_pb2.RecallTask, reader: TapeReader
    ) -> None:
        self._context, self._ctx, self._task, self._reader = context, ctx, task, reader
        self._config = context.config.recall
        self._pack = Pack(self._config.pack_bytes)
        self._damage = Damage()

    def run(self, wanted: Sequence[Wanted]) -> Damage:
        """Copy what is good; what is not is reported to the catalog."""
        holding_id = wanted[0].file.holding_id
        small = [one for one in wanted if one.length < self._config.pack_threshold]
        for group in groups(small, _GROUP_BYTES):
            self._ctx.check()
            self._add(group, holding_id)
        if self._pack:
            self._store_pack(holding_id)
        for one in wanted:
            if one.length >= self._config.pack_threshold:
                self._copy(one)
        return self._damage

    def _add(self, group: Sequence[Wanted], holding_id: int) -> None:
        contents = self._read_group(group)
        for one, read in zip(group, contents, strict=True):
            content = self._verified(one, read)
            if content is None:
                self._damaged(one.file)
                continue
            if not self._pack.fits(one.length):
                self._store_pack(holding_id)
            file = one.file
            self._pack.add(file.id, file.path, file.attributes, content, new=False)
            self._moved(one.length)

    def _store_pack(self, holding_id: int) -> None:
        context = self._context
        self._pack.store(context.catalog, context.cache, holding_id, self._ctx.check)

    def _read_group(self, group: Sequence[Wanted]) -> list[bytes]:
        try:
            return self._reader.read_many([(one.offset, one.length) for one in group])
        except Unavailable as error:
            if error.reason != TAPE_SHORT_READ:
                raise
            # The file was cut: what lies before the cut is as good as ever.
            return [self._read_one(one) for one in group]

    def _read_one(self, one: Wanted) -> bytes:
        """The file's bytes, none when the tape file ends before theirs do."""
        try:
            return self._reader.read(one.offset, one.length)
        except Unavailable as error:
            if error.reason != TAPE_SHORT_READ:
                raise
            return b""

    def _verified(self, one: Wanted, content: bytes) -> bytes | None:
        """The file's bytes, read again if they differ: it may be the way from tape that is bad."""
        if not _differs(one.file, hashlib.sha256(content).digest()):
            return content
        again = self._read_one(one)
        return None if _differs(one.file, hashlib.sha256(again).digest()) else again

    def _copy(self, one: Wanted, *, again: bool = True) -> None:
        """A large file becomes a blob of its own; bytes that differ are read once ``again``."""
        catalog, cache, file = self._context.catalog, self._context.cache, one.file
        blob = catalog.allocate(file.holding_id, Blob.CACHE, Blob.RAW)
        with cache.open_upload(
            blob.key, part_size=self._config.part_bytes, size_hint=one.length
        ) as upload:
            if good := self._stream(one, upload.write):
                upload.commit()
        if good:
            member = Member(file_id=file.id, length=one.length, digest=file.digest)
            self._ctx.check()
            record(catalog, cache, blob, [member], one.length)
            return
        catalog.set_states([blob.id], Blob.REMOVED)
        if again:
            self._copy(one, again=False)
        else:
            self._damaged(file)

    def _stream(self, one: Wanted, write: Callable[[bytes], None]) -> bool:
        """Pass a large file on with bounded memory; whether its bytes were right."""
        digest = hashlib.sha256()
        try:
            for piece in self._reader.stream(one.offset, one.length, _READ_BYTES):
                self._ctx.check()
                digest.update(piece)
                write(piece)
                self._moved(len(piece))
        except Unavailable as error:
            if error.reason != TAPE_SHORT_READ:
                raise
        return not _differs(one.file, digest.digest())

    def _moved(self, size: int) -> None:
        # Of a GET these bytes have half their way before them: they count when they are written.
        self._ctx.progress(bytes=0 if self._task.download else size)

    def _damaged(self, file: StoredFile) -> None:
        log.error("tape_copy_damaged", blob=self._task.blob_id, file=file.id)
        reason = "its bytes on tape do not match its digest"
        lost = self._context.catalog.report_fault(self._task.blob_id, [file.id], reason)
        self._damage.bad.add(file.id)
        self._damage.lost |= lost


def groups(wanted: Iterable[Wanted], most_bytes: int) -> Iterator[list[Wanted]]:
    """Neighbours to be read with one request, at most ``most_bytes`` unless one file is larger."""
    group: list[Wanted] = []
    size = 0
    for one in wanted:
        if group and size + one.length > most_bytes:
            yield group
            group, size = [], 0
        group.append(one)
        size += one.length
    if group:
        yield group


def _differs(file: StoredFile, digest: bytes) -> bool:
    # Directories and links have no bytes and no digest.
    return bool(file.digest) and file.digest != digest
