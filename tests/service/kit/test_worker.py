"""The worker's side of the Work stream, against a real ledger."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time

import pytest

from nearline.monitor.v1 import monitor_pb2 as pb
from nearline.type.v1.task_pb2 import Task
from nearline.type.v1.transaction_pb2 import Transaction
from services.kit import errors, identity
from services.kit.channel import aio_channel
from services.kit.config import DatabaseConfig, PeerConfig
from services.kit.jobs import new_task
from services.kit.worker import Done, Job, JobContext, Worker
from tests.fixtures.tcpproxy import Link
from tests.service.kit.test_process import free_ports
from tests.service.monitor.asynctests import sync
from tests.service.monitor.conftest import database_config
from tests.service.monitor.rig import ended, get, replica, spec, submit, until, worker

__all__ = ["database_config"]

UPLOAD = new_task(Task.UPLOAD)


@sync
async def test_no_more_jobs_run_than_there_are_slots(database_config: DatabaseConfig) -> None:
    running, most = 0, 0
    lock = threading.Lock()

    def upload(job: Job, context: JobContext) -> Done:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
        return Done(files_total=1, files_done=1)

    async with replica(database_config) as one, worker(one.peer, {Task.UPLOAD: upload}, slots=3):
        id_ = await submit(one.stub, spec(), [UPLOAD] * 60)
        assert (await ended(one.stub, id_)).files_done == 60
    assert most == 3


@sync
async def test_a_job_knows_its_request_and_acts_as_its_user(
    database_config: DatabaseConfig,
) -> None:
    jobs: list[tuple[Job, identity.Identity | None]] = []

    def scan(job: Job, context: JobContext) -> Done:
        jobs.append((job, identity.current_identity()))
        return Done(files_total=1, files_done=1)

    async with replica(database_config) as one, worker(one.peer, {Task.SCAN: scan}):
        asked = spec("alice", label="set", holding_id=9, options=b"opt")
        await submit(one.stub, asked, paths=["/a"], chunk_kind=Task.SCAN)
        await ended(one.stub, asked.id)
    [(job, who)] = jobs
    assert who is not None
    assert (who.user, dict(who.groups)) == ("alice", {"ocean": identity.Role.USER})
    assert (job.kind, job.chunk, job.attempt) == (Task.SCAN, 0, 1)
    assert (job.transaction.label, job.transaction.options) == ("set", b"opt")


@sync
async def test_busy_threads_do_not_cost_the_lease(database_config: DatabaseConfig) -> None:
    attempts: list[int] = []

    def upload(job: Job, context: JobContext) -> Done:
        attempts.append(job.attempt)
        time.sleep(4.0)  # twice the lease
        return Done(files_total=1, files_done=1)

    async with replica(database_config) as one, worker(one.peer, {Task.UPLOAD: upload}, slots=1):
        id_ = await submit(one.stub, spec(), [UPLOAD])
        assert (await ended(one.stub, id_)).state == Transaction.COMPLETE
    assert attempts == [1]


@sync
async def test_progress_and_trouble_reach_the_ledger(database_config: DatabaseConfig) -> None:
    go_on = threading.Event()

    def upload(job: Job, context: JobContext) -> Done:
        context.progress(files=2, bytes=20)
        context.waiting_for("a slow disk")
        go_on.wait(60)
        return Done(files_total=5, files_done=5, bytes_done=50)

    async with (
        replica(database_config) as one,
        worker(one.peer, {Task.UPLOAD: upload}, trouble=lambda: "disk: slow"),
    ):
        id_ = await submit(one.stub, spec(), [UPLOAD])

        async def shown() -> bool:
            now = await get(one.stub, id_)
            return (now.files_done, now.bytes_done, now.waiting_for) == (2, 20, "a slow disk")

        await until(shown)
        workers = await one.stub.ListWorkers(pb.ListWorkersRequest())
        assert [each.trouble for each in workers.workers] == ["disk: slow"]
        go_on.set()
        assert (await ended(one.stub, id_)).bytes_done == 50


@sync
async def test_a_stopping_worker_finishes_what_it_can(database_config: DatabaseConfig) -> None:
    started = threading.Event()

    def upload(job: Job, context: JobContext) -> Done:
        started.set()
        time.sleep(0.5)
        context.check()
        return Done(files_total=1, files_done=1)

    async with replica(database_config) as one:
        async with worker(one.peer, {Task.UPLOAD: upload}, slots=1):
            id_ = await submit(one.stub, spec(), [UPLOAD] * 2)
            await until(started.is_set)
        assert one.rows("SELECT state, count(*) FROM task GROUP BY state ORDER BY state") == [
            (Task.READY, 1),
            (Task.DONE, 1),
        ]
        assert (await get(one.stub, id_)).files_done == 1


@sync
async def test_a_stopping_worker_hands_back_what_takes_too_long(
    database_config: DatabaseConfig,
) -> None:
    started = threading.Event()

    def endless(job: Job, context: JobContext) -> Done:
        started.set()
        while True:
            context.check()
            time.sleep(0.01)

    async with replica(database_config) as one:
        id_ = await submit(one.stub, spec(), [UPLOAD])
        async with worker(one.peer, {Task.UPLOAD: endless}, grace=0.1):
            await until(started.is_set)
        assert one.rows("SELECT state, attempt, lost FROM task") == [(Task.READY, 0, 0)]
        async with worker(one.peer, {Task.UPLOAD: lambda job, context: Done(1, 1, 1, 1)}):
            assert (await ended(one.stub, id_)).state == Transaction.COMPLETE


@sync
async def test_a_stuck_job_does_not_keep_the_worker(database_config: DatabaseConfig) -> None:
    started, free = threading.Event(), threading.Event()

    def stuck(job: Job, context: JobContext) -> Done:
        started.set()
        free.wait(100)
        return Done()

    async with replica(database_config) as one:
        await submit(one.stub, spec(), [UPLOAD])
        async with worker(one.peer, {Task.UPLOAD: stuck}, grace=0.1):
            await until(started.is_set)
        await until(lambda: one.rows("SELECT 1 FROM task WHERE state = 1 AND lost = 1"))
        free.set()


@sync
async def test_a_worker_that_is_refused_says_so(database_config: DatabaseConfig) -> None:
    async with replica(database_config) as one:
        refused = Worker(
            lambda: aio_channel(one.peer), service="transfer", handlers={}, slots=1, grace=0.1
        )
        with pytest.raises(errors.InvalidArgument, match="hello"):
            await refused.run(asyncio.Event())


@sync
async def test_a_worker_waits_for_a_ledger_that_comes_later(
    database_config: DatabaseConfig,
) -> None:
    [port] = free_ports(1)
    peer = PeerConfig(address=f"127.0.0.1:{port}")
    handlers = {Task.UPLOAD: lambda job, context: Done(1, 1, 1, 1)}
    async with worker(peer, handlers):
        await asyncio.sleep(0.5)
        async with replica(database_config, listen=peer.address) as one:
            id_ = await submit(one.stub, spec(), [UPLOAD])
            assert (await ended(one.stub, id_)).state == Transaction.COMPLETE


@sync
async def test_a_lost_connection_leaves_no_sender_behind(database_config: DatabaseConfig) -> None:
    complaints: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context["message"]))
    handlers = {Task.UPLOAD: lambda job, context: Done(1, 1, 1, 1)}
    async with replica(database_config) as one:
        port = int(one.peer.address.rpartition(":")[2])
        with contextlib.closing(Link(lambda: port)) as link:
            async with worker(PeerConfig(address=f"127.0.0.1:{link.port}"), handlers):
                await ended(one.stub, await submit(one.stub, spec(), [UPLOAD]))
                link.cut()
                link.heal()
                await ended(one.stub, await submit(one.stub, spec(), [UPLOAD]))
                gc.collect()
    assert complaints == []


@sync
async def test_results_no_message_can_hold_fail_the_task(database_config: DatabaseConfig) -> None:
    def upload(job: Job, context: JobContext) -> Done:
        return Done(follow_ups=[pb.NewTask(kind=Task.UPLOAD, payload=b"x" * 4_000_000)])

    async with replica(database_config) as one, worker(one.peer, {Task.UPLOAD: upload}):
        id_ = await submit(one.stub, spec(), [UPLOAD])
        assert (await ended(one.stub, id_)).state == Transaction.FAILED
        found = await get(one.stub, id_, with_failures=True)
        assert found.failures[0].code == "RESULT_TOO_LARGE"
