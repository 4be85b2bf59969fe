"""Rows are locked in one order, and nothing that arrives while locks are taken is overlooked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from sqlalchemy import Connection, text

from deploy.local.wait import wait_until
from nearline.catalog.v1 import catalog_pb2 as api
from nearline.type.v1.storage_pb2 import Blob
from tests.service.catalog.harness import Catalog, members

_WAITING = text("""
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock'
""")


def lock_row(connection: Connection, table: str, number: int) -> None:
    """Lock a row, or fail at once when somebody has locked it."""
    connection.execute(
        text(f"SELECT FROM {table} WHERE id = :id FOR UPDATE NOWAIT"), {"id": number}
    )


@contextmanager
def locked(catalog: Catalog, table: str, number: int) -> Iterator[Connection]:
    """A row that is locked until the block ends, and the connection that locked it."""
    with catalog.database.connect() as connection:
        lock_row(connection, table, number)
        yield connection
        connection.rollback()


def until_waiting(catalog: Catalog, count: int) -> None:
    def missing() -> str | None:
        waiting = catalog.database.read_sync(lambda connection: connection.scalar(_WAITING))
        return None if waiting == count else f"{waiting} wait for a lock"

    wait_until(missing, "calls that wait", 20)


def report(catalog: Catalog, tape: Blob, number: int) -> None:
    catalog.fault(tape, number)


def remove(catalog: Catalog, tape: Blob, number: int) -> None:
    catalog.set_state(Blob.REMOVING, tape)


def reinstate(catalog: Catalog, tape: Blob, number: int) -> None:
    request = api.ReinstateCopiesRequest(blob_id=tape.id, file_ids=[number], state=Blob.SAFE)
    assert catalog.stub.ReinstateCopies(request).reinstated == 1


def give_up(catalog: Catalog, tape: Blob, number: int) -> None:
    catalog.set_state(Blob.REMOVED, tape)


@pytest.mark.parametrize("step", [report, remove, reinstate, give_up])
def test_blobs_are_locked_by_number(
    catalog: Catalog, step: Callable[[Catalog, Blob, int], None]
) -> None:
    put = catalog.open()
    source, numbers = catalog.store(put, {"/a": b"a"})
    if step is give_up:
        tape = catalog.claim(put, [source.id]).blob
    else:
        tape = catalog.archive(put, [source], state=Blob.SAFE)
    if step is reinstate:
        catalog.fault(tape)
    assert source.id < tape.id
    with ThreadPoolExecutor(1) as threads, locked(catalog, "blob", source.id) as other:
        done: Future[None] = threads.submit(step, catalog, tape, numbers["/a"])
        until_waiting(catalog, 1)
        lock_row(other, "blob", tape.id)  # Both in their order, as a seal of theirs would.
        other.rollback()
        done.result(20)


def test_an_object_recorded_while_its_tape_copy_fails_waits_for_tape(catalog: Catalog) -> None:
    put = catalog.open()
    contents = {"/a": b"a"}
    source, numbers = catalog.store(put, contents)
    tape = catalog.archive(put, [source], state=Blob.SAFE)
    catalog.evict()
    (recalled,) = catalog.allocate(put.holding.id)
    with ThreadPoolExecutor(2) as threads, locked(catalog, "file", numbers["/a"]) as other:
        sealed = threads.submit(catalog.record, recalled, members(numbers, contents))
        until_waiting(catalog, 1)
        failed = threads.submit(catalog.fault, tape)
        until_waiting(catalog, 2)
        other.rollback()
        assert sealed.result(20).accepted == 1
        assert failed.result(20) == []
    assert [blob.id for found in catalog.archivable() for blob in found.blobs] == [recalled.id]
