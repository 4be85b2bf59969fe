"""``python -m tests.soak --minutes N [--seed S]``: exits 1 when an invariant was violated."""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
from pathlib import Path

from tests.soak.history import History
from tests.soak.report import Report
from tests.soak.rig import Rig, running_rig
from tests.soak.run import DRAIN_SECONDS, SHORT, Run
from tests.soak.schedule import QUICK, STEADY, schedule


def main() -> int:
    """Run once and print what came of it."""
    # So that what was started is ended, and the logs are kept.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    arguments = _parser().parse_args()
    seconds = arguments.minutes * 60
    if arguments.plan:
        pace = QUICK if seconds < SHORT else STEADY
        print(*schedule(arguments.seed, seconds, pace), sep="\n")
        return 0
    place = arguments.output / f"seed-{arguments.seed}"
    shutil.rmtree(place, ignore_errors=True)
    report = _soak(arguments, seconds, place)
    (place / "report.txt").write_text(report.text() + "\n")
    print(report.text())
    return 1 if report.violations else 0


def _soak(arguments: argparse.Namespace, seconds: float, place: Path) -> Report:
    history = History(place / "history.jsonl", say=lambda text: print(text, flush=True))
    with running_rig() as rig:
        try:
            return Run(rig, arguments.seed, seconds, history, arguments.drain).run()
        finally:
            history.close()
            _keep_logs(rig, place)


def _keep_logs(rig: Rig, place: Path) -> None:
    for name in rig.stack.parts():
        if rig.stack.log_path(name).exists():
            shutil.copy(rig.stack.log_path(name), place)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0, help="how long things go wrong")
    parser.add_argument(
        "--seed", type=int, default=random.randrange(10**6), help="decides faults and choices"
    )
    parser.add_argument(
        "--drain", type=float, default=DRAIN_SECONDS, help="seconds to come to rest afterwards"
    )
    parser.add_argument("--output", type=Path, default=Path("build/soak"))
    parser.add_argument("--plan", action="store_true", help="print the schedule, start nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
