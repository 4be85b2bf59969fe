"""Requests on their way in: resumed, repeated, refused, and of any length."""

from __future__ import annotations

import asyncio
import resource
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from nearline.monitor.v1 import monitor_pb2 as pb
from nearline.type.v1.task_pb2 import Task
from nearline.type.v1.transaction_pb2 import Transaction
from services.kit import errors
from services.kit.config import DatabaseConfig
from services.kit.jobs import new_task
from services.monitor.config import LedgerConfig
from services.monitor.keeper import purge_submissions
from tests.service.monitor.asynctests import sync
from tests.service.monitor.rig import (
    Replica,
    answers,
    batch,
    commit,
    get,
    header,
    replica,
    spec,
    submit,
)


async def refusal(stub: Any, *requests: pb.SubmitRequest) -> errors.NearlineError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await answers(stub, *requests)
    return errors.from_rpc_error(caught.value)


async def read_paths(one: Replica, id_: str, chunk: int) -> list[str]:
    paths: list[str] = []
    async for answer in one.stub.ReadPaths(pb.ReadPathsRequest(transaction_id=id_, chunk=chunk)):
        paths += answer.paths
    return paths


@sync
async def test_a_broken_submission_goes_on_where_it_stopped(
    database_config: DatabaseConfig,
) -> None:
    async with replica(database_config) as one:
        asked = spec(job_label="job", options=b"opt")
        paths = [f"/p/{n}" for n in range(2300)]
        first = await answers(one.stub, header(asked), batch(0, paths[:700]))
        assert [answer.stored.next for answer in first] == [0, 700]
        again = await answers(
            one.stub,
            header(asked),
            batch(700, paths[700:1700]),
            batch(1500, paths[1500:2300]),  # partly known already
            commit(2300, chunk_kind=Task.SCAN, holding_id=5, label="set", warnings=["tag exists"]),
        )
        assert [answer.stored.next for answer in again[:-1]] == [700, 1700, 2300]
        accepted = again[-1].transaction
        assert (accepted.state, accepted.holding_id, accepted.label) == (1, 5, "set")
        assert list(accepted.warnings) == ["tag exists"]
        repeated = await answers(one.stub, header(asked))
        assert repeated[0].transaction.id == asked.id
        found = [await read_paths(one, asked.id, chunk) for chunk in range(3)]
        assert [len(chunk) for chunk in found] == [1000, 1000, 300]
        assert [path for chunk in found for path in chunk] == paths
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read_paths(one, asked.id, 3)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


@sync
async def test_lists_that_do_not_add_up_are_refused(database_config: DatabaseConfig) -> None:
    async with replica(database_config) as one:
        asked = spec()
        ten = [f"/{n}" for n in range(10)]
        start = (header(asked), batch(0, ten))
        gap = await refusal(one.stub, *start, batch(11, ["/x"]))
        assert (gap.reason, gap.metadata) == ("PATHS_MISSING", {"next": "10"})
        other = await refusal(one.stub, header(asked), batch(5, ["/x"]))
        assert other.reason == "PATHS_DIFFER"
        short = await refusal(one.stub, header(asked), commit(11, chunk_kind=Task.SCAN))
        assert short.reason == "PATHS_MISSING"
        for bad in (
            batch(10, []),
            batch(10, [""]),
            batch(10, ["/x"] * 1001),
            batch(-1, ["/x"]),
            commit(10),
            commit(10, tasks=[pb.NewTask()]),
        ):
            error = await refusal(one.stub, header(asked), bad)
            assert isinstance(error, errors.InvalidArgument)
            assert error.violations


@sync
async def test_wrong_headers_are_refused(database_config: DatabaseConfig) -> None:
    async with replica(database_config) as one:
        for bad in (spec(id_="7"), spec(action=Transaction.ACTION_UNSPECIFIED), spec(label="\0")):
            assert isinstance(await refusal(one.stub, header(bad)), errors.InvalidArgument)
        error = await refusal(one.stub, commit(1))
        assert error.reason == "HEADER_EXPECTED"


