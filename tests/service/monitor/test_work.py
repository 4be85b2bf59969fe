"""Real workers on a real ledger, from the request to its final state."""

from __future__ import annotations

from nearline.type.v1.task_pb2 import Task
from nearline.type.v1.transaction_pb2 import Transaction
from services.kit.config import DatabaseConfig
from services.kit.worker import Done, Job, JobContext, new_task
from tests.service.monitor.asynctests import sync
from tests.service.monitor.rig import ended, replica, spec, submit, worker


@sync
async def test_a_put_runs_through_its_phases(database_config: DatabaseConfig) -> None:
    order: list[tuple[int, int | None]] = []

    def scan(job: Job, context: JobContext) -> Done:
        order.append((job.kind, job.chunk))
        follow = [new_task(Task.UPLOAD), new_task(Task.FINISH_DIRECTORIES, last=True)]
        context.failures([(f"/bad/{job.chunk}", "NOT_FOUND", "it is not there")])
        return Done(files_total=4, bytes_total=40, follow_ups=follow)

    def upload(job: Job, context: JobContext) -> Done:
        order.append((job.kind, None))
        return Done(files_done=3, bytes_done=30, warnings=["a warning"])

    def finish(job: Job, context: JobContext) -> Done:
        order.append((job.kind, None))
        return Done()

    handlers = {Task.SCAN: scan, Task.UPLOAD: upload, Task.FINISH_DIRECTORIES: finish}
    async with replica(database_config) as one, worker(one.peer, handlers):
        paths = [f"/data/{n}" for n in range(2500)]
        id_ = await submit(one.stub, spec(), paths=paths, chunk_kind=Task.SCAN)
        result = await ended(one.stub, id_)
    assert result.state == Transaction.COMPLETE_WITH_ERRORS
    assert (result.files_total, result.files_done, result.files_failed) == (12, 9, 3)
    assert (result.bytes_total, result.bytes_done) == (120, 90)
    assert list(result.warnings) == ["a warning"]
    assert sorted(chunk for kind, chunk in order if kind == Task.SCAN) == [0, 1, 2]
    assert [kind for kind, _ in order][-3:] == [Task.FINISH_DIRECTORIES] * 3
