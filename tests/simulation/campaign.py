"""Many histories one after the other, and what they came to."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.simulation.run import Simulation


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


def simulate(seeds: Iterable[int]) -> Summary:
    """Run a history for each seed; goes on behind one that breaks an invariant."""
    summary, began, busy = Summary(), time.monotonic(), time.process_time()
    for seed in seeds:
        simulation = Simulation(seed)
        try:
            simulation.run()
        except Exception as error:
            summary.broken[seed] = f"{type(error).__name__}: {error}"
        summary.seeds += 1
        summary.steps += simulation.world.steps
        summary.simulated += simulation.world.now
        summary.seen += simulation.ledger.seen
    summary.seconds = time.monotonic() - began
    summary.busy = time.process_time() - busy
    return summary
