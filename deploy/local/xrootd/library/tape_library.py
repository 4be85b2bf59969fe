"""What a prepare request means, and the work that follows from it, as EOS with CTA behaves.

- A recall serves every request that asked for the path; the file is then pinned once per request.
- Staging a file that is online pins it once more; each evict takes one pin away, and the last one
  drops the copy in the buffer. Evicting what is not both online and on tape does nothing.
- A missing path fails a whole evict or cancel, but a stage only when every path is missing.
- Empty files are never archived and never offline.
"""

from __future__ import annotations

import errno
import json
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from deploy.local.xrootd.library.agenda import Agenda
from deploy.local.xrootd.library.ledger import Entry, Ledger
from deploy.local.xrootd.library.settings import Settings
from deploy.local.xrootd.library.store import Store

log = logging.getLogger(__name__)

_MISSING = "USER ERROR: file does not exist or is not accessible to you"
_SWEEP_PAUSE = 2.0

Answer = tuple[int, str]
"""errno (0 for success) and text."""


class TapeLibrary:
    """Answers requests and events at once and leaves the work to `run_drive` and `run_agenda`."""

    def __init__(self, store: Store, ledger: Ledger, settings: Callable[[], Settings]) -> None:
        self._store = store
        self._ledger = ledger
        self._settings = settings
        self._lock = threading.RLock()
        self._recalls: queue.Queue[str] = queue.Queue()
        self._agenda = Agenda()
        self._renames = 0
        self._sweeping = False
        self.run_agenda = self._agenda.run
        self._commands: dict[str, Callable[[str, Sequence[str]], Answer]] = {
            "query": self._query,
            "stage": self._stage,
            "evict": self._evict,
            "cancel": self._cancel,
        }

    def resume(self) -> None:
        """Take up what was unfinished when the library last stopped."""
        for path in self._ledger.pending():
            self._recalls.put(path)
        self._rescan()
        self._plan_sweep()

    def request(self, command: str, request_id: str, paths: Sequence[str]) -> Answer:
        """Answer one prepare request."""
        action = self._commands.get(command)
        if action is None:
            return errno.EINVAL, f"unknown command {command!r}"
        with self._lock:
            return action(request_id, paths)

    # -- events of the server

    def closed(self, path: str) -> None:
        """A file was written and closed."""
        self._plan_migration(path, self._settings().migrate_delay)

    def removed(self, path: str) -> None:
        """A file was removed."""
        with self._lock:
            if not self._store.state(path).exists:
                self._ledger.put([(path, Entry())])
            self._plan_sweep()

    def disturbed(self) -> None:
        """Something was renamed, or an event was unreadable: look at every file again."""
        with self._lock:
            self._renames += 1
        self._agenda.after(self._settings().migrate_delay, self._rescan)

    # -- requests

    def _query(self, request_id: str, paths: Sequence[str]) -> Answer:
        responses = [self._describe(request_id, path) for path in paths]
        answer = {"request_id": request_id, "responses": responses}
        return 0, json.dumps(answer, indent="\t", sort_keys=True)

    def _describe(self, request_id: str, path: str) -> dict[str, object]:
        state, entry = self._store.state(path), self._ledger.get(path)
        requested = state.exists and bool(entry.requests)
        return {
            "path": path,
            "path_exists": state.exists,
            "on_tape": state.on_tape,
            "online": state.online,
            "requested": requested,
            "has_reqid": requested and request_id in entry.requests,
            "req_time": str(entry.asked_at) if requested else "",
            "error_text": entry.error if state.exists else _MISSING,
        }

    def _stage(self, request_id: str, paths: Sequence[str]) -> Answer:
        missing = self._missing(paths)
        changed: dict[str, Entry] = {}
        recalls: list[str] = []
        for path in dict.fromkeys(paths):
            if path in missing:
                continue
            entry = self._ledger.get(path)
            if self._store.state(path).online:
                changed[path] = replace(entry, pins=entry.pins + 1)
                continue
            if not entry.requests:
                recalls.append(path)
                entry = replace(entry, asked_at=int(time.time()), error="")
            changed[path] = replace(entry, requests=(*entry.requests, request_id))
        self._ledger.put(changed.items())
        for path in recalls:  # only now: what the drive takes is on record
            self._recalls.put(path)
        return self._fail_missing(missing) if len(missing) == len(paths) else (0, "")

    def _evict(self, _: str, paths: Sequence[str]) -> Answer:
        if missing := self._missing(paths):
            return self._fail_missing(missing)
        changed: dict[str, Entry] = {}
        for path in paths:
            state = self._store.state(path)
            if state.online and state.on_tape:
                changed[path] = self._unpin(path, changed.get(path) or self._ledger.get(path))
        self._ledger.put(changed.items())
        return 0, ""

    def _unpin(self, path: str, entry: Entry) -> Entry:
        pins = max(0, entry.pins - 1)
        if pins == 0 and self._store.evict(path):
            log.info("evicted %r", path)
        return replace(entry, pins=pins)

    def _cancel(self, request_id: str, paths: Sequence[str]) -> Answer:
        if missing := self._missing(paths):
            return self._fail_missing(missing)
        changed: dict[str, Entry] = {}
        for path in paths:
            entry = self._ledger.get(path)
            left = tuple(known for known in entry.requests if known != request_id)
            changed[path] = replace(entry, requests=left, asked_at=entry.asked_at if left else 0)
        self._ledger.put(changed.items())
        return 0, ""

    def _missing(self, paths: Sequence[str]) -> list[str]:
        return [path for path in paths if not self._store.state(path).exists]

    def _fail_missing(self, missing: Sequence[str]) -> Answer:
        shown = missing[0].encode(errors="backslashreplace").decode()
        return (
            errno.ENOENT,
            f"Unable to prepare - file does not exist or is not accessible to you: {shown}",
        )

    # -- the drive

    def run_drive(self) -> None:
        """Recall what is asked for, one file after the other, forever."""
        mounted_until = 0.0
        while True:
            path = self._recalls.get()
            settings = self._settings()
            time.sleep(settings.seek + (settings.mount if time.monotonic() > mounted_until else 0))
            try:
                self._recall(path)
            except sqlite3.Error as error:  # The disk is full: the request stays on record.
                log.warning("recall of %r: %s", path, error)
                self._agenda.after(settings.retry_delay, partial(self._recalls.put, path))
            mounted_until = time.monotonic() + settings.dismount_after

    def _recall(self, path: str) -> None:
        with self._lock:
            if not self._ledger.get(path).requests:
                return  # cancelled
        error = self._attempt_recall(path)
        log.info("recall of %r: %s", path, error or "done")
        with self._lock:
            entry = self._ledger.get(path)
            pins = entry.pins if error else entry.pins + len(entry.requests)
            self._ledger.put([(path, Entry(error=error, pins=pins))])

    def _attempt_recall(self, path: str) -> str:
        try:
            if self._store.state(path).online:
                return ""  # done before a restart
            self._fail_on_demand(path, self._settings().fail_recall)
            self._store.recall(path, self._bandwidth)
        except FileNotFoundError:
            return ""  # removed meanwhile; nobody can ask for it any more
        except OSError as error:
            return f"recall failed: {error.strerror or error}"
        return ""

    # -- migration and housekeeping

    def _plan_migration(self, path: str, delay: float) -> None:
        self._agenda.after(delay, partial(self._migrate, path))

    def _migrate(self, path: str) -> None:
        try:
            self._fail_on_demand(path, self._settings().fail_migrate)
            done = self._store.migrate(path, self._bandwidth)
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("migration of %r: %s", path, error)
            # First: on a full disk the note may fail too.
            self._plan_migration(path, self._settings().retry_delay)
            self._note_error(path, f"archive failed: {error.strerror or error}")
            return
        if done:
            self._migrated(path)

    def _migrated(self, path: str) -> None:
        log.info("migrated %r", path)
        try:
            self._note_error(path, "")
        except sqlite3.Error as error:
            log.warning("note of %r: %s", path, error)
            self._agenda.after(self._settings().retry_delay, partial(self._migrated, path))
            return
        if self._settings().evict_after_migrate:
            self.request("evict", "", [path])

    def _note_error(self, path: str, text: str) -> None:
        with self._lock:
            self._ledger.put([(path, replace(self._ledger.get(path), error=text))])

    def _rescan(self) -> None:
        for path in self._store.paths():
            state = self._store.state(path)
            if state.online and not state.on_tape:
                self._plan_migration(path, self._settings().migrate_delay)

    def _plan_sweep(self) -> None:
        with self._lock:
            if not self._sweeping:
                self._sweeping = True
                self._agenda.after(_SWEEP_PAUSE, partial(self._sweep, frozenset()))

    def _sweep(self, suspects: frozenset[str]) -> None:
        """Delete the copies that two looks in a row, with no rename between, found unused."""
        with self._lock:
            self._sweeping = False
            renames = self._renames
        garbage = self._store.garbage()
        if renames == self._renames:
            self._store.discard(garbage & suspects)
        rest = frozenset(garbage - suspects)
        if rest:
            self._agenda.after(_SWEEP_PAUSE, partial(self._sweep, rest))

    def _bandwidth(self) -> float:
        return self._settings().bandwidth

    def _fail_on_demand(self, path: str, parts: Sequence[str]) -> None:
        if any(part in path for part in parts):
            raise OSError(errno.EIO, "simulated tape error")
