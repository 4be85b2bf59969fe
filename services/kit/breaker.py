"""When to leave something alone that does not answer: a circuit breaker. Pure, but for its lock.

Closed, everything may use it. After a few failures in a row it opens: nothing may, but for a probe
now and then, with pauses that double and differ. A probe that succeeds lets everything try again
(half-open); one success closes it, one failure opens it with the next longer pause. That a probe
succeeds is not enough: a store that is full still answers.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum


class State(Enum):
    """What may use the thing."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(frozen=True, slots=True)
class Patience:
    """``failures`` in a row open it; pauses between probes in seconds."""

    failures: int = 3
    first_pause: float = 1.0
    longest_pause: float = 30.0


class Breaker:
    """Of one thing that work depends on. Times are given by the caller, in seconds of any clock."""

    def __init__(self, patience: Patience | None = None) -> None:
        self._patience = patience or Patience()
        self._lock = threading.Lock()
        self._state = State.CLOSED
        self._failures = 0
        self._openings = 0
        self._next_probe = 0.0
        self._reason = ""
        self._since: datetime | None = None

    @property
    def state(self) -> State:
        """What may use the thing now."""
        return self._state

    def succeeded(self) -> None:
        """Something that really used it went well."""
        with self._lock:
            if self._state is not State.OPEN:
                self._close()

    def failed(self, reason: str, now: float, jitter: float) -> None:
        """Something that used it, or a probe, failed for ``reason``; ``jitter`` in [0, 1)."""
        with self._lock:
            self._reason = reason
            self._since = self._since or datetime.now(UTC)
            if self._state is State.OPEN:
                return
            self._failures += 1
            if self._state is State.HALF_OPEN or self._failures >= self._patience.failures:
                self._open(now, jitter)

    def probed(self, trouble: str, now: float, jitter: float) -> None:
        """A probe has ended, with ``trouble`` unless it is empty."""
        if trouble and self._state is State.OPEN:
            with self._lock:
                self._reason = trouble
                self._open(now, jitter)
        elif trouble:
            self.failed(trouble, now, jitter)
        else:
            self._admit()

    def is_due(self, now: float) -> bool:
        """Whether it is open and time for a probe."""
        return self._state is State.OPEN and now >= self._next_probe

    def trouble(self, now: float) -> str:
        """What is wrong, since when, and when it is tried again; empty when nothing is."""
        with self._lock:
            if self._since is None or self._state is State.HALF_OPEN:
                return ""
            text = f"{self._reason} since {self._since:%H:%M} UTC"
            if self._state is State.CLOSED:
                return text
            return f"{text}, next try in {max(round(self._next_probe - now), 0)} s"

    def _admit(self) -> None:
        with self._lock:
            if self._state is State.OPEN:
                self._state = State.HALF_OPEN
            elif self._state is State.CLOSED:
                self._close()

    def _open(self, now: float, jitter: float) -> None:
        pause = min(self._patience.longest_pause, self._patience.first_pause * 2.0**self._openings)
        self._next_probe = now + pause * (0.5 + jitter / 2)
        self._openings = min(self._openings + 1, 60)
        self._state = State.OPEN

    def _close(self) -> None:
        self._state = State.CLOSED
        self._failures = self._openings = 0
        self._reason, self._since = "", None
