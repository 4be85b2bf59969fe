"""Work that fails, is given up, or is cancelled: what the user gets to see."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from nearline.monitor.v1 import monitor_pb2 as pb
from nearline.type.v1.storage_pb2 import IdRange, StoredFile
from nearline.type.v1.task_pb2 import FilesTask, Task
from nearline.type.v1.transaction_pb2 import Transaction
from services.kit import errors
from services.kit.config import DatabaseConfig
from services.kit.jobs import new_task
from services.kit.perfile import failing_each, of_files_task
from services.kit.worker import Deferred, Done, Job, JobContext
from services.monitor.config import LedgerConfig
from tests.service.monitor.asynctests import sync
from tests.service.monitor.rig import (
    QUICK,
    Raw,
    Replica,
    ended,
    get,
    replica,
    spec,
    submit,
    until,
    worker,
)


async def listed(one: Replica, id_: str) -> list[tuple[str, str]]:
    found = []
    async for answer in one.stub.ListFailures(pb.ListFailuresRequest(id=id_)):
        found += [(failure.path, failure.code) for failure in answer.failures]
    return found


@sync
async def test_transient_trouble_is_visible_and_passes(database_config: DatabaseConfig) -> None:
    well = threading.Event()

    def upload(job: Job, context: JobContext) -> Done:
        if not well.is_set():
            raise errors.Unavailable("STORE_DOWN", "object store unreachable")
        return Done(files_total=1, files_done=1)

    async with replica(database_config) as one, worker(one.peer, {Task.UPLOAD: upload}):
        id_ = await submit(one.stub, spec(), [new_task(Task.UPLOAD)])

        async def says_why() -> bool:
            shown = (await get(one.stub, id_)).waiting_for
            return shown.startswith("object store unreachable; failing since")

        await until(says_why)
        well.set()
        assert (await ended(one.stub, id_)).state == Transaction.COMPLETE


@sync
async def test_a_chunk_that_is_given_up_fails_each_of_its_paths(
    database_config: DatabaseConfig,
) -> None:
    def scan(job: Job, context: JobContext) -> Done:
        if job.chunk == 0:
            raise errors.PermissionDenied("USER_UNKNOWN", "this host does not know alice")
        return Done(files_total=1, files_done=1)

    paths = [f"/p/{n}" for n in range(1001)]
    async with replica(database_config) as one, worker(one.peer, {Task.SCAN: scan}):
        id_ = await submit(one.stub, spec(), paths=paths, chunk_kind=Task.SCAN)
        result = await ended(one.stub, id_)
        assert result.state == Transaction.COMPLETE_WITH_ERRORS
        assert (result.files_total, result.files_failed) == (1001, 1000)
        assert await listed(one, id_) == [(path, "USER_UNKNOWN") for path in paths[:1000]]


@sync
async def test_files_at_stake_count_when_their_task_is_given_up(
    database_config: DatabaseConfig,
) -> None:
    def upload(job: Job, context: JobContext) -> Done:
        context.failures([("/dropped", "CHANGED", "of an attempt that did not complete")])
        context.files_at_stake = 12
        raise errors.ResourceExhausted("OVER_QUOTA", "the group is over its quota")

    async with replica(database_config) as one, worker(one.peer, {Task.UPLOAD: upload}):
        id_ = await submit(one.stub, spec(), [new_task(Task.UPLOAD)])
        result = await ended(one.stub, id_)
        assert (result.state, result.files_failed) == (Transaction.FAILED, 12)
        assert await listed(one, id_) == [("", "OVER_QUOTA")]


@sync
async def test_bugs_are_tried_again_until_the_time_is_up(database_config: DatabaseConfig) -> None:
    attempts = []

    def upload(job: Job, context: JobContext) -> Done:
        attempts.append(job.attempt)
        raise RuntimeError("secret detail")

    config = LedgerConfig(**{**_fields(QUICK), "give_up_after_seconds": 1.0})
    async with replica(database_config, config) as one, worker(one.peer, {Task.UPLOAD: upload}):
        id_ = await submit(one.stub, spec(), [new_task(Task.UPLOAD)])
        result = await ended(one.stub, id_)
        assert result.state == Transaction.FAILED
        shown = (await get(one.stub, id_, with_failures=True)).failures[0]
        assert shown.code == "INTERNAL"
        assert "secret" not in shown.reason
        assert attempts == list(range(1, len(attempts) + 1))
        assert len(attempts) > 2


@sync
async def test_a_task_that_kills_its_workers_is_given_up(database_config: DatabaseConfig) -> None:
    config = LedgerConfig(**{**_fields(QUICK), "most_lost_leases": 2})
    async with replica(database_config, config) as one:
        id_ = await submit(one.stub, spec(), [new_task(Task.UPLOAD)])
        for number in range(2):
            raw = Raw(one.stub, f"victim-{number}")
            await raw.connect()
            leased = asyncio.create_task(raw.lease())
            while not leased.done():
                await raw.beat()
                await asyncio.wait({leased}, timeout=0.2)
            raw.call.cancel()
        assert (await ended(one.stub, id_)).state == Transaction.FAILED
        assert await listed(one, id_) == [("", "WORKER_LOST")]


class Names:
    """A catalog that knows files 1 to 3 of five; the first is stored."""

    def files(self, ranges: object) -> Iterator[StoredFile]:
        yield from (StoredFile(id=n, path=f"/{n}", stored=n == 1) for n in (1, 2, 3))


FIVE = FilesTask(files=[IdRange(first=1, count=5)])


@pytest.mark.parametrize(
    ("change", "code"),
    [("failing_since = now() - interval '8 days'", "STORE_DOWN"), ("lost = 9", "WORKER_LOST")],
)
@sync
async def test_the_files_of_a_task_that_is_given_up_are_named(
    database_config: DatabaseConfig, change: str, code: str
) -> None:
    def upload(job: Job, context: JobContext) -> Done:
        raise errors.Unavailable("STORE_DOWN", "object store unreachable")

    handler = failing_each(upload, of_files_task, Names())  # type: ignore[arg-type]
    async with replica(database_config) as one:
        id_ = await submit(one.stub, spec(), [new_task(Task.UPLOAD, FIVE, files=5)])
        one.change("UPDATE txn SET files_total = 5")
        one.change(
            "INSERT INTO worker (name, service, host, version, slots, session, connected, seen_at)"
            " VALUES ('dead', 'transfer', '', '', 1, 1, false, now())"
        )
        one.change(f"UPDATE task SET worker = (SELECT id FROM worker), {change}")
        async with worker(one.peer, {Task.UPLOAD: handler}):
            result = await ended(one.stub, id_)
        assert result.state == Transaction.COMPLETE_WITH_ERRORS
        assert (result.files_total, result.files_done, result.files_failed) == (5, 1, 4)
        assert await listed(one, id_) == [("/2", code), ("/3", code), ("", code), ("", code)]
        request = pb.ListParkedTasksRequest()
        (parked,) = [each async for answer in one.stub.ListParkedTasks(request)
                     for each in answer.tasks]  # fmt: skip
        assert (parked.code, parked.task.files_failed) == (code, 4)
        assert (parked.task.worker == "dead") == (code == "WORKER_LOST")


@sync
async def test_cancel_stops_work_in_every_state(database_config: DatabaseConfig) -> None:
    running, stopped = threading.Event(), threading.Event()

    def upload(job: Job, context: JobContext) -> Done | Deferred:
        if job.payload == b"wait":
            return Deferred(3600, waiting_for="a tape")
        running.set()
        try:
            while True:
                context.check()
                stopped.wait(0.01)
        finally:
            stopped.set()

    tasks = [
        pb.NewTask(kind=Task.UPLOAD, payload=b"wait"),
        pb.NewTask(kind=Task.UPLOAD, payload=b"run"),
        new_task(Task.DOWNLOAD),
        new_task(Task.FINISH_DIRECTORIES, last=True),
    ]
    async with replica(database_config) as one, worker(one.peer, {Task.UPLOAD: upload}):
        id_ = await submit(one.stub, spec(), tasks)
        await until(running.is_set)
        await until(lambda: one.rows("SELECT 1 FROM task WHERE state = 3"))
        answer = await one.stub.CancelTransaction(pb.CancelTransactionRequest(id=id_))
        assert answer.transaction.id == id_
        assert (await ended(one.stub, id_)).state == Transaction.CANCELLED
        assert stopped.is_set()
        assert one.rows("SELECT DISTINCT state FROM task") == [(Task.CANCELLED,)]
        again = await one.stub.CancelTransaction(pb.CancelTransactionRequest(id=id_))
        assert again.transaction.state == Transaction.CANCELLED


@sync
async def test_a_worker_that_does_not_let_go_is_not_waited_for(
    database_config: DatabaseConfig,
) -> None:
    config = LedgerConfig(**{**_fields(QUICK), "cancel_patience_seconds": 0.5})
    async with replica(database_config, config) as one:
        id_ = await submit(one.stub, spec(), [new_task(Task.UPLOAD)])
        raw = Raw(one.stub)
        await raw.connect()
        lease = (await raw.lease()).lease
        await one.stub.CancelTransaction(pb.CancelTransactionRequest(id=id_))
        revoke = (await raw.next("revoke")).revoke
        assert (revoke.lease, revoke.reason) == (lease, "it was cancelled")
        assert (await ended(one.stub, id_)).state == Transaction.CANCELLED
        assert not await raw.acked(complete=pb.WorkRequest.Complete(lease=lease))


@sync
async def test_ended_transactions_stay_as_they_are(database_config: DatabaseConfig) -> None:
    def upload(job: Job, context: JobContext) -> Done:
        return Done(files_total=1, files_done=1)

    async with replica(database_config) as one, worker(one.peer, {Task.UPLOAD: upload}):
        id_ = await submit(one.stub, spec(), [new_task(Task.UPLOAD)])
        before = await ended(one.stub, id_)
        await one.stub.CancelTransaction(pb.CancelTransactionRequest(id=id_))
        assert await get(one.stub, id_) == before


def _fields(config: LedgerConfig) -> dict[str, float]:
    return {name: getattr(config, name) for name in config.__struct_fields__}
