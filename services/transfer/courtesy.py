"""Work of any size gives way to small work on the same host, while processors are short.

A small task takes milliseconds of many processes: gateway, ledger, catalog, databases, object
store. Beside work that keeps every processor busy each of these steps waits its turn, and priority
of the worker processes does not help, as most of the load that they make is made elsewhere. So
whoever makes it pauses.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_SIZE = 8
_SMALL_SECONDS = 1.0
_REMEMBERED = 10_000
# Who dies in the middle of small work holds nobody up for longer.
_LONGEST_SECONDS = 1.0
# From one small task of a request to its next one.
_BETWEEN_SECONDS = 0.1
_LOOK_SECONDS = 0.005
_MOST_SECONDS = 0.2
# Pauses take at most three quarters of the time: large work goes on, whatever comes.
_PAUSE_PER_WORK = 3.0


class SmallWork:
    """When small work was last going on: a moment that a service's processes share by ``fd``.

    One process tells it, any number see it.
    """

    def __init__(self, fd: int) -> None:
        self._until = memoryview(mmap.mmap(fd, _SIZE)).cast("d")
        self._lock = threading.Lock()
        self._running = 0

    @staticmethod
    def make() -> int:
        """A file descriptor for processes to inherit."""
        fd = os.memfd_create("small-work")
        os.truncate(fd, _SIZE)
        return fd

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Small work happens inside."""
        self._add(1)
        try:
            yield
        finally:
            self._add(-1)

    def is_going_on(self) -> bool:
        """Whether there is small work, begun within a second, or was until a moment ago."""
        return time.monotonic() < self._until[0]

    def _add(self, tasks: int) -> None:
        with self._lock:
            self._running += tasks
            lasting = _LONGEST_SECONDS if self._running else _BETWEEN_SECONDS
            self._until[0] = time.monotonic() + lasting


class GiveWay:
    """Called at each step of large work: pauses while small work needs the processors.

    ``crowded`` says whether a process that becomes ready now would have to wait.
    """

    def __init__(self, small: SmallWork, crowded: Callable[[], bool]) -> None:
        self._small = small
        self._crowded = crowded
        self._last = threading.local()

    def __call__(self) -> None:
        if not self._small.is_going_on():
            return
        start = time.monotonic()
        worked = start - getattr(self._last, "pause", start - _MOST_SECONDS)
        end = start + min(worked * _PAUSE_PER_WORK, _MOST_SECONDS)
        while time.monotonic() < end and self._small.is_going_on() and self._crowded():
            time.sleep(_LOOK_SECONDS)
        self._last.pause = time.monotonic()


def processors_are_busy() -> bool:
    """Whether as many threads run on this host as this process has processors; False: not known."""
    try:
        load = Path("/proc/loadavg").read_text()
    except OSError:
        return False
    return running(load) >= len(os.sched_getaffinity(0))


def running(load: str) -> int:
    """Threads that run or are ready to, the caller's included, by the text of /proc/loadavg."""
    return int(load.split()[3].partition("/")[0])


class Requests:
    """Which requests are small: those that have taken little time so far. Thread-safe.

    A task is small by itself; a large request of which many are small must not give way to itself.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._taken: OrderedDict[str, float] = OrderedDict()

    def is_small(self, request: str) -> bool:
        """Whether the tasks of ``request`` took less than a second in all."""
        with self._lock:
            return self._taken.get(request, 0.0) < _SMALL_SECONDS

    @contextmanager
    def timed(self, request: str) -> Iterator[None]:
        """A task of ``request`` runs inside."""
        start = self._clock()
        try:
            yield
        finally:
            with self._lock:
                self._taken[request] = self._taken.get(request, 0.0) + self._clock() - start
                self._taken.move_to_end(request)
                while len(self._taken) > _REMEMBERED:
                    self._taken.popitem(last=False)
