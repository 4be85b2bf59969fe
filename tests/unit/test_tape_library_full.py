"""The simulated tape library goes on when its own disk was full for a while."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable
from pathlib import Path

from deploy.local.wait import wait_until
from deploy.local.xrootd.library.ledger import Entry, Ledger
from deploy.local.xrootd.library.settings import Settings
from deploy.local.xrootd.library.store import Store
from deploy.local.xrootd.library.tape_library import TapeLibrary

PATH = "/tape/file"
QUICK = Settings(migrate_delay=0.0, retry_delay=0.01, mount=0.0, seek=0.0, evict_after_migrate=True)


class FullLedger(Ledger):
    """A ledger on a disk that is full at times."""

    failures = 0

    def put(self, entries: Iterable[tuple[str, Entry]]) -> None:
        if self.failures:
            self.failures -= 1
            raise sqlite3.OperationalError("database or disk is full")
        super().put(entries)


def test_migrations_and_recalls_are_tried_again(tmp_path: Path) -> None:
    store, ledger = Store(tmp_path, "/tape"), FullLedger(tmp_path / "ledger.sqlite")
    library = TapeLibrary(store, ledger, lambda: QUICK)
    for work in (library.run_drive, library.run_agenda):
        threading.Thread(target=work, daemon=True).start()
    (tmp_path / "buffer/tape/file").write_bytes(b"content")

    def offline() -> str | None:
        state = store.state(PATH)
        return None if state.on_tape and not state.online else str(state)

    ledger.failures = 2
    library.closed(PATH)
    wait_until(offline, "the migration", 10.0)
    assert library.request("stage", "one", [PATH])[0] == 0
    ledger.failures = 2
    wait_until(lambda: None if ledger.get(PATH).pins else "not recalled", "the recall", 10.0)
    assert (tmp_path / "buffer/tape/file").read_bytes() == b"content"
