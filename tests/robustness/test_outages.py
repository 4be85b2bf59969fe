"""A part that stands still for a while: requests wait visibly, then they complete."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import nearline_client
from nearline.gateway.v1 import gateway_pb2 as api
from nearline.type.v1.task_pb2 import Task
from nearline.type.v1.transaction_pb2 import Transaction
from nearline_client import Client, ServiceError
from nearline_client.calls import Timing
from tests.fixtures.store import Store, quick_tape, same
from tests.robustness.conftest import (
    MIB,
    Data,
    ended_put,
    get_and_compare,
    start_put,
    wait_leased,
)

SECONDS = float(os.environ.get("OUTAGE_SECONDS", "8"))
"""Length of an outage; set it to a minute and more for a soak."""


@pytest.fixture(scope="session")
def archived(session_store: Store, data: Data) -> int:
    """A holding with the tree that is on tape."""
    put = ended_put(session_store, data, start_put(session_store, data))
    session_store.wait_safe(put.holding_id)
    return put.holding_id


@contextmanager
def outage(store: Store, part: str) -> Iterator[None]:
    """Stop a part for `SECONDS`, or for as long as the block takes when that is longer."""
    store.stack.kill(part)
    begun = time.monotonic()
    try:
        yield
        time.sleep(max(0.0, SECONDS - (time.monotonic() - begun)))
    finally:
        store.stack.up()


def impatient(store: Store) -> Client:
    """A client of alice's that does not wait for the service to come back."""
    timing = Timing(opening=1.0, interrupted=1.0)
    return nearline_client.connect(config=store.alice.config, timing=timing)


def wait_waiting(store: Store, *ids: str) -> None:
    """Wait until one of the transactions says what it waits for."""

    def probe() -> str | None:
        now = [store.alice.client.transaction(id, failures=False) for id in ids]
        return None if any(one.waiting_for for one in now) else str(now)

    store.wait(probe, "a transaction that says what it waits for")


def start_both(store: Store, data: Data, archived: int) -> tuple[Transaction, bytes, Transaction]:
    """A put and a get from tape that are in the middle of their work."""
    store.evict(archived)
    target = store.alice.directory()
    get = store.alice.client.get([data.root], target, holding_id=archived)
    put = start_put(store, data)
    wait_leased(store.alice, put.id, Task.UPLOAD)
    return get, target, put


def finish_both(
    store: Store, data: Data, get: Transaction, target: bytes, put: Transaction
) -> None:
    """Both complete, and what was put goes to tape and comes back as it was."""
    store.alice.ended(get)
    same(data.root, target + data.root)
    put = ended_put(store, data, put)
    store.to_tape(put.holding_id)
    get_and_compare(store, data, put.holding_id)


@pytest.mark.parametrize("part", ["seaweed", "xrootd"])
def test_a_store_of_bytes_stops(store: Store, data: Data, archived: int, part: str) -> None:
    if part not in store.stack.parts():
        pytest.skip("this stack has no such part")
    quick_tape(store.stack, mount=1.0, bandwidth=100.0 * MIB)
    get, target, put = start_both(store, data, archived)
    with outage(store, part):
        wait_waiting(store, put.id, get.id)
    finish_both(store, data, get, target, put)


def test_the_database_stops(store: Store, data: Data, archived: int) -> None:
    get, target, put = start_both(store, data, archived)
    with outage(store, "postgres"):
        with impatient(store) as client, pytest.raises(ServiceError) as refused:
            list(client.list())
        assert refused.value.code == "UNAVAILABLE"
        assert refused.value.retry_after
        shown = store.alice.client.system()
        assert shown.health != api.GetSystemResponse.HEALTHY
    finish_both(store, data, get, target, put)


def test_the_provider_stops(store: Store, data: Data) -> None:
    """Who is logged in goes on: keys are known, and tokens are good for a while."""
    store.alice.client.identity()
    with outage_of_provider(store):
        assert store.alice.client.identity().user == "alice"
    with nearline_client.connect(config=store.alice.config) as client:
        assert client.identity().user == "alice"


@contextmanager
def outage_of_provider(store: Store) -> Iterator[None]:
    store.stack.kill("idp")
    try:
        yield
    finally:
        store.stack.up()
