"""VERIFY: reads copies with an open fault again, and takes good ones back into use.

A person may have brought back the tape file, the bucket or its disk; the bytes themselves tell.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import NamedTuple

import structlog
from prometheus_client import Counter

from nearline.catalog.v1 import catalog_pb2 as catalog
from services.kit.catalogclient import Blob, in_batches
from services.kit.errors import FailedPrecondition, NearlineError, NotFound, Unavailable
from services.kit.jobs import Done, Job, JobContext
from services.kit.objecterrors import OBJECT_TRUNCATED
from services.tape.context import Context
from services.tape.endpoint import TAPE_SHORT_READ

log = structlog.get_logger(__name__)

Fault = catalog.Fault
Read = Callable[[int, int], Iterator[bytes]]
"""The bytes of (offset, length) in pieces."""

_FAULTY = (Blob.STORED, Blob.WRITTEN, Blob.SAFE, Blob.LOST)
_READ_BYTES = 2 << 20
# Files of one call; a tape file has up to 100,000.
_MOST_AT_ONCE = 5000

_REINSTATED = Counter(
    "copies_reinstated", "Copies found bad that were found good later.", ("tier",)
)


@dataclass(frozen=True, slots=True)
class Checked:
    """What became of the faults of one blob; ``trouble`` is empty when none is left."""

    blob_id: int
    key: str
    faults: int
    reinstated: int
    trouble: str


def verify(context: Context, job: Job, ctx: JobContext) -> Done:
    """The scheduled look at everything that can be read without a tape drive."""
    for checked in check_faults(context):
        ctx.check()
        if checked.reinstated:
            log.warning("copies_reinstated", blob=checked.blob_id, files=checked.reinstated)
    return Done()


def check_faults(
    context: Context, blob_ids: Sequence[int] = (), *, stage: bool = False
) -> Iterator[Checked]:
    """Look at open faults, of ``blob_ids`` if there are some; what became of each blob.

    ``stage``: have offline tape files brought back; a later look can read them.
    """
    found = context.catalog.faults(blob_ids=blob_ids)
    for _, group in groupby(found, key=lambda fault: fault.blob_id):
        faults = list(group)
        if faults[0].state in _FAULTY:
            yield _check(context, faults, stage)


def _check(context: Context, faults: Sequence[Fault], stage: bool) -> Checked:
    first, count, trouble = faults[0], 0, ""
    look = _in_cache if first.tier == Blob.CACHE else partial(_on_tape, stage=stage)
    try:
        seen = look(context, faults)
        trouble = seen.trouble
        for good in in_batches(seen.good, _MOST_AT_ONCE):
            count += context.catalog.reinstate(first.blob_id, good, seen.state)
    # Missing, not there for now, dropped from the buffer, or replaced and going in this moment.
    except (NotFound, Unavailable, FailedPrecondition) as error:
        trouble = error.message
    _REINSTATED.labels(Blob.Tier.Name(first.tier).lower()).inc(count)
    if not trouble and count < len(faults):
        trouble = f"{len(faults) - count} copies do not match their digests"
    return Checked(first.blob_id, first.key, len(faults), count, trouble)


class _Seen(NamedTuple):
    """Files whose copies in a blob are good, its state if it is read again, what is in the way."""

    good: Sequence[int] = ()
    state: Blob.State.ValueType = Blob.STORED
    trouble: str = ""


def _in_cache(context: Context, faults: Sequence[Fault]) -> _Seen:
    """Raises NotFound when there is no such object."""
    key = faults[0].key
    context.cache.head(key)
    return _Seen(_good(faults, lambda at, size: context.cache.stream(key, at, size)))


def _on_tape(context: Context, faults: Sequence[Fault], *, stage: bool) -> _Seen:
    key = faults[0].key
    (state,) = context.tape.stat([key])
    if not state.exists:
        return _Seen(trouble="the tape endpoint does not have the file")
    if not state.online:
        if stage:
            context.tape.stage([key])
            return _Seen(trouble="it is being brought back from tape; look again once it is online")
        return _Seen(trouble="it is on tape only; have it staged to look at it")
    with context.tape.open(key) as reader:
        good = _good(faults, lambda at, size: reader.stream(at, size, _READ_BYTES))
    # Until the reconciler sees it on tape it is not safe.
    return _Seen(good, Blob.SAFE if state.on_tape else Blob.WRITTEN)


def _good(faults: Sequence[Fault], read: Read) -> list[int]:
    return [fault.file_id for fault in faults if _matches(fault, read)]


def _matches(fault: Fault, read: Read) -> bool:
    """Whether the copy's bytes are right; a directory or link has none, and needs its blob only."""
    if not fault.digest:
        return True
    digest = hashlib.sha256()
    try:
        for piece in read(fault.offset, fault.length):
            digest.update(piece)
    except NearlineError as error:
        if error.reason in (OBJECT_TRUNCATED, TAPE_SHORT_READ):
            return False
        raise
    return digest.digest() == fault.digest
