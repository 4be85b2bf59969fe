"""Work that needs what is down is left where it is: no attempt is spent, and users see why."""

from __future__ import annotations

from nearline.type.v1.task_pb2 import Task
from nearline.type.v1.transaction_pb2 import Transaction
from services.kit.breaker import Breaker, Patience
from services.kit.config import DatabaseConfig
from services.kit.errors import Unavailable
from services.kit.jobs import Done, Job, JobContext, new_task
from services.kit.working import Watchdog
from tests.service.monitor.asynctests import sync
from tests.service.monitor.rig import ended, get, replica, spec, submit, until, worker

TASKS = 200
NEEDS = {Task.UPLOAD: ("cache",), Task.SCAN: ()}


@sync
async def test_a_dead_store_costs_a_thousand_tasks_no_attempt(
    database_config: DatabaseConfig,
) -> None:
    down = True
    attempts = 0

    def check() -> str | None:
        return "the object store does not answer" if down else None

    def upload(job: Job, context: JobContext) -> Done:
        nonlocal attempts
        attempts += 1
        if down:
            raise Unavailable("OBJECT_STORE_UNREACHABLE", "no answer", dependency="cache")
        return Done(files_total=1, files_done=1)

    def scan(job: Job, context: JobContext) -> Done:
        return Done(files_total=1, files_done=1)

    # Probes are made by hand, so that the test decides when the store is back.
    patience = Patience(failures=3, first_pause=600.0, longest_pause=600.0)
    watchdog = Watchdog({"cache": check}, NEEDS, {"cache": Breaker(patience)})
    async with (
        replica(database_config) as one,
        worker(
            one.peer,
            {Task.UPLOAD: upload, Task.SCAN: scan},
            trouble=watchdog.trouble,
            paused=watchdog.paused,
            saw=watchdog.saw,
        ),
    ):
        id_ = await submit(one.stub, spec(), [new_task(Task.UPLOAD) for _ in range(TASKS)])
        await until(lambda: watchdog.paused() == {Task.UPLOAD})
        # Other work goes on, and shows that the worker would have had time for more.
        other = await submit(one.stub, spec("bob"), [new_task(Task.SCAN) for _ in range(50)])
        assert (await ended(one.stub, other)).state == Transaction.COMPLETE
        assert attempts <= 5
        untouched = one.rows("SELECT count(*) FROM task WHERE attempt = 0 AND state = 1")[0][0]
        assert untouched >= TASKS - 5

        one.change("UPDATE task SET state = 1, not_before = NULL WHERE state = 3")

        async def says_why() -> bool:
            shown = (await get(one.stub, id_)).waiting_for
            return "cache: no answer since" in shown and "next try in" in shown

        await until(says_why)
        down = False
        watchdog._breakers["cache"].probed("", 0.0, 0.0)
        assert (await ended(one.stub, id_)).state == Transaction.COMPLETE
        assert watchdog.trouble() == ""
