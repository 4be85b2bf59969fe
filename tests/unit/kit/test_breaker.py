"""A circuit breaker opens after failures in a row, and closes only when something really worked."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from services.kit.breaker import Breaker, Patience, State


def opened(patience: Patience | None = None) -> Breaker:
    breaker = Breaker(patience or Patience(failures=1))
    breaker.failed("no route", 0.0, 0.0)
    return breaker


def test_it_opens_after_so_many_failures_in_a_row() -> None:
    breaker = Breaker(Patience(failures=3))
    for _ in range(5):
        breaker.failed("slow", 0.0, 0.0)
        breaker.failed("slow", 0.0, 0.0)
        assert breaker.state is State.CLOSED
        breaker.succeeded()
    for _ in range(3):
        breaker.failed("slow", 0.0, 0.0)
    assert breaker.state is State.OPEN


def test_it_says_what_is_wrong_since_when_and_when_it_is_tried_again() -> None:
    before = f"{datetime.now(UTC):%H:%M}"
    breaker = opened(Patience(failures=1, first_pause=60.0, longest_pause=60.0))
    after = f"{datetime.now(UTC):%H:%M}"
    expected = {f"no route since {time} UTC, next try in 20 s" for time in (before, after)}
    assert breaker.trouble(10.0) in expected
    breaker.probed("", 31.0, 0.0)
    assert breaker.trouble(31.0) == ""


def test_what_only_answers_probes_is_left_alone_again_and_longer() -> None:
    breaker = opened(Patience(failures=3, first_pause=1.0, longest_pause=4.0))
    for _ in range(2):
        breaker.failed("full", 0.0, 0.0)
    now, pauses = 0.0, []
    for _ in range(4):
        start = now
        while not breaker.is_due(now):
            now += 0.125
        pauses.append(now - start)
        breaker.probed("", now, 0.0)
        assert breaker.state is State.HALF_OPEN
        breaker.failed("full", now, 0.0)
        assert breaker.state is State.OPEN
    assert pauses == [0.5, 1.0, 2.0, 2.0]


def test_one_real_success_closes_it() -> None:
    breaker = opened()
    breaker.succeeded()  # Of something that began before.
    assert breaker.state is State.OPEN
    breaker.probed("", 1.0, 0.0)
    breaker.succeeded()
    assert (breaker.state, breaker.trouble(1.0)) == (State.CLOSED, "")


@given(st.lists(st.tuples(st.sampled_from("sfpt"), st.floats(0, 100), st.floats(0, 0.99))))
def test_a_probe_comes_in_bounded_time_whatever_happened(
    steps: list[tuple[str, float, float]],
) -> None:
    breaker, now = Breaker(), 0.0
    for what, pause, jitter in steps:
        now += pause
        if what == "s":
            breaker.succeeded()
        elif what == "f":
            breaker.failed("x", now, jitter)
        else:
            breaker.probed("x" if what == "t" else "", now, jitter)
    assert breaker.state is not State.OPEN or breaker.is_due(now + Patience().longest_pause)
