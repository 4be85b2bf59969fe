"""A thousand histories of the ledger under faults, each checked after every step."""

from __future__ import annotations

import pytest

from tests.simulation.campaign import simulate
from tests.simulation.run import Simulation

SEEDS = 1000


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_invariants_hold_in_a_thousand_histories(capsys: pytest.CaptureFixture[str]) -> None:
    summary = simulate(range(SEEDS))
    with capsys.disabled():
        print(f"\nsimulation: {summary}")
    assert not summary.broken, summary.failures()
    for what in (
        "cancelled", "completed or failed", "failed attempts", "late reports", "leases lost",
        "leases lost on the way", "repeated reports", "tasks given up",
    ):  # fmt: skip
        assert summary.seen[what] > SEEDS / 10, f"hardly any {what}: the histories are too tame"


def test_a_seed_always_tells_the_same_history() -> None:
    first: list[str] = []
    second: list[str] = []
    Simulation(7, first.append).run()
    Simulation(7, second.append).run()
    assert first
    assert first == second
