"""How many bytes the tape side reads: the kernel's own count of what its process reads."""

from __future__ import annotations

from pathlib import Path

from deploy.local import procfs
from deploy.local.errors import StackError
from deploy.local.stack import Stack


class TapeMeter:
    """Counts for the process that reads tape files: xrootd, or tape with the directory driver.

    What the process reads from sockets and configuration counts too, so a small difference between
    two readings is an upper bound.
    """

    def __init__(self, stack: Stack) -> None:
        self.xrootd = "xrootd" in stack.parts()
        part = "xrootd" if self.xrootd else "tape"
        leader = stack.pid(part)
        if leader is None:
            raise StackError(f"{part} does not run, so what it reads cannot be counted")
        self._pid = _member(leader, "xrootd") if self.xrootd else leader

    def read_bytes(self) -> int:
        """Bytes read since the process began."""
        lines = Path(f"/proc/{self._pid}/io").read_text().splitlines()
        return int(dict(line.split(": ") for line in lines)["rchar"])


def _member(session: int, name: str) -> int:
    for info in procfs.members(session):
        if Path(f"/proc/{info.pid}/comm").read_text().strip() == name:
            return info.pid
    raise StackError(f"there is no process {name} in session {session}")
