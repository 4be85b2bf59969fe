"""Running again what failed: only that, once, by its owner; what was given up is listed."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from nearline.monitor.v1 import monitor_pb2 as pb
from nearline.type.v1.identity_pb2 import Identity
from nearline.type.v1.task_pb2 import FilesTask, Task
from nearline.type.v1.transaction_pb2 import Transaction
from services.kit.channel import sync_channel
from services.kit.config import DatabaseConfig
from services.kit.errors import InvalidArgument, NearlineError, from_rpc_error
from services.kit.jobs import Deferred, Done, Job, JobContext, new_task
from services.kit.retrying import retry_id
from services.tape.context import OpenTasks
from tests.service.monitor.asynctests import sync
from tests.service.monitor.rig import (
    QUICK,
    Replica,
    batch,
    ended,
    get,
    header,
    replica,
    spec,
    submit,
    until,
    worker,
)

EXACT = FilesTask(exact=True).SerializeToString()


def who(user: str = "alice", *groups: str) -> Identity:
    named = groups or ("ocean",)
    return Identity(
        user=user, groups=[Identity.GroupRole(group=g, role=Identity.USER) for g in named]
    )


async def retry(one: Replica, id_: str, identity: Identity | None = None) -> Transaction:
    request = pb.RetryTransactionRequest(
        id=id_,
        identity=identity or who(),
        asked_kind=Task.RESOLVE,
        met_task=pb.NewTask(kind=Task.RESOLVE, payload=EXACT),
    )
    answer = await one.stub.RetryTransaction(request)
    return Transaction.FromString(answer.transaction.SerializeToString())


async def refused(one: Replica, id_: str, identity: Identity | None = None) -> NearlineError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await retry(one, id_, identity)
    return from_rpc_error(caught.value)


async def refusal(one: Replica, id_: str, identity: Identity | None = None) -> str:
    return (await refused(one, id_, identity)).reason


def paths_of(one: Replica, id_: str) -> list[list[str]]:
    statement = "SELECT paths FROM path_chunk WHERE transaction_id = %s ORDER BY chunk"
    return [paths for (paths,) in one.rows(statement, (id_,))]


class Files:
    """Workers of a request for files, some of which fail as long as ``broken`` says so."""

    def __init__(self, *broken: str) -> None:
        self.broken = set(broken)
        self.done: list[str] = []
        self.payloads: list[bytes] = []

    def resolve(self, job: Job, context: JobContext) -> Done:
        self.payloads.append(job.payload)
        return Done(files_total=1, follow_ups=[new_task(Task.DOWNLOAD, FilesTask(), files=1)])

    def download(self, job: Job, context: JobContext) -> Done:
        if "task" in self.broken:
            context.files_at_stake = 1
            raise InvalidArgument("BROKEN", "it cannot be done")
        failed = [p for p in ("/a", "/b") if p in self.broken]
        context.failures((path, "NO_SPACE", "full") for path in failed)
        self.done += [p for p in ("/a", "/b") if p not in self.broken]
        return Done(files_done=1 - len(failed))

    @property
    def handlers(self) -> dict[Any, Any]:
        return {Task.RESOLVE: self.resolve, Task.DOWNLOAD: self.download}


@sync
async def test_only_failed_files_are_run_again_and_only_once(
    database_config: DatabaseConfig,
) -> None:
    files = Files("/a")
    async with replica(database_config) as one, worker(one.peer, files.handlers):
        asked = spec(action=Transaction.GET)
        id_ = await submit(one.stub, asked, paths=["/x"], chunk_kind=Task.RESOLVE)
        old = await ended(one.stub, id_)
        assert old.state == Transaction.FAILED
        files.broken.clear()
        first = await retry(one, id_)
        assert first.retry_of == id_
        assert paths_of(one, first.id) == [["/a"]]
        new = await ended(one.stub, first.id)
        assert new.state == Transaction.COMPLETE
        assert files.payloads == [b"", EXACT]
        assert (await retry(one, id_)) == new
        assert len(one.rows("SELECT 1 FROM txn")) == 2
        assert await get(one.stub, id_) == old
        assert await refusal(one, first.id) == "NOTHING_FAILED"


@sync
async def test_what_was_given_up_is_run_again_as_it_was_and_its_files_counted(
    database_config: DatabaseConfig,
) -> None:
    files = Files("task")
    async with replica(database_config) as one, worker(one.peer, files.handlers):
        asked = spec(action=Transaction.GET)
        id_ = await submit(one.stub, asked, paths=["/x"], chunk_kind=Task.RESOLVE)
        old = await ended(one.stub, id_)
        assert (old.state, old.files_total, old.files_failed) == (Transaction.FAILED, 1, 1)
        parked = [
            each
            async for answer in one.stub.ListParkedTasks(pb.ListParkedTasksRequest())
            for each in answer.tasks
        ]
        assert [(each.user, each.code, each.task.kind) for each in parked] == [
            ("alice", "BROKEN", Task.DOWNLOAD)
        ]
        assert (await one.stub.ListWorkers(pb.ListWorkersRequest())).parked == 1
        files.broken.clear()
        new = await ended(one.stub, (await retry(one, id_)).id)
        assert (new.state, new.files_total, new.files_done) == (Transaction.COMPLETE, 1, 1)
        assert files.payloads == [b""]


@pytest.mark.parametrize("left", [2, 0])
@sync
async def test_files_that_failed_before_their_task_did_are_counted_once(
    database_config: DatabaseConfig, left: int
) -> None:
    def stage(job: Job, context: JobContext) -> Deferred:
        if job.payload:
            raise InvalidArgument("BROKEN", "it cannot be done")
        context.failures([("/a", "GONE", "gone")])
        return Deferred(0.0, payload=b"without /a")

    async with replica(database_config) as one, worker(one.peer, {Task.STAGE: stage}):
        tasks = [new_task(Task.STAGE, files=1 + left)]
        id_ = await submit(one.stub, spec(action=Transaction.STAGE), tasks)
        assert (await ended(one.stub, id_)).files_failed == 1 + left
        again = await retry(one, id_)
        assert paths_of(one, again.id) == [["/a"]]
        counted = one.rows("SELECT kind, files FROM task WHERE txn = 2 ORDER BY kind")
        assert counted == sorted([(Task.STAGE, left), (Task.RESOLVE, 0)])
        assert again.files_total == left


@sync
async def test_paths_that_meant_nothing_are_asked_for_as_before(
    database_config: DatabaseConfig,
) -> None:
    missing = {"/gone", "/away"}
    seen: list[tuple[bytes, int | None]] = []

    def resolve(job: Job, context: JobContext) -> Done:
        seen.append((job.payload, job.chunk))
        context.failures((path, "NOT_FOUND", "nothing there") for path in sorted(missing))
        return Done(files_total=3, files_done=3 - len(missing))

    async with replica(database_config) as one, worker(one.peer, {Task.RESOLVE: resolve}):
        asked = spec(action=Transaction.STAGE)
        id_ = await submit(
            one.stub, asked, paths=["/here", "/gone", "/away"], chunk_kind=Task.RESOLVE
        )
        assert (await ended(one.stub, id_)).state == Transaction.COMPLETE_WITH_ERRORS
        again = await retry(one, id_)
        assert paths_of(one, again.id) == [["/away", "/gone"]]
        await ended(one.stub, again.id)
        assert seen == [(b"", 0), (b"", 0)]
        # A retry has a retry of its own, which knows where the chain began.
        last = await retry(one, again.id)
        assert last.retry_of == again.id
        stored = one.rows("SELECT spec FROM txn WHERE id = %s", (last.id,))[0][0]
        assert pb.TransactionSpec.FromString(bytes(stored)).origin == id_


@sync
async def test_a_retry_that_cannot_be_is_refused_with_its_reason(
    database_config: DatabaseConfig,
) -> None:
    files = Files("/a", "/b")
    async with replica(database_config) as one:
        asked = spec(action=Transaction.GET)
        id_ = await submit(one.stub, asked, paths=["/x"], chunk_kind=Task.RESOLVE)
        assert await refusal(one, id_) == "STILL_RUNNING"
        system = await submit(one.stub, spec(action=Transaction.EVICT), [new_task(Task.EVICT)])
        assert await refusal(one, system) == "RETRY_NOT_OFFERED"
        async with worker(one.peer, files.handlers):
            await ended(one.stub, id_)
        assert await refusal(one, id_, who("bob")) == "TRANSACTION_FOREIGN"
        assert await refusal(one, id_, who("alice", "ice")) == "GROUP_LEFT"
        one.change("DELETE FROM task")
        late = await refused(one, id_)
        assert late.reason == "RETRY_TOO_LATE"
        assert f"`nlds stat -F {id_} | nlds getlist -`" in late.message


@sync
async def test_a_put_has_not_ended_while_a_retry_goes_on_with_its_files(
    database_config: DatabaseConfig,
) -> None:
    files = Files("/a")
    async with replica(database_config) as one:
        with sync_channel(one.peer) as channel:
            ledger = OpenTasks(channel)

            async def has_ended(grace: float = 0.0) -> bool:
                return await asyncio.to_thread(ledger.has_ended, id_, grace)

            asked = spec(action=Transaction.GET)
            id_ = await submit(one.stub, asked, paths=["/x"], chunk_kind=Task.RESOLVE)
            assert not await has_ended()
            async with worker(one.peer, files.handlers):
                await ended(one.stub, id_)
            assert await has_ended()
            assert not await has_ended(60.0), "a retry may come"
            again = await retry(one, id_)
            assert not await has_ended()
            async with worker(one.peer, files.handlers):
                await ended(one.stub, again.id)
            assert await has_ended()
            id_ = str(uuid.uuid4())
            assert await has_ended(60.0), "never accepted"


@sync
async def test_nobody_slips_paths_or_a_transaction_of_their_own_into_a_retry(
    database_config: DatabaseConfig,
) -> None:
    files = Files("/a")
    async with replica(database_config) as one:
        asked = spec(action=Transaction.GET)
        id_ = await submit(one.stub, asked, paths=["/x"], chunk_kind=Task.RESOLVE)
        async with worker(one.peer, files.handlers):
            await ended(one.stub, id_)
        taken = spec("mallory", id_=retry_id(id_), action=Transaction.GET)
        retried = asyncio.Event()

        async def slip() -> AsyncIterator[pb.SubmitRequest]:
            yield header(taken)
            yield batch(0, ["/early"])
            await retried.wait()
            yield batch(1, ["/late"])

        slipping = aiter(one.stub.Submit(slip()))
        assert [(await anext(slipping)).stored.next for _ in range(2)] == [0, 1]
        again = await retry(one, id_)
        retried.set()
        # What has come to be alice's is not shown to whom it displaced.
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(slipping)
        assert from_rpc_error(caught.value).reason == "TRANSACTION_FOREIGN"
        assert again.user == "alice"
        assert paths_of(one, again.id) == [["/a"]]
        assert not one.rows("SELECT 1 FROM submission")
        one.change("DELETE FROM txn WHERE id = %s", (again.id,))
        await submit(one.stub, taken, [new_task(Task.RESOLVE)])
        assert await refusal(one, id_) == "RETRY_ID_TAKEN"


@sync
async def test_a_task_that_kills_its_workers_is_parked_with_all_its_files(
    database_config: DatabaseConfig,
) -> None:
    async with replica(database_config) as one:
        id_ = await submit(one.stub, spec(), [new_task(Task.UPLOAD, files=7)])
        one.change("UPDATE task SET lost = %s", (QUICK.most_lost_leases - 1,))
        one.change(
            "INSERT INTO worker (name, service, host, version, slots, session, connected, seen_at)"
            " VALUES ('dead', 'transfer', '', '', 1, 1, false, now() - interval '1 hour')"
        )
        one.change("UPDATE task SET state = 2, token = 1, holder = (SELECT id FROM worker)")
        failed = await ended(one.stub, id_)
        assert (failed.state, failed.files_failed) == (Transaction.FAILED, 7)
        await until(lambda: one.rows("SELECT 1 FROM task WHERE state = 6"))
        request = pb.ListParkedTasksRequest(visibility=pb.Visibility(groups=["ocean"]))
        (answer,) = [answer async for answer in one.stub.ListParkedTasks(request)]
        assert answer.tasks[0].code == "WORKER_LOST"
        other = pb.ListParkedTasksRequest(visibility=pb.Visibility(groups=["ice"]))
        assert not [answer async for answer in one.stub.ListParkedTasks(other)]
