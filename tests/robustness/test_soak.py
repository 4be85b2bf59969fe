"""Users under faults of all kinds, by a seed; every invariant is checked afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.history import History
from tests.soak.rig import Rig
from tests.soak.run import Run

SECONDS = 18.0


@pytest.mark.parametrize("seed", [2, 5])
def test_users_under_faults(rig: Rig, seed: int) -> None:
    history = History(Path("build/soak") / f"ci-{seed}" / "history.jsonl")
    try:
        report = Run(rig, seed, SECONDS, history).run()
    finally:
        history.close()
    print(report.text())
    assert not report.violations, report.text()
