"""The rules of the ledger, case by case."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearline.type.v1.task_pb2 import Task
from nearline.type.v1.transaction_pb2 import Transaction
from services.monitor import rules
from services.monitor.rules import Ending, Limits, Service, Totals, Verdict, Wait

NOW = datetime(2030, 1, 1, 12, 3, tzinfo=UTC)
LIMITS = Limits()


@pytest.mark.parametrize(
    ("totals", "state"),
    [
        (Totals(files_total=2, files_done=2), Transaction.COMPLETE),
        (Totals(files_total=2, files_done=2, warnings=1), Transaction.COMPLETE_WITH_WARNINGS),
        (
            Totals(files_total=2, files_done=1, files_failed=1, warnings=1),
            Transaction.COMPLETE_WITH_ERRORS,
        ),
        (Totals(files_total=2, files_failed=2), Transaction.FAILED),
        (Totals(files_total=1, files_done=1, tasks_failed=1), Transaction.COMPLETE_WITH_ERRORS),
        (Totals(), Transaction.FAILED),
    ],
)
def test_the_final_state_follows_from_the_counts(totals: Totals, state: int) -> None:
    assert rules.final_state(Transaction.GET, totals, cancelled=False) == state
    assert rules.final_state(Transaction.GET, totals, cancelled=True) == Transaction.CANCELLED


def test_the_systems_work_may_find_nothing_to_do() -> None:
    assert rules.final_state(Transaction.EVICT, Totals(), cancelled=False) == Transaction.COMPLETE
    assert (
        rules.final_state(Transaction.EVICT, Totals(tasks_failed=1), cancelled=False)
        == Transaction.FAILED
    )


@pytest.mark.parametrize(
    ("kinds", "state"),
    [
        ({Task.SCAN: 3}, Transaction.INDEXING),
        ({Task.SCAN: 3, Task.UPLOAD: 1}, Transaction.TRANSFERRING),
        ({Task.RESOLVE: 1, Task.STAGE: 1}, Transaction.STAGING),
        ({Task.RECALL: 1, Task.DOWNLOAD: 2}, Transaction.TRANSFERRING),
        ({Task.DOWNLOAD: 0, Task.RECALL: 2}, Transaction.STAGING),
        ({Task.ARCHIVE: 1}, Transaction.ARCHIVING),
        ({Task.EVICT: 1}, Transaction.DELETING),
    ],
)
def test_the_most_advanced_work_is_shown(kinds: dict[int, int], state: int) -> None:
    assert rules.running_state(kinds, begun=True) == state
    assert rules.running_state(kinds, begun=False) == Transaction.QUEUED


def test_every_kind_of_work_has_a_phase() -> None:
    for kind in Task.Kind.values():
        if kind != Task.KIND_UNSPECIFIED:
            assert rules.running_state({kind: 1}, begun=True) != Transaction.QUEUED


@given(st.integers(1, 1000), st.floats(0, 1, exclude_max=True))
def test_retries_wait_longer_up_to_a_limit(attempt: int, jitter: float) -> None:
    delay = rules.retry_delay(attempt, LIMITS, jitter=jitter)
    ceiling = min(300.0, 2.0 ** min(attempt - 1, 20))
    assert ceiling / 2 <= delay <= ceiling
    assert rules.retry_delay(attempt, LIMITS, jitter=jitter, at_least=1000.0) == 1000.0


def test_giving_up_takes_long() -> None:
    assert not rules.gives_up(7 * 86400 - 1, LIMITS)
    assert rules.gives_up(7 * 86400, LIMITS)
    assert not rules.is_poison(9, LIMITS)
    assert rules.is_poison(10, LIMITS)


def test_one_lost_worker_delays_nothing() -> None:
    assert rules.lost_delay(1, LIMITS, jitter=0.5) == 0
    assert rules.lost_delay(4, LIMITS, jitter=0.0) == 2.0


@pytest.mark.parametrize(
    ("current", "token", "ended_token", "ended", "ending", "verdict"),
    [
        (True, 3, 2, Ending.LOST, Ending.COMPLETE, Verdict.APPLY),
        (True, 3, 2, Ending.LOST, None, Verdict.APPLY),
        (False, 3, 3, Ending.COMPLETE, Ending.COMPLETE, Verdict.REPEAT),
        (False, 3, 3, Ending.COMPLETE, None, Verdict.REPEAT),
        (False, 3, 3, Ending.COMPLETE, Ending.FAIL, Verdict.LATE),
        (False, 3, 3, Ending.LOST, Ending.COMPLETE, Verdict.LATE),
        (False, 3, 3, Ending.LOST, None, Verdict.LATE),
        (False, 2, 3, Ending.COMPLETE, Ending.COMPLETE, Verdict.LATE),
    ],
)
def test_only_the_holder_of_the_lease_changes_something(
    current: bool,
    token: int,
    ended_token: int,
    ended: Ending,
    ending: Ending | None,
    verdict: Verdict,
) -> None:
    judged = rules.verdict(
        current=current, token=token, ended_token=ended_token, ended=ended, ending=ending
    )
    assert judged is verdict


@given(st.floats(0, 1e9), st.lists(st.floats(0, 1e4), min_size=1, max_size=50))
def test_virtual_times_grow_by_cost(start: float, costs: list[float]) -> None:
    tags = rules.tags(start, costs)
    assert tags == sorted(tags)
    assert tags[0] > start
    assert len(tags) == len(costs)


def test_warnings_are_kept_once_and_not_without_end() -> None:
    merged = rules.merge_warnings(["a"], ["a", "b", "", "x" * 5000])
    assert merged == ["a", "b", "x" * 1000]
    assert len(rules.merge_warnings([], map(str, range(500)))) == 100  # type: ignore[arg-type]


def waiting(**known: object) -> str:
    given: dict[str, object] = {
        "live_notes": [], "waits": [], "leased": False, "open_by_kind": {}, "services": {},
    }  # fmt: skip
    return rules.waiting_for(now=NOW, **{**given, **known})  # type: ignore[arg-type]


def test_what_is_waited_for_is_said_in_words() -> None:
    soon = NOW + timedelta(seconds=12)
    poll = Wait("tape: 3 of 5 files staged", soon, None)
    retry = Wait("object store unreachable", soon, NOW)
    assert waiting(leased=True, open_by_kind={Task.UPLOAD: 1}) == ""
    assert waiting(live_notes=["a lock"], leased=True) == "a lock"
    assert waiting(waits=[poll]) == "tape: 3 of 5 files staged"
    expected = "object store unreachable; failing since 12:03 UTC, next try in 12 s"
    assert waiting(waits=[retry]) == expected


def test_missing_and_troubled_workers_are_named() -> None:
    ready = {Task.ARCHIVE: 2}
    assert waiting(open_by_kind=ready) == "a tape worker; none is connected"
    busy = {"tape": Service(2, ("tape: no route",))}
    assert waiting(open_by_kind=ready, services=busy) == "a free tape worker"
    sick = {"tape": Service(1, ("tape: no route",))}
    assert waiting(open_by_kind=ready, services=sick) == "a healthy tape worker: tape: no route"
    # What runs already waits for it too, inside of some library.
    assert waiting(open_by_kind=ready, services=sick, leased=True) == "tape: no route"
    gone = {"tape": Service(seen=NOW)}
    expected = "a tape worker; none is connected since 12:03 UTC"
    assert waiting(open_by_kind=ready, services=gone) == expected
