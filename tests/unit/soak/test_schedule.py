"""The schedule of faults: the seed alone decides, and every kind comes early."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.soak.schedule import LINKS, PARTS, QUICK, SERVICES, STEADY, Kind, Pace, schedule

SEEDS = range(20)


@pytest.mark.parametrize("pace", [QUICK, STEADY])
def test_the_seed_decides(pace: Pace) -> None:
    assert schedule(1, 300, pace) == schedule(1, 300, pace)
    assert schedule(1, 300, pace) != schedule(2, 300, pace)


@pytest.mark.parametrize("seed", SEEDS)
def test_faults_of_a_lane_follow_each_other_and_end_in_time(seed: int) -> None:
    faults = schedule(seed, 120, STEADY)
    for lane in {fault.lane for fault in faults}:
        for one, following in pairwise(fault for fault in faults if fault.lane == lane):
            assert one.at + one.seconds <= following.at
    assert all(fault.at + fault.seconds <= 120.1 for fault in faults)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_short_run_meets_every_kind(seed: int) -> None:
    assert {fault.kind for fault in schedule(seed, 30, QUICK)} == set(Kind)


def test_a_long_run_meets_every_victim() -> None:
    faults = schedule(1, 3600, STEADY)
    for kind in (Kind.KILL, Kind.STOP):
        assert {f.victim for f in faults if f.kind is kind} == {*SERVICES, *PARTS}
    assert {f.victim for f in faults if f.kind is Kind.CUT} == set(LINKS)
