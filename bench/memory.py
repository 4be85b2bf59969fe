"""Peak memory and CPU time of each part's process tree while something runs."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count

import psutil

LIMIT_BYTES = 300_000_000
"""No service may take more, whatever the size of a file."""
_PAUSE_SECONDS = 0.1
# Finding the processes takes CPU, and so does the walk through page tables for the proportional
# size, which holds a process up besides: both as seldom as the peaks allow.
_THOROUGH = 10
"""One look in so many finds processes anew, and reads the size even if nothing has grown."""


@dataclass(frozen=True)
class Usage:
    """Bytes of one part: proportional set size (shared pages divided) and resident set size."""

    pss: int = 0
    rss: int = 0

    def __or__(self, other: Usage) -> Usage:
        """The larger of each."""
        return Usage(max(self.pss, other.pss), max(self.rss, other.rss))


class Sampler:
    """Keeps the highest `Usage` that each part had, by part and by what was going on."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = pids
        self.peaks: dict[str, dict[str, Usage]] = {}

    def cpu_seconds(self, parts: Iterable[str]) -> float:
        """CPU time that parts have used so far, in seconds."""
        return sum(cpu_seconds(self._pids[part]) for part in parts if part in self._pids)

    @contextmanager
    def during(self, what: str) -> Iterator[None]:
        """Sample until the block ends."""
        peaks = self.peaks.setdefault(what, {})
        stop = threading.Event()
        thread = threading.Thread(target=self._sample, args=(peaks, stop))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _sample(self, peaks: dict[str, Usage], stop: threading.Event) -> None:
        trees: dict[str, list[psutil.Process]] = {}
        looks = count()
        while not stop.wait(_PAUSE_SECONDS):
            thorough = next(looks) % _THOROUGH == 0
            if thorough:
                trees = {part: _tree(pid) for part, pid in self._pids.items()}
            for part, tree in trees.items():
                known = peaks.get(part, Usage())
                if thorough or _resident(tree) > known.rss:
                    peaks[part] = known | _usage(tree)


def _usage(tree: Iterable[psutil.Process]) -> Usage:
    pss = rss = 0
    for process in tree:
        with suppress(psutil.NoSuchProcess):
            info = process.memory_full_info()
            pss += info.pss
            rss += info.rss
    return Usage(pss, rss)


def _resident(tree: Iterable[psutil.Process]) -> int:
    resident = 0
    for process in tree:
        with suppress(psutil.NoSuchProcess):
            resident += process.memory_info().rss
    return resident


def cpu_seconds(pid: int) -> float:
    """CPU time that a process and its living descendants have used."""
    seconds = 0.0
    for process in _tree(pid):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            seconds += times.user + times.system
    return seconds


def _tree(pid: int) -> list[psutil.Process]:
    try:
        leader = psutil.Process(pid)
        return [leader, *leader.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
