"""Files are dealt out to tasks so that several workers have work and none holds a large one up."""

from __future__ import annotations

from nearline.type.v1 import task_pb2
from services.kit import spans
from services.kit.batches import Batches

Task = task_pb2.Task


def _dealt(batches: Batches) -> list[tuple[list[int], int]]:
    payloads = [task_pb2.FilesTask.FromString(task.payload) for task in batches.tasks()]
    return [(list(spans.numbers_of(each.files)), each.bytes) for each in payloads]


def test_tasks_are_bounded_by_files_and_bytes() -> None:
    batches = Batches(Task.DOWNLOAD, most_files=3, most_bytes=100)
    for number, size in enumerate([10, 10, 10, 10, 60, 40, 1], 1):
        batches.add(number, size)
    assert _dealt(batches) == [([1, 2, 3], 30), ([4, 5], 70), ([6, 7], 41)]


def test_a_file_above_the_bound_is_a_task_of_its_own() -> None:
    batches = Batches(Task.DOWNLOAD, most_files=10, most_bytes=100)
    for number, size in enumerate([1, 1000, 1], 1):
        batches.add(number, size)
    assert _dealt(batches) == [([1], 1), ([2], 1000), ([3], 1)]


def test_nothing_makes_no_task() -> None:
    assert Batches(Task.DOWNLOAD, most_files=1, most_bytes=1).tasks() == []
