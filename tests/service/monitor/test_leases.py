"""Leases seen from the wire: tokens, repeats, keys, order, and what happens when streams end."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import grpc
import pytest

from nearline.monitor.v1 import monitor_pb2 as pb
from nearline.type.v1.task_pb2 import Task
from nearline.type.v1.transaction_pb2 import Failure, Transaction
from services.kit import errors
from services.kit.config import DatabaseConfig
from services.kit.jobs import new_task, seconds
from tests.service.monitor.asynctests import sync
from tests.service.monitor.rig import QUICK, Raw, Replica, ended, get, replica, spec, submit, until

Complete = pb.WorkRequest.Complete


async def queue(one: Replica, *tasks: pb.NewTask, **options: Any) -> str:
    return await submit(one.stub, spec(**options), tasks or [new_task(Task.UPLOAD)])


async def task_states(one: Replica, id_: str) -> list[int]:
    found = []
    async for answer in one.stub.ListTasks(pb.ListTasksRequest(id=id_)):
        found += [task.state for task in answer.tasks]
    return found


@sync
async def test_a_result_counts_once_however_often_it_is_sent(
    database_config: DatabaseConfig,
) -> None:
    async with replica(database_config) as one:
        id_ = await queue(one, new_task(Task.UPLOAD), new_task(Task.UPLOAD))
        raw = Raw(one.stub)
        await raw.connect()
        lease = (await raw.lease()).lease
        done = Complete(lease=lease, files_total=3, files_done=2, bytes_done=7, files_failed=1)
        failed = [Failure(path="/a", code="NOT_FOUND", reason="gone")]
        failures = pb.WorkRequest.Failures(lease=lease, failures=failed)
        assert await raw.acked(failures=failures)
        assert await raw.acked(failures=failures)
        assert (await get(one.stub, id_)).files_failed == 0, "not before the task completes"
        for _ in range(3):
            assert await raw.acked(complete=done)
        assert await raw.acked(failures=failures)
        assert not await raw.acked(hand_back=pb.WorkRequest.HandBack(lease=lease))
        found = await get(one.stub, id_, with_failures=True)
        assert (found.files_total, found.files_done, found.files_failed) == (3, 2, 1)
        assert [failure.path for failure in found.failures] == ["/a"]
        assert await task_states(one, id_) == [Task.DONE, Task.READY]


@sync
async def test_a_stale_token_changes_nothing(database_config: DatabaseConfig) -> None:
    async with replica(database_config) as one:
        id_ = await queue(one)
        slow, quick = Raw(one.stub, "slow"), Raw(one.stub, "quick")
        await slow.connect()
        stale = (await slow.lease()).lease
        slow.call.cancel()
        await quick.connect()
        fresh_lease = asyncio.create_task(quick.lease())
        while not fresh_lease.done():
            await quick.beat()
            await asyncio.wait({fresh_lease}, timeout=0.2)
        fresh = fresh_lease.result()
        assert (fresh.lease.task_id, fresh.attempt) == (stale.task_id, 2)
        assert fresh.lease.token != stale.token
        again = Raw(one.stub, "slow", held=[stale])
        assert list((await again.connect()).held) == []
        files = [Failure(path="/a", code="X", reason="y")]
        assert not await again.acked(failures=pb.WorkRequest.Failures(lease=stale, failures=files))
        assert not await again.acked(complete=Complete(lease=stale, files_done=100, files_failed=1))
        assert not await again.acked(fail=pb.WorkRequest.Fail(lease=stale, code="X", reason="y"))
        assert await quick.acked(complete=Complete(lease=fresh.lease, files_total=1, files_done=1))
        assert (await ended(one.stub, id_)).files_done == 1


@sync
async def test_a_worker_that_comes_back_goes_on_with_what_it_holds(
    database_config: DatabaseConfig,
) -> None:
    async with replica(database_config) as one:
        await queue(one, new_task(Task.UPLOAD), new_task(Task.UPLOAD))
        raw = Raw(one.stub)
        await raw.connect()
        kept, dropped = (await raw.lease()).lease, (await raw.lease()).lease
        raw.call.cancel()
        again = Raw(one.stub, held=[kept])
        assert list((await again.connect()).held) == [kept]
        # What it does not hold any more is free at once, without counting as an attempt.
        offered = await again.lease()
        assert (offered.lease.task_id, offered.attempt) == (dropped.task_id, 1)
        assert await again.acked(complete=Complete(lease=kept))
        assert not await again.acked(complete=Complete(lease=dropped))


@sync
async def test_an_old_stream_ends_when_its_worker_connects_again(
    database_config: DatabaseConfig,
) -> None:
    async with replica(database_config) as one:
        old, new = Raw(one.stub), Raw(one.stub)
        await old.connect()
        await new.connect()
        await old.beat()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await old.next("assignment")
        assert errors.from_rpc_error(caught.value).reason == "SUPERSEDED"


@sync
async def test_a_silent_worker_is_hung_up_on(database_config: DatabaseConfig) -> None:
    async with replica(database_config) as one:
        raw = Raw(one.stub)
        await raw.connect()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await raw.next("assignment")
        assert errors.from_rpc_error(caught.value).reason == "HEARTBEAT_MISSED"


@sync
async def test_heartbeats_keep_leases(database_config: DatabaseConfig) -> None:
    config = QUICK
    async with replica(database_config, config) as one:
        id_ = await queue(one)
        raw = Raw(one.stub)
        await raw.connect()
        lease = (await raw.lease()).lease
        for _ in range(30):
            await raw.beat()
            await asyncio.sleep(config.lease_seconds / 20)
        assert await raw.acked(complete=Complete(lease=lease, files_total=1, files_done=1))
        assert (await ended(one.stub, id_)).state == Transaction.COMPLETE


@sync
async def test_tasks_of_one_key_never_run_together(database_config: DatabaseConfig) -> None:
    async with replica(database_config) as one, replica(database_config) as two:
        keyed = [new_task(Task.UPLOAD, key="blob") for _ in range(4)]
        await queue(one, *keyed, new_task(Task.UPLOAD))
        first, second = Raw(one.stub, "first"), Raw(two.stub, "second")
        for raw in (first, second):
            await raw.connect()
            await raw.send(credit=pb.WorkRequest.Credit(tasks=10))
        for _ in range(4):
            await until(lambda: one.rows("SELECT 1 FROM task WHERE state = 2 AND key = 'blob'"))
            [(task, token, name)] = one.rows(
                "SELECT t.id, t.token, w.name FROM task t JOIN worker w ON w.id = t.holder "
                "WHERE t.state = 2 AND t.key = 'blob'"
            )
            holder = first if name == "first" else second
            lease = pb.Lease(task_id=task, token=token)
            assert await holder.acked(complete=Complete(lease=lease))
        assert one.rows("SELECT count(*) FROM task WHERE state = 5 AND key = 'blob'") == [(4,)]


@sync
async def test_unique_work_is_left_out_while_it_is_open(database_config: DatabaseConfig) -> None:
    async with replica(database_config) as one:
        release = new_task(Task.CONFIRM, key="tape:1", unique=True, delay=3600)
        other = new_task(Task.RECALL, key="tape:1")
        await asyncio.gather(*[queue(one, release, release, other, user=f"u{n}") for n in range(5)])
        assert one.rows("SELECT count(*) FROM task WHERE kind = %s", (Task.CONFIRM,)) == [(1,)]
        count = await one.stub.CountTasks(pb.CountTasksRequest(key="tape:1"))
        assert count.count == 6
        count = await one.stub.CountTasks(pb.CountTasksRequest(key="tape:1", kind=Task.CONFIRM))
        assert count.count == 1
        [(task,)] = one.rows("SELECT id FROM task WHERE kind = %s", (Task.CONFIRM,))
        for number, expected in ((task, 1), (task + 1000, 0)):
            count = await one.stub.CountTasks(pb.CountTasksRequest(task_id=number))
            assert count.count == expected
        one.change("UPDATE task SET state = 5, ended_at = now() WHERE id = %s", (task,))
        count = await one.stub.CountTasks(pb.CountTasksRequest(task_id=task))
        assert count.count == 0


@sync
async def test_last_tasks_run_when_nothing_else_is_open(database_config: DatabaseConfig) -> None:
    async with replica(database_config) as one:
        last = new_task(Task.FINISH_DIRECTORIES, last=True)
        id_ = await queue(one, last, new_task(Task.UPLOAD), new_task(Task.UPLOAD, delay=0.3))
        raw = Raw(one.stub, kinds=[Task.UPLOAD, Task.FINISH_DIRECTORIES])
        await raw.connect()
        kinds = []
        for _ in range(3):
            got = await raw.lease()
            kinds.append(got.kind)
            assert await raw.acked(complete=Complete(lease=got.lease, files_total=1, files_done=1))
        assert kinds == [Task.UPLOAD, Task.UPLOAD, Task.FINISH_DIRECTORIES]
        assert (await ended(one.stub, id_)).state == Transaction.COMPLETE


@sync
async def test_follow_ups_open_transactions_of_their_own(database_config: DatabaseConfig) -> None:
    async with replica(database_config) as one:
        id_ = await queue(one)
        raw = Raw(one.stub, kinds=[Task.UPLOAD, Task.ARCHIVE])
        await raw.connect()
        lease = (await raw.lease()).lease
        other = spec("", group="ocean", action=Transaction.ARCHIVE, holding_id=7)
        follow = [
            new_task(Task.ARCHIVE, transaction=other),
            new_task(Task.ARCHIVE, transaction=other),
        ]
        done = Complete(lease=lease, files_total=1, files_done=1, follow_ups=follow)
        assert await raw.acked(complete=done)
        assert await raw.acked(complete=done)
        assert (await ended(one.stub, id_)).state == Transaction.COMPLETE
        assert await task_states(one, other.id) == [Task.READY, Task.READY]
        for _ in range(2):
            got = await raw.lease()
            assert (got.transaction.id, got.transaction.holding_id) == (other.id, 7)
            assert await raw.acked(complete=Complete(lease=got.lease))
        assert (await ended(one.stub, other.id)).state == Transaction.COMPLETE


@sync
async def test_deferred_work_comes_back_with_its_payload(database_config: DatabaseConfig) -> None:
    async with replica(database_config) as one:
        id_ = await queue(one, new_task(Task.STAGE))
        raw = Raw(one.stub, kinds=[Task.STAGE, Task.RECALL])
        await raw.connect()
        lease = (await raw.lease()).lease
        failed = [Failure(path="/lost", code="TAPE", reason="unreadable")]
        assert await raw.acked(failures=pb.WorkRequest.Failures(lease=lease, failures=failed))
        defer = pb.WorkRequest.Defer(
            lease=lease, delay=seconds(0.2), payload=b"rest", waiting_for="tape: 1 of 2",
            follow_ups=[new_task(Task.RECALL)], files_failed=1,
        )  # fmt: skip
        assert await raw.acked(defer=defer)
        assert await raw.acked(defer=defer)
        shown = await get(one.stub, id_)
        assert (shown.waiting_for, shown.files_failed) == ("tape: 1 of 2", 1)
        got = [await raw.lease(), await raw.lease()]
        by_kind = {each.kind: each for each in got}
        assert by_kind[Task.STAGE].payload == b"rest"
        assert by_kind[Task.STAGE].attempt == 1
        for each in got:
            assert await raw.acked(complete=Complete(lease=each.lease, files_total=1, files_done=1))
        assert (await ended(one.stub, id_)).state == Transaction.COMPLETE_WITH_ERRORS


@sync
async def test_wrong_beginnings_are_refused(database_config: DatabaseConfig) -> None:
    async with replica(database_config) as one:
        for message, reason in (
            ({"credit": pb.WorkRequest.Credit(tasks=1)}, "HELLO_EXPECTED"),
            ({"hello": pb.WorkRequest.Hello(worker_id="x")}, "BAD_HELLO"),
        ):
            call = one.stub.Work()
            await call.write(pb.WorkRequest(**message))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert errors.from_rpc_error(caught.value).reason == reason


@sync
async def test_running_work_shows_before_it_counts(database_config: DatabaseConfig) -> None:
    async with replica(database_config) as one:
        id_ = await queue(one)
        assert (await get(one.stub, id_)).waiting_for == "a transfer worker; none is connected"
        raw = Raw(one.stub)
        await raw.connect()
        assert (await get(one.stub, id_)).waiting_for == "a free transfer worker"
        lease = (await raw.lease()).lease
        await until(lambda: is_running(one, id_))
        await raw.beat(pb.WorkRequest.Progress(lease=lease, files_done=3, bytes_done=30))
        await until(lambda: shows(one, id_, 3, 30, ""))
        waits = pb.WorkRequest.Progress(lease=lease, files_done=3, waiting_for="a slow disk")
        await raw.beat(waits, trouble="store: slow")
        await until(lambda: shows(one, id_, 3, 0, "a slow disk"))
        workers = await one.stub.ListWorkers(pb.ListWorkersRequest())
        assert [(w.id, w.busy, w.connected, w.trouble) for w in workers.workers] == [
            ("raw", 1, True, "store: slow")
        ]
        assert (workers.ready, workers.leased, workers.delayed) == (0, 1, 0)
        assert await raw.acked(complete=Complete(lease=lease, files_total=4, files_done=4))
        assert (await ended(one.stub, id_)).files_done == 4


async def is_running(one: Replica, id_: str) -> bool:
    return (await get(one.stub, id_)).state == Transaction.TRANSFERRING


async def shows(one: Replica, id_: str, files: int, moved: int, waiting_for: str) -> bool:
    shown = await get(one.stub, id_)
    return (shown.files_done, shown.bytes_done, shown.waiting_for) == (files, moved, waiting_for)


@sync
async def test_unknown_transactions_are_not_found(database_config: DatabaseConfig) -> None:
    async with replica(database_config) as one:
        visible = pb.Visibility(groups=["other"])
        id_ = await queue(one)
        for id_asked, visibility in ((str(uuid.uuid4()), pb.Visibility()), (id_, visible)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await get(one.stub, id_asked, visibility=visibility)
            assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await get(one.stub, "nonsense")
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
