"""Everything that happened in a run, in its order, as JSON lines."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path


class History:
    """Written line by line, so that a run that is killed leaves what happened until then."""

    def __init__(self, path: Path, say: Callable[[str], None] = lambda text: None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.counts: Counter[str] = Counter()
        self._say = say
        self._file = path.open("w")
        self._lock = threading.Lock()
        self._begun = time.monotonic()

    def now(self) -> float:
        """Seconds since the run began."""
        return round(time.monotonic() - self._begun, 3)

    def add(self, event: str, **facts: object) -> None:
        """Record one event and count it."""
        line = json.dumps({"at": self.now(), "event": event, **facts}, default=str)
        with self._lock:
            self.counts[event] += 1
            self._file.write(line + "\n")
            self._file.flush()

    def tell(self, text: str) -> None:
        """Record a remark and show it."""
        self.add("remark", text=text)
        self._say(f"{self.now():7.1f} s  {text}")

    def close(self) -> None:
        """End the file."""
        self._file.close()