@sync
async def test_an_id_belongs_to_one_request_of_one_user(database_config: DatabaseConfig) -> None:
    async with replica(database_config) as one:
        for accepted in (False, True):
            asked = spec(options=b"a")
            if accepted:
                await submit(one.stub, asked, [new_task(Task.SCAN)])
            else:
                await answers(one.stub, header(asked))
            foreign = await refusal(one.stub, header(spec("bob", id_=asked.id, options=b"a")))
            assert isinstance(foreign, errors.PermissionDenied)
            for other in (
                spec(id_=asked.id, options=b"b"),
                spec(id_=asked.id, options=b"a", action=Transaction.GET),
            ):
                assert isinstance(await refusal(one.stub, header(other)), errors.AlreadyExists)


@sync
async def test_concurrent_submissions_of_one_request_make_one(
    database_config: DatabaseConfig,
) -> None:
    async with replica(database_config) as one, replica(database_config) as two:
        asked = spec()
        await asyncio.gather(
            *[submit(each.stub, asked, [new_task(Task.SCAN)]) for each in (one, two) * 5]
        )
        assert one.rows("SELECT count(*) FROM txn") == [(1,)]
        assert one.rows("SELECT count(*) FROM task") == [(1,)]


@sync
async def test_a_user_has_only_so_many_running(database_config: DatabaseConfig) -> None:
    config = LedgerConfig(running_per_user=2, busy_retry_seconds=7)
    async with replica(database_config, config) as one:
        ids = [await submit(one.stub, spec(), [new_task(Task.SCAN)]) for _ in range(2)]
        error = await refusal(one.stub, header(spec()))
        assert isinstance(error, errors.ResourceExhausted)
        assert error.retry_after is not None
        assert 7 <= error.retry_after <= 10.5
        await submit(one.stub, spec("bob"), [new_task(Task.SCAN)])
        await one.stub.CancelTransaction(pb.CancelTransactionRequest(id=ids[0]))
        await submit(one.stub, spec(), [new_task(Task.SCAN)])


@sync
async def test_unfinished_submissions_are_dropped(database_config: DatabaseConfig) -> None:
    async with replica(database_config) as one:
        old, new = spec(), spec()
        for each in (old, new):
            await answers(one.stub, header(each), batch(0, ["/a"]))
        one.change(
            "UPDATE submission SET updated_at = now() - interval '2 days' WHERE id = %s", (old.id,)
        )
        one.database.write_sync(purge_submissions, 86400.0)
        assert one.rows("SELECT id::text FROM submission") == [(new.id,)]
        assert one.rows("SELECT transaction_id::text FROM path_chunk") == [(new.id,)]
        begun_anew = await answers(one.stub, header(old))
        assert begun_anew[0].stored.next == 0


@sync
async def test_a_stream_that_was_silent_for_long_adds_nothing_to_another_users_request(
    database_config: DatabaseConfig,
) -> None:
    async with replica(database_config) as one:
        late, other = spec(), spec("bob")
        other.id = late.id
        began = asyncio.Event()

        async def silent(last: pb.SubmitRequest) -> AsyncIterator[pb.SubmitRequest]:
            yield header(late)
            await began.wait()
            yield last

        for last in (batch(0, ["/late"]), commit(1, chunk_kind=Task.SCAN)):
            began.clear()
            stream = aiter(one.stub.Submit(silent(last)))
            await anext(stream)
            one.change("UPDATE submission SET updated_at = now() - interval '2 days'")
            one.database.write_sync(purge_submissions, 86400.0)
            await answers(one.stub, header(other), batch(0, ["/of/bob"]))
            began.set()
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await anext(stream)
            assert errors.from_rpc_error(refused.value).reason == "TRANSACTION_FOREIGN"
            assert one.rows("SELECT paths FROM path_chunk") == [(["/of/bob"],)]
            one.change("DELETE FROM submission")
            one.change("DELETE FROM path_chunk")
        assert not one.rows("SELECT 1 FROM txn")


