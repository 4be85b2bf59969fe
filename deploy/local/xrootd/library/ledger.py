"""What the library must not forget when it is restarted: recalls asked for, failures, pins."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entry (
  path BLOB PRIMARY KEY,   -- as the file system has it: any bytes
  requests TEXT NOT NULL,  -- JSON list of the request ids that wait for the recall
  asked_at INTEGER NOT NULL,
  error TEXT NOT NULL,
  pins INTEGER NOT NULL
) WITHOUT ROWID
"""


@dataclass(frozen=True)
class Entry:
    """What is remembered of one path.

    ``pins`` counts the requests that the copy in the buffer was recalled for and that have not
    released it; ``error`` is the last failure to migrate or recall it.
    """

    requests: tuple[str, ...] = ()
    asked_at: int = 0
    error: str = ""
    pins: int = 0


class Ledger:
    """Entries by path in an SQLite file. The caller serializes the calls."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute(_SCHEMA)

    def get(self, path: str) -> Entry:
        """The entry of a path; an empty one when nothing is remembered."""
        query = "SELECT requests, asked_at, error, pins FROM entry WHERE path = ?"
        row = self._db.execute(query, (os.fsencode(path),)).fetchone()
        return Entry(tuple(json.loads(row[0])), *row[1:]) if row else Entry()

    def put(self, entries: Iterable[tuple[str, Entry]]) -> None:
        """Replace entries, all in one transaction; an empty entry is deleted."""
        with self._db:
            for path, entry in entries:
                self._put(os.fsencode(path), entry)

    def pending(self) -> list[str]:
        """Paths with an unanswered request, the oldest first."""
        query = "SELECT path FROM entry WHERE requests <> '[]' ORDER BY asked_at, path"
        return [os.fsdecode(row[0]) for row in self._db.execute(query)]

    def _put(self, path: bytes, entry: Entry) -> None:
        if entry == Entry():
            self._db.execute("DELETE FROM entry WHERE path = ?", (path,))
            return
        values = (path, json.dumps(entry.requests), entry.asked_at, entry.error, entry.pins)
        self._db.execute("REPLACE INTO entry VALUES (?, ?, ?, ?, ?)", values)
