"""Things to do later, one after the other in the order they fall due."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

Action = Callable[[], None]


class Agenda:
    """A queue of actions with a due time, worked off by the thread that calls `run`."""

    def __init__(self) -> None:
        self._items: list[tuple[float, int, Action]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()

    def after(self, delay: float, action: Action) -> None:
        """Do ``action`` in ``delay`` seconds."""
        with self._changed:
            item = (time.monotonic() + delay, next(self._numbers), action)
            heapq.heappush(self._items, item)
            self._changed.notify()

    def run(self) -> None:
        """Work off the actions forever; one that fails is logged and the next one follows."""
        while True:
            action = self._next()
            try:
                action()
            except Exception:
                log.exception("%s failed", action)

    def _next(self) -> Action:
        with self._changed:
            while True:
                pause = self._items[0][0] - time.monotonic() if self._items else None
                if pause is not None and pause <= 0:
                    return heapq.heappop(self._items)[2]
                self._changed.wait(pause)