@sync
async def test_a_long_list_needs_little_memory(database_config: DatabaseConfig) -> None:
    total, size = 200_000, 1000

    async def requests(asked: pb.TransactionSpec) -> AsyncIterator[pb.SubmitRequest]:
        yield header(asked)
        for first in range(0, total, size):
            yield batch(first, [f"/long/{'x' * 150}/{first + n}" for n in range(size)])
        yield commit(total, chunk_kind=Task.SCAN)

    async with replica(database_config) as one:
        asked = spec(id_=str(uuid.uuid4()))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        async for _ in one.stub.Submit(requests(asked)):
            pass
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        assert grown < 100, f"{grown} MB more for a list of 33 MB, at both ends"
        assert (await get(one.stub, asked.id)).state == Transaction.QUEUED
        assert one.rows("SELECT count(*) FROM task") == [(200,)]
        assert len(await read_paths(one, asked.id, 199)) == 1000


@sync
async def test_a_request_is_cancelled_while_its_paths_arrive(
    database_config: DatabaseConfig,
) -> None:
    async with replica(database_config) as one:
        asked = spec()
        await answers(one.stub, header(asked), batch(0, ["/a"]))
        strangers = pb.CancelTransactionRequest(
            id=asked.id, visibility=pb.Visibility(groups=["ocean"], user="bob")
        )
        with pytest.raises(grpc.aio.AioRpcError) as unseen:
            await one.stub.CancelTransaction(strangers)
        assert isinstance(errors.from_rpc_error(unseen.value), errors.NotFound)

        cancelled = await one.stub.CancelTransaction(pb.CancelTransactionRequest(id=asked.id))
        assert cancelled.transaction.state == Transaction.CANCELLED
        # Whatever still comes in of it is answered by its end, and makes nothing.
        for requests in (
            [header(asked), batch(1, ["/b"])],
            [header(asked), commit(1, chunk_kind=Task.SCAN)],
        ):
            last = (await answers(one.stub, *requests))[-1]
            assert last.transaction.state == Transaction.CANCELLED
        assert not one.rows("SELECT 1 FROM task")
        assert not one.rows("SELECT 1 FROM path_chunk")


@sync
async def test_groups_and_waiting_work_are_bounded_too(database_config: DatabaseConfig) -> None:
    config = LedgerConfig(running_per_group=2, tasks_per_user=5, paths_per_user=3)
    async with replica(database_config, config) as one:
        await submit(one.stub, spec("ann"), [new_task(Task.SCAN)] * 5)
        assert "5 tasks" in (await refusal(one.stub, header(spec("ann")))).message
        arriving = spec("bob")
        await answers(one.stub, header(arriving), batch(0, ["/a", "/b", "/c"]))
        assert "3 paths" in (await refusal(one.stub, header(spec("bob")))).message
        # One that goes on does not stand in its own way.
        await answers(one.stub, header(arriving), commit(3, chunk_kind=Task.SCAN))
        assert "2 transactions" in (await refusal(one.stub, header(spec("carol")))).message
        await submit(one.stub, spec("carol", group="ice"), [new_task(Task.SCAN)])


@sync
async def test_large_requests_of_one_user_do_not_keep_each_other_out(
    database_config: DatabaseConfig,
) -> None:
    async with replica(database_config, LedgerConfig(paths_per_user=2)) as one:
        both = [one.stub.Submit(), one.stub.Submit()]
        asked = [spec(), spec()]
        for message in range(2):
            for stream, each in zip(both, asked, strict=True):
                await stream.write([header(each), batch(0, ["/a", "/b"])][message])
                await stream.read()
        assert "4 paths" in (await refusal(one.stub, header(spec()))).message
        for stream in both:
            stream.cancel()
        for each in asked:
            last = (await answers(one.stub, header(each), commit(2, chunk_kind=Task.SCAN)))[-1]
            assert last.transaction.state == Transaction.QUEUED
