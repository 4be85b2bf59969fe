"""Large work pauses while small work on the host needs the processors, and goes on all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from services.transfer import courtesy
from services.transfer.courtesy import GiveWay, Requests, SmallWork, processors_are_busy, running

NEVER, ALWAYS = (lambda: False), (lambda: True)


class Clock:
    """Time that passes by sleeping only."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.slept = 1000.0, 0.0
        monkeypatch.setattr(courtesy.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(courtesy.time, "sleep", self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds

    def paused(self, give_way: Callable[[], None], *, after: float) -> float:
        """Seconds of a pause after so many of work."""
        self.now += after
        before = self.slept
        give_way()
        return self.slept - before


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def small() -> SmallWork:
    return SmallWork(SmallWork.make())


def test_without_small_work_nobody_pauses(clock: Clock, small: SmallWork) -> None:
    assert clock.paused(GiveWay(small, ALWAYS), after=10.0) == 0


def test_with_a_processor_to_spare_nobody_pauses(clock: Clock, small: SmallWork) -> None:
    with small.going_on():
        assert clock.paused(GiveWay(small, NEVER), after=0.01) == 0


def test_pauses_are_three_quarters_of_the_time_at_most(clock: Clock, small: SmallWork) -> None:
    give_way = GiveWay(small, ALWAYS)
    worked = paused = 0.0
    for _ in range(1000):
        with small.going_on():
            clock.paused(give_way, after=0.0)
            paused += clock.paused(give_way, after=0.02)
            worked += 0.02
    assert paused == pytest.approx(3 * worked, rel=0.2)


def test_no_pause_is_long(clock: Clock, small: SmallWork) -> None:
    with small.going_on():
        assert clock.paused(GiveWay(small, ALWAYS), after=60.0) == 0  # It has ended long ago.
    with small.going_on():
        assert clock.paused(GiveWay(small, ALWAYS), after=0.5) == pytest.approx(0.2, abs=0.01)


def test_a_pause_lasts_a_little_beyond_the_work(clock: Clock, small: SmallWork) -> None:
    """The next small task of the same request is on its way."""
    with small.going_on():
        pass
    assert small.is_going_on()
    clock.now += 0.15
    assert not small.is_going_on()


def test_work_goes_on_until_the_last_of_several_ends(clock: Clock, small: SmallWork) -> None:
    with small.going_on():
        with small.going_on():
            pass
        clock.now += 0.5
        assert small.is_going_on()


def test_other_processes_see_it(small: SmallWork) -> None:
    fd = SmallWork.make()
    program = (
        "import os, sys; from services.transfer.courtesy import SmallWork;"
        "work = SmallWork(int(sys.argv[1])).going_on(); work.__enter__(); os._exit(0)"
    )
    here = SmallWork(fd)
    assert not here.is_going_on()
    subprocess.run([sys.executable, "-c", program, str(fd)], pass_fds=[fd], check=True)
    # It died in the middle of its work, and is not waited for for long.
    assert here.is_going_on()
    assert not small.is_going_on()
    os.close(fd)


def test_threads_that_run_are_counted() -> None:
    assert running("0.52 0.41 0.39 3/412 20117\n") == 3


def test_who_asks_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(courtesy.os, "sched_getaffinity", lambda _: {0})
    assert processors_are_busy()


def test_a_large_request_of_small_tasks_is_not_small() -> None:
    times = iter(range(100))
    requests = Requests(lambda: next(times) * 0.4)
    for _ in range(2):
        assert requests.is_small("many")
        with requests.timed("many"):
            pass
    assert requests.is_small("other")
    with requests.timed("many"):
        pass
    assert not requests.is_small("many")
