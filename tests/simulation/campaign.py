"""Many histories, as many at a time as there are processors, and what they came to."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context

from tests.simulation.run import Simulation

_AT_ONCE = 20
"""Histories that a process is given at a time."""


@dataclass(slots=True)
class Summary:
    """What all histories came to."""

    seeds: int = 0
    steps: int = 0
    seconds: float = 0.0
    busy: float = 0.0
    """Seconds of CPU."""
    simulated: float = 0.0
    """Seconds on the simulated clock."""
    seen: Counter[str] = field(default_factory=Counter)
    broken: dict[int, str] = field(default_factory=dict)
    """What was wrong, by seed."""

    def __str__(self) -> str:
        seen = ", ".join(f"{count:,} {what}" for what, count in sorted(self.seen.items()))
        return (
            f"{self.seeds:,} seeds, {self.steps:,} steps, {self.simulated / 3600:,.1f} simulated "
            f"hours in {self.seconds:.1f} s ({self.busy:.1f} s of CPU); {seen}; "
            f"{len(self.broken)} broken"
        )

    def failures(self) -> str:
        """What was wrong, and how to see it again."""
        return "\n".join(
            f"seed {seed}: {what}\n  python -m tests.simulation --seed {seed} -v"
            for seed, what in self.broken.items()
        )

    def add(self, history: Summary) -> None:
        """Count one more."""
        self.seeds += history.seeds
        self.steps += history.steps
        self.busy += history.busy
        self.simulated += history.simulated
        self.seen += history.seen
        self.broken |= history.broken


def simulate(seeds: Sequence[int]) -> Summary:
    """Run a history for each seed; goes on behind one that breaks an invariant."""
    summary, began = Summary(), time.monotonic()
    # Begun anew: a fork would copy the locks of whatever threads run here.
    processes = min(os.cpu_count() or 1, -(-len(seeds) // _AT_ONCE))
    with ProcessPoolExecutor(max(processes, 1), get_context("spawn")) as pool:
        for history in pool.map(_history, seeds, chunksize=_AT_ONCE):
            summary.add(history)
    summary.seconds = time.monotonic() - began
    return summary


def _history(seed: int) -> Summary:
    busy, broken = time.process_time(), {}
    simulation = Simulation(seed)
    try:
        simulation.run()
    except Exception as error:
        broken[seed] = f"{type(error).__name__}: {error}"
    return Summary(
        seeds=1, steps=simulation.world.steps, busy=time.process_time() - busy,
        simulated=simulation.world.now, seen=simulation.ledger.seen, broken=broken,
    )  # fmt: skip
