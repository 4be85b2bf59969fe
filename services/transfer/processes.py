"""The worker processes of transfer: started, restarted when they die, ended with the service."""

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

import structlog

from services.transfer.courtesy import SmallWork

log = structlog.get_logger(__name__)

_PR_SET_PDEATHSIG = 1
_SHARED = "NEARLINE_SMALL_WORK_FD"
_FIRST_PAUSE, _LAST_PAUSE = 0.5, 30.0
_HEALTHY_SECONDS = 60.0


class Processes:
    """Keeps a process of each of ``commands`` running."""

    def __init__(self, commands: Sequence[list[str]], grace: float) -> None:
        self._commands = commands
        self._shared = SmallWork.make()
        self._grace = grace
        self._running: set[asyncio.subprocess.Process] = set()
        self._keepers: list[asyncio.Task[None]] = []
        self._stopping = False

    @property
    def wanted(self) -> int:
        """How many should run."""
        return len(self._commands)

    @property
    def running(self) -> int:
        """How many run."""
        return len(self._running)

    def start(self) -> None:
        """Start them; they are kept running until :meth:`stop`."""
        self._keepers = [asyncio.create_task(self._keep(each)) for each in self._commands]

    async def stop(self) -> None:
        """Tell them to drain, and end those that take longer than the grace period."""
        self._stopping = True
        for process in self._running:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        _, late = await asyncio.wait(self._keepers, timeout=self._grace)
        for process in self._running:
            with suppress(ProcessLookupError):
                process.kill()
        if late:
            await asyncio.wait(late)

    async def _keep(self, command: list[str]) -> None:
        loop, pause = asyncio.get_running_loop(), _FIRST_PAUSE
        while not self._stopping:
            started = loop.time()
            process = await asyncio.create_subprocess_exec(
                *command,
                pass_fds=[self._shared],
                env={**os.environ, _SHARED: str(self._shared)},
            )
            self._running.add(process)
            code = await process.wait()
            self._running.discard(process)
            if self._stopping:
                return
            log.error("worker_process_ended", code=code, pid=process.pid)
            healthy = loop.time() - started > _HEALTHY_SECONDS
            pause = _FIRST_PAUSE if healthy else min(2 * pause, _LAST_PAUSE)
            await asyncio.sleep(pause)


def worker_command(name: str) -> list[str]:
    """How to start the command ``name`` with the configuration that this process was given."""
    arguments = [argument for argument in sys.argv[1:] if argument != "serve"]
    return [sys.executable, "-m", "services.transfer", name, *arguments]


def small_work() -> SmallWork:
    """What this worker process shares with the others of its service."""
    return SmallWork(int(os.environ.get(_SHARED) or SmallWork.make()))


def die_with_parent() -> None:
    """End this process when its parent ends, however that happens; no orphan may hold leases."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent == 1 or os.getppid() != parent:
        sys.exit("the transfer service that started this worker process is gone")
