"""``python -m tests.simulation``: run histories of the ledger, or one of them again by steps."""

from __future__ import annotations

import argparse
import sys

from tests.simulation.campaign import simulate
from tests.simulation.run import Simulation


def replay(seed: int, steps: int | None, verbose: bool) -> int:
    """Run one history, up to a step if one is given; raises what breaks in it."""
    simulation = Simulation(seed, print if verbose else None)
    simulation.run(steps)
    print(f"seed {seed}: {simulation.world.steps} steps, all invariants hold")
    return 0


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this history only")
    parser.add_argument("--steps", type=int, help="with --seed: stop after so many steps")
    parser.add_argument("-v", "--verbose", action="store_true", help="with --seed: print a trace")
    parser.add_argument("--seeds", type=int, default=2000, help="how many histories (2000)")
    parser.add_argument("--first", type=int, default=0, help="the first of their seeds (0)")
    options = parser.parse_args()
    if options.seed is not None:
        return replay(options.seed, options.steps, options.verbose)
    summary = simulate(range(options.first, options.first + options.seeds))
    print(f"simulation: {summary}")
    print(summary.failures(), file=sys.stderr)
    return int(bool(summary.broken))


if __name__ == "__main__":
    sys.exit(main())
