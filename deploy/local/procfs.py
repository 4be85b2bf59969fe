"""What the kernel knows about processes, read from /proc (the stack runs on Linux only)."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessInfo:
    """One live process: ids and its start time in clock ticks since boot."""

    pid: int
    parent: int
    session: int
    start_ticks: int


def boot_id() -> str:
    """An id that changes at every boot, so that pids of an earlier boot are not believed."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def inspect(pid: int) -> ProcessInfo | None:
    """Return the live process with this pid; None when it is gone or only a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name may hold spaces and parentheses: fields are counted after the last ")".
    fields = stat[stat.rindex(b")") + 2 :].split()
    # The first thread of a killed program can be a zombie while others still hold its ports.
    if fields[0] in (b"Z", b"X") and int(fields[17]) <= 1:
        return None
    return ProcessInfo(pid, int(fields[1]), session=int(fields[3]), start_ticks=int(fields[19]))


def still_runs(known: ProcessInfo) -> bool:
    """Whether this very process is still there."""
    info = inspect(known.pid)
    return info is not None and info.start_ticks == known.start_ticks


def everything() -> Iterator[ProcessInfo]:
    """Yield all live processes."""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (info := inspect(int(entry))):
            yield info


def members(session: int) -> Iterator[ProcessInfo]:
    """Yield the live processes of a session."""
    return (info for info in everything() if info.session == session)


def descendants(pid: int) -> list[ProcessInfo]:
    """The live children of a process, their children, and so on."""
    children: dict[int, list[ProcessInfo]] = {}
    for info in everything():
        children.setdefault(info.parent, []).append(info)
    found = list(children.get(pid, ()))
    for info in found:
        found.extend(children.get(info.pid, ()))
    return found


def environment(pid: int) -> list[bytes]:
    """The ``NAME=value`` entries a process was started with; empty when they cannot be seen."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def working_directory(pid: int) -> Path | None:
    """Where a process works; None when that cannot be seen."""
    try:
        return Path(os.readlink(f"/proc/{pid}/cwd"))
    except OSError:
        return None


def send(pid: int, number: signal.Signals) -> None:
    """Signal a process; one that is already gone is no error."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
