"""How files are dealt out to tasks."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearline.type.v1 import storage_pb2, task_pb2
from services.kit import spans
from services.transfer.config import EvictConfig
from services.transfer.download import GAP_BYTES, RUN_BYTES, Piece, place, runs
from services.transfer.evict import surplus
from services.transfer.planning import ReadPlan, UploadPlan, without_nested

Attributes = storage_pb2.Attributes
Blob = storage_pb2.Blob
Task = task_pb2.Task
MIB = 1 << 20


def files_of(task):
    return task_pb2.FilesTask.FromString(task.payload)


def stored(number, size=10, kind=Attributes.FILE, slices=()):
    return storage_pb2.StoredFile(
        id=number, path=f"/d/{number}", attributes=Attributes(type=kind, size=size), slices=slices
    )


def cached(blob=1, offset=0, length=10):
    return storage_pb2.Slice(
        tier=Blob.CACHE, blob_id=blob, offset=offset, length=length, key=f"c{blob}"
    )


def taped(blob=9, length=10):
    return storage_pb2.Slice(tier=Blob.TAPE, blob_id=blob, length=length, key=f"t{blob}")


@given(st.lists(st.integers(0, 40 * MIB), max_size=60))
def test_every_file_is_uploaded_once_within_the_limits(sizes):
    plan = UploadPlan(threshold=8 * MIB, pack_bytes=32 * MIB, pack_files=7)
    for number, size in enumerate(sizes, 100):
        plan.add(number, size)
    met = []
    for task in plan.tasks():
        numbers = list(spans.numbers_of(files_of(task).files))
        total = sum(sizes[number - 100] for number in numbers)
        assert task.kind == Task.UPLOAD
        assert len(numbers) <= 7
        assert files_of(task).bytes == total
        small = {sizes[number - 100] < 8 * MIB for number in numbers}
        assert len(small) == 1, "small and large files do not share a task"
        assert len(numbers) == 1 or total <= (32 * MIB if small == {True} else 256 * MIB)
        met += numbers
    assert sorted(met) == list(range(100, 100 + len(sizes)))


@given(st.sets(st.integers(1, 500)))
def test_ranges_are_the_shortest_way_to_say_the_same(numbers):
    ranges = spans.to_ranges(numbers)
    assert set(spans.numbers_of(ranges)) == numbers
    assert spans.count(ranges) == len(numbers)
    ends = [span.first + span.count for span in ranges]
    assert all(end < span.first for end, span in zip(ends, ranges[1:], strict=False))


def test_a_get_reads_the_cache_at_once_and_asks_tape_in_bulk():
    plan = ReadPlan(download=True, most_files=100, most_bytes=MIB)
    assert plan.add(stored(1, slices=[cached(), taped()]))
    assert plan.add(stored(2, slices=[taped(8)]))
    assert plan.add(stored(3, slices=[taped(9)]))
    assert plan.add(stored(4, size=0, kind=Attributes.SYMLINK))
    assert plan.add(stored(5, size=0, kind=Attributes.DIRECTORY))
    assert not plan.add(stored(6)), "a file without any copy cannot be planned"
    by_kind = {task.kind: task for task in plan.tasks()}
    assert set(by_kind) == {Task.DOWNLOAD, Task.STAGE, Task.FINISH_DIRECTORIES}
    assert list(spans.numbers_of(files_of(by_kind[Task.DOWNLOAD]).files)) == [1, 4]
    assert by_kind[Task.FINISH_DIRECTORIES].last
    recalls = task_pb2.StageTask.FromString(by_kind[Task.STAGE].payload).recalls
    assert [(one.blob_id, one.key, one.download) for one in recalls] == [
        (8, "t8", True),
        (9, "t9", True),
    ]


def test_a_get_of_very_many_files_has_a_short_plan():
    plan = ReadPlan(download=True, most_files=2000, most_bytes=1 << 40)
    numbers = list(range(1, 50_001))
    random.Random(5).shuffle(numbers)
    for number in numbers:
        assert plan.add(stored(number, slices=[cached()]))
    tasks = plan.tasks()
    assert len(tasks) == 25
    assert sum(task.ByteSize() for task in tasks) < 3000
    met = [number for task in tasks for number in spans.numbers_of(files_of(task).files)]
    assert sorted(met) == sorted(numbers)


def test_a_stage_needs_nothing_for_what_is_in_the_cache():
    plan = ReadPlan(download=False, most_files=100, most_bytes=MIB)
    plan.add(stored(1, size=7, slices=[cached()]))
    plan.add(stored(2, slices=[taped()]))
    (task,) = plan.tasks()
    assert task.kind == Task.STAGE
    assert [one.bytes for one in plan.at_hand] == [7]


@pytest.mark.parametrize(
    ("paths", "kept"),
    [
        ([b"/a", b"/a"], [b"/a"]),
        ([b"/a/b/c", b"/a", b"/a/b"], [b"/a"]),
        ([b"/a", b"/a-b", b"/ab"], [b"/a", b"/a-b", b"/ab"]),
        ([b"/a-b", b"/a/x", b"/a"], [b"/a", b"/a-b"]),
        ([b"/", b"/a"], [b"/"]),
    ],
)
def test_paths_below_others_are_left_out(paths, kept):
    assert sorted(without_nested(paths)) == sorted(kept)


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 400), st.integers(1, 64)), max_size=40))
def test_runs_cover_every_piece_and_stay_small(places):
    unit = GAP_BYTES // 4
    pieces = [
        Piece(stored(n, size * unit), cached(blob, offset * unit, size * unit))
        for n, (blob, offset, size) in enumerate(places, 1)
    ]
    met = []
    for run in runs(pieces):
        first = run[0].slice
        end = max(piece.slice.offset + piece.slice.length for piece in run)
        assert {piece.slice.blob_id for piece in run} == {first.blob_id}
        assert len(run) == 1 or end - first.offset <= RUN_BYTES
        met += [piece.file.id for piece in run]
    assert sorted(met) == list(range(1, len(places) + 1))


@pytest.mark.parametrize(
    ("target", "expected"),
    [(b"", b"/a/b"), (b"/t", b"/t/a/b"), (b"/t/", b"/t/a/b"), (b"/", b"/a/b")],
)
def test_the_whole_path_is_made_below_the_target(target, expected):
    assert place(target, "/a/b") == expected


@pytest.mark.parametrize(
    ("capacity", "used", "free"), [(0, 10**9, 0), (100, 89, 0), (100, 90, 10), (100, 100, 20)]
)
def test_eviction_starts_high_and_ends_low(capacity, used, free):
    config = EvictConfig(capacity_bytes=capacity, high_watermark=0.9, low_watermark=0.8)
    assert surplus(config, used) == free
