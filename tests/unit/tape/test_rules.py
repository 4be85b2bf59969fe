"""Which blobs form an aggregate, and what becomes of a recall."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearline.type.v1 import storage_pb2, task_pb2
from services.kit.errors import Unavailable
from services.kit.jobs import Done
from services.tape.config import RecallConfig
from services.tape.endpoint import TapeFileState
from services.tape.grouping import Limits, form
from services.tape.recall import (
    MOST_REQUESTS,
    SILENT_POLLS,
    groups,
    poll_pause,
    select,
    sort_out,
    stage,
)

Blob = storage_pb2.Blob
LIMITS = Limits(target_bytes=100, most_members=20, most_blobs=5, flush_seconds=60)


def blobs(*sizes, files=1):
    return [Blob(id=n, size=size, files=files) for n, size in enumerate(sizes, 1)]


@given(st.lists(st.integers(1, 150), max_size=30), st.booleans())
def test_groups_are_full_and_nothing_is_left_behind_for_ever(sizes, late):
    groups_ = list(form(blobs(*sizes), 61 if late else 0, LIMITS))
    met = [blob.id for group in groups_ for blob in group]
    expected = list(range(1, len(sizes) + 1))
    assert met == (expected if late else expected[: len(met)])
    for group in groups_:
        assert len(group) == 1 or sum(blob.size for blob in group) <= LIMITS.target_bytes
        assert len(group) <= LIMITS.most_blobs


def test_a_small_group_waits_for_company():
    assert list(form(blobs(10, 10), 59, LIMITS)) == []
    assert len(list(form(blobs(10, 10), 60, LIMITS))) == 1
    assert len(list(form(blobs(50, 50), 0, LIMITS))) == 1, "a full one does not wait"


def test_members_are_bounded_too():
    assert [len(g) for g in form(blobs(1, 1, 1, files=10), 61, LIMITS)] == [2, 1]


def state(**kinds):
    fields = {
        "path": "p",
        "exists": True,
        "size": None,
        "online": False,
        "on_tape": True,
        "requested": False,
        "error": "",
    }
    return TapeFileState(**{**fields, **kinds})


_OUTCOMES = ("online", "request", "wait", "failing", "unreadable", "missing")


def sort_one(recall, **kinds):
    found = sort_out([recall], [state(**kinds)])
    return next(name for name in _OUTCOMES if getattr(found, name))


def test_every_recall_asks_once_also_for_what_is_online_already():
    recall = task_pb2.RecallTask(blob_id=1)
    assert sort_one(recall, online=True) == "request", "its own reference to the buffer's copy"
    assert sort_one(recall, online=True) == "online"
    assert recall.requests == 1


def test_a_lost_request_is_asked_again():
    recall = task_pb2.RecallTask(blob_id=1)
    assert sort_one(recall) == "request"
    assert [sort_one(recall, requested=True) for _ in range(5)] == ["wait"] * 5
    assert [sort_one(recall) for _ in range(SILENT_POLLS)] == ["wait"] * (SILENT_POLLS - 1) + [
        "request"
    ]
    assert recall.requests == 2


def test_what_the_endpoint_failed_to_bring_back_is_given_up_in_the_end():
    recall = task_pb2.RecallTask(blob_id=1)
    assert sort_one(recall, error="drive broke") == "request", "nobody asked for it yet"
    assert sort_one(recall, error="drive broke") == "failing"
    recall.requests = MOST_REQUESTS
    assert sort_one(recall, error="drive broke") == "unreadable"


def test_a_tape_file_counts_as_missing_only_when_the_endpoint_says_so_repeatedly():
    recall = task_pb2.RecallTask()
    answers = [sort_one(recall, exists=False) for _ in range(SILENT_POLLS)]
    assert answers == ["wait"] * (SILENT_POLLS - 1) + ["missing"]


class Tape:
    """An endpoint of one file, which does not come back; ``others`` lie beside it."""

    def __init__(self, others=(), **kinds):
        self.others, self.kinds = others, kinds

    def stat(self, keys):
        return [state(**self.kinds) for _ in keys]

    def stage(self, keys):
        return dict.fromkeys(keys, "1")

    def list(self):
        return iter(self.others)


class TwoFiles:
    """An endpoint that lost one file and has another, offline."""

    def __init__(self):
        self.asked = []

    def stat(self, keys):
        return [state(exists=key != "lost") for key in keys]

    def stage(self, keys):
        self.asked += keys
        return dict.fromkeys(keys, "1")

    def list(self):
        return iter([])


class Catalog:
    def __init__(self):
        self.reported = []

    def report_fault(self, blob, files, reason):
        self.reported.append(blob)
        return frozenset({1})

    def faults(self, file_ids):
        return []

    def blobs(self, request):
        return []

    def files(self, ranges):
        return [stored(1, 0)]


def a_recall(key, **fields):
    files = [storage_pb2.IdRange(first=1, count=1)]
    return task_pb2.RecallTask(blob_id=7, key=key, files=files, **fields)


def polled(tape, times, recalls=(), catalog=None):
    """The last outcome of a stage, the failures it recorded, and the faults that it reported."""
    failures, catalog = [], catalog or Catalog()
    recalls = recalls or [a_recall("k")]
    payload = task_pb2.StageTask(recalls=recalls).SerializeToString()
    context = SimpleNamespace(
        tape=tape, catalog=catalog, config=SimpleNamespace(recall=RecallConfig())
    )
    ctx = SimpleNamespace(failures=failures.extend)
    for _ in range(times):
        outcome = stage(context, SimpleNamespace(payload=payload), ctx)
        payload = getattr(outcome, "payload", payload)
    return outcome, failures, catalog.reported


def test_an_endpoint_in_trouble_costs_the_request_but_not_the_copy():
    tape = Tape(error="no drive")
    outcomes = [polled(tape, times)[0] for times in range(2, MOST_REQUESTS + 1)]
    pauses = [outcome.delay_seconds for outcome in outcomes]
    assert pauses == sorted(pauses), "it is asked less and less often"
    assert sum(pauses) > 300, "a full buffer has time to become free"
    assert "could not be brought back: no drive; asked 2 times" in outcomes[0].waiting_for
    outcome, failures, faults = polled(tape, MOST_REQUESTS + 1)
    assert isinstance(outcome, Done)
    assert len(failures) == 1
    assert faults == []


def test_what_cannot_be_brought_back_holds_up_no_others():
    tape = TwoFiles()
    tape.stat = lambda keys: [state(error="full" if key == "bad" else "") for key in keys]
    outcome, failures, _ = polled(tape, 1, [a_recall("bad", requests=1), a_recall("k")])
    assert (tape.asked, failures) == (["k"], [])
    assert [one.key for one in task_pb2.StageTask.FromString(outcome.payload).recalls] == ["k"]
    (apart,) = outcome.follow_ups
    assert (apart.kind, apart.files) == (task_pb2.Task.STAGE, 1)
    (bad,) = task_pb2.StageTask.FromString(apart.payload).recalls
    polled(tape, 1, [bad])
    assert tape.asked == ["k", "bad"]


def test_a_copy_that_is_gone_is_forgotten_unless_everything_seems_gone():
    _, failures, faults = polled(Tape(["another"], exists=False), SILENT_POLLS)
    assert len(failures) == 1
    assert faults == [7]
    with pytest.raises(Unavailable, match="mounted"):
        polled(Tape(exists=False), SILENT_POLLS)


def test_a_file_that_is_lost_holds_up_no_others():
    """Not even where the endpoint has to be looked after before anything may count as lost."""
    outcome, failures, faults = polled(TwoFiles(), SILENT_POLLS, [a_recall("lost"), a_recall("k")])
    assert (failures, faults) == ([], [])
    (waits,) = task_pb2.StageTask.FromString(outcome.payload).recalls
    assert waits.key == "k"
    (apart,) = outcome.follow_ups
    assert (apart.kind, apart.files) == (task_pb2.Task.STAGE, 1)
    (lost,) = task_pb2.StageTask.FromString(apart.payload).recalls
    assert (lost.key, lost.silent_polls) == ("lost", SILENT_POLLS)
    with pytest.raises(Unavailable, match="mounted"):
        polled(TwoFiles(), 1, [lost])


def test_nothing_is_asked_of_the_endpoint_by_a_stage_that_fails():
    """Each would be a reference to the endpoint's buffer that nobody gives back."""

    class Down(Catalog):
        def files(self, ranges):
            raise Unavailable("DOWN", "no catalog")

    tape = TwoFiles()
    tape.stat = lambda keys: [state(error="broken" if key == "bad" else "") for key in keys]
    with pytest.raises(Unavailable, match="no catalog"):
        polled(tape, 1, [a_recall("bad", requests=MOST_REQUESTS), a_recall("k")], Down())
    assert tape.asked == []


def test_the_pause_between_polls_is_bounded_however_long_a_recall_waits():
    assert poll_pause(0, 30) == 0.5
    assert poll_pause(100_000, 30) == 30


def stored(number, offset, *, cached=False):
    tape = storage_pb2.Slice(tier=Blob.TAPE, blob_id=7, offset=offset, length=10)
    cache = storage_pb2.Slice(tier=Blob.CACHE, blob_id=1, length=10)
    return storage_pb2.StoredFile(id=number, slices=[cache, tape] if cached else [tape])


def test_only_what_the_cache_lacks_is_read_from_tape_in_its_order():
    wanted = select([stored(1, 500), stored(2, 100), stored(3, 300, cached=True)], 7)
    assert [(one.file.id, one.offset) for one in wanted] == [(2, 100), (1, 500)]


@pytest.mark.parametrize(("most", "expected"), [(10, [1, 1, 1]), (20, [2, 1]), (100, [3])])
def test_reads_are_grouped(most, expected):
    wanted = select([stored(n, n * 10) for n in range(3)], 7)
    assert [len(group) for group in groups(wanted, most)] == expected
