"""What enters the queue, when its turn is, and when a replica may take leases back."""

from __future__ import annotations

import pytest

from nearline.type.v1.task_pb2 import Task
from services.kit.jobs import new_task
from services.monitor.queueing import Entry, entry_of, place, without_open
from services.monitor.rules import Hearing, share


def test_new_tasks_take_turns_by_their_cost() -> None:
    entries = [Entry(Task.UPLOAD, cost=cost) for cost in (1.0, 4.0, 0.5)]
    assert place(entries, 10.0) == ([11.0, 15.0, 15.5], 15.5)


def test_what_waits_takes_its_turn_when_it_becomes_ready() -> None:
    entries = [Entry(Task.UPLOAD), Entry(Task.UPLOAD, delay=9.0), Entry(Task.UPLOAD, last=True)]
    assert place(entries, 10.0) == ([11.0, 10.0, 10.0], 11.0)
    assert place(entries[1:], 10.0) == ([10.0, 10.0], 10.0)


def test_unique_work_is_left_out_while_the_like_of_it_is_open() -> None:
    unique, other = (Entry(Task.CONFIRM, key="k", unique=unique) for unique in (True, False))
    elsewhere = Entry(Task.RECALL, key="k", unique=True)
    assert without_open([unique, unique, elsewhere], []) == [unique, elsewhere]
    assert without_open([other, unique], []) == [other]
    assert without_open([unique, other], [(Task.CONFIRM, "k")]) == [other]


@pytest.mark.parametrize("cost", [0.0, -1.0, float("nan"), float("inf")])
def test_a_cost_that_is_none_counts_as_one(cost: float) -> None:
    assert entry_of(new_task(Task.UPLOAD, cost=cost)).cost == 1.0


def test_slots_are_shared_among_kinds() -> None:
    assert [share(10, 3), share(6, 2), share(3, 1), share(1, 3)] == [4, 3, 3, 1]


def test_leases_are_taken_back_only_after_hearing_all_workers_for_a_while() -> None:
    hearing = Hearing(lease=15.0)
    assert [hearing.swept(now, now) for now in (100.0, 107.0, 114.0, 115.0)] == [
        False, False, False, True,
    ]  # fmt: skip
    hearing.interrupted()
    assert not hearing.swept(116.0, 116.0)
    assert hearing.swept(123.0, 123.0) is False
    assert hearing.swept(130.0, 130.0) is False
    assert hearing.swept(131.0, 131.0)
    # A pause of its own: it was stopped, or its loop hung.
    assert not hearing.swept(140.0, 140.0)


@pytest.mark.parametrize("jump", [20.0, -20.0])
def test_a_jump_of_the_clock_gives_workers_the_time_to_be_heard_again(jump: float) -> None:
    hearing = Hearing(lease=15.0)
    before = [hearing.swept(now, 5000.0 + now) for now in (100.0, 107.0, 114.0, 115.0)]
    after = [hearing.swept(now, 5000.0 + now + jump) for now in (116.0, 123.0, 130.0, 131.0)]
    assert before == after == [False, False, False, True]


def test_clocks_drift() -> None:
    hearing = Hearing(lease=15.0)
    assert [hearing.swept(now, 1.001 * now) for now in (100.0, 107.0, 114.0, 121.0)][3]
