"""Ends a temporary stack when the program that made it is gone, however that ended.

``python -m deploy.local.watchdog DIRECTORY`` waits for the end of its standard input, which the
kernel closes with its parent, then stops what is recorded in the directory and removes it.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

from deploy.local.process import Supervisor


class Watchdog:
    """Watches over ``directory`` for this program."""

    def __init__(self, directory: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "deploy.local.watchdog", str(directory)],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def finish(self) -> None:
        """Let the watchdog clean up now and wait until it has."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def main(directory: Path) -> None:
    """Wait for the end of stdin, then stop everything at once and remove the directory."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    supervisor = Supervisor(directory)
    for name in supervisor.names():
        supervisor.end(name)
    for place in mounts_below(directory):
        subprocess.run(["umount", "--lazy", place], check=False)
    shutil.rmtree(directory, ignore_errors=True)


def mounts_below(directory: Path) -> list[str]:
    """Where file systems are mounted below a directory, the innermost first."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    # Spaces and the like are octal escapes there; names of temporary directories have none.
    places = [line.split()[1] for line in lines]
    return sorted((p for p in places if Path(p).is_relative_to(directory)), reverse=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
