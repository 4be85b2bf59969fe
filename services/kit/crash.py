"""Named moments at which a process can be made to die at once, as if its machine had lost power.

``NEARLINE_CRASH=NAME`` or ``NAME:N`` in the environment of a service ends that process, without any
clean-up, when it comes to the point for the N-th time (the first by default). Tests use it to
stand exactly before or behind a durable effect; unarmed, a point costs one comparison.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping

from services.kit.config import ConfigError

VARIABLE = "NEARLINE_CRASH"
EXIT_CODE = 86
"""The exit status of a process that died at its point."""

POINTS: Mapping[str, str] = {
    "cache.multipart.before_complete": "all parts of a large object are stored, it does not exist",
    "cache.multipart.after_complete": "a large object exists, its writer does not know",
    "cache.unused.before_delete": "an object that nothing refers to is about to be deleted",
    "cache.unused.after_delete": "that object is gone, its blob is not marked as removed",
    "catalog.evict.after_commit": "cache copies are given up, nobody was told to delete them",
    "catalog.register.after_commit": "paths have their numbers, the scan does not know",
    "catalog.seal.before_commit": "a blob's files are located in a transaction that is open",
    "database.after_commit": "any write of catalog or monitor is durable and not answered",
    "monitor.accept.before_commit": "a request is accepted in a transaction that is open",
    "monitor.accept.after_commit": "a request is accepted, its user does not know",
    "monitor.record.before_commit": "results of tasks are recorded in a transaction that is open",
    "monitor.record.after_commit": "results of tasks are recorded and not acknowledged",
    "pack.allocated": "a pack has its name and no object",
    "pack.stored": "a pack's object exists, the catalog does not know",
    "pack.recorded": "a pack's files are located, the task has not ended",
    "tape.archive.before_commit": "all bytes of an aggregate are sent, its file is open",
    "tape.archive.written": "an aggregate is complete on the endpoint, the catalog does not know",
    "tape.archive.recorded": "an aggregate is recorded, nobody is to confirm it",
    "tape.archive.released": "a lost attempt's aggregate is given up, its file may exist",
    "tape.archive.reclaimed": "a new aggregate is claimed for a lost one, its task does not exist",
    "tape.confirm.safe": "an aggregate is safe, its task has not ended",
    "tape.plan.claimed": "aggregates are claimed, their tasks do not exist",
    "tape.recall.recorded": "files are back in the cache, the endpoint's buffer is still held",
    "tape.recall.released": "the endpoint's buffer is given back, the task has not ended",
    "tape.stage.requested": "the endpoint was asked for files, the ledger does not know",
    "transfer.evict.before_delete": "cache copies are given up, their objects exist",
    "transfer.evict.deleted": "objects are gone, their blobs are not marked as removed",
    "transfer.get.before_rename": "a file is written and verified under its temporary name",
    "transfer.get.after_rename": "a file is in its place, the task has not ended",
    "transfer.scan.registered": "all paths of a scan are registered, the task has not ended",
    "transfer.upload.before_seal": "a large file's object exists, the catalog does not know",
    "transfer.upload.after_seal": "a large file is located, the task has not ended",
    "worker.before_report": "a task's work is done, its result was not sent",
}
"""Every point, with what is durable at that moment and what is not."""


class _Trigger:
    """Dies at the ``nth`` visit of one point."""

    def __init__(self, name: str, nth: int) -> None:
        self._name = name
        self._left = nth
        self._lock = threading.Lock()

    def visit(self, name: str) -> None:
        if name != self._name:
            return
        with self._lock:
            self._left -= 1
            if self._left == 0:
                os.write(2, f'{{"event": "crash_point", "point": "{name}"}}\n'.encode())
                os._exit(EXIT_CODE)


_trigger: _Trigger | None = None


def arm(wanted: str) -> None:
    """Die at the point that ``NAME[:N]`` says; at none when it is empty. Raises ConfigError."""
    global _trigger
    name, _, count = wanted.partition(":")
    if wanted and name not in POINTS:
        raise ConfigError(f"{VARIABLE}: there is no crash point {name!r}; see services/kit/crash")
    if count and (not count.isdecimal() or not int(count)):
        raise ConfigError(f"{VARIABLE}: {count!r} is no count; write NAME or NAME:N with N from 1")
    _trigger = _Trigger(name, int(count or 1)) if wanted else None


def point(name: str) -> None:
    """Die here if this point was armed."""
    if _trigger is not None:
        _trigger.visit(name)
