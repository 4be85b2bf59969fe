"""One user never holds all slots of a worker, and small work has workers of its own."""

from __future__ import annotations

from collections import Counter

from nearline.monitor.v1 import monitor_pb2 as pb
from nearline.type.v1.task_pb2 import Task
from services.kit.config import DatabaseConfig
from services.kit.jobs import new_task
from tests.service.monitor.asynctests import sync
from tests.service.monitor.rig import Raw, Replica, replica, spec, submit

MANY = 300


async def leases(raw: Raw, count: int) -> list[pb.WorkResponse.Assignment]:
    return [(await raw.next("assignment")).assignment for _ in range(count)]


def held(one: Replica) -> Counter[str]:
    statement = "SELECT l.user_name FROM task t JOIN lane l ON l.id = t.lane WHERE holder > 0"
    return Counter(user for (user,) in one.rows(statement))


@sync
async def test_the_last_slot_of_a_worker_is_left_to_others(database_config: DatabaseConfig) -> None:
    async with replica(database_config) as one:
        await submit(one.stub, spec("alice"), [new_task(Task.UPLOAD, cost=5.0)] * MANY)
        raw = Raw(one.stub, slots=3, reserved=1)
        await raw.connect()
        await raw.send(credit=pb.WorkRequest.Credit(tasks=3))
        first, _ = await leases(raw, 2)
        # What it still has credit for goes to the first other that comes, however much waits.
        await submit(one.stub, spec("bob"), [new_task(Task.UPLOAD, cost=0.1)])
        (third,) = await leases(raw, 1)
        assert third.transaction.identity.user == "bob"
        assert held(one) == {"alice": 2, "bob": 1}
        # A slot of hers that becomes free is hers again.
        await raw.send(credit=pb.WorkRequest.Credit(tasks=1))
        assert await raw.acked(complete=pb.WorkRequest.Complete(lease=first.lease))
        (fourth,) = await leases(raw, 1)
        assert fourth.transaction.identity.user == "alice"


@sync
async def test_a_worker_for_small_work_takes_no_other_and_one_of_each_user(
    database_config: DatabaseConfig,
) -> None:
    async with replica(database_config) as one:
        large = [new_task(Task.UPLOAD, cost=2.0)] * MANY
        small = [new_task(Task.UPLOAD, cost=0.5)] * 5
        await submit(one.stub, spec("alice"), [*large, *small])
        await submit(one.stub, spec("bob"), small)
        raw = Raw(one.stub, slots=3, reserved=2, small_only=True)
        await raw.connect()
        await raw.send(credit=pb.WorkRequest.Credit(tasks=3))
        await leases(raw, 2)
        assert held(one) == {"alice": 1, "bob": 1}
        await submit(one.stub, spec("carol"), small)
        await leases(raw, 1)
        assert held(one) == {"alice": 1, "bob": 1, "carol": 1}
        costs = one.rows("SELECT DISTINCT cost FROM task WHERE holder IS NOT NULL")
        assert costs == [(0.5,)]


@sync
async def test_many_small_tasks_do_not_hide_the_large_one_of_another(
    database_config: DatabaseConfig,
) -> None:
    async with replica(database_config) as one:
        await submit(one.stub, spec("alice"), [new_task(Task.UPLOAD, cost=0.05)] * MANY)
        await submit(one.stub, spec("bob"), [new_task(Task.UPLOAD, cost=60.0)])
        raw = Raw(one.stub, slots=3, reserved=1)
        await raw.connect()
        await raw.send(credit=pb.WorkRequest.Credit(tasks=3))
        await leases(raw, 3)
        assert held(one) == {"alice": 2, "bob": 1}


@sync
async def test_tiny_tasks_do_not_hide_a_small_one_from_a_worker_for_small_work(
    database_config: DatabaseConfig,
) -> None:
    async with replica(database_config) as one:
        await submit(one.stub, spec("alice"), [new_task(Task.UPLOAD, cost=0.001)] * MANY)
        other = [new_task(Task.UPLOAD, cost=cost) for cost in (5.0, 1.0)]
        await submit(one.stub, spec("bob"), other)
        raw = Raw(one.stub, slots=2, reserved=1, small_only=True)
        await raw.connect()
        await raw.send(credit=pb.WorkRequest.Credit(tasks=2))
        await leases(raw, 2)
        assert held(one) == {"alice": 1, "bob": 1}
        costs = one.rows("SELECT cost FROM task WHERE holder IS NOT NULL ORDER BY cost")
        assert [round(cost, 3) for (cost,) in costs] == [0.001, 1.0]


@sync
async def test_tasks_that_wait_for_their_key_do_not_hide_others(
    database_config: DatabaseConfig,
) -> None:
    async with replica(database_config) as one:
        same = [new_task(Task.UPLOAD, cost=0.05, key="one tape")] * MANY
        await submit(one.stub, spec("alice"), same)
        await submit(one.stub, spec("alice"), [new_task(Task.UPLOAD, cost=30.0)])
        await submit(one.stub, spec("bob"), [new_task(Task.UPLOAD, cost=60.0)])
        raw = Raw(one.stub, slots=4, reserved=1)
        await raw.connect()
        await raw.send(credit=pb.WorkRequest.Credit(tasks=3))
        await leases(raw, 3)
        assert held(one) == {"alice": 2, "bob": 1}
