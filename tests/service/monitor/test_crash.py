"""kill -9 of workers and of the ledger: nothing is lost, nothing counts twice."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from nearline.monitor.v1 import monitor_pb2 as pb
from nearline.monitor.v1.monitor_pb2_grpc import MonitorServiceStub
from nearline.type.v1.task_pb2 import Task
from nearline.type.v1.transaction_pb2 import Transaction
from services.kit.channel import aio_channel
from services.kit.config import DatabaseConfig, PeerConfig
from services.kit.jobs import new_task
from services.kit.worker import Deferred, Done, Job, JobContext, Outcome
from services.monitor.rules import is_final
from tests.service.kit.test_process import free_ports
from tests.service.monitor.asynctests import sync
from tests.service.monitor.rig import PATIENCE, ended, replica, spec, submit, until, worker

ROOT = Path(__file__).parents[3]


@contextmanager
def process(module: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    popen = subprocess.Popen(
        [sys.executable, "-m", f"tests.service.monitor.{module}", *arguments], cwd=ROOT
    )
    try:
        yield popen
    finally:
        popen.kill()
        popen.wait()


class Killable:
    """A monitor process on one port, started again after each kill."""

    def __init__(self, database: DatabaseConfig, directory: Path) -> None:
        [self.port] = free_ports(1)
        self.peer = PeerConfig(address=f"127.0.0.1:{self.port}")
        self._config = directory / "monitor.toml"
        self._config.write_text(f"""
[server]
listen = "127.0.0.1:{self.port}"
grace_seconds = 2
[database]
host = "{database.host}"
port = {database.port}
name = "{database.name}"
user = "{database.user}"
password = "{database.password.path}"
[ledger]
heartbeat_seconds = 0.2
lease_seconds = 12
sweep_seconds = 0.1
poll_seconds = 0.1
""")
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "tests.service.monitor.replicaprocess", str(self._config)],
            cwd=ROOT,
        )

    def end(self, number: signal.Signals = signal.SIGKILL) -> int:
        assert self._popen is not None
        self._popen.send_signal(number)
        return self._popen.wait(30)

    def __enter__(self) -> Killable:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


async def persistently(ask: Any) -> Any:
    """The answer of a ledger that may be away at times."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return await ask()
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.1)


@sync
async def test_work_of_a_killed_worker_is_done_by_another(
    database_config: DatabaseConfig, tmp_path: Path
) -> None:
    def starts() -> list[list[str]]:
        path = tmp_path / "starts"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    async with replica(database_config) as one:
        arguments = (one.peer.address, str(tmp_path))
        id_ = await submit(one.stub, spec(), [new_task(Task.UPLOAD)] * 3)
        with process("workerprocess", *arguments) as first:
            await until(lambda: len(starts()) == 2)
            first.kill()
            first.wait()
        with process("workerprocess", *arguments) as second:
            (tmp_path / "go").touch()
            result = await ended(one.stub, id_)
            assert result.state == Transaction.COMPLETE_WITH_ERRORS
            assert (result.files_total, result.files_done, result.files_failed) == (9, 6, 3)
            again = [line for line in starts() if line[0] == str(second.pid)]
            assert sorted(attempt for _, _, attempt in again) == ["1", "2", "2"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_go_on_while_the_ledger_is_away(
    database_config: DatabaseConfig, tmp_path: Path, number: signal.Signals
) -> None:
    """Jobs that ran all the time while no ledger was there are counted once it is back."""

    @sync
    async def run() -> None:
        attempts: list[int] = []
        running, go_on = threading.Event(), threading.Event()

        def upload(job: Job, context: JobContext) -> Done:
            attempts.append(job.attempt)
            running.set()
            assert go_on.wait(60)
            context.failures((f"/{job.task_id}/{n}", "NOT_FOUND", "gone") for n in range(1200))
            return Done(files_total=1201, files_done=1)

        with Killable(database_config, tmp_path) as ledger:
            async with (
                aio_channel(ledger.peer) as channel,
                worker(ledger.peer, {Task.UPLOAD: upload}),
            ):
                stub = MonitorServiceStub(channel)
                asked = spec()
                tasks = [new_task(Task.UPLOAD)] * 2
                await persistently(lambda: submit(stub, asked, tasks))
                await until(running.is_set)
                await until(lambda: len(attempts) == 2)
                ledger.end(number)
                go_on.set()
                # The handlers end while nobody listens.
                await asyncio.sleep(0.5)
                ledger.start()
                result = await persistently(lambda: ended(stub, asked.id))
        assert attempts == [1, 1]
        assert (result.files_total, result.files_done, result.files_failed) == (2402, 2, 2400)

    run()


@sync
async def test_a_ledger_killed_again_and_again_loses_and_doubles_nothing(
    database_config: DatabaseConfig, tmp_path: Path
) -> None:
    """A tree of tasks runs while the ledger is killed at any moment."""
    fan_out, leaves = 30, 8

    def scan(job: Job, context: JobContext) -> Outcome:
        if job.payload != b"again":
            return Deferred(0.05, b"again", "a moment")
        context.failures([(f"/scan/{job.task_id}", "NOT_FOUND", "gone")])
        return Done(files_total=1, follow_ups=[new_task(Task.UPLOAD)] * leaves)

    def upload(job: Job, context: JobContext) -> Outcome:
        return Done(files_total=1, files_done=1, bytes_done=10)

    async def final(stub: Any, id_: str) -> Transaction | None:
        answer = await stub.GetTransaction(pb.GetTransactionRequest(id=id_))
        return answer.transaction if is_final(answer.transaction.state) else None

    with Killable(database_config, tmp_path) as ledger:
        handlers = {Task.SCAN: scan, Task.UPLOAD: upload}
        async with (
            aio_channel(ledger.peer) as channel,
            worker(ledger.peer, handlers, slots=4),
            worker(ledger.peer, handlers, slots=4),
        ):
            stub = MonitorServiceStub(channel)
            asked = spec()
            await persistently(lambda: submit(stub, asked, [new_task(Task.SCAN)] * fan_out))
            for _ in range(4):
                await asyncio.sleep(0.4)
                ledger.end()
                ledger.start()
                await persistently(lambda: final(stub, asked.id))
            result = await until(lambda: persistently(lambda: final(stub, asked.id)))
    assert result.state == Transaction.COMPLETE_WITH_ERRORS
    assert result.files_failed == fan_out
    assert result.files_done == fan_out * leaves
    assert result.files_total == fan_out * (leaves + 1)
    assert result.bytes_done == 10 * fan_out * leaves
