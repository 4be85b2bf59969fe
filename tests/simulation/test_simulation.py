"""Two thousand histories of the ledger under faults, each checked after every step."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.simulation.campaign import simulate

SEEDS = 2000


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_invariants_hold_in_two_thousand_histories(
    record_property: Callable[[str, str], None],
) -> None:
    summary = simulate(range(SEEDS))
    record_property("simulation", str(summary))
    assert summary.seeds == SEEDS
    assert not summary.broken, summary.failures()
    for what in (
        "cancelled", "completed or failed", "failed attempts", "late reports", "leases lost",
        "leases lost on the way", "repeated reports", "tasks given up", "requests refused",
        "workers stopped", "replicas stopped", "jumps of the clock", "retries", "tidied",
    ):  # fmt: skip
        assert summary.seen[what] > SEEDS / 10, f"hardly any {what}: the histories are too tame"


def test_a_seed_tells_the_same_history_in_every_process() -> None:
    """Also where Python keeps sets of strings in another order."""
    first, second = trace(seed=7, hashes=1), trace(seed=7, hashes=2)
    assert len(first.splitlines()) > 100
    assert first == second


def trace(seed: int, hashes: int) -> str:
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", "--seed", str(seed), "-v"],
        env={**os.environ, "PYTHONHASHSEED": str(hashes)},
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
