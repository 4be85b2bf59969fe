"""Who is served when, what runs once, and what watchers and lists get to see."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Sequence
from typing import Any

import grpc
import pytest

from nearline.monitor.v1 import monitor_pb2 as pb
from nearline.type.v1.task_pb2 import Task
from nearline.type.v1.transaction_pb2 import Transaction
from services.kit import errors
from services.kit.config import DatabaseConfig
from services.kit.jobs import new_task
from services.kit.worker import Done, Job, JobContext, schedule
from services.monitor import books, keeper, transactions
from services.monitor.enqueue import enqueue
from services.monitor.queueing import Entry, Owner
from tests.service.monitor.asynctests import sync
from tests.service.monitor.rig import (
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


def fill(one: Replica, user: str, tasks: int, cost: float = 1.0) -> None:
    """Queue tasks of a transaction as follow-ups would."""

    def work(connection: Any) -> None:
        book = books.open_book(connection, spec(user), ())
        assert book is not None
        entries = [Entry(Task.UPLOAD, cost=cost)] * tasks
        books.settle(connection, [book], books.add_tasks(connection, book, entries).ready_kinds)

    one.database.write_sync(work)


async def drained_users(one: Replica, count: int, at_once: int = 100) -> list[str]:
    """Lease and complete ``count`` tasks; whose they were, in order."""
    raw = Raw(one.stub)
    await raw.connect()
    users: list[str] = []
    while len(users) < count:
        await raw.beat()
        await raw.send(credit=pb.WorkRequest.Credit(tasks=at_once))
        for _ in range(at_once):
            got = (await raw.next("assignment")).assignment
            users.append(got.transaction.identity.user)
            await raw.send(complete=pb.WorkRequest.Complete(lease=got.lease))
    await raw.close()
    return users


@sync
async def test_a_backlog_of_one_user_does_not_delay_another(
    database_config: DatabaseConfig,
) -> None:
    async with replica(database_config) as one:
        await asyncio.to_thread(fill, one, "alice", 100_000)
        first = await drained_users(one, 500)
        assert set(first) == {"alice"}
        await asyncio.to_thread(fill, one, "bob", 200)
        then = await drained_users(one, 500)
        assert then.count("bob") == 200
        assert 90 <= then[:200].count("bob") <= 110, "turn by turn"


@sync
async def test_dear_work_takes_fewer_turns(database_config: DatabaseConfig) -> None:
    async with replica(database_config) as one:
        fill(one, "alice", 300, cost=4.0)
        fill(one, "bob", 300, cost=1.0)
        users = await drained_users(one, 200)
        assert 30 <= users.count("alice") <= 50


@sync
async def test_another_kind_of_work_is_not_starved(database_config: DatabaseConfig) -> None:
    async with replica(database_config) as one:
        fill(one, "alice", 2000)
        await submit(one.stub, spec("bob"), [new_task(Task.RESOLVE)])
        raw = Raw(one.stub, kinds=[Task.UPLOAD, Task.RESOLVE])
        await raw.connect()
        kinds: list[int] = []
        while Task.RESOLVE not in kinds and len(kinds) < 1000:
            await raw.beat()
            await raw.send(credit=pb.WorkRequest.Credit(tasks=10))
            kinds += [(await raw.next("assignment")).assignment.kind for _ in range(10)]
        assert Task.RESOLVE in kinds


@sync
async def test_a_schedule_runs_once_across_replicas(database_config: DatabaseConfig) -> None:
    runs: list[float] = []
    running = threading.Lock()

    def plan(job: Job, context: JobContext) -> Done:
        assert running.acquire(blocking=False), "two runs at the same time"
        runs.append(time.monotonic())
        time.sleep(0.05)
        running.release()
        assert (job.payload, job.transaction.id) == (b"all", "")
        return Done()

    wanted = [schedule("plan", Task.PLAN_ARCHIVE, 0.2, b"all")]
    handlers = {Task.PLAN_ARCHIVE: plan}
    async with (
        replica(database_config) as one,
        replica(database_config) as two,
        worker(one.peer, handlers, schedules=wanted, service="tape"),
        worker(two.peer, handlers, schedules=wanted, service="tape"),
    ):
        await until(lambda: len(runs) >= 5)
        gaps = [after - before for before, after in itertools.pairwise(runs)]
        assert min(gaps) >= 0.2
        assert one.rows("SELECT count(*) FROM schedule") == [(1,)]


@sync
async def test_a_schedule_can_be_asked_to_run_now(database_config: DatabaseConfig) -> None:
    runs: list[int] = []
    go_on = threading.Event()

    def plan(job: Job, context: JobContext) -> Done:
        runs.append(job.task_id)
        go_on.wait(60)
        return Done()

    wanted = [schedule("plan", Task.PLAN_ARCHIVE, 3600)]
    async with (
        replica(database_config) as one,
        worker(one.peer, {Task.PLAN_ARCHIVE: plan}, schedules=wanted),
    ):
        await until(lambda: len(runs) == 1)
        await one.stub.RunSchedule(pb.RunScheduleRequest(name="plan"))
        go_on.set()
        await until(lambda: len(runs) == 2)
        await until(lambda: one.rows("SELECT 1 FROM schedule WHERE task IS NULL"))
        await one.stub.RunSchedule(pb.RunScheduleRequest(name="plan"))
        await until(lambda: len(runs) == 3)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await one.stub.RunSchedule(pb.RunScheduleRequest(name="other"))
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


@sync
async def test_watchers_on_any_replica_see_every_phase(database_config: DatabaseConfig) -> None:
    go_on = threading.Event()

    def upload(job: Job, context: JobContext) -> Done:
        go_on.wait(60)
        return Done(files_total=1, files_done=1)

    async with replica(database_config) as one, replica(database_config) as two:
        id_ = await submit(one.stub, spec(), [new_task(Task.UPLOAD)])
        seen: list[list[int]] = [[], [], []]

        async def watch(stub: Any, states: list[int]) -> None:
            async for answer in stub.Watch(pb.WatchRequest(id=id_)):
                states.append(answer.transaction.state)

        stubs = (one.stub, two.stub, two.stub)
        watches = [
            asyncio.create_task(watch(s, states)) for s, states in zip(stubs, seen, strict=True)
        ]
        await until(lambda: all(seen))
        async with worker(one.peer, {Task.UPLOAD: upload}):
            await until(lambda: all(Transaction.TRANSFERRING in states for states in seen))
            go_on.set()
            await asyncio.gather(*watches)
        for states in seen:
            assert states[0] == Transaction.QUEUED
            assert states[-1] == Transaction.COMPLETE
        assert [s async for s in _states(one.stub, id_)] == [Transaction.COMPLETE]


async def _states(stub: Any, id_: str) -> Any:
    async for answer in stub.Watch(pb.WatchRequest(id=id_)):
        yield answer.transaction.state


@sync
async def test_a_watcher_is_sent_away_when_the_ledger_drains(
    database_config: DatabaseConfig,
) -> None:
    async with replica(database_config) as one:
        id_ = await submit(one.stub, spec(), [new_task(Task.UPLOAD)])
        call = one.stub.Watch(pb.WatchRequest(id=id_))
        assert (await call.read()).transaction.id == id_
        await one.ledger.drain()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert errors.from_rpc_error(caught.value).reason == "DRAINING"


async def listed(one: Replica, **request: Any) -> list[Transaction]:
    found: list[Transaction] = []
    async for answer in one.stub.ListTransactions(pb.ListTransactionsRequest(**request)):
        found += answer.transactions
    return found


@sync
async def test_lists_filter_and_go_on_behind_a_cursor(database_config: DatabaseConfig) -> None:
    async with replica(database_config) as one:
        ids = []
        for number in range(6):
            asked = spec(
                ("alice", "bob")[number % 2],
                group=("ocean", "ice")[number // 3],
                job_label=f"job-{number}",
                holding_id=number // 2,
                label=f"set{number // 2}",
            )
            ids.append(await submit(one.stub, asked, [new_task(Task.UPLOAD)]))
        await one.stub.CancelTransaction(pb.CancelTransactionRequest(id=ids[4]))

        async def numbers(**request: Any) -> list[int]:
            return [ids.index(each.id) for each in await listed(one, **request)]

        assert await numbers() == [0, 1, 2, 3, 4, 5]
        assert await numbers(descending=True, limit=2) == [5, 4]
        assert await numbers(visibility=pb.Visibility(groups=["ice"])) == [3, 4, 5]
        assert await numbers(visibility=pb.Visibility(groups=["ice"], user="bob")) == [3, 5]
        assert await numbers(states=[Transaction.CANCELLED]) == [4]
        assert await numbers(actions=[Transaction.GET]) == []
        assert await numbers(job_label="job-2") == [2]
        assert await numbers(job_label="[34]$", regex=True) == [3, 4]
        assert await numbers(holding_id=1) == [2, 3]
        assert await numbers(label="set2") == [4, 5]
        first = one.stub.ListTransactions(pb.ListTransactionsRequest(limit=4))
        cursor = [answer.cursor async for answer in first][-1]
        assert await numbers(cursor=cursor) == [4, 5]
        for bad in ({"cursor": "x"}, {"job_label": "(", "regex": True}):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await listed(one, **bad)
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@sync
async def test_long_lists_come_in_pages(database_config: DatabaseConfig) -> None:
    def upload(job: Job, context: JobContext) -> Done:
        context.failures((f"/f/{n}", "NOT_FOUND", "gone") for n in range(2500))
        return Done(files_total=2500)

    async with replica(database_config) as one, worker(one.peer, {Task.UPLOAD: upload}):
        tasks = [new_task(Task.UPLOAD), *[new_task(Task.ARCHIVE, cost=0.1)] * 1200]
        id_ = await submit(one.stub, spec(), tasks)
        await until(lambda: one.rows("SELECT 1 FROM txn WHERE files_failed = 2500"))
        failed, sizes = [], []
        async for answer in one.stub.ListFailures(pb.ListFailuresRequest(id=id_)):
            failed += [failure.path for failure in answer.failures]
            sizes.append(len(answer.failures))
            cursor = answer.cursor
        assert failed == [f"/f/{n}" for n in range(2500)]
        assert sizes == [1000, 1000, 500]
        rest = one.stub.ListFailures(pb.ListFailuresRequest(id=id_, cursor=cursor))
        assert [answer async for answer in rest] == []
        assert len((await get(one.stub, id_, with_failures=True)).failures) == 100
        numbers = []
        async for answer in one.stub.ListTasks(pb.ListTasksRequest(id=id_)):
            numbers += [task.id for task in answer.tasks]
        assert len(numbers) == 1201
        assert numbers == sorted(numbers)


@sync
async def test_housekeeping_keeps_what_runs_and_what_failed(
    database_config: DatabaseConfig,
) -> None:
    def scan(job: Job, context: JobContext) -> Done:
        context.failures([("/gone", "NOT_FOUND", "gone")])
        return Done(files_total=1)

    async with replica(database_config) as one, worker(one.peer, {Task.SCAN: scan}):
        over = await submit(one.stub, spec(), paths=["/gone"], chunk_kind=Task.SCAN)
        await ended(one.stub, over)
        tasks = [new_task(Task.SCAN), new_task(Task.ARCHIVE)]
        runs = await submit(one.stub, spec(), tasks)
        await until(
            lambda: one.rows("SELECT 1 FROM txn WHERE id = %s AND files_failed = 1", (runs,))
        )
        one.change("UPDATE task SET ended_at = ended_at - interval '9 days'")
        one.change("UPDATE txn SET finished_at = finished_at - interval '9 days'")
        assert one.database.write_sync(keeper.purge_tasks, 8 * 86400.0) == 1
        assert one.rows("SELECT count(*) FROM task") == [(2,)]
        assert one.rows("SELECT count(*) FROM path_chunk") == [(0,)]
        kept = await get(one.stub, over, with_failures=True)
        assert [failure.path for failure in kept.failures] == ["/gone"]


@sync
async def test_a_new_lane_does_not_overtake_those_who_waited(
    database_config: DatabaseConfig,
) -> None:
    """Lanes start at the clock, not at zero: being new is no advantage over a short queue."""
    async with replica(database_config) as one:
        fill(one, "alice", 1000)
        await drained_users(one, 500)
        one.database.write_sync(enqueue, Owner(None, "carol", "ice"), [Entry(Task.UPLOAD)])
        [(vt,)] = one.rows("SELECT vt FROM task WHERE txn IS NULL")
        assert vt > 500


@sync
async def test_many_watchers_cost_one_look(
    database_config: DatabaseConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Sequence[int]] = []
    fetch = transactions.fetch

    def counted(connection: Any, seqs: Sequence[int], **options: Any) -> Any:
        looks.append(seqs)
        return fetch(connection, seqs, **options)

    monkeypatch.setattr(transactions, "fetch", counted)
    async with replica(database_config) as one:
        id_ = await submit(one.stub, spec(), [new_task(Task.UPLOAD)])
        begun = 0

        async def watch() -> int:
            nonlocal begun
            state = 0
            async for answer in one.stub.Watch(pb.WatchRequest(id=id_)):
                begun += state == 0
                state = answer.transaction.state
            return state

        watches = [asyncio.create_task(watch()) for _ in range(300)]
        await until(lambda: begun == 300)
        before = len(looks)
        async with worker(one.peer, {Task.UPLOAD: lambda job, context: Done(1, 1, 1, 1)}):
            assert set(await asyncio.gather(*watches)) == {Transaction.COMPLETE}
        assert len(looks) - before < 30
