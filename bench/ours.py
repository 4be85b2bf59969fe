"""The store's own operations, timed from the command and from the transaction."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import cases
from bench.cases import Case
from bench.memory import Sampler
from bench.peers import settle
from deploy.local.demo import trees
from deploy.local.demo.compare import compare
from deploy.local.demo.nlds import Nlds
from deploy.local.errors import StackError
from deploy.local.parts import SERVICES
from deploy.local.stack import Stack
from deploy.local.wait import wait_until
from nearline.monitor.v1.monitor_pb2 import RunScheduleRequest
from nearline.monitor.v1.monitor_pb2_grpc import MonitorServiceStub
from nearline.type.v1.transaction_pb2 import Transaction
from nearline_client import Client
from services.kit.channel import sync_channel
from services.kit.config import PeerConfig, SecretFile, TlsConfig

USER, MANAGER, GROUP = "alice", "carol", "cmip6"
_LIMIT_SECONDS = 600.0


@dataclass(frozen=True)
class Timing:
    """Seconds from the command's start to its end, and from acceptance to the end; CPU seconds of
    the five services."""

    command: float
    transaction: float
    cpu: float


class Store:
    """Moves one directory through the store of a stack."""

    def __init__(self, stack: Stack, sampler: Sampler) -> None:
        self._stack = stack
        self._sampler = sampler
        self._nlds = Nlds(stack.login(USER), _LIMIT_SECONDS)

    def run(self, case: Case, source: Path) -> dict[str, Timing]:
        """Timings by operation; what comes back is compared. Raises StackError."""
        label = f"bench-{case.name}"
        with self._stack.client(USER) as user, self._stack.client(MANAGER) as manager:
            timings = {cases.PUT: self._command(case, user, "put", "-l", label, str(source))}
            timings[cases.GET] = self._get(case, cases.GET, user, label, source)
            timings |= self._archive(case, user, label)
            self._evict(user, manager, label)
            timings[cases.RECALL] = self._command(case, user, "stage", "-l", label, str(source))
            self._evict(user, manager, label)
            timings[cases.GET_FROM_TAPE] = self._get(case, cases.GET_FROM_TAPE, user, label, source)
        return timings

    def _command(self, case: Case, user: Client, verb: str, *words: str, name: str = "") -> Timing:
        settle()
        before = self._cpu_seconds()
        with self._sampler.during(f"{name or verb} {case.title}"):
            start = time.monotonic()
            (ended,) = self._nlds.json(verb, "--wait", "-g", GROUP, *words)
            took = time.monotonic() - start
        cpu = self._cpu_seconds() - before
        return Timing(took, _seconds([user.transaction(str(ended["id"]))]), cpu)

    def _cpu_seconds(self) -> float:
        return self._sampler.cpu_seconds(SERVICES)

    def _get(self, case: Case, name: str, user: Client, label: str, source: Path) -> Timing:
        target = self._new_directory()
        words = ("-l", label, "-r", str(target), str(source))
        timing = self._command(case, user, "get", *words, name=name)
        restored = os.fsencode(f"{target}{source}")
        differences = compare(os.fsencode(source), restored).differences
        if differences:
            raise StackError(f"what came back differs: {differences[0]}")
        return timing

    def _archive(self, case: Case, user: Client, label: str) -> dict[str, Timing]:
        settle()
        before = self._cpu_seconds()
        (holding,) = user.list(label=label)
        wanted = _on_tape(user) + holding.files
        with self._sampler.during(f"archive {case.title}"):
            start = time.monotonic()
            self._plan_archive()
            wait_until(lambda: _missing(user, wanted), "the archive", _LIMIT_SECONDS)
            written = time.monotonic() - start
            cpu = self._cpu_seconds() - before
            ended = self._wait_for_archives(user, label)
            safe = time.monotonic() - start
        return {
            cases.ARCHIVE: Timing(written, written, cpu),
            cases.SAFE: Timing(safe, _seconds(ended), self._cpu_seconds() - before),
        }

    def _plan_archive(self) -> None:
        with self._ledger() as ledger:
            ledger.RunSchedule(RunScheduleRequest(name="archive"))

    def _wait_for_archives(self, user: Client, label: str) -> list[Transaction]:
        running = list(
            user.stat(group=GROUP, all_users=True, actions=[Transaction.ARCHIVE], label=label)
        )
        return [user.wait(each.id, _LIMIT_SECONDS) for each in running]

    def _evict(self, user: Client, manager: Client, label: str) -> None:
        (holding,) = user.list(label=label)
        ended = manager.wait(manager.evict(holding.id).id, _LIMIT_SECONDS)
        if ended.state != Transaction.COMPLETE:
            raise StackError(f"an eviction did not complete:\n{ended}")

    def _new_directory(self) -> Path:
        with trees.acting_as_user(USER):
            return Path(tempfile.mkdtemp(prefix="restored-", dir=self._stack.home(USER)))

    @contextmanager
    def _ledger(self) -> Iterator[MonitorServiceStub]:
        files = self._stack.site.authority.credentials("operator")
        tls = TlsConfig(cert=files.certificate, key=SecretFile(files.key), ca=files.authority)
        channel = sync_channel(PeerConfig(address=self._stack.site.address("monitor"), tls=tls))
        try:
            yield MonitorServiceStub(channel)
        finally:
            channel.close()


def _on_tape(user: Client) -> int:
    return sum(usage.tape_files for usage in user.usage(GROUP))


def _missing(user: Client, wanted: int) -> str | None:
    there = _on_tape(user)
    return None if there >= wanted else f"{there} of {wanted} files are on tape"


def _seconds(transactions: list[Transaction]) -> float:
    """From the first one's acceptance to the last one's end."""
    for each in transactions:
        if each.state != Transaction.COMPLETE:
            raise StackError(f"a transaction did not complete:\n{each}")
    first = min(each.created_at.ToNanoseconds() for each in transactions)
    last = max(each.finished_at.ToNanoseconds() for each in transactions)
    return (last - first) / 1e9
