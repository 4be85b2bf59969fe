"""Later attempts of an ARCHIVE task, after an earlier one died, or could not read a source."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from nearline.monitor.v1 import monitor_pb2 as ledger
from nearline.type.v1 import task_pb2
from nearline.type.v1.storage_pb2 import Blob
from nearline.type.v1.task_pb2 import Task
from services.kit.errors import Unavailable
from services.kit.faults import OBJECT_UNREADABLE
from services.kit.jobs import Done, Job, JobContext
from services.kit.objecterrors import CACHE, OBJECT_STORE_FAILED, from_code
from services.kit.objectstore import ObjectStore
from services.tape.archive import archive
from tests.service.catalog.harness import GROUP, Put
from tests.service.tape.harness import TapeStore, contents


def claimed(store: TapeStore, put: Put) -> task_pb2.TapeBlobTask:
    """What an ARCHIVE task says of an aggregate of all that waits."""
    (waiting,) = store.client.archivable(0)
    blob = store.client.claim_aggregate(
        put.holding.id, [one.id for one in waiting.blobs], "plan"
    ).blob
    return task_pb2.TapeBlobTask(blob_id=blob.id, key=blob.key, sources=waiting.blobs)


def attempt(
    store: TapeStore, put: Put, task: task_pb2.TapeBlobTask, number: int, context: Any = None
) -> Done:
    spec = ledger.TransactionSpec(holding_id=put.holding.id, group=GROUP)
    # A task of its own for each aggregate.
    job = Job(task.blob_id, number, Task.ARCHIVE, task.SerializeToString(), None, number, spec)
    lease = ledger.Lease(task_id=task.blob_id, token=number)
    outcome = archive(context or store.context, job, JobContext(lease, lambda _: None))
    assert isinstance(outcome, Done)
    return outcome


def payloads(done: Done) -> list[task_pb2.TapeBlobTask]:
    return [task_pb2.TapeBlobTask.FromString(task.payload) for task in done.follow_ups]


class FailingCache:
    """An object store that has lost its way to some objects."""

    def __init__(self, cache: ObjectStore, *failing: str) -> None:
        self._cache, self._failing = cache, failing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        if key in self._failing:
            raise from_code("InternalError", 500, key)
        return self._cache.get_range(key, offset, length)

    def stream(self, key: str, offset: int, length: int) -> Iterator[bytes]:
        yield self.get_range(key, offset, length)


def test_a_repeated_take_over_goes_on_with_the_same_claim(store: TapeStore) -> None:
    put, _ = store.put(contents(1000))
    task = claimed(store, put)
    (first,) = attempt(store, put, task, 2).follow_ups
    (second,) = attempt(store, put, task, 3).follow_ups
    assert first == second
    assert store.blob(task.blob_id).state == Blob.REMOVED


def test_a_take_over_whose_claim_was_given_up_leaves_it_to_the_next_plan(store: TapeStore) -> None:
    put, numbers = store.put(contents(1000))
    task = claimed(store, put)
    (follow_up,) = attempt(store, put, task, 2).follow_ups
    again = task_pb2.TapeBlobTask.FromString(follow_up.payload)
    store.client.release_aggregate(again.blob_id)
    assert not attempt(store, put, task, 3).follow_ups
    store.to_tape(put)
    assert store.tiers(numbers["/data/0"]) == [Blob.CACHE, Blob.TAPE]


def test_a_take_over_keeps_the_bytes_of_what_was_recorded_and_lost(store: TapeStore) -> None:
    put, _ = store.put(contents(1000))
    task = claimed(store, put)
    attempt(store, put, task, 1)
    store.client.report_fault(task.blob_id, [], "read badly")
    (confirm,) = attempt(store, put, task, 2).follow_ups
    assert confirm.kind == Task.CONFIRM
    assert store.tape_files() == {task.key}


def test_a_name_that_was_made_and_never_answered_for_is_given_up(store: TapeStore) -> None:
    """As when the connection breaks: the request to make the file is sent again."""
    put, _ = store.put(contents(1000))
    task = claimed(store, put)
    with store.tape.create(task.key) as writer:
        writer.commit()
    with pytest.raises(Unavailable) as refused:
        attempt(store, put, task, 1)
    assert refused.value.reason == "TAPE_FILE_EXISTS"
    (follow_up,) = attempt(store, put, task, 2).follow_ups
    again = task_pb2.TapeBlobTask.FromString(follow_up.payload)
    attempt(store, put, again, 1)
    assert store.tape_files() == {again.key}


def test_an_object_that_alone_cannot_be_read_holds_up_no_other(store: TapeStore) -> None:
    put, numbers = store.put(contents(1000, 200_000, 300_000, 400_000))
    task = claimed(store, put)
    bad = store.cache_blobs(numbers["/data/1"], numbers["/data/3"])
    failing = store.with_(cache=FailingCache(store.cache, *(blob.key for blob in bad)))
    others, alone = payloads(attempt(store, put, task, 1, failing))
    assert [one.id for one in alone.sources] == [blob.id for blob in bad]
    attempt(store, put, others, 1, failing)
    assert store.tape_files() == {others.key}
    assert [len(store.tiers(number)) for number in numbers.values()] == [2, 1, 2, 1]
    # It waits, ever longer, until the object can be read again.
    pauses = []
    for _ in range(3):
        with pytest.raises(Unavailable) as error:
            attempt(store, put, alone, 1, failing)
        assert (error.value.reason, error.value.dependency) == (OBJECT_UNREADABLE, "")
        pauses.append(error.value.retry_after)
        (alone,) = payloads(attempt(store, put, alone, 2, failing))
    assert pauses == [1.0, 2.0, 4.0]
    assert store.open_faults() == []
    attempt(store, put, alone, 1)
    assert store.tape_files() == {others.key, alone.key}
    assert len(store.tiers(numbers["/data/1"])) == 2


def test_a_store_that_reads_nothing_is_no_fault_of_one_object(store: TapeStore) -> None:
    put, numbers = store.put(contents(1000, 200_000))
    task = claimed(store, put)
    keys = [blob.key for blob in store.cache_blobs(*numbers.values())]
    with pytest.raises(Unavailable) as error:
        attempt(store, put, task, 1, store.with_(cache=FailingCache(store.cache, *keys)))
    assert (error.value.reason, error.value.dependency) == (OBJECT_STORE_FAILED, CACHE)
    (again,) = payloads(attempt(store, put, task, 2))
    assert [one.id for one in again.sources] == [one.id for one in task.sources]
