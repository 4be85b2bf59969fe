"""Any service may be killed at any moment and started again: nothing is lost, nothing hangs."""

from __future__ import annotations

import pytest

from deploy.local.parts import SERVICES
from nearline.type.v1.task_pb2 import Task
from nearline.type.v1.transaction_pb2 import Transaction
from tests.fixtures.store import Store, quick_tape
from tests.robustness.conftest import (
    MIB,
    Data,
    archiving,
    ended_put,
    get_and_compare,
    start_put,
    wait_leased,
)


def crash(store: Store, *victims: str) -> None:
    """SIGKILL, and a restart."""
    for victim in victims:
        store.stack.kill(victim)
    store.stack.up()


@pytest.mark.parametrize("victim", SERVICES)
def test_a_service_killed_in_put_archive_and_get(store: Store, data: Data, victim: str) -> None:
    put = start_put(store, data)
    wait_leased(store.alice, put.id, Task.UPLOAD)
    crash(store, victim)
    put = ended_put(store, data, put)

    archive = archiving(store, put.holding_id)
    crash(store, victim)
    store.carol.ended(archive)
    store.to_tape(put.holding_id)

    def during(get: Transaction) -> None:
        wait_leased(
            store.alice, get.id, *((Task.RECALL,) if victim == "tape" else (Task.DOWNLOAD,))
        )
        crash(store, victim)

    quick_tape(store.stack, bandwidth=100.0 * MIB)
    get_and_compare(store, data, put.holding_id, during)


def test_everything_killed_at_once(store: Store, data: Data) -> None:
    put = start_put(store, data)
    wait_leased(store.alice, put.id, Task.UPLOAD)
    crash(store, *store.stack.parts())
    put = ended_put(store, data, put)
    store.to_tape(put.holding_id)

    def during(get: Transaction) -> None:
        wait_leased(store.alice, get.id, Task.RECALL, Task.DOWNLOAD)
        crash(store, *store.stack.parts())

    get_and_compare(store, data, put.holding_id, during)
