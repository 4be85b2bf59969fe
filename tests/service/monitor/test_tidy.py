"""What dead workers left in users' directories: somebody removes it before the transaction ends."""

from __future__ import annotations

import pytest

from nearline.monitor.v1 import monitor_pb2 as pb
from nearline.type.v1.storage_pb2 import IdRange
from nearline.type.v1.task_pb2 import FilesTask, Task, TidyTask
from nearline.type.v1.transaction_pb2 import Transaction
from services.kit.config import DatabaseConfig
from services.kit.jobs import new_task
from services.monitor import leases, results, retries
from services.monitor.book import Report
from services.monitor.rules import Ending, Limits
from tests.service.monitor.asynctests import sync
from tests.service.monitor.rig import Raw, Replica, ended, get, replica, spec, submit

FILES = FilesTask(files=[IdRange(first=3, count=4)])
FATAL = Limits(most_lost=1)


async def started(one: Replica, kind: Task.Kind.ValueType = Task.DOWNLOAD) -> str:
    return await submit(one.stub, spec(action=Transaction.GET), [new_task(kind, FILES, files=4)])


async def cancel(one: Replica, id_: str) -> None:
    await one.stub.CancelTransaction(pb.CancelTransactionRequest(id=id_))


def lose(one: Replica, lease: pb.Lease, limits: Limits = FATAL) -> None:
    """As the sweeper, when the worker has been silent for long."""
    report = Report(lease.task_id, lease.token, Ending.LOST)
    assert one.database.write_sync(results.record, [report], limits) == [True]


async def leased(one: Replica, kind: Task.Kind.ValueType = Task.DOWNLOAD) -> pb.Lease:
    raw = Raw(one.stub, f"for {Task.Kind.Name(kind)}", kinds=[kind])
    await raw.connect()
    return (await raw.lease()).lease


async def tidied(one: Replica, id_: str, of: int) -> Transaction:
    """The transaction at its end, which only the tidying up of task ``of`` brings."""
    assert not (await get(one.stub, id_)).HasField("finished_at")
    raw = Raw(one.stub, "tidy", kinds=[Task.TIDY], small_only=True)
    await raw.connect()
    offered = await raw.lease()
    assert offered.transaction.identity.user
    wanted = TidyTask(task_id=of, payload=FILES.SerializeToString())
    assert TidyTask.FromString(offered.payload) == wanted
    # Cancelled work is stopped, and taken away from who goes on with it; this is not.
    (worker,) = one.rows("SELECT id FROM worker WHERE name = 'tidy'")[0]
    (held,) = one.database.read_sync(leases.held_by, worker)
    assert not held.cancelled
    assert one.database.write_sync(leases.abandon, 0.0, FATAL) == 0
    assert await raw.acked(complete=pb.WorkRequest.Complete(lease=offered.lease))
    return await ended(one.stub, id_)


@sync
async def test_work_that_waits_after_a_loss_is_tidied_up_when_cancelled(
    database_config: DatabaseConfig,
) -> None:
    async with replica(database_config) as one:
        id_ = await started(one)
        lease = await leased(one)
        lose(one, lease, Limits())
        await cancel(one, id_)
        assert (await tidied(one, id_, lease.task_id)).state == Transaction.CANCELLED


@pytest.mark.parametrize("kind", [Task.DOWNLOAD, Task.FINISH_DIRECTORIES])
@sync
async def test_a_worker_that_dies_after_the_cancel_is_tidied_up_after(
    database_config: DatabaseConfig, kind: Task.Kind.ValueType
) -> None:
    async with replica(database_config) as one:
        id_ = await started(one, kind)
        lease = await leased(one, kind)
        await cancel(one, id_)
        lose(one, lease)
        assert (await tidied(one, id_, lease.task_id)).state == Transaction.CANCELLED


@pytest.mark.parametrize("cancelled", [False, True])
@sync
async def test_poison_is_tidied_up_after_even_if_it_is_cancelled_then(
    database_config: DatabaseConfig, cancelled: bool
) -> None:
    async with replica(database_config) as one:
        id_ = await started(one)
        lease = await leased(one)
        lose(one, lease)
        if cancelled:
            await cancel(one, id_)
        found = await tidied(one, id_, lease.task_id)
        assert found.state == (Transaction.CANCELLED if cancelled else Transaction.FAILED)
        assert found.files_failed == 4


@sync
async def test_who_tidies_up_and_dies_is_not_tidied_up_after_nor_run_again(
    database_config: DatabaseConfig,
) -> None:
    async with replica(database_config) as one:
        id_ = await started(one)
        lose(one, await leased(one))
        lose(one, await leased(one, Task.TIDY))
        assert (await ended(one.stub, id_)).state == Transaction.FAILED
        request = pb.ListParkedTasksRequest()
        parked = [each.task.kind async for answer in one.stub.ListParkedTasks(request)
                  for each in answer.tasks]  # fmt: skip
        assert sorted(parked) == [Task.DOWNLOAD, Task.TIDY]
        again = retries.Request(
            id=id_, identity=spec().identity, asked_kind=Task.RESOLVE,
            met_task=pb.NewTask(kind=Task.RESOLVE),
        )  # fmt: skip
        await one.stub.RetryTransaction(again)
        assert one.rows("SELECT kind FROM task WHERE state = 1") == [(Task.DOWNLOAD,)]


@sync
async def test_nothing_is_tidied_up_after_the_living(database_config: DatabaseConfig) -> None:
    async with replica(database_config) as one:
        id_ = await started(one)
        raw = Raw(one.stub, kinds=[Task.DOWNLOAD])
        await raw.connect()
        lease = (await raw.lease()).lease
        await cancel(one, id_)
        assert await raw.acked(hand_back=pb.WorkRequest.HandBack(lease=lease))
        assert (await ended(one.stub, id_)).state == Transaction.CANCELLED
        assert one.rows("SELECT count(*) FROM task") == [(1,)]
