"""Later attempts of an ARCHIVE task, after an earlier one died at any point."""

from __future__ import annotations

import pytest

from nearline.monitor.v1 import monitor_pb2 as ledger
from nearline.type.v1 import task_pb2
from nearline.type.v1.storage_pb2 import Blob
from nearline.type.v1.task_pb2 import Task
from services.kit.errors import Unavailable
from services.kit.jobs import Done, Job, JobContext
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


def attempt(store: TapeStore, put: Put, task: task_pb2.TapeBlobTask, number: int) -> Done:
    spec = ledger.TransactionSpec(holding_id=put.holding.id, group=GROUP)
    job = Job(1, number, Task.ARCHIVE, task.SerializeToString(), None, number, spec)
    lease = ledger.Lease(task_id=1, token=number)
    outcome = archive(store.context, job, JobContext(lease, lambda _: None))
    assert isinstance(outcome, Done)
    return outcome


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
