"""Peak memory and CPU time of each part's process tree while something runs."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil

LIMIT_BYTES = 300_000_000
"""No service may take more, whatever the size of a file."""
_PAUSE_SECONDS = 0.1


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
        while not stop.wait(_PAUSE_SECONDS):
            for part, pid in self._pids.items():
                peaks[part] = peaks.get(part, Usage()) | usage(pid)


def usage(pid: int) -> Usage:
    """What a process and its descendants use together now."""
    pss = rss = 0
    for process in _tree(pid):
        with suppress(psutil.NoSuchProcess):
            info = process.memory_full_info()
            pss += info.pss
            rss += info.rss
    return Usage(pss, rss)


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
