"""Real processes with a name: started detached, found again later, stopped for certain.

A process is recorded with its start time and the boot it belongs to, so that a pid which the kernel
has given to somebody else since is never signalled. Each process leads a session of its own; what
it leaves behind when it dies is found by that session and ended too.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

from deploy.local import procfs
from deploy.local.errors import StackError
from deploy.local.files import make_directory, write_atomic
from deploy.local.wait import wait_until

_LOG_LIMIT = 16 * 1024 * 1024
_LOG_TAIL = 2000
_MARK = "NEARLINE_SUPERVISED_IN"


# What a process inherits: nothing that could hold a secret, a proxy or another program's settings.
_INHERITED = ("HOME", "LANG", "LC_ALL", "PATH", "TMPDIR", "TZ", "USER")


def _inherited() -> dict[str, str]:
    return {name: os.environ[name] for name in _INHERITED if name in os.environ}


def always_ready() -> str | None:
    """The probe of a process that is ready as soon as it runs."""
    return None


def do_nothing() -> None:
    """Nothing to do before a start."""


@dataclass(frozen=True)
class ProcessSpec:
    """How to run one process. ``ready`` returns None or what is still missing."""

    name: str
    argv: tuple[str, ...]
    cwd: Path
    env: Mapping[str, str] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    """Files the process reads at start only: when one changes, `start` restarts the process."""
    before_start: Callable[[], None] = do_nothing
    """Called when nothing of an earlier run is left and the process is about to start."""
    ready: Callable[[], str | None] = always_ready
    ready_timeout: float = 60.0
    stop_signal: signal.Signals = signal.SIGTERM
    stop_timeout: float = 20.0

    def environment(self) -> dict[str, str]:
        """All of the process's environment: little is inherited."""
        return {**_inherited(), **self.env}

    def fingerprint(self) -> str:
        """A digest of everything the running process was started from."""
        digest = hashlib.sha256(repr((self.argv, sorted(self.env.items()))).encode())
        for path in self.files:
            digest.update(path.read_bytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Record:
    """What is kept of a started process."""

    pid: int
    start_ticks: int
    boot_id: str
    fingerprint: str
    stop_signal: int
    stop_timeout: float

    def alive(self) -> bool:
        """Whether the process that was started still runs."""
        info = procfs.inspect(self.pid)
        return info is not None and info.start_ticks == self.start_ticks and self._this_boot()

    def family(self) -> list[procfs.ProcessInfo]:
        """What this process started, in whatever session, as long as it runs itself."""
        return procfs.descendants(self.pid) if self.alive() else []

    def leftovers(self) -> list[procfs.ProcessInfo]:
        """The live processes of the session that this process led."""
        leader = procfs.inspect(self.pid)
        if not self._this_boot() or (leader and leader.start_ticks != self.start_ticks):
            return []
        return [info for info in procfs.members(self.pid) if info.start_ticks >= self.start_ticks]

    def _this_boot(self) -> bool:
        return self.boot_id == procfs.boot_id()


class Supervisor:
    """Starts, finds and stops the processes recorded under one directory."""

    def __init__(self, directory: Path) -> None:
        self._records = make_directory(directory / "run", 0o700)
        self._logs = make_directory(directory / "logs", 0o700)
        # By this what was started is found even when its record was never written.
        self._mark = f"{_MARK}={self._records}".encode()
        # Our own children are polled, or they would stay zombies while this program lives.
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def names(self) -> list[str]:
        """Names of the processes that were started and not stopped, running or not."""
        return sorted(path.stem for path in self._records.glob("*.json"))

    def log_path(self, name: str) -> Path:
        """The file that holds what the process wrote to stdout and stderr."""
        return self._logs / f"{name}.log"

    def pid(self, name: str) -> int | None:
        """The pid of the running process; None when it does not run."""
        record = self._read(name)
        return record.pid if record and self._alive(record) else None

    def start(self, *specs: ProcessSpec) -> None:
        """Run processes side by side and wait until all are ready; what runs unchanged is kept.

        Raises StackError, with the end of its log, when one exits or does not get ready.
        """
        records = [self._launch(spec) for spec in specs]
        for spec, record in zip(specs, records, strict=True):
            self._wait_ready(spec, record)

    def sweep(self) -> None:
        """End what processes that died have left behind, and what a killed `start` started."""
        for name in self.names():
            if self.pid(name) is None:
                self.stop(name)
        wait_until(self._kill_unrecorded, "end of processes without a record", 10.0)

    def stop(self, name: str) -> None:
        """End the process and all of its session; a process that does not run is no error.

        Raises StackError when something survives SIGKILL for 10 seconds.
        """
        record = self._read(name)
        if record is None:
            return
        family = record.family()
        if self._alive(record):
            procfs.send(record.pid, signal.Signals(record.stop_signal))
            self._wait_gone(record, record.stop_timeout)
        self._kill_leftovers(name, record, family)
        self._record_path(name).unlink(missing_ok=True)

    def end(self, name: str) -> None:
        """Like `stop`, but with SIGKILL at once: for processes whose data nobody needs."""
        record = self._read(name)
        if record is not None:
            self._kill_leftovers(name, record, record.family())

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the process itself. Raises StackError when it does not run."""
        pid = self.pid(name)
        if pid is None:
            raise StackError(f"{name} does not run")
        procfs.send(pid, number)

    def wait_gone(self, name: str, timeout: float = 10.0) -> None:
        """Wait until the process has ended by itself. Raises StackError after ``timeout`` s."""
        wait_until(lambda: f"pid {self.pid(name)} runs" if self.pid(name) else None, name, timeout)

    def _launch(self, spec: ProcessSpec) -> Record:
        fingerprint = spec.fingerprint()
        record = self._read(spec.name)
        if record and record.fingerprint == fingerprint and self._alive(record):
            return record
        self.stop(spec.name)
        return self._spawn(spec, fingerprint)

    def _spawn(self, spec: ProcessSpec, fingerprint: str) -> Record:
        spec.before_start()
        with self._open_log(spec.name) as log:
            child = subprocess.Popen(
                spec.argv,
                cwd=spec.cwd,
                env={**spec.environment(), _MARK: str(self._records)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._children[child.pid] = child
        info = procfs.inspect(child.pid)
        record = Record(
            child.pid,
            info.start_ticks if info else 0,
            procfs.boot_id(),
            fingerprint,
            spec.stop_signal,
            spec.stop_timeout,
        )
        write_atomic(self._record_path(spec.name), json.dumps(asdict(record)).encode(), 0o600)
        return record

    def _wait_ready(self, spec: ProcessSpec, record: Record) -> None:
        def probe() -> str | None:
            if not self._alive(record):
                raise StackError(f"{spec.name} exited at its start:\n{self.log_tail(spec.name)}")
            return spec.ready()

        try:
            wait_until(probe, spec.name, spec.ready_timeout)
        except StackError as error:
            raise StackError(f"{error}\nlog: {self.log_path(spec.name)}") from error

    def log_tail(self, name: str) -> str:
        """The end of the log, at most 2,000 bytes."""
        path = self.log_path(name)
        return path.read_bytes()[-_LOG_TAIL:].decode(errors="replace") if path.exists() else ""

    def _alive(self, record: Record) -> bool:
        child = self._children.get(record.pid)
        if child is not None:
            child.poll()
        return record.alive()

    def _wait_gone(self, record: Record, timeout: float) -> None:
        try:
            wait_until(lambda: "it runs" if self._alive(record) else None, "stop", timeout)
        except StackError:
            procfs.send(record.pid, signal.SIGKILL)

    def _kill_leftovers(
        self, name: str, record: Record, family: Sequence[procfs.ProcessInfo]
    ) -> None:
        def probe() -> str | None:
            self._alive(record)
            left = [*record.leftovers(), *filter(procfs.still_runs, family)]
            for info in left:
                procfs.send(info.pid, signal.SIGKILL)
            return f"processes {[info.pid for info in left]} survive SIGKILL" if left else None

        wait_until(probe, f"stop of {name}", 10.0)

    def _kill_unrecorded(self) -> str | None:
        known = {self.pid(name) for name in self.names()}
        strays = [
            info.pid
            for info in procfs.everything()
            if self._mark in procfs.environment(info.pid) and info.session not in known
        ]
        for pid in strays:
            procfs.send(pid, signal.SIGKILL)
        return f"{strays} survive SIGKILL" if strays else None

    def _open_log(self, name: str) -> BinaryIO:
        path = self.log_path(name)
        if path.exists() and path.stat().st_size > _LOG_LIMIT:
            path.replace(path.with_suffix(".log.1"))
        return path.open("ab")

    def _record_path(self, name: str) -> Path:
        return self._records / f"{name}.json"

    def _read(self, name: str) -> Record | None:
        path = self._record_path(name)
        return Record(**json.loads(path.read_text())) if path.exists() else None
