"""What the tests of faults share: a tree that takes a while to move, and moments to strike."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from google.protobuf.json_format import MessageToJson

from deploy.local.demo import trees
from deploy.local.demo.make import Plan, make_tree
from nearline.type.v1.task_pb2 import Task
from nearline.type.v1.transaction_pb2 import Transaction
from nearline_client.states import is_final
from tests.fixtures.store import GROUP, Person, Store, same
from tests.soak.rig import Rig, running_rig

MIB = 1 << 20
PLAN = Plan(files=3000, large=(64 * MIB, 64 * MIB))


@dataclass(frozen=True)
class Data:
    """A tree of alice's, and how many entries it has."""

    root: bytes
    entries: int


@pytest.fixture(scope="session")
def data(session_store: Store) -> Iterator[Data]:
    """The tree that all tests of faults move; nobody changes it."""
    root = os.path.join(session_store.alice.directory(), b"data")
    with session_store.alice.acting():
        make_tree(root, PLAN)
    entries = 1 + sum(len(below) + len(files) for _, below, files in os.walk(root))
    yield Data(root, entries)
    trees.remove(root)


@pytest.fixture(scope="module")
def shared_rig() -> Iterator[Rig]:
    """A stack with breakable links that the tests of a module share; use `rig` in tests."""
    with running_rig() as rig:
        yield rig


@pytest.fixture
def rig(shared_rig: Rig) -> Rig:
    """The shared rig, healed of what the last test did to it."""
    shared_rig.heal()
    return shared_rig


def wait_leased(person: Person, id: str, *kinds: Task.Kind.ValueType) -> None:
    """Wait until a worker holds a task of one of the kinds: the middle of the work."""

    def probe() -> str | None:
        tasks = list(person.client.tasks(id))
        if any(task.kind in kinds and task.state == Task.LEASED for task in tasks):
            return None
        if is_final(person.client.transaction(id, failures=False).state):
            pytest.fail(f"it ended before the moment came\n{person.story(id)}")
        return " ".join(MessageToJson(task, indent=None) for task in tasks)

    person.store.wait(probe, f"a task of {', '.join(map(Task.Kind.Name, kinds))}")


def archiving(store: Store, holding_id: int) -> Transaction:
    """The transaction that archives the holding, as soon as there is one."""
    found: list[Transaction] = []

    def probe() -> str | None:
        found.extend(
            store.carol.client.stat(
                all_users=True, holding_id=holding_id, actions=[Transaction.ARCHIVE]
            )
        )
        return None if found else "nothing archives it yet"

    store.wait(probe, f"the archive of holding {holding_id}")
    return found[0]


def start_put(store: Store, data: Data) -> Transaction:
    return store.alice.client.put([data.root], group=GROUP)


def ended_put(store: Store, data: Data, put: Transaction) -> Transaction:
    """The put at its end: every entry was stored, once."""
    put = store.alice.ended(put)
    assert (put.files_done, put.files_failed) == (data.entries, 0)
    assert put.files_total == data.entries
    assert len(store.alice.files(holding_id=put.holding_id)) == data.entries
    return put


def get_and_compare(
    store: Store, data: Data, holding_id: int, during: Callable[[Transaction], None] | None = None
) -> None:
    """Get the tree to a new place, with something happening meanwhile, and compare all of it."""
    target = store.alice.directory()
    get = store.alice.client.get([data.root], target, holding_id=holding_id)
    if during is not None:
        during(get)
    get = store.alice.ended(get)
    assert (get.files_done, get.files_failed) == (data.entries, 0)
    same(data.root, target + data.root)
    trees.remove(target)
